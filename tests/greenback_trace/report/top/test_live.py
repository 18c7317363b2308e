"""A file that grows, and the socket of a program."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Iterator, List

import pytest

from greenback_trace.report.read.checked import Part, check
from greenback_trace.report.read.inputs import NothingToReportError
from greenback_trace.report.read.otlp import decode
from greenback_trace.report.top import live_file as _live_file
from greenback_trace.report.top.live import follow
from greenback_trace.report.top.live_file import LiveFile
from greenback_trace.report.top.live_socket import LiveSocket
from greenback_trace.report.top.now import Now, SiteNow
from tests.waiting import wait_until

from .service import PROGRAM, Service, times

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def site(now: Now, function: str) -> SiteNow:
    (found,) = [site for site in now.sites if site.function == function]
    return found


class TestLiveFile:
    def test_totals(self, service: Service, live: LiveFile) -> None:
        """The numbers are those of all the program has done, and grow with it."""
        for number in (1, 2, 3):
            service.answer()
            assert live.read()
            now = live.now()
            assert (site(now, "__main__.ask").bridges, site(now, "__main__.ask").suspended) == (
                5 * number,
                5 * number,
            )
            assert site(now, "__main__.hold").errors == number
            assert now.portals == {"run_sync": (0, number)}
            assert now.slow_steps["__main__.hold"][0] == number
            assert (now.processes, now.under_way) == (1, 0)

    def test_nothing_new(self, service: Service, live: LiveFile) -> None:
        """As long as the file does not grow, there is nothing to read."""
        service.answer()
        service.end()
        assert live.read()
        assert not live.read()
        assert site(live.now(), "__main__.ask").bridges == 5

    def test_rates(self, trace: Path, service: Service) -> None:
        """Rates are of the last two times that the program has written."""
        clock = Clock()
        live = LiveFile(str(trace), clock)
        service.answer()
        service.answer()
        service.end()
        live.read()
        now = live.now()
        assert now.bridges_rate == pytest.approx(
            sum(site.bridges_rate for site in now.sites), rel=1e-9
        )
        # Six bridges in less than a second or so, but never in none; slow steps of 60 ms.
        assert (
            0
            < site(now, "__main__.ask").bridges_rate
            == pytest.approx(5 * site(now, "__main__.hold").bridges_rate)
        )
        assert 0 < now.held <= 1
        assert now.slow_steps["__main__.hold"][1] > 0
        clock.now += 3600
        now = live.now()
        assert now.is_idle
        assert (now.bridges_rate, now.held, now.slow_steps["__main__.hold"]) == (0, 0, (2, 0))
        assert site(now, "__main__.ask").bridges == 10
        live.close()

    def test_stalled(self, service: Service, live: LiveFile) -> None:
        """So does a step that still runs when the file is written."""
        service.answer("park")
        wait_until(lambda: live.read() and live.now().stalled)
        assert live.now().stalled > 0.05
        assert live.now().held > 0
        service.answer()
        wait_until(lambda: live.read() and not live.now().stalled)

    def test_a_line_in_parts(self, trace: Path, tmp_path: Path, service: Service) -> None:
        """A line counts when it is complete."""
        service.answer()
        service.end()
        content = trace.read_bytes()
        copy = tmp_path / "copy.jsonl"
        copy.write_bytes(content[:-10])
        live = LiveFile(str(copy))
        live.read()
        before = live.now().sites
        with copy.open("ab") as file:
            file.write(content[-10:])
        live.read()
        assert before == []
        assert site(live.now(), "__main__.ask").bridges == 5
        live.close()

    @pytest.mark.parametrize("how", ["truncated", "replaced"])
    def test_another_file(self, trace: Path, service: Service, live: LiveFile, how: str) -> None:
        """A file that is emptied or replaced is read from its beginning, and only that counts."""
        service.answer()
        service.answer()
        service.end()
        live.read()
        assert site(live.now(), "__main__.ask").bridges == 10
        lines = trace.read_bytes().splitlines(keepends=True)
        first = next(
            number for number, line in enumerate(lines) if line.startswith(b'{"resourceMetrics"')
        )
        if how == "replaced":
            trace.rename(trace.with_name("old.jsonl"))
        trace.write_bytes(b"".join(lines[: first + 1]))
        assert live.read()
        assert site(live.now(), "__main__.ask").bridges == 5

    def test_emptied_while_it_grows(self, trace: Path, service: Service, live: LiveFile) -> None:
        """A file that is rotated by copying it: the program goes on in it, and so do the rates."""
        service.answer()
        live.read()
        before = times(trace)[-1]
        os.truncate(trace, 0)
        assert live.read() is False
        service.answer()
        assert live.read()
        ask = site(live.now(), "__main__.ask")
        assert ask.bridges == 10
        assert ask.bridges_rate == pytest.approx(5 / (times(trace)[0] - before), rel=1e-4)

    def test_rotated(self, trace: Path, service: Service, live: LiveFile) -> None:
        """What was added to a file just before it was renamed is taken in."""
        service.answer()
        live.read()
        service.answer()
        assert live.read()
        service.answer()
        service.end()
        trace.rename(trace.with_name("old.jsonl"))
        with pytest.raises(NothingToReportError):
            live.read()
        assert site(live.now(), "__main__.ask").bridges == 15

    def test_large(self, trace: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a large file that is there already, the end is read, from its first whole line on."""
        service.answer()
        service.answer()
        service.end()
        lines = trace.read_bytes().splitlines(keepends=True)
        last = next(line for line in reversed(lines) if b'"resourceMetrics"' in line)
        trace.write_bytes(b"".join(lines) + last)
        monkeypatch.setattr(_live_file, "_TAIL", len(last) + 10)
        monkeypatch.setattr(_live_file, "_PART", 100)
        live = LiveFile(str(trace))
        taken: List[List[Part]] = []
        monkeypatch.setattr(live, "_take", taken.append)
        assert live.read()
        request = decode(last)
        assert request is not None
        assert taken == [check(request, _live_file._WANTED)]
        assert taken[0][0].points
        live.close()

    def test_no_tasks(self, service: Service, live: LiveFile) -> None:
        """A file has nothing of who holds the loop, nor of parked tasks."""
        service.answer()
        live.read()
        now = live.now()
        assert now.holding is now.parked is None

    def test_broken_lines(self, trace: Path, service: Service, live: LiveFile) -> None:
        """Lines that are no OTLP JSON are left out."""
        trace.write_text('nonsense\n{"resourceMetrics": [3]}\n')
        service.answer()
        live.read()
        assert site(live.now(), "__main__.ask").bridges == 5

    def test_newer(self, trace: Path, service: Service, live: LiveFile) -> None:
        """A file that a newer greenback writes is an error that says which, and what to do."""
        service.answer()
        service.end()
        version = '"greenback.trace.version","value":{"intValue":"'
        trace.write_text(trace.read_text().replace(f'{version}2"', f'{version}3"'))
        for _ in range(2):
            with pytest.raises(NothingToReportError, match="of version 3.* pip install --upgrade"):
                live.read()

    def test_missing(self, live: LiveFile) -> None:
        """A file that is not there is an error that says what to name instead."""
        with pytest.raises(NothingToReportError, match="GREENBACK_TRACE_FILE"):
            live.read()


class TestLiveSocket:
    @pytest.fixture
    def live(self, served: Service, path: Path) -> Iterator[LiveSocket]:
        live = follow(str(path))
        assert isinstance(live, LiveSocket)
        yield live
        live.close()

    def test_totals(self, served: Service, live: LiveSocket) -> None:
        """The numbers are those of all the program has done, and it is named."""
        wait_until(live.read)
        now = live.now()
        assert (site(now, "__main__.ask").bridges, site(now, "__main__.ask").suspended) == (5, 5)
        assert site(now, "__main__.hold").errors == 1
        assert now.portals == {"run_sync": (0, 1)}
        assert now.slow_steps["__main__.hold"] == (1, 0)
        assert (now.processes, now.under_way, now.is_idle) == (1, 0, False)
        assert now.who == f"service.py ({served.process.pid})"
        assert now.bridges_rate == now.held == 0  # nothing is known of before

    def test_rates(self, served: Service, live: LiveSocket) -> None:
        """Rates are of the time between the last two lines."""
        wait_until(live.read)
        served.answer()
        wait_until(lambda: live.read() and live.now().bridges_rate)
        now = live.now()
        ask = site(now, "__main__.ask")
        # A second, or more on a busy machine; the answer may be spread over two.
        assert 0 < ask.bridges_rate <= 10
        assert 0 < now.held <= 1
        assert now.bridges_rate == pytest.approx(sum(each.bridges_rate for each in now.sites))

    @pytest.mark.usefixtures("others_are_shown")
    def test_tasks(self, served: Service, live: LiveSocket) -> None:
        """Who holds the loop is known with what it does there, and so is who waits."""
        served.answer("park")
        line = PROGRAM.splitlines().index("    sys.stdin.readline()") + 1
        where = f"read (service.py:{line})"

        def is_held() -> bool:
            live.read()
            return [holding.where for holding in live.now().holding or ()] == [where]

        wait_until(is_held)
        now = live.now()
        assert now.holding is not None
        assert now.holding[0].seconds is not None
        assert now.parked is not None
        (parked,) = now.parked
        line = PROGRAM.splitlines().index("    await_(event.wait())") + 1
        assert (parked.name, parked.where) == ("waits", f"wait_for (service.py:{line})")
        assert (now.parked_count, now.under_way) == (1, 1)
        assert "--- bridge" in parked.stack
        served.answer()

    @pytest.mark.usefixtures("others_are_shown")
    def test_stalled(self, served: Service, live: LiveSocket) -> None:
        """A step counts as holding the loop while it does, and once only."""
        served.answer("park")
        wait_until(lambda: live.read() and live.now().held > 0.9)
        assert live.now().stalled > 0.05
        served.answer()
        wait_until(lambda: live.read() and not live.now().stalled)
        wait_until(lambda: live.read() and live.now().held == 0)

    def test_ends(self, served: Service, live: LiveSocket, tmp_path: Path, path: Path) -> None:
        """When the program ends its numbers stay, and one started after it is found again."""
        wait_until(live.read)
        served.end()
        wait_until(lambda: live.read() and live.now().is_idle)
        now = live.now()
        assert (now.holding, now.parked, now.bridges_rate) == ([], [], 0)
        assert site(now, "__main__.ask").bridges == 5
        with pytest.raises(NothingToReportError, match="nobody answers"):
            live.read()
        another = Service(tmp_path, GREENBACK_TRACE_SOCKET=str(path))
        another.answer()
        another.answer()
        wait_until(path.exists)
        wait_until(live.read)
        now = live.now()
        assert not now.is_idle
        assert now.who == f"service.py ({another.process.pid})"
        assert site(now, "__main__.ask").bridges == 10
        another.end()

    def test_somebody_else(self, path: Path) -> None:
        """What answers something else is an error that says so."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            live = follow(str(path))
            with pytest.raises(NothingToReportError, match="GREENBACK_TRACE_SOCKET"):
                live.read()  # it does not listen yet, as after a program that was killed
            listener.listen(1)
            assert not live.read()
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 mail.example.org\n")
                with pytest.raises(NothingToReportError, match="is no program"):
                    wait_until(live.read)
