"""Show the memory that tracing keeps: none for a bridge, and little for a site.

Run it as ``.venv/bin/python benchmarks/memory.py``; it takes minutes. An SDK collects metrics every
second, spans have their default rate, and both go nowhere.

First come bridges in several tasks, some of which suspend and some of which fail, each time ten
times as many. After a garbage collection, each line shows the number of allocated objects and the
size of the process. Then come sites: the bytes that each site adds, by the package that allocated
them (`tracemalloc`). Each site has its own chain of sync functions.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import tracemalloc
from itertools import repeat
from typing import Any, Callable, Dict, List

import structlog
from tracing_worker import new_meter_provider, new_tracer_provider

import greenback
import greenback_trace

PACKAGES = ("greenback", "greenback_trace", "opentelemetry")
CHAINS = (1, 4, 16)
LIMIT_PER_SITE = 2048
#: The size of the process may vary by so many bytes between two collections.
TOLERATED = 1_000_000


async def nop() -> None:
    pass


async def fail() -> None:
    raise ValueError("as some bridges do")


def bridges(count: int) -> None:
    """Bridges: of ten, eight do not suspend, one does, and one fails."""
    await_ = greenback.await_
    for _ in repeat(None, count // 10):
        for _ in repeat(None, 8):
            await_(nop())
        await_(asyncio.sleep(0))
        try:
            await_(fail())
        except ValueError:
            pass


async def in_tasks(count: int, tasks: int = 10) -> None:
    async def task() -> None:
        await greenback.with_portal_run_sync(bridges, count // tasks)

    await asyncio.gather(*(task() for _ in repeat(None, tasks)))


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def show_bridges(most: int) -> bool:
    print(f"{'bridges':>12}{'objects':>12}{'resident kB':>14}")
    sizes: List[int] = []
    done = 0
    for total in [10**power for power in range(4, 12) if 10**power < most] + [most]:
        asyncio.run(in_tasks(total - done))
        done = total
        gc.collect()
        sizes.append(resident())
        print(f"{total:>12,}{sys.getallocatedblocks():>12,}{sizes[-1] // 1000:>14,}", flush=True)
    counted = sum(site.ok + site.errors for site in greenback_trace.snapshot().sites)
    # Before the last line, everything that is made only once has been made.
    gained = sizes[-1] - sizes[-2]
    met = gained < TOLERATED and counted == done
    print(
        f"gained by the last {most - most // 10:,}: {gained / 1000:,.0f} kB "
        f"(wanted: none, to {TOLERATED // 1000:,} kB); counted: {counted:,}  {verdict(met)}\n"
    )
    return met


def new_sites(count: int, chain: int) -> List[Callable[[], None]]:
    """Functions that bridge at the end of a chain of *chain* functions."""
    sites = []
    for number in range(count):
        names: Dict[str, Any] = {"await_": greenback.await_, "nop": nop, "__name__": "sites"}
        lines = [f"def site_{number}_{chain}():", "    await_(nop())"]
        for depth in range(1, chain):
            inner = "site" if depth == 1 else f"caller_{depth - 1}"
            lines += [f"def caller_{depth}_{number}_{chain}():", f"    {inner}_{number}_{chain}()"]
        exec("\n".join(lines), names)
        outermost = "site" if chain == 1 else f"caller_{chain - 1}"
        sites.append(names[f"{outermost}_{number}_{chain}"])
    return sites


def call_all(sites: List[Callable[[], None]]) -> None:
    for site in sites:
        site()


def by_package() -> Dict[str, int]:
    sizes = dict.fromkeys(PACKAGES, 0)
    for statistic in tracemalloc.take_snapshot().statistics("filename"):
        for package in PACKAGES:
            if f"{os.sep}{package}{os.sep}" in statistic.traceback[0].filename:
                sizes[package] += statistic.size
                break
    return sizes


def show_sites(count: int) -> bool:
    print(f"{'bytes per site':<24}{'ours':>12}{'of the SDK':>12}")
    all_met = True
    for chain in CHAINS:
        sites = new_sites(count, chain)
        # Call them once untraced: Python itself keeps something of a function that has run.
        asyncio.run(run_in_portal(call_all, sites))
        meter_provider = enable(sites=2 * count)
        asyncio.run(run_in_portal(call_all, sites[:10]))
        meter_provider.force_flush()
        tracemalloc.start()
        before = collected()
        asyncio.run(run_in_portal(call_all, sites))
        meter_provider.force_flush()
        after = collected()
        tracemalloc.stop()
        ours, the_sdks = (
            sum(after[package] - before[package] for package in packages) / (count - 10)
            for packages in (PACKAGES[:2], PACKAGES[2:])
        )
        # The limit is for a site. A longer chain has more code to remember.
        met = ours < LIMIT_PER_SITE
        all_met &= met
        title = f"a chain of {chain}"
        print(f"{title:<24}{ours:>12,.0f}{the_sdks:>12,.0f}  {verdict(met)}", flush=True)
        greenback_trace.disable()
        meter_provider.shutdown()
    print(f"(wanted of ours: below {LIMIT_PER_SITE:,})")
    return all_met


async def run_in_portal(function: Callable[..., None], *args: Any) -> None:
    await greenback.with_portal_run_sync(function, *args)


def collected() -> Dict[str, int]:
    gc.collect()
    return by_package()


def enable(sites: int = 500) -> Any:
    meter_provider = new_meter_provider()
    greenback_trace.enable(
        config=greenback_trace.Config(sites=sites),
        tracer_provider=new_tracer_provider(),
        meter_provider=meter_provider,
    )
    return meter_provider


def verdict(met: bool) -> str:
    return "yes" if met else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bridges", type=int, default=10**7)
    parser.add_argument("--sites", type=int, default=1000)
    numbers = parser.parse_args()
    # Bridges that do not suspend hold the loop for seconds here. No slow-step events, please.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    meter_provider = enable()
    show_bridges(numbers.bridges)
    greenback_trace.disable()
    meter_provider.shutdown()
    show_sites(numbers.sites)


if __name__ == "__main__":
    main()
