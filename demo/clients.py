"""Templates and rows for the rendering, fetched through greenback: the only module that bridges.

In a program for threads, `get` would call urllib and `run` would call sqlite3. Here both work on
asyncio and on Trio, since httpx and anyio do.
"""

from __future__ import annotations

import sqlite3
from typing import Any, List, Optional, Tuple

import anyio
import anyio.to_thread
import httpx
from rendering import Answer

import greenback


class TemplateServer:
    """Templates over HTTP."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    def get(self, path: str, etag: Optional[str] = None) -> Answer:
        headers = {} if etag is None else {"If-None-Match": etag}
        response = greenback.await_(self._client.get(path, headers=headers))
        return Answer(response.status_code, response.headers.get("ETag", ""), response.text)


class Database:
    """Connections to SQLite, each used by one worker thread at a time."""

    def __init__(self, path: str, connections: int = 4) -> None:
        # The statements that SQLite says it has run. Any worker thread appends to this list.
        self._statements: List[str] = []
        # Worker threads take connections from here, and return them.
        self._idle = [self._connect(path) for _ in range(connections)]
        self._at_once = anyio.CapacityLimiter(connections)

    @property
    def statements(self) -> int:
        return len(self._statements)

    def run(self, statement: str, *parameters: Any) -> List[Tuple[Any, ...]]:
        return greenback.await_(
            anyio.to_thread.run_sync(self._execute, statement, parameters, limiter=self._at_once)
        )

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    def _connect(self, path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=60, check_same_thread=False, isolation_level=None
        )
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.set_trace_callback(self._statements.append)
        return connection

    def _execute(self, statement: str, parameters: Tuple[Any, ...]) -> List[Tuple[Any, ...]]:
        connection = self._idle.pop()
        try:
            return connection.execute(statement, parameters).fetchall()
        finally:
            self._idle.append(connection)
