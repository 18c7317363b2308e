"""The program that debuggers are tried on.

A visitor's sync code bridges, while the portal of a stranger's task, which the debugger has not
been asked to stop in, runs in the same loop.
"""

from __future__ import annotations

from pathlib import Path

from .processes import write

_SOURCE = """
    import asyncio

    import greenback
    from greenback import await_


    turns = 0
    found = []


    async def others():
        before = turns
        while turns < before + 2:
            await asyncio.sleep(0)


    async def fetch(item):
        await others()
        price = {"tea": 3}[item]
        return price


    def total(items):
        amount = 0
        BREAK
        for item in items:
            amount += await_(fetch(item))
        return amount


    def page(items):
        answer = total(items)
        return answer


    async def visitor(items):
        answer = await greenback.with_portal_run_sync(page, items)
        return answer


    async def ensured(items):
        await greenback.ensure_portal()
        answer = page(items)
        return answer


    def strange():
        global turns
        MORE
        await_(asyncio.sleep(0))
        turns += 1
        print("stranger", turns)


    async def stranger():
        await greenback.ensure_portal()
        while not found:
            strange()


    async def main(visitor):
        stranger_task = asyncio.ensure_future(stranger())
        found.append(await visitor([WANTED]))
        await stranger_task
        print("found", found)


    asyncio.run(main(VISITOR))
"""


def write_program(
    folder: Path,
    stop: str = "pass",
    visitor: str = "visitor",
    wanted: str = "tea",
    more: str = "pass",
) -> Path:
    """Write it to a file.

    Args:
        folder: Where.
        stop: The statement in ``total``, before it bridges.
        visitor: ``"visitor"``, in a `greenback.with_portal_run_sync`, or ``"ensured"``.
        wanted: What ``fetch`` is asked for; it has only tea.
        more: A statement of the stranger's.
    """
    source = _SOURCE
    for name, text in (
        *(("BREAK", stop), ("VISITOR", visitor), ("WANTED", repr(wanted)), ("MORE", more)),
    ):
        source = source.replace(name, text)
    return write(folder / "program.py", source)
