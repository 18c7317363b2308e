"""The bottom layer of TinyDB, with bridges: a thread reads the file of its database."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Dict, Optional

from tinydb.storages import Storage

from greenback import await_


class AwaitingStorage(Storage):
    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def read(self) -> Optional[Dict[str, Any]]:
        return await_(in_thread(self._load))

    def write(self, data: Dict[str, Any]) -> None:
        await_(in_thread(self._path.write_text, json.dumps(data)))

    def _load(self) -> Optional[Dict[str, Any]]:
        return json.loads(self._path.read_text()) if self._path.exists() else None


async def in_thread(function, *args):
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)
