"""``pytest --greenback-misuse``, with suites that run in a process of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import pytest

import greenback

pytest_plugins = ["pytester"]

Suite = Callable[..., pytest.RunResult]

SETUP = """
import asyncio
import gc
import threading

import pytest

import greenback
import greenback_trace


class Connection:
    is_finalized = False

    def __del__(self):
        if greenback.has_portal() and not Connection.is_finalized:
            Connection.is_finalized = True
            greenback.await_(asyncio.sleep(0))


def leave_to_the_finalizer():
    Connection.is_finalized = False
    while not Connection.is_finalized:  # PyPy runs it when and where it likes
        connection = Connection()
        del connection
        gc.collect()


def misuse():
    asyncio.run(greenback.with_portal_run_sync(leave_to_the_finalizer))


def use():
    asyncio.run(greenback.with_portal_run_sync(lambda: greenback.await_(asyncio.sleep(0))))
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Runs a suite of one file with pytest."""
    for name in list(os.environ):
        if name.startswith(("GREENBACK_TRACE", "OTEL_", "PYTEST_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(Path(greenback.__file__).parents[1]))
    monkeypatch.setenv("GREENBACK_TRACE_SLOW", "60")
    # Whatever else is installed only takes time.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(tests: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(test_suite=SETUP + tests)
        return pytester.runpytest_subprocess(
            "-p", "greenback_trace.pytest_plugin", *arguments, timeout=60
        )

    return run


class TestOutcome:
    def test_raise(self, suite: Suite) -> None:
        """Tests that misuse fail with the report, even if Python swallowed the exception."""
        result = suite(
            """
def test_before(): use()
def test_finalizer(): misuse()
def test_between(): use()
def test_lock():
    lock = threading.Lock()
    def hold():
        with lock:
            greenback.await_(asyncio.sleep(0))
    asyncio.run(greenback.with_portal_run_sync(hold))
def test_again(): misuse()
def test_after(): use()
""",
            "--greenback-misuse=raise",
            "-rA",
        )
        result.assert_outcomes(passed=3, failed=3)
        text = result.stdout.str()
        for name in ("before", "between", "after"):
            assert f"PASSED test_suite.py::test_{name}" in text
        result.stdout.fnmatch_lines(
            [
                "greenback misuse (error finalizer)*",
                "*Connection.__del__*",
                "*Stack, outermost first*",
                "*in leave_to_the_finalizer",
                "*greenback_trace.MisuseError: lock_held*",
                "*greenback misuse (warning lock_held)*",
                "*= greenback misuse =*",
                "finalizer (error) at test_suite.Connection.__del__ (*test_suite.py:*): 2",
                "*in test_suite.py::test_finalizer",
                "*in test_suite.py::test_again",
                "lock_held (warning) at *: 1",
            ]
        )

    def test_warn(self, suite: Suite) -> None:
        """With 'warn' the bridge goes on, and the test fails at its end."""
        result = suite(
            """
def test_it():
    misuse()
    print("went on")
def test_other(): use()
""",
            "--greenback-misuse=warn",
        )
        result.assert_outcomes(passed=1, failed=1, warnings=1)
        result.stdout.fnmatch_lines(
            ["greenback misuse (error finalizer)*", "went on", "*MisuseWarning: finalizer*"]
        )
        assert "MisuseError" not in result.stdout.str()

    def test_what_does_not_fail(self, suite: Suite) -> None:
        """Advice, inconclusive and allowed misuse fail no test; the first two are shown."""
        result = suite(
            """
async def advised():
    await greenback.ensure_portal()
    greenback.await_(asyncio.sleep(0))

def test_advice(): asyncio.run(advised())

def test_inconclusive():
    get = lambda: connection.__del__
    def explicit():
        get()()
    connection = Connection()
    asyncio.run(greenback.with_portal_run_sync(explicit))
    Connection.__del__ = lambda self: None

def test_allowed(monkeypatch):
    def hold():
        with threading.Lock(), greenback_trace.allow("lock_held", reason="nobody else has it"):
            greenback.await_(asyncio.sleep(0))
    asyncio.run(greenback.with_portal_run_sync(hold))
""",
            "--greenback-misuse=raise",
        )
        result.assert_outcomes(passed=3)
        result.stdout.fnmatch_lines(
            ["*= greenback misuse =*", "async_caller (advice) at test_suite.advised *: 1"]
        )
        assert "lock_held" not in result.stdout.str()

    def test_kinds_with_an_action_of_their_own(self, suite: Suite) -> None:
        """A kind that the setting names fails its tests, and a kind that is off does not."""
        result = suite(
            """
async def advised():
    await greenback.ensure_portal()
    greenback.await_(asyncio.sleep(0))

def test_advice():
    with pytest.raises(greenback_trace.MisuseError):
        asyncio.run(advised())

def test_finalizer(): misuse()
""",
            "--greenback-misuse=warn,async_caller=raise,finalizer=off",
        )
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(["*_ test_advice _*", "async_caller (advice) *: 1"])

    def test_fixtures(self, suite: Suite) -> None:
        """A misuse in the setup or teardown of a fixture is an error of its tests."""
        result = suite(
            """
@pytest.fixture
def early():
    misuse()

@pytest.fixture
def late():
    yield
    misuse()

def test_early(early): pass
def test_late(late): pass
""",
            "--greenback-misuse=raise",
        )
        result.assert_outcomes(passed=1, errors=2)
        result.stdout.fnmatch_lines(
            ["*in test_suite.py::test_early", "*in test_suite.py::test_late"]
        )

    def test_a_suite_that_switches_tracing(self, suite: Suite) -> None:
        """Tests after one that has disabled tracing are watched again, and count once."""
        result = suite(
            """
def test_first():
    greenback_trace.disable()
    greenback_trace.enable()
    greenback_trace.disable()
def test_second(): misuse()
""",
            "--greenback-misuse=raise",
        )
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(["finalizer (error) at *: 1"])

    def test_nothing_found(self, suite: Suite) -> None:
        """The summary of a suite without misuse says so."""
        result = suite("def test_it(): use()", "--greenback-misuse=raise")
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*= greenback misuse =*", "none"])


class TestOption:
    def test_absent(self, suite: Suite) -> None:
        """Without the option nothing is traced or printed."""
        result = suite(
            """
def test_it():
    assert not greenback_trace.is_enabled()
    misuse()
"""
        )
        result.assert_outcomes(passed=1)
        assert "greenback misuse" not in result.stdout.str()

    def test_a_typo(self, suite: Suite) -> None:
        """An invalid value is a usage error that names the valid ones."""
        result = suite("", "--greenback-misuse=loud")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*--greenback-misuse=loud*warn, raise or off*lock_held*"])


class TestXdist:
    def test_workers(self, suite: Suite) -> None:
        """With pytest-xdist, tests fail in the workers, and the summary covers all workers."""
        pytest.importorskip("xdist")
        result = suite(
            """
@pytest.mark.parametrize("number", range(4))
def test_misuse(number): misuse()
def test_use(): use()
""",
            "--greenback-misuse=raise",
            "-pxdist",
            "-n2",
        )
        result.assert_outcomes(passed=1, failed=4)
        result.stdout.fnmatch_lines(
            ["greenback misuse (error finalizer)*", "finalizer (error) at *: 4"]
        )
        for number in range(4):
            result.stdout.fnmatch_lines([f"*in test_suite.py::test_misuse?{number}?"])


ASYNC_SUITE = """
async def work():
    await greenback.ensure_portal()
    leave_to_the_finalizer()

@pytest.mark.{plugin}
async def test_misuse({fixture}): await work()

@pytest.mark.{plugin}
async def test_use({fixture}): pass
"""


class TestAsyncPlugins:
    @pytest.mark.parametrize(
        ("plugin", "fixture", "setup", "tests"),
        [
            ("asyncio", "", "", 1),
            ("trio", "", "import trio as asyncio\n", 1),
            ("anyio", "anyio_backend", "import anyio as asyncio\n", 2),
        ],
    )
    def test_tests_that_are_async(
        self, suite: Suite, plugin: str, fixture: str, setup: str, tests: int
    ) -> None:
        """An async test fails for its misuse with every plugin that runs async tests."""
        pytest.importorskip("anyio" if plugin == "anyio" else f"pytest_{plugin}")
        result = suite(
            setup + ASYNC_SUITE.format(plugin=plugin, fixture=fixture),
            "--greenback-misuse=raise",
            f"-p{plugin}",
        )
        result.assert_outcomes(passed=tests, failed=tests)
        result.stdout.fnmatch_lines(
            ["greenback misuse (error finalizer)*", "*in test_misuse", "*in leave_to_the_finalizer"]
        )
