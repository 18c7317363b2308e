"""Tasks of all makes: eager, Python-implemented, subclasses; and bestowing in all their states."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import signal
import struct
import subprocess
import sys
import time
import warnings
import weakref

import pytest
import sniffio

import greenback
from greenback.instruments import Portal

from ..conftest import BACKENDS

needs_eager = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio has eager tasks since Python 3.12"
)
needs_c_tasks = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="PyPy has no tasks written in C"
)

needs_refcounts = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="PyPy does not free objects at once"
)

#: Not where tasks are written in C, from 3.14 on: `asyncio.current_task()` is None in others.
KNOWS_PYTHON_TASKS = sys.version_info < (3, 14) or platform.python_implementation() == "PyPy"


@needs_eager
class TestEagerTasks:
    @staticmethod
    def run(asyncio_backend, main):
        def factory(loop, coroutine, *, name=None, context=None, **newer):
            # uvloop passes `eager_start`, which the factories of older Pythons do not take.
            return asyncio.eager_task_factory(loop, coroutine, name=name, context=context)

        async def with_factory():
            asyncio.get_running_loop().set_task_factory(factory)
            return await main()

        return asyncio_backend.run(with_factory)

    @pytest.mark.parametrize("inside_worker", [False, True])
    @pytest.mark.parametrize("opener", ["ensure_portal", "with_portal_run", "with_portal_run_sync"])
    def test_portal_in_the_first_step(self, asyncio_backend, opener, inside_worker):
        """A portal opened in the eager first step serves the task from then on."""
        order, mine = [], {}

        def sync(name):
            for i in range(3):
                greenback.await_(asyncio.sleep(0))
                order.append((name, i, asyncio.current_task() is mine[name]))

        async def child(name):
            mine[name] = asyncio.current_task()
            if opener == "ensure_portal":
                await greenback.ensure_portal()
                sync(name)
            elif opener == "with_portal_run_sync":
                await greenback.with_portal_run_sync(sync, name)
            else:

                async def work():
                    sync(name)

                await greenback.with_portal_run(work)
            return name

        async def main():
            def start():
                return [asyncio.get_running_loop().create_task(child(n)) for n in "ab"]

            if inside_worker:
                await greenback.ensure_portal()

                def both():
                    tasks = start()
                    return greenback.await_(asyncio.gather(*tasks))

                result = both()
                assert greenback.has_portal()
            else:
                result = await asyncio.gather(*start())
                assert not greenback.has_portal()
            assert result == ["a", "b"]

        self.run(asyncio_backend, main)
        assert sorted(order) == [(n, i, True) for n in "ab" for i in range(3)]

    def test_bestow_on_one_that_finished_at_once(self, asyncio_backend):
        """A task that ended in its eager first step is done, and bestowing does nothing."""

        async def nop():
            return 5

        async def main():
            task = asyncio.get_running_loop().create_task(nop())
            assert task.done()
            greenback.bestow_portal(task)
            assert not greenback.has_portal(task)
            assert await task == 5

        self.run(asyncio_backend, main)

    def test_bestow_on_one_that_is_parked(self, asyncio_backend):
        """A task that waits after its eager first step can bridge from its next step on."""

        async def child():
            await asyncio.sleep(0)
            greenback.await_(asyncio.sleep(0))
            return 5

        async def main():
            task = asyncio.get_running_loop().create_task(child())
            greenback.bestow_portal(task)
            assert await task == 5

        self.run(asyncio_backend, main)


class TestKindsOfTask:
    @pytest.mark.parametrize("way", ["ensure", "bestow"])
    @pytest.mark.parametrize("kind", ["python", "subclass", "slot", "attribute"])
    def test_bridges(self, asyncio_backend, kind, way):
        """Tasks made in Python and subclasses of tasks get portals, whatever else they refer to."""

        class Slot(asyncio.Task):
            __slots__ = ("mine",)

        class Subclass(asyncio.Task):
            pass

        def factory(loop, coroutine, **kwds):
            if kind == "python":
                return asyncio.tasks._PyTask(coroutine, loop=loop, **kwds)
            task = (Slot if kind == "slot" else Subclass)(coroutine, loop=loop, **kwds)
            if kind != "subclass":
                task.mine = coroutine
            return task

        async def child():
            if way == "ensure":
                await greenback.ensure_portal()
            greenback.await_(asyncio.sleep(0))
            return asyncio.current_task()

        async def main():
            asyncio.get_running_loop().set_task_factory(factory)
            task = asyncio.get_running_loop().create_task(child())
            if way == "bestow":
                try:
                    greenback.bestow_portal(task)
                except RuntimeError:
                    task.cancel()
                    raise
            assert await task is task

        if kind == "python" and not KNOWS_PYTHON_TASKS:
            # asyncio itself does not know then that a task is running.
            expected = sniffio.AsyncLibraryNotFoundError if way == "ensure" else RuntimeError
            with pytest.raises(
                expected, match="context" if way == "ensure" else "use asyncio.Task"
            ):
                asyncio_backend.run(main)
        else:
            asyncio_backend.run(main)

    @pytest.mark.skipif(KNOWS_PYTHON_TASKS, reason="such a task gets a portal here")
    def test_unknown_to_asyncio(self, asyncio_backend):
        """A task that asyncio does not know of while it runs goes on without a portal."""

        def factory(loop, coroutine, **kwds):
            return asyncio.tasks._PyTask(coroutine, loop=loop, **kwds)

        async def child():
            await asyncio.sleep(0)
            return greenback.has_portal()

        async def main():
            asyncio.get_running_loop().set_task_factory(factory)
            async with greenback.portals_for_tree():
                task = asyncio.get_running_loop().create_task(child())
                assert await task is False
                assert not greenback.has_portal(task)

        asyncio_backend.run(main)

    def test_task_like_object(self, asyncio_backend):
        """A task that keeps its coroutine elsewhere is refused, and with_portal_run is named."""

        class Odd(asyncio.tasks._PyTask):
            @property
            def _coro(self):
                return self.elsewhere

            @_coro.setter
            def _coro(self, value):
                if "elsewhere" in self.__dict__:
                    raise AttributeError("read-only")
                self.elsewhere = value

        async def child():
            await asyncio.sleep(0)
            return 5

        async def main():
            task = Odd(child(), loop=asyncio.get_running_loop())
            remedy = "with_portal_run" if KNOWS_PYTHON_TASKS else "use asyncio.Task"
            with pytest.raises(RuntimeError, match=remedy):
                greenback.bestow_portal(task)
            assert not greenback.has_portal(task)
            assert await task == 5
            with pytest.raises(TypeError, match="not a task"):
                greenback.bestow_portal(object())

        asyncio_backend.run(main)


class TestBestowOnOneself:
    def test_and_end_without_a_step(self, backend):
        """A task that bestows a portal on itself and ends at once leaves no portal behind."""
        tasks = []

        async def child():
            tasks.append(backend.current_task())
            greenback.bestow_portal(tasks[-1])

        async def main():
            await backend.together(*[child] * 5)
            await child()
            await backend.checkpoint()
            assert [greenback.has_portal(task) for task in tasks] == [False] * 5 + [True]
            del tasks[:]
            if platform.python_implementation() == "PyPy":
                return 1  # it frees them in its own time
            for _ in range(100):
                gc.collect()  # does nothing while another thread, as the SDK's, is collecting
                left = count_left()
                if left == 1:
                    break
                time.sleep(0.01)
            return left

        def count_left():
            portals = [thing for thing in gc.get_objects() if type(thing) is Portal]
            return len([portal for portal in portals if portal.task and portal.kind == "bestowed"])

        assert backend.run(main) == 1


class TestBestow:
    def test_parked_and_new(self, backend):
        """A parked task, and one that has not started, can bridge from their next step on."""
        tasks, bridged = [], []

        async def child():
            tasks.append(backend.current_task())
            await gate.wait()
            greenback.await_(backend.checkpoint())
            bridged.append(greenback.has_portal())

        async def bestower():
            while len(tasks) < 2:
                await backend.checkpoint()
            for task in tasks:
                greenback.bestow_portal(task)
                assert greenback.has_portal(task)
            gate.set()

        async def main():
            nonlocal gate
            gate = backend.event()
            await backend.together(child, child, bestower)

        gate = None
        backend.run(main)
        assert bridged == [True, True]

    def test_running(self, backend):
        """A task that bestows on itself must yield first, and can bridge then."""

        async def main():
            greenback.bestow_portal(backend.current_task())
            with pytest.raises(RuntimeError, match="must yield to the event loop first"):
                greenback.await_(backend.checkpoint())
            await backend.checkpoint()
            greenback.await_(backend.checkpoint())
            return 5

        assert backend.run(main) == 5

    @pytest.mark.parametrize(
        ("backend", "task_is"),
        [
            (name, task_is)
            for name in BACKENDS
            for task_is in ("new", "waiting", "running")
            # Trio shows nobody a task that has not begun.
            if name != "trio" or task_is != "new"
        ],
        indirect=["backend"],
    )
    def test_signal_handler_that_bestows_as_well(self, backend, task_is):
        """Wherever a handler comes that bestows on the same task, that has one portal."""

        def bestow(task, moment):
            """Bestow, with a handler at one of the calls and returns; how many there were."""
            seen = 0

            def profile(frame, event, argument):
                nonlocal seen
                seen += 1
                if seen == moment:
                    greenback.bestow_portal(task)

            sys.setprofile(profile)
            try:
                greenback.bestow_portal(task)
            finally:
                sys.setprofile(None)
            return seen

        async def one(moment):
            async def child():
                if task_is != "new":
                    tasks.append(backend.current_task())
                if task_is == "running":
                    seen.append(bestow(tasks[0], moment))
                else:
                    await gate.wait()
                await backend.checkpoint()
                bridged.append(greenback.await_(returns()))

            async def returns():
                await backend.checkpoint()
                return moment

            async def bestower():
                if task_is == "new":
                    tasks.append(asyncio.ensure_future(child()))
                while not tasks:
                    await backend.checkpoint()
                if task_is != "running":
                    seen.append(bestow(tasks[0], moment))
                gate.set()
                if task_is == "new":
                    await tasks[0]

            gate, tasks, seen, bridged = backend.event(), [], [], []
            await backend.together(*[bestower] if task_is == "new" else [child, bestower])
            assert bridged == [moment]
            return seen[0]

        async def main():
            moment = 1
            while await one(moment) >= moment:
                moment += 1
            return moment

        opened, closed = [], []

        class Counts(greenback.instruments.Instrument):
            def portal_opened(self, portal):
                opened.append(portal)

            def portal_closed(self, portal):
                closed.append(portal)

        counts = Counts()
        greenback.instruments.add_instrument(counts)
        try:
            moments = backend.run(main)
        finally:
            greenback.instruments.remove_instrument(counts)
        assert moments > 10
        assert len(opened) == len(closed) == moments

    def test_between_two_runs_of_a_loop(self):
        """A portal can be bestowed where no loop is running, on a task that waits for the next."""

        async def opens():
            await greenback.with_portal_run_sync(greenback.await_, asyncio.sleep(0))

        async def child():
            await gate
            return greenback.await_(asyncio.sleep(0, 5))

        async def start():
            task = asyncio.ensure_future(child())
            await asyncio.sleep(0)
            return task

        loop = asyncio.new_event_loop()
        try:
            gate = loop.create_future()
            loop.run_until_complete(opens())
            task = loop.run_until_complete(start())
            greenback.bestow_portal(task)
            assert greenback.has_portal(task)
            gate.set_result(None)
            assert loop.run_until_complete(task) == 5
        finally:
            loop.close()

    @needs_refcounts
    def test_cancelled_before_the_first_step_is_freed(self, asyncio_backend):
        """Tasks that are cancelled before their first step are not kept by their portals."""
        references = []

        async def child():
            raise AssertionError("was not to run")

        async def one():
            task = asyncio.ensure_future(child())
            greenback.bestow_portal(task)
            task.cancel()
            await asyncio.wait([task])
            references.append(weakref.ref(task))

        async def main():
            for _ in range(20):
                await one()
            await asyncio.sleep(0)
            gc.collect()
            return sum(reference() is not None for reference in references)

        assert asyncio_backend.run(main) <= 1  # the loop may still hold the last one

    def test_done(self, asyncio_backend):
        """Bestowing on a task that is done does nothing."""

        async def nop():
            pass

        async def main():
            task = asyncio.ensure_future(nop())
            await task
            greenback.bestow_portal(task)
            assert not greenback.has_portal(task)

        asyncio_backend.run(main)

    @pytest.mark.parametrize("end", ["cancel", "drop"])
    def test_same_warnings_before_the_first_step(self, asyncio_backend, end):
        """A task that ends before its first step warns of what it would warn without a portal."""

        async def child():
            raise AssertionError("was not to run")

        def warned(bestow):
            async def main():
                task = asyncio.ensure_future(child())
                if bestow:
                    greenback.bestow_portal(task)
                if end == "cancel":
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                assert greenback.has_portal(task) is (bestow and end == "drop")

            gc.collect()  # what earlier tests have left is not to be counted
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                asyncio_backend.run(main)
                gc.collect()
            return [str(w.message) for w in caught]

        assert warned(True) == warned(False)


def run_program(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


REFUSED = """
import asyncio, gc, sys, threading, weakref
import greenback, greenback._tasks.c_tasks as c_tasks

{sabotage}

async def work():
    return greenback.await_(asyncio.sleep(0, 5))

async def main():
    for attempt in range(2):
        try:
            await greenback.ensure_portal()
        except RuntimeError as error:
            assert "with_portal_run" in str(error), error
            print(error)
        else:
            raise AssertionError("not refused")
        try:
            greenback.bestow_portal(asyncio.current_task())
        except RuntimeError as error:
            assert "with_portal_run" in str(error), error
        else:
            raise AssertionError("not refused")
        assert not greenback.has_portal()
        assert await greenback.with_portal_run(work) == 5

{mended}
asyncio.run(main())
"""

# What is wrong with an interpreter, and what the refusal says of it.
WRONG = {
    "no ctypes": ("sys.modules['_ctypes'] = None", "without _ctypes"),
    "no thread": (
        """
def start(self): raise RuntimeError("can't start new thread")
threading.Thread.start = start
""",
        "can't start new thread",
    ),
    "two places": (
        """
import _asyncio
find = c_tasks.Layout.__init__
class Both(list):
    pass
def init(self, task_type, task, coroutine):
    class Twice(_asyncio.Task):
        __slots__ = ("mine",)
    other = Twice(coroutine, loop=task.get_loop(), name="twice")
    other._log_destroy_pending = False
    other.mine = coroutine
    find(self, Twice, other, coroutine)
c_tasks.Layout.__init__ = init
""",
        "was found in 2 places",
    ),
    "another word": (
        """
find = c_tasks.Layout.__init__
def init(self, *args):
    find(self, *args)
    self.offset -= 8
c_tasks.Layout.__init__ = init
""",
        "not where other tasks have theirs",
    ),
    "a task that does not own its coroutine": (
        "count = sys.getrefcount; sys.getrefcount = lambda thing: min(count(thing), 2)",
        "it does not own one reference",
    ),
    "a copy for get_coro": (
        """
import _asyncio
def replace(self, task, old, new):
    self._incref(new)
    self._decref(new)
c_tasks.Layout.replace = replace
""",
        "get_coro() gives another one",
    ),
    "a collector that sees another": (
        "gc.get_referents = lambda task: []",
        "the garbage collector finds another one",
    ),
    "a leak of the old one": (
        """
replace = c_tasks.Layout.replace
def leaks(self, task, old, new):
    self._decref = lambda thing: None
    replace(self, task, old, new)
c_tasks.Layout.replace = leaks
""",
        "the old one's reference count is off",
    ),
    "a leak of the new one": (
        """
replace = c_tasks.Layout.replace
def leaks(self, task, old, new):
    replace(self, task, old, new)
    self._incref(new)
c_tasks.Layout.replace = leaks
""",
        "the new one's reference count is off",
    ),
    "a coroutine that is run anyway": (
        """
step = c_tasks._Loop.step
def steps(self):
    context, callback, args = self._due[0]
    step(self)
    if callback.__self__.done():
        old().send(None)
c_tasks._Loop.step = steps
replace = c_tasks.Layout.replace
def replaces(self, task, first, new):
    global old
    old = weakref.ref(first)
    replace(self, task, first, new)
c_tasks.Layout.replace = replaces
""",
        "its steps were",
    ),
    "a step too many": (
        """
step = c_tasks._Loop.step
def steps(self):
    due = self._due[0]
    step(self)
    if due[1].__self__.done():
        self._due.append(due)
c_tasks._Loop.step = steps
""",
        "it is to be stepped after its end",
    ),
    "a task that is kept": (
        """
step = c_tasks._Loop.step
kept = []
def steps(self):
    kept.append(self._due[0])
    step(self)
c_tasks._Loop.step = steps
""",
        "it is not freed",
    ),
    "something unforeseen": (
        "c_tasks._Loop.step = lambda self: 1 / 0",
        "raised ZeroDivisionError",
    ),
}


@needs_c_tasks
class TestSelfTest:
    """What is done to tasks written in C is done to tasks made for that, first of all."""

    @pytest.mark.parametrize("wrong", WRONG)
    def test_refused(self, wrong):
        """Where something of it fails, the refusal says what; with_portal_run opens portals."""
        sabotage, reason = WRONG[wrong]
        printed = run_program(REFUSED.format(sabotage=sabotage, mended="")).splitlines()
        assert len(printed) == 2
        assert printed[0].partition(", because ")[2] == printed[1].partition(", because ")[2]
        assert reason in printed[0]

    def test_where_no_thread_could_be_started(self):
        """A thread that could not be started is no verdict: the next portal tries again."""
        program = """
import asyncio, threading
import greenback

start = threading.Thread.start
def fail(self):
    raise RuntimeError("can't start new thread")

async def main():
    threading.Thread.start = fail
    try:
        await greenback.ensure_portal()
    except RuntimeError as error:
        assert "none could be started" in str(error), error
    threading.Thread.start = start
    await greenback.ensure_portal()
    print(greenback.await_(asyncio.sleep(0, 5)))

asyncio.run(main())
"""
        assert run_program(program) == "5"

    def test_once(self):
        """It is made once per process, whichever of several threads needs it first."""
        program = """
import asyncio, threading
import greenback, greenback._tasks.c_tasks

tests = []
self_test = greenback._tasks.c_tasks.self_test
def counted(task_type):
    tests.append(threading.current_thread().name)
    return self_test(task_type)
greenback._tasks.c_tasks.self_test = counted

barrier = threading.Barrier(8)
results = []
async def main():
    barrier.wait(30)
    await greenback.ensure_portal()
    results.append(greenback.await_(asyncio.sleep(0, 5)))

threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(results == [5] * 8, tests)
"""
        assert run_program(program) == "True ['greenback self-test']"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
    def test_fork_in_the_middle(self):
        """A child that another thread forks meanwhile makes it for itself."""
        program = """
import asyncio, os, threading, warnings
import greenback, greenback._tasks.c_tasks as c_tasks

warnings.simplefilter("ignore")  # from 3.12 on, of a fork beside threads
async def main():
    await greenback.ensure_portal()
    return greenback.await_(asyncio.sleep(0, 5))

self_test = c_tasks.self_test
begun, go_on = threading.Event(), threading.Event()
def slow(task_type):
    begun.set()
    go_on.wait()
    return self_test(task_type)
c_tasks.self_test = slow

thread = threading.Thread(target=lambda: asyncio.run(main()))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    c_tasks.self_test = self_test
    os._exit(asyncio.run(main()))
print(os.waitpid(child, 0)[1] >> 8)
go_on.set()
thread.join()
"""
        assert run_program(program) == "5"

    @pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signal")
    def test_signal_handler_in_the_middle(self):
        """A signal handler that needs it, too, does not wait for what it has interrupted."""
        program = """
import asyncio, os, signal, threading
import greenback, greenback._tasks.c_tasks as c_tasks

self_test = c_tasks.self_test
handled = threading.Event()
def interrupts(task_type):
    c_tasks.self_test = self_test
    # Again and again: the main thread does not see one that comes just before it begins to wait.
    # So one can also come while the one before is being handled.
    while not handled.wait(0.01):
        os.kill(os.getpid(), signal.SIGUSR1)
    return self_test(task_type)
c_tasks.self_test = interrupts

async def child():
    return greenback.has_portal()

async def main():
    task = asyncio.ensure_future(child())
    def handler(*_):
        greenback.bestow_portal(task)
        handled.set()
    signal.signal(signal.SIGUSR1, handler)
    await greenback.ensure_portal()
    return await task

print(asyncio.run(main()))
"""
        assert run_program(program) == "True"

    def test_leaves_nothing(self):
        """The program sees nothing of it: no task, no number of a task, no thread, no warning."""
        program = """
import asyncio, gc, sys, threading, warnings
import greenback

warnings.simplefilter("error")
async def nop():
    pass

async def main():
    number = int(asyncio.ensure_future(nop()).get_name().partition("-")[2])
    before = len(gc.get_objects())
    await greenback.ensure_portal()
    gc.collect()
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not any("greenback" in name for name in names), names
    assert asyncio.ensure_future(nop()).get_name() == f"Task-{number + 1}"
    assert not any("self-test" in thread.name for thread in threading.enumerate())
    assert not [each for each in gc.get_objects() if isinstance(each, asyncio.Task)
                and "greenback" in each.get_name()]

asyncio.run(main())
print("nothing")
"""
        assert run_program(program) == "nothing"

    def test_while_another_thread_looks_at_all_objects(self):
        """A reference that somebody else has for a moment does not spoil it for good."""
        program = """
import asyncio, gc
import greenback, greenback._tasks.c_tasks as c_tasks

kept = []
step = c_tasks._Loop.step
def steps(self):
    step(self)
    if not kept:
        kept.append(gc.get_objects())  # as another thread would at this moment
c_tasks._Loop.step = steps

async def main():
    await greenback.ensure_portal()
    return greenback.await_(asyncio.sleep(0, 5))

print(asyncio.run(main()), len(kept))
"""
        assert run_program(program) == "5 1"

    @pytest.mark.parametrize("setter", ["settrace", "setprofile"])
    def test_while_all_threads_are_traced(self, setter):
        """A debugger or profiler of all threads that keeps what it sees is not in its way."""
        program = f"""
import asyncio, sys, threading
import greenback

kept = []
def keep(*seen):
    kept.append(seen)
    return keep

async def main():
    await greenback.ensure_portal()
    return greenback.await_(asyncio.sleep(0, 5))

threading.{setter}(keep)
result = asyncio.run(main())
threading.{setter}(None)
print(result, bool(kept))
"""
        assert run_program(program) == "5 True"

    def test_written_by_two(self):
        """Of two that replace the same coroutine, one does; the task owns one reference."""
        import _asyncio

        from greenback._tasks.c_tasks import LayoutError, layout_of

        layout = layout_of(_asyncio.Task)

        async def waits():
            await asyncio.sleep(0)

        async def one(moment):
            """With a second one at one of the calls and returns; how many there were."""
            first, second, third = coroutines = waits(), waits(), waits()
            task = asyncio.ensure_future(first)
            outcomes, seen = [], 0

            def references():
                return [sys.getrefcount(each) for each in coroutines]

            def replace(new):
                try:
                    layout.replace(task, first, new)
                except LayoutError:
                    outcomes.append(None)
                else:
                    outcomes.append(new)

            def profile(frame, event, argument):
                nonlocal seen
                seen += 1
                if seen == moment:
                    replace(third)

            def replace_twice():
                """Before 3.11, a frame that is profiled keeps a copy of its local variables."""
                sys.setprofile(profile)
                try:
                    replace(second)
                finally:
                    sys.setprofile(None)

            expected = references()
            replace_twice()
            now = coroutines.index(task.get_coro())
            expected[0] -= 1
            expected[now] += 1
            replaced_by = [coroutines.index(each) for each in outcomes if each is not None]
            outcomes.clear()
            found = references()
            await task
            for each in coroutines:
                each.close()
            assert replaced_by == [now]
            assert found == expected
            return seen

        async def main():
            moment = 1
            while await one(moment) >= moment:
                moment += 1
            return moment

        assert asyncio.run(main()) > 10

    @pytest.mark.skipif(
        sys.version_info < (3, 14) or sys.platform != "linux",
        reason="the interpreter publishes its offsets since 3.14, here in an ELF section",
    )
    def test_agrees_with_the_interpreter(self):
        """The word that it finds is the one that the interpreter names to debuggers."""
        import _asyncio

        from greenback._tasks.c_tasks import layout_of

        offsets = struct.unpack_from("=13Q", elf_section(b".AsyncioDebug"))
        assert layout_of(_asyncio.Task).offset == offsets[5]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the GIL can be off since Python 3.13")
@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_task_of_another_thread_without_the_gil(library):
    """Where two threads run at once, a task is only changed by the thread that steps it."""
    program = f"""
import asyncio, sys, threading
import trio

sys._is_gil_enabled = lambda: False
import greenback

library = {library!r}
ready, over = threading.Event(), threading.Event()
tasks = []

async def waits():
    tasks.append(asyncio.current_task() if library == "asyncio" else trio.lowlevel.current_task())
    ready.set()
    while not over.is_set():
        await (asyncio if library == "asyncio" else trio).sleep(0)
    return greenback.has_portal()

def in_thread():
    print(asyncio.run(waits()) if library == "asyncio" else trio.run(waits))

async def own():
    await greenback.ensure_portal()
    sleep = asyncio.sleep(0, 5) if library == "asyncio" else trio.sleep(0)
    greenback.await_(sleep)

thread = threading.Thread(target=in_thread)
thread.start()
ready.wait(30)
try:
    greenback.bestow_portal(tasks[0])
except RuntimeError as error:
    print(str(error).partition(", because ")[2].partition(";")[0])
over.set()
thread.join()
asyncio.run(own()) if library == "asyncio" else trio.run(own)
"""
    what = "event loop is running" if library == "asyncio" else "Trio run is"
    assert run_program(program).splitlines() == [f"its {what} in another thread", "False"]


def elf_section(name):
    """The contents of a section of the file that has asyncio's C code."""
    import _asyncio

    with open(getattr(_asyncio, "__file__", sys.executable), "rb") as file:
        data = file.read()
    assert data[:6] == b"\x7fELF\x02\x01"  # 64 bits, little-endian
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, start + size * index) for index in range(count)]
    names_at = headers[names][4]
    for header in headers:
        begin = names_at + header[0]
        if data[begin : data.index(b"\0", begin)] == name:
            return data[header[4] : header[4] + header[5]]
    raise AssertionError(f"no section {name!r}")
