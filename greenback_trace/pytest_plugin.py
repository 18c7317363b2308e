"""``pytest --greenback-misuse=raise``: runs a suite in debug mode. Tests that misuse a bridge fail.

A misuse in a finalizer raises where nobody can catch it: Python prints the exception and goes on.
The test that was running still fails.
"""

from __future__ import annotations

from dataclasses import replace

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("greenback").addoption(
        "--greenback-misuse",
        metavar="raise|warn",
        help=(
            "look for unsafe uses of greenback.await_, and fail the tests that they happen in. "
            "'raise': await_ raises MisuseError; 'warn': it goes on. Kinds can be given an action "
            "of their own, as in raise,import=off,async_caller=raise"
        ),
    )


def pytest_configure(config: pytest.Config) -> None:
    setting = config.getoption("--greenback-misuse")
    if setting is None:
        return
    if int(pytest.__version__.partition(".")[0]) < 8:
        raise pytest.UsageError(
            f"--greenback-misuse needs pytest 8 or later, and this is {pytest.__version__}"
        )
    from ._activate import require_packages
    from ._config import Config, ConfigError
    from .misuse.suite import Suite

    try:
        trace = replace(Config.from_env(), mode="debug", misuse=setting.lower())
        require_packages(is_to_file=trace.file is not None)
    except (ConfigError, ImportError) as error:
        raise pytest.UsageError(f"--greenback-misuse={setting}: {error}") from None
    config.pluginmanager.register(Suite(trace), "greenback-misuse")
