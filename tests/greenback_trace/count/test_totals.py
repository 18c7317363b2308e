"""Exact counts, through the public API."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
import threading
import weakref
from typing import Any, Callable, List

import pytest

import greenback
import greenback_trace
from greenback_trace import Config

METRICS_ONLY = Config(spans="none")


async def nop() -> None:
    pass


def bridge_to_nop() -> None:
    greenback.await_(nop())


class Shop:
    def visit(self) -> None:
        greenback.await_(nop())

    @greenback.autoawait
    async def door(self) -> None:
        pass


class TestBridges:
    def test_outcomes(self, backend: Any) -> None:
        """A bridge counts as ok, as an error, or as cancelled."""

        async def fail() -> None:
            raise ValueError("wrong")

        async def program() -> None:
            bridge_to_nop()
            with pytest.raises(ValueError, match="wrong"):
                greenback.await_(fail())

            async def wait_forever(cancel: Callable[[], None]) -> None:
                async def until_cancelled() -> None:
                    cancel()
                    await backend.sleep(1000)

                await greenback.with_portal_run_sync(greenback.await_, until_cancelled())

            await backend.cancelled_in(wait_forever)

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run, program)
        sites = greenback_trace.snapshot().sites
        assert sum(site.ok for site in sites) == 1
        assert sum(site.errors for site in sites) == 1
        assert sum(site.cancelled for site in sites) == 1
        assert sum(site.bridges for site in sites) == 3

    def test_suspensions(self, backend: Any) -> None:
        """A bridge that waited counts once as suspended, and each of its switches by direction."""

        async def three_times() -> None:
            for _ in range(3):
                await backend.sleep(0)

        def program() -> None:
            greenback.await_(three_times())
            bridge_to_nop()

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, program)
        snapshot = greenback_trace.snapshot()
        assert {site.qualname.rpartition(".")[2]: site.suspended for site in snapshot.sites} == {
            "program": 1,
            "bridge_to_nop": 0,
        }
        assert snapshot.switches == {"to_loop": 3, "to_task": 3}
        for site in snapshot.sites:
            assert site.time >= site.suspended_time
            assert (site.suspended_time > 0) == (site.suspended > 0)

    def test_active(self, backend: Any) -> None:
        """A bridge counts as active while it is under way, under the name of its library."""
        seen = []

        async def look() -> None:
            seen.append(greenback_trace.snapshot().active)

        def program() -> None:
            greenback.await_(look())
            seen.append(greenback_trace.snapshot().active)

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, program)
        assert seen == [{backend.name: 1}, {backend.name: 0}]

    def test_a_bridge_from_before_is_not_counted(self, backend: Any) -> None:
        """Tracing enabled in the middle of a bridge counts only the bridges that begin after it."""

        async def enable() -> None:
            greenback_trace.enable(config=METRICS_ONLY)
            await backend.sleep(0)

        def program() -> None:
            greenback.await_(enable())
            bridge_to_nop()

        backend.run(greenback.with_portal_run_sync, program)
        snapshot = greenback_trace.snapshot()
        assert [site.bridges for site in snapshot.sites] == [1]
        assert snapshot.portals["run_sync"].opened == 1
        assert snapshot.portals["run_sync"].active == 0

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups need 3.11")
    def test_a_group_of_cancellations(self) -> None:
        """The exception group of a cancelled nursery counts as a cancellation, not as an error."""
        trio = pytest.importorskip("trio")

        async def nursery_in_scope() -> None:
            with trio.CancelScope() as scope:

                def program() -> None:
                    async def cancel_inside() -> None:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(trio.sleep_forever)
                            scope.cancel()
                            await trio.sleep_forever()

                    greenback.await_(cancel_inside())

                await greenback.with_portal_run_sync(program)

        greenback_trace.enable(config=METRICS_ONLY)
        trio.run(nursery_in_scope)
        (site,) = greenback_trace.snapshot().sites
        assert (site.ok, site.errors, site.cancelled) == (0, 0, 1)


class TestSites:
    def test_place(self, backend: Any) -> None:
        """A site has the name of the calling function, and the file and line of the call."""
        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        (site,) = greenback_trace.snapshot().sites
        assert site.function == f"{__name__}.bridge_to_nop"
        assert site.qualname == "bridge_to_nop"
        assert site.file == bridge_to_nop.__code__.co_filename
        assert site.line == bridge_to_nop.__code__.co_firstlineno + 1

    def test_two_calls_in_one_function(self, backend: Any) -> None:
        """Two calls of await_ in one function are two sites."""

        def twice() -> None:
            greenback.await_(nop())
            greenback.await_(nop())

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, twice)
        first, second = sorted(greenback_trace.snapshot().sites, key=lambda site: site.line)
        assert second.line == first.line + 1
        assert first.function == second.function

    def test_method(self, backend: Any) -> None:
        """The name of a method begins with its class."""
        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, Shop().visit)
        (site,) = greenback_trace.snapshot().sites
        assert site.qualname == "Shop.visit"

    def test_adapters_are_looked_through(self, backend: Any) -> None:
        """A bridge of an adapter counts for the adapter's caller."""

        class Context:
            async def __aenter__(self) -> None: ...
            async def __aexit__(self, *error: object) -> None: ...

        async def numbers() -> Any:
            yield 1

        def program() -> None:
            Shop().door()
            with greenback.async_context(Context()):
                pass
            for _ in greenback.async_iter(numbers()):
                pass

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, program)
        sites = greenback_trace.snapshot().sites
        assert sum(site.bridges for site in sites) == 5
        assert {site.qualname.rpartition(".")[2] for site in sites} == {"program"}

    def test_limit(self, backend: Any) -> None:
        """Bridges of sites beyond the limit are counted together, under _OTHER."""
        source = "\n".join(f"def f{n}(): await_(nop())" for n in range(5))
        functions: Any = {"await_": greenback.await_, "nop": nop}
        exec(source, functions)

        def program() -> None:
            for _ in range(2):
                for n in range(5):
                    functions[f"f{n}"]()

        greenback_trace.enable(config=Config(spans="none", sites=2))
        backend.run(greenback.with_portal_run_sync, program)
        counts = {site.qualname: site.bridges for site in greenback_trace.snapshot().sites}
        assert counts == {"f0": 2, "f1": 2, "_OTHER": 6}

    def test_code_that_comes_and_goes(self, backend: Any) -> None:
        """A new function whose code has taken the place of an old one in memory is another site."""

        def program() -> None:
            for n in range(50):
                functions: Any = {"await_": greenback.await_, "nop": nop}
                exec(f"def f{n}(): await_(nop())", functions)
                functions[f"f{n}"]()

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, program)
        counts = {site.qualname: site.bridges for site in greenback_trace.snapshot().sites}
        assert counts == {f"f{n}": 1 for n in range(50)}


class TestChains:
    def names(self) -> Any:
        return {
            tuple(
                caller.partition(" ")[0].rpartition(".")[2] for caller in chain.chain
            ): chain.bridges
            for chain in greenback_trace.snapshot().chains
        }

    def test_from_the_async_function_to_the_site(self, backend: Any) -> None:
        """A chain has the sync functions between the nearest async one and the site."""

        def inner() -> None:
            greenback.await_(nop())

        def outer() -> None:
            inner()

        async def between() -> None:
            outer()

        def outermost() -> None:
            greenback.await_(between())
            inner()

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, outermost)
        assert self.names() == {
            ("outermost",): 1,
            ("outer", "inner"): 1,
            ("outermost", "inner"): 1,
        }

    def test_two_calls_on_one_line(self, backend: Any) -> None:
        """Two calls with the same function and line count as one chain."""

        def helper() -> None:
            greenback.await_(nop())

        def page() -> None:
            [helper(), helper()]

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, page)
        (chain,) = greenback_trace.snapshot().chains
        assert chain.bridges == 2
        (site,) = greenback_trace.snapshot().sites
        assert site.bridges == 2

    def test_an_async_site_has_none(self, backend: Any) -> None:
        """A bridge of an async function has no chain: no function would have to become async."""

        async def program() -> None:
            greenback.await_(nop())

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run, program)
        (chain,) = greenback_trace.snapshot().chains
        assert chain.chain == ()
        assert chain.bridges == 1

    def test_depth(self, backend: Any) -> None:
        """Of a deeper chain, the 32 functions next to the site are kept."""

        def deep(n: int) -> None:
            if n:
                deep(n - 1)
            else:
                bridge_to_nop()

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, deep, 50)
        (chain,) = greenback_trace.snapshot().chains
        assert len(chain.chain) == 32
        assert "bridge_to_nop" in chain.chain[-1]

    def test_many(self, backend: Any) -> None:
        """With too many chains to be kept apart, the counts of sites are still exact."""

        def program() -> None:
            for n in range(60):
                functions: Any = {"bridge": bridge_to_nop}
                exec(f"def f{n}(): bridge()", functions)
                functions[f"f{n}"]()

        greenback_trace.enable(config=Config(spans="none", sites=1))
        backend.run(greenback.with_portal_run_sync, program)
        snapshot = greenback_trace.snapshot()
        assert [site.bridges for site in snapshot.sites] == [60]
        assert 2 < len(snapshot.chains) < 60
        (others,) = (chain for chain in snapshot.chains if chain.chain[0] == "_OTHER")
        assert others.bridges > 1

    @pytest.mark.parametrize("is_same", [True, False])
    def test_many_in_many_threads(self, backend: Any, is_same: bool) -> None:
        """Code that short-lived threads compile, such as templates, does not stay in memory."""
        codes = []

        def program(n: int) -> None:
            functions: Any = {"bridge": bridge_to_nop}
            exec(f"def f{'' if is_same else n}(): bridge()", functions)
            (function,) = (value for name, value in functions.items() if name[0] == "f")
            codes.append(weakref.ref(function.__code__))
            function()

        greenback_trace.enable(config=Config(spans="none", sites=1))
        for n in range(60):
            thread = threading.Thread(
                target=backend.run, args=(greenback.with_portal_run_sync, program, n)
            )
            thread.start()
            thread.join()
        gc.collect()
        greenback_trace.snapshot()  # only now does PyPy know that the threads have ended
        snapshot = greenback_trace.snapshot()
        assert [site.bridges for site in snapshot.sites] == [60]
        assert sum(chain.bridges for chain in snapshot.chains) == 60
        assert len(snapshot.chains) == 1 if is_same else 2 < len(snapshot.chains) < 30
        gc.collect()
        assert len([code for code in codes if code() is not None]) < 50


class TestPortals:
    def test_kinds(self, backend: Any) -> None:
        """Portals are counted by kind, with the bridges in them."""

        async def program() -> None:
            await greenback.with_portal_run_sync(bridge_to_nop)
            await greenback.with_portal_run_sync(bridge_to_nop)
            await greenback.ensure_portal()
            bridge_to_nop()
            assert greenback_trace.snapshot().portals["task"].active == 1

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(program)
        portals = greenback_trace.snapshot().portals
        assert set(portals) == {"run_sync", "task"}
        for kind, count in (("run_sync", 2), ("task", 1)):
            assert portals[kind].opened == portals[kind].closed == count
            assert portals[kind].ok == portals[kind].bridges == count
            assert portals[kind].time > 0

    def test_steps(self, backend: Any) -> None:
        """Each run of a portal task between two traps is a step."""

        def program() -> None:
            for _ in range(4):
                greenback.await_(backend.sleep(0))

        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, program)
        (steps,) = greenback_trace.snapshot().steps.values()
        assert steps.steps == 5
        assert steps.time > 0


class TestThreads:
    THREADS = 8
    EACH = 2000

    def test_exact(self) -> None:
        """Eight threads that bridge at once lose no count, and ended threads keep theirs."""
        start = threading.Barrier(self.THREADS)
        snapshots = []

        def program() -> None:
            for n in range(self.EACH):
                bridge_to_nop()
                if n % 500 == 0:
                    greenback.await_(asyncio.sleep(0))
                    snapshots.append(greenback_trace.snapshot())

        def thread() -> None:
            start.wait()
            asyncio.run(greenback.with_portal_run_sync(program))

        greenback_trace.enable(config=METRICS_ONLY)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=thread) for _ in range(self.THREADS)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
        finally:
            sys.setswitchinterval(interval)
        suspending = self.THREADS * len(range(0, self.EACH, 500))
        snapshot = greenback_trace.snapshot()
        assert {site.qualname.rpartition(".")[2]: site.ok for site in snapshot.sites} == {
            "bridge_to_nop": self.THREADS * self.EACH,
            "program": suspending,
        }
        assert snapshot.switches == {"to_loop": suspending, "to_task": suspending}
        assert snapshot.portals["run_sync"].opened == self.THREADS
        assert snapshot.portals["run_sync"].ok == self.THREADS * self.EACH + suspending
        assert snapshot.steps["asyncio"].steps == self.THREADS + suspending
        for earlier in snapshots:
            assert sum(site.ok for site in earlier.sites) <= sum(site.ok for site in snapshot.sites)


class TestSnapshot:
    def test_as_dict(self, backend: Any) -> None:
        """The totals can be written as JSON."""
        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        snapshot = greenback_trace.snapshot()
        parsed = json.loads(json.dumps(snapshot.as_dict()))
        assert parsed["portals"]["run_sync"]["opened"] == 1
        assert parsed["sites"][0]["ok"] == 1
        assert parsed["chains"][0]["chain"] == list(snapshot.chains[0].chain)
        assert parsed["steps"] == {
            backend.name: {"steps": 1, "time": snapshot.steps[backend.name].time}
        }

    @pytest.mark.skipif(sys.implementation.name == "pypy", reason="each collection is a long one")
    def test_while_finalizers_count(self, backend: Any) -> None:
        """A finalizer that runs while a snapshot is taken may bridge."""

        class Litter:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                bridge()

        def bridge() -> None:
            error = type(f"Error{next(numbers)}", (Exception,), {})

            async def fail() -> None:
                raise error

            with pytest.raises(error):
                greenback.await_(fail())

        def program() -> None:
            for _ in range(100):
                bridge()
            thresholds = gc.get_threshold()
            gc.freeze()
            try:
                for threshold in range(1, 1_000, 20):
                    gc.collect()  # with no freed object to reuse, each new one counts
                    gc.disable()
                    Litter()
                    gc.set_threshold(threshold)
                    gc.enable()
                    snapshots.append(greenback_trace.snapshot())
            finally:
                gc.set_threshold(*thresholds)
                gc.enable()
                gc.unfreeze()
            gc.collect()

        numbers = itertools.count()
        snapshots: List[Any] = []
        # No trace function meanwhile: the objects that it makes can start a collection.
        greenback_trace.enable(config=Config(spans="none", slow=60))
        backend.run(greenback.with_portal_run_sync, program)
        counts = [sum(site.errors for site in snapshot.sites) for snapshot in snapshots]
        assert counts == sorted(counts)
        assert counts[-1] > 0
        assert sum(site.errors for site in greenback_trace.snapshot().sites) == next(numbers)

    def test_after_disable(self, backend: Any) -> None:
        """Disabling keeps the totals; enabling again starts at zero."""
        greenback_trace.enable(config=METRICS_ONLY)
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        greenback_trace.disable()
        backend.run(greenback.with_portal_run_sync, bridge_to_nop)
        assert [site.ok for site in greenback_trace.snapshot().sites] == [1]
        greenback_trace.enable(config=METRICS_ONLY)
        assert greenback_trace.snapshot().sites == ()
