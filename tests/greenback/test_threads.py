"""Loops in several threads, trace functions, and the recursion limit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

import greenback
from greenback._engine import bridge as _bridge
from greenback._tree import scopes
from greenback.instruments import Instrument, add_instrument, remove_instrument
from tests import sampling

from ..interleaving import CAN_STOP, at_each_instruction


class TestThreads:
    def test_eight_loops_at_once(self, backend):
        """Eight threads bridge at the same time, each to its own loop and in its own context."""
        results, errors = [], []
        barrier = threading.Barrier(8)

        def in_thread(name):
            async def task():
                await greenback.ensure_portal()
                for _ in range(50):
                    greenback.await_(backend.checkpoint())
                    assert threading.get_ident() == ident
                results.append(name)

            async def main():
                await backend.together(*[task] * 10)

            ident = threading.get_ident()
            barrier.wait()
            try:
                backend.run(main)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=in_thread, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert sorted(results) == [i for i in range(8) for _ in range(10)]

    def test_thread_ends_with_parked_workers(self):
        """A thread may end while its tasks are parked in bridges, and others go on."""
        # In a process of its own: what is collected later, perhaps in another test, cannot go on in
        # the greenlets of a thread that has ended.
        program = """
import asyncio, threading
import greenback

async def parked():
    await greenback.ensure_portal()
    greenback.await_(asyncio.get_running_loop().create_future())

async def main():
    tasks = [asyncio.ensure_future(parked()) for _ in range(10)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    print("parked", flush=True)

def in_thread():
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(main())
    loop.close()

thread = threading.Thread(target=in_thread)
thread.start()
thread.join()
asyncio.run(greenback.with_portal_run_sync(greenback.await_, asyncio.sleep(0)))
print("went on", flush=True)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "parked\nwent on\n"), done.stderr[-2000:]


class TestMeetings:
    @pytest.mark.skipif(not CAN_STOP, reason="trace functions are not told of instructions")
    def test_instruments_go(self):
        """A program does not notice that another thread removes an instrument, at any moment."""

        def prepare(turns):
            async def nap():
                await asyncio.sleep(0)

            def bridge():
                greenback.await_(nap())
                ran.append("bridged")

            async def child():
                await greenback.with_portal_run_sync(bridge)

            async def main():
                await greenback.ensure_portal()
                bridge()
                task = asyncio.ensure_future(child())
                greenback.bestow_portal(task)
                await task
                await asyncio.ensure_future(child())

            ran = []
            instrument = Watching()
            add_instrument(instrument)
            return (
                lambda: asyncio.run(main()),
                lambda: remove_instrument(instrument),
                lambda: ran.remove("bridged"),
            )

        class Watching(Instrument):
            def portal_opened(self, portal):
                pass

            def portal_closed(self, portal):
                pass

        at_each_instruction(prepare, _bridge, numbers=sampling.instructions())

    @pytest.mark.skipif(not CAN_STOP, reason="trace functions are not told of instructions")
    def test_first_scopes_of_two_runs(self, monkeypatch):
        """Two Trio runs whose first scopes are entered at once keep their instruments in one place.

        What a run has set would be lost, if the other one made another place for it.
        """

        def prepare(turns):
            def enter():
                places.append(scopes._instrument_of_run())

            def look():
                first, second = places
                assert first is second

            places = []
            monkeypatch.setattr(scopes, "_run_vars", {})
            return enter, enter, look

        at_each_instruction(prepare, scopes)


class TestTracing:
    @pytest.mark.parametrize("setter", [sys.settrace, sys.setprofile])
    def test_code_in_a_portal_is_seen(self, backend, setter):
        """Trace and profile functions see the calls of a task with a portal, also after a wait."""

        def before():
            pass

        def after():
            pass

        async def main():
            await greenback.ensure_portal()
            previous = sys.gettrace() if setter is sys.settrace else sys.getprofile()
            setter(note)
            try:
                before()
                greenback.await_(backend.checkpoint())
                after()
            finally:
                setter(previous)

        def note(frame, event, arg):
            seen.append((frame.f_code.co_name, event))
            return note if setter is sys.settrace else None

        seen = []
        backend.run(main)
        assert ("before", "call") in seen
        assert ("after", "call") in seen

    def test_leftover_trace_is_not_passed_on(self, asyncio_backend):
        """A trace function that one portal's work leaves on outer frames sees no other portal's."""

        def first():
            frame = sys._getframe().f_back
            while frame is not None:
                frame.f_trace = note
                frame = frame.f_back

        def note(frame, event, arg):
            seen.append(frame.f_code.co_name)
            return note

        def second():
            seen_by.append(greenback.await_(asyncio.sleep(0, 5)))
            frame, left = sys._getframe().f_back, []
            while frame is not None:
                if frame.f_trace is note:
                    left.append(frame.f_code.co_name)
                frame = frame.f_back
            return left

        async def leave():
            await greenback.with_portal_run_sync(first)

        async def look():
            return await greenback.with_portal_run_sync(second)

        async def main():
            await asyncio.ensure_future(leave())
            return await asyncio.ensure_future(look())

        def all_frames_of_this_thread():
            frame = sys._getframe()
            while frame is not None:
                yield frame
                frame = frame.f_back

        seen, seen_by = [], []
        try:
            left = asyncio_backend.run(main)
        finally:
            for frame in all_frames_of_this_thread():
                if frame.f_trace is note:
                    frame.f_trace = None
        assert "work" not in left
        assert seen_by == [5]


class TestRecursion:
    def test_deep_birthplace(self, asyncio_backend):
        """After a portal opened deep in the stack, the next one can recurse as deep as any."""

        def dive(n):
            return 0 if n == 0 else 1 + dive(n - 1)

        def deep(n):
            if n:
                return deep(n - 1)
            # A second loop, so that its workers are born here.
            loop = asyncio.new_event_loop()
            try:
                return loop.run_until_complete(greenback.with_portal_run_sync(greenback.has_portal))
            finally:
                loop.close()

        async def shallow():
            return await greenback.with_portal_run_sync(dive, sys.getrecursionlimit() - 400)

        def in_thread():
            try:
                assert deep(sys.getrecursionlimit() - 300)
                outcome.append(asyncio_backend.run(shallow))
            except BaseException as error:
                outcome.append(error)

        outcome = []
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert outcome == [sys.getrecursionlimit() - 400]


class TestCollection:
    def test_threads_end_during_a_collection(self) -> None:
        """Threads with portals may end while the garbage collector runs in another thread."""
        program = """
import asyncio, gc, threading
import greenback

async def nap():
    await asyncio.sleep(0)

def cancelled():
    task = asyncio.current_task()
    task.cancel()
    try:
        greenback.await_(nap())
    except asyncio.CancelledError as error:
        kept = error  # with its traceback, and so this frame: a cycle
    if hasattr(task, "uncancel"):
        task.uncancel()

def calls():
    cancelled()

async def work():
    for _ in range(60):
        await greenback.with_portal_run_sync(calls)

is_over = threading.Event()

def collect():
    while not is_over.wait(0.02):
        gc.collect()

for _ in range(60):
    collector = threading.Thread(target=collect)
    collector.start()
    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_over.set()
    collector.join()
    is_over.clear()
    gc.collect()
print("survived")
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stdout == "survived\n", done.stderr[-2000:]
