"""Tasks that are written in C: the self-test, and the write."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import struct
import subprocess
import sys

import pytest

from greenback._engine.choice import compiled

needs_c_tasks = pytest.mark.skipif(
    platform.python_implementation() == "PyPy", reason="PyPy has no tasks written in C"
)


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


# Faults of an interpreter, and the text of the refusal for each.
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
def replace(self, task, old, new):
    pass
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
import _ctypes
replace = c_tasks.Layout.replace
def leaks(self, task, old, new):
    replace(self, task, old, new)
    _ctypes.Py_INCREF(old)
c_tasks.Layout.replace = leaks
""",
        "the old one's reference count is off",
    ),
    "a leak of the new one": (
        """
import _ctypes
replace = c_tasks.Layout.replace
def leaks(self, task, old, new):
    replace(self, task, old, new)
    _ctypes.Py_INCREF(new)
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
    """The replacement of coroutines in C tasks is tried on tasks made for that first."""

    @pytest.mark.parametrize("wrong", WRONG)
    def test_refused(self, wrong):
        """If a check fails, ensure_portal says which; with_portal_run still opens portals."""
        if wrong == "no ctypes" and compiled is not None:
            pytest.skip("the engine in C needs none")
        sabotage, reason = WRONG[wrong]
        printed = run_program(REFUSED.format(sabotage=sabotage, mended="")).splitlines()
        assert len(printed) == 2
        assert printed[0].partition(", because ")[2] == printed[1].partition(", because ")[2]
        assert reason in printed[0]

    def test_where_no_thread_could_be_started(self):
        """If no thread could be started for the self-test, the next portal tries again."""
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
        """The self-test runs once per process, even if several threads need it at once."""
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
        """A child that another thread forks during the self-test runs its own."""
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
        """A signal handler that needs the self-test does not wait for the interrupted one."""
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
        """The program sees no task, no task number, no thread and no warning of the self-test."""
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
        """A reference that another thread holds for a moment does not make the self-test fail."""
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
        """A debugger or profiler of all threads does not disturb the self-test."""
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
        """If two callers replace the same coroutine, one succeeds; the task owns one reference."""
        import _asyncio

        from greenback._tasks.c_tasks import LayoutError, layout_of

        layout = layout_of(_asyncio.Task)

        async def waits():
            await asyncio.sleep(0)

        async def one(moment):
            """Replace, with a second caller at one of the calls and returns; returns how many."""
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
                """Before 3.11, a profiled frame keeps a copy of its local variables."""
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
        """The self-test finds the word that the interpreter publishes for debuggers."""
        import _asyncio

        from greenback._tasks.c_tasks import layout_of

        offsets = struct.unpack_from("=13Q", elf_section(b".AsyncioDebug"))
        assert layout_of(_asyncio.Task).offset == offsets[5]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the GIL can be off since Python 3.13")
@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_task_of_another_thread_without_the_gil(library):
    """Without the GIL, only the thread that steps a task may replace its coroutine."""
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
