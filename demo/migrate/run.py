"""Migrates a program and TinyDB, step by step, as in docs/migrate.rst.

    python demo/migrate/run.py DIRECTORY

DIRECTORY gets a copy of the program and of the installed TinyDB (4.8.2), and a trace of each step:
0.jsonl before the first step, then 1.jsonl and so on. The program prints how many bridges the plan
from 0.jsonl predicts, beside the counted ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, Optional, Tuple

import tinydb

from greenback_trace.report import load
from greenback_trace.report import plan as make_plan

HERE = Path(__file__).resolve().parent
TABLE, DATABASE, STORAGE, ORDERS = (
    "tinydb/table.py",
    "tinydb/database.py",
    "storage.py",
    "orders.py",
)

#: File, function, old text, new text. Without a function, the change is everywhere in the file.
Change = Tuple[str, Optional[str], str, str]


def _async(file: str, function: str) -> Change:
    return file, None, f"    def {function}(", f"    async def {function}("


def _plain(file: str, function: str) -> Change:
    return file, None, f"\ndef {function}(", f"\nasync def {function}("


def _await(file: str, function: str, call: str) -> Change:
    return file, function, call, f"await {call}"


def _wrap(file: str, function: Optional[str], call: str) -> Change:
    return file, function, call, f"await_({call})"


_UPDATE, _CLEAR = "self._update_table(updater)", "self._update_table(lambda table: table.clear())"
STEPS: List[List[Change]] = [
    [
        _plain(ORDERS, "place"),
        _await(ORDERS, "main", 'place(db, f"customer {number % 4}", "tea")'),
        _await(ORDERS, "place", "orders.insert("),
        _async(STORAGE, "read"),
        (STORAGE, "read", "await_(in_thread(self._load))", "await in_thread(self._load)"),
        # The functions of TinyDB that stay sync bridge themselves.
        (TABLE, None, "from .utils import", "from greenback import await_\nfrom .utils import"),
        (DATABASE, None, "from .utils import", "from greenback import await_\nfrom .utils import"),
        _wrap(DATABASE, None, "self.storage.read()"),
        _wrap(TABLE, None, _UPDATE),
        _wrap(TABLE, None, _CLEAR),
        _wrap(TABLE, "upsert", "self.insert(document)"),
        _wrap(TABLE, "_read_table", "self._storage.read()"),
        _async(TABLE, "insert"),
        (TABLE, "insert", f"await_({_UPDATE})", f"await {_UPDATE}"),
        _async(TABLE, "_update_table"),
        _await(TABLE, "_update_table", "self._storage.read()"),
    ],
    [
        _async(STORAGE, "write"),
        (
            STORAGE,
            "write",
            "await_(in_thread(self._path.write_text, json.dumps(data)))",
            "await in_thread(self._path.write_text, json.dumps(data))",
        ),
        _await(TABLE, "_update_table", "self._storage.write(tables)"),
        _wrap(DATABASE, "drop_tables", "self.storage.write({})"),
        _wrap(DATABASE, "drop_table", "self.storage.write(data)"),
    ],
    [
        _await(ORDERS, "place", "confirm(orders, number)"),
        _plain(ORDERS, "confirm"),
        _await(ORDERS, "confirm", "orders.get(doc_id=number)"),
        _wrap(TABLE, None, "self._read_table()"),
        _wrap(TABLE, "contains", "self.get(doc_id=doc_id)"),
        _wrap(TABLE, "contains", "self.get(cond)"),
        _async(TABLE, "get"),
        (TABLE, "get", "await_(self._read_table())", "(await self._read_table())"),
        (TABLE, "get", "await_(self._read_table())", "(await self._read_table())"),
        _async(TABLE, "_read_table"),
        (TABLE, "_read_table", "await_(self._storage.read())", "await self._storage.read()"),
    ],
    [
        _plain(ORDERS, "owed"),
        (ORDERS, "owed", "orders.search(open_orders)", "await orders.search(open_orders)"),
        _await(ORDERS, "main", 'owed(db, f"customer {number % 4}")'),
        _await(ORDERS, "main", 'owed(db, f"customer {each}")'),
        _async(TABLE, "search"),
        (TABLE, "search", "await_(self._read_table())", "(await self._read_table())"),
        _wrap(TABLE, "count", "self.search(cond)"),
    ],
]


def prepare(directory: Path) -> None:
    """Copy the program into *directory*, with a TinyDB to change."""
    for name in (ORDERS, STORAGE):
        shutil.copy(str(HERE / name), str(directory / name))
    shutil.copytree(str(Path(tinydb.__file__).parent), str(directory / "tinydb"))


def apply(directory: Path, changes: List[Change]) -> None:
    for file, function, old, new in changes:
        path = directory / file
        text = path.read_text(encoding="utf-8")
        start = 0 if function is None else text.index(f"def {function}(")
        if old not in text[start:]:
            raise SystemExit(f"{file} has no {old!r}: is it TinyDB 4.8.2?")
        count = -1 if function is None else 1
        path.write_text(text[:start] + text[start:].replace(old, new, count), encoding="utf-8")


def trace(directory: Path, number: int) -> Tuple[Path, str]:
    """Run the program, and return its trace and what it printed."""
    file = directory / f"{number}.jsonl"
    database = directory / f"{number}.json"
    for leftover in (file, database):
        if leftover.exists():
            leftover.unlink()
    environ = dict(os.environ, GREENBACK_TRACE="1", GREENBACK_TRACE_FILE=str(file))
    printed = subprocess.run(
        [sys.executable, str(directory / ORDERS), str(database)],
        env=environ,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    return file, printed


def bridges(file: Path) -> float:
    return load(file).total.bridges


def migrate(directory: Path) -> List[Tuple[float, float]]:
    """The bridges before the first step and after each step: predicted and counted."""
    prepare(directory)
    file, printed = trace(directory, 0)
    plan = make_plan(load(file), roots=[directory])
    results = [(plan.total.bridges, bridges(file))]
    for number, changes in enumerate(STEPS, 1):
        apply(directory, changes)
        file, now_printed = trace(directory, number)
        if now_printed != printed:
            raise SystemExit(f"step {number} printed {now_printed!r} and not {printed!r}")
        results.append((plan.steps[number - 1].bridges_left, bridges(file)))
    return results


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print("step  predicted  counted")
    for step, (predicted, counted) in enumerate(migrate(target)):
        print(f"{step:4}{predicted:11,.0f}{counted:9,.0f}")
