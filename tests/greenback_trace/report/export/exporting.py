"""A program, its trace, and the exports of the trace."""

from __future__ import annotations

import sys
from typing import Any

from click.testing import CliRunner, Result

from greenback_trace.cli import main

PROGRAM = """
import asyncio
import time

import greenback
from greenback import await_


class Prices:
    def __init__(self):
        self.rate = await_(fetch(1))

    def __getitem__(self, item):
        return await_(fetch(item))


async def fetch(value):
    await asyncio.sleep(0.001)
    return value


async def known():
    return 1


async def missing():
    raise KeyError("milk")


def bill(items):
    prices = Prices()
    total = sum(prices[item] for item in items)
    await_(known())
    try:
        await_(missing())
    except KeyError:
        pass
    time.sleep(0.02)
    return total


async def order(items):
    return await greenback.with_portal_run_sync(bill, items)


def outer():
    return await_(order([1]))


async def long_lived():
    await greenback.ensure_portal()
    bill([1])
    await asyncio.sleep(0.001)
    await_(known())


async def main():
    twins = [asyncio.create_task(order([1, 2, 3]), name="order") for _ in range(2)]
    await asyncio.gather(*twins)
    await asyncio.create_task(greenback.with_portal_run_sync(outer), name="nested")
    await asyncio.create_task(long_lived(), name="long")


asyncio.run(main())
"""


#: Since 3.11 code objects have qualified names.
GENEXPR = "bill.<locals>.<genexpr>" if sys.version_info >= (3, 11) else "<genexpr>"


#: The program prints four bills, for three, three, one and one items.
BRIDGES = {
    "__main__.bill": 8,
    "__main__.bill;__main__.Prices.__init__": 4,
    f"__main__.bill;__main__.{GENEXPR};__main__.Prices.__getitem__": 8,
    "__main__.outer": 1,
    "__main__.long_lived": 1,
}


def export(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def exported(*arguments: Any) -> bytes:
    result = export(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout_bytes
