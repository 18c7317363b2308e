"""Runs the demo's web site, traced, with readers that never stop, as a load for the dashboards.

    OTEL_METRICS_EXPORTER=prometheus OTEL_TRACES_EXPORTER=none python dashboards/load.py asyncio

opentelemetry-instrument starts the site. The variables ``OTEL_...`` say where its telemetry goes.
The program ends when its standard input is closed, or by Ctrl-C.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

DEMO = Path(__file__).resolve().parent.parent / "demo"
sys.path.insert(0, str(DEMO))

from contents import fill  # noqa: E402
from run import Readers, TemplateServer, expectations  # noqa: E402


def read_for_ever(readers: Readers, names: list[str], pause: float, ended: threading.Event) -> None:
    try:
        for name in itertools.cycle(names):
            if ended.wait(pause):
                break
            readers.read(name)
    finally:
        ended.set()  # if a page was wrong or the site is gone, all readers stop


def wait_for_the_end(ended: threading.Event) -> None:
    sys.stdin.buffer.read()
    ended.set()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("library", choices=["asyncio", "trio"])
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds, of each reader")
    options = parser.parse_args()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    templates = TemplateServer()
    with tempfile.TemporaryDirectory(prefix="greenback-load-") as directory:
        contents, database = Path(directory, "contents.sqlite"), Path(directory, "site.sqlite")
        fill(str(contents))
        shutil.copyfile(contents, database)
        expected = expectations(database)
        instrument = Path(sys.executable).parent / "opentelemetry-instrument"
        site = subprocess.Popen(
            [
                str(instrument),
                sys.executable,
                str(DEMO / "web.py"),
                options.library,
                str(database),
                templates.url,
            ],
            env={"GREENBACK_TRACE": "1", **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert site.stdin is not None
            assert site.stdout is not None
            ready = site.stdout.readline()
            if not ready:
                raise SystemExit(f"load: the site has not started: exit status {site.wait(30)}")
            readers = Readers(json.loads(ready)["port"], expected)
            threads = [
                threading.Thread(
                    target=read_for_ever, args=(readers, list(expected), options.pause, ended)
                )
                for _ in range(options.readers)
            ]
            for thread in threads:
                thread.start()
            threading.Thread(target=wait_for_the_end, args=(ended,), daemon=True).start()
            ended.wait()
            for thread in threads:
                thread.join()
            site.stdin.close()
            return site.wait(30)
        finally:
            site.kill()


if __name__ == "__main__":
    sys.exit(main())
