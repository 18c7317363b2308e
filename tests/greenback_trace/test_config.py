from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from greenback_trace import Config, ConfigError


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("mode", "1"),
            ("file", ""),
            ("socket", ""),
            ("file_limit", 0),
            ("file_limit", True),
            ("spans", "some"),
            ("span_rate", -1),
            ("span_rate", float("nan")),
            ("sites", 0),
            ("sites", 1.5),
            ("misuse", "loud"),
            ("misuse", None),
            ("docs", ""),
            ("docs", 3),
            ("docs", "https://"),
            ("docs", "ftp://docs.example.org"),
            ("docs", "https://docs.example.org/#greenback"),
            ("docs", "/srv/docs?v=2"),
            ("docs", "/srv\n/docs"),
        ],
    )
    def test_refuses_a_value_that_cannot_be(self, field: str, value: Any) -> None:
        """The error names the field, the value, and the allowed values."""
        with pytest.raises(ConfigError, match=re.escape(f"{field}={value!r}") + ".*must be"):
            Config(**{field: value})

    def test_is_a_value_error(self) -> None:
        """Code that catches ValueError for bad settings catches this one."""
        assert issubclass(ConfigError, ValueError)


class TestFromEnv:
    def test_nothing_set(self) -> None:
        """Without variables, tracing is off, and all other fields have their defaults."""
        assert Config.from_env({}) == Config(mode="off")

    def test_everything_set(self) -> None:
        """Every variable reaches its field."""
        environ = {
            "GREENBACK_TRACE": "1",
            "GREENBACK_TRACE_FILE": "/tmp/t-{pid}.jsonl",
            "GREENBACK_TRACE_FILE_LIMIT": "20M",
            "GREENBACK_TRACE_SOCKET": "/run/t-{pid}.sock",
            "GREENBACK_TRACE_SPANS": "suspended",
            "GREENBACK_TRACE_SPAN_RATE": "2.5",
            "GREENBACK_TRACE_SITES": "7",
            "GREENBACK_TRACE_MISUSE": "Raise,import=warn",
            "GREENBACK_TRACE_DOCS": "https://docs.example.org/Greenback/",
        }
        assert Config.from_env(environ) == Config(
            mode="on",
            file="/tmp/t-{pid}.jsonl",
            file_limit=20 * 1024 * 1024,
            socket="/run/t-{pid}.sock",
            spans="suspended",
            span_rate=2.5,
            sites=7,
            misuse="raise,import=warn",
            docs="https://docs.example.org/Greenback/",
        )

    @pytest.mark.parametrize(
        ("text", "mode"),
        [
            ("0", "off"),
            ("off", "off"),
            ("1", "on"),
            ("ON", "on"),
            ("debug", "debug"),
            (" ", "off"),
        ],
    )
    def test_modes(self, text: str, mode: str) -> None:
        """GREENBACK_TRACE takes a digit or a word, in any case."""
        assert Config.from_env({"GREENBACK_TRACE": text}).mode == mode

    @pytest.mark.parametrize(("text", "size"), [("512", 512), ("3k", 3072), ("1G", 1 << 30)])
    def test_sizes(self, text: str, size: int) -> None:
        """A size is a number of bytes, or of the units k, M and G."""
        assert Config.from_env({"GREENBACK_TRACE_FILE_LIMIT": text}).file_limit == size

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("GREENBACK_TRACE", "yes"),
            ("GREENBACK_TRACE_FILE_LIMIT", "1T"),
            ("GREENBACK_TRACE_SPANS", "both"),
            ("GREENBACK_TRACE_SPAN_RATE", "nan"),
            ("GREENBACK_TRACE_SPAN_RATE", "fast"),
            ("GREENBACK_TRACE_SITES", "-1"),
            ("GREENBACK_TRACE_MISUSE", "raise,lock=warn"),
            ("GREENBACK_TRACE_DOCS", "htps://docs.example.org"),
        ],
    )
    def test_a_typo_is_one_warning_and_the_default(
        self, variable: str, text: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A service with a typo in its environment starts; a warning names the allowed values."""
        with caplog.at_level(logging.WARNING, "greenback"):
            assert Config.from_env({variable: text}) == Config.from_env({})
        (record,) = caplog.records
        assert f"{variable}={text!r}" in record.getMessage()
        assert "must be" in record.getMessage()
