"""What greenback's metrics cost a Prometheus: those of one process, and those of a thousand.

    python benchmarks/scale.py process     series, bytes and time of a scrape, by number of sites
    python benchmarks/scale.py fleet       a thousand processes: rules and queries of the dashboards

``fleet`` needs prometheus and promtool on the PATH, 4 GB of memory, 2 GB of disk and ten minutes.
One HTTP server stands in for the thousand processes: it answers every scrape with the metrics of a
real process. The history that the rules would have recorded is written beforehand.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

ROOT = Path(__file__).resolve().parent.parent
DASHBOARDS = ROOT / "dashboards"
DAY = 86400
#: Numbers of sites, and of outcomes per site. Bridges of most sites always succeed.
SITES = [0, 10, 50, 100, 250, 500, 1000]
OUTCOMES = [1, 3]
#: Rules that record too seldom to be seen within minutes, by a rule that has the same labels.
HALF_HOURLY = {
    "job_function:greenback_bridges:rate5m": ["job_function:greenback_bridges:increase30m"],
    "job:greenback_bridges:rate5m": [
        "job:greenback_bridges:increase30m",
        "job:greenback_functions:count1d",
    ],
}
SELDOM = re.compile("30m$|1d$")
BARE = re.compile(r"^(\w+)\{", re.MULTILINE)


def process(sites: int, outcomes: int) -> bytes:
    """Bridge from so many sites, and return what a scrape gets. Runs in a process of its own."""
    import asyncio

    from opentelemetry import metrics
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import REGISTRY, generate_latest

    import greenback
    import greenback_trace

    reader = PrometheusMetricReader()  # registers itself
    metrics.set_meter_provider(MeterProvider([reader]))
    greenback_trace.enable(config=greenback_trace.Config(measurement_rate=0, spans="none"))

    namespace: Dict[str, Any] = {"greenback": greenback, "__name__": "shop.orders.views"}
    for number in range(sites):
        source = f"def function_number_{number}(aw): greenback.await_(aw)"
        exec(source, namespace)

    async def fail(error: BaseException) -> None:
        raise error

    async def main() -> None:
        await greenback.ensure_portal()
        for number in range(sites):
            call = namespace[f"function_number_{number}"]
            call(asyncio.sleep(0))
            if outcomes == 3:
                for error in (ValueError(), asyncio.CancelledError()):
                    try:
                        call(fail(error))
                    except (ValueError, asyncio.CancelledError):
                        pass

    asyncio.run(main())
    generate_latest(REGISTRY)
    times = []  # with the metrics of prometheus_client itself and of Python's garbage collector
    for _ in range(5):
        start = time.perf_counter()
        page = generate_latest(REGISTRY)
        times.append(time.perf_counter() - start)
    sys.stdout.write(f"{min(times)}\n")
    sys.stdout.flush()
    return page


def measure(sites: int, outcomes: int) -> Tuple[float, bytes]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", f"{sites},{outcomes}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    seconds, _, page = done.stdout.partition(b"\n")
    return float(seconds), page


def ours(page: bytes) -> List[str]:
    return [line for line in page.decode().splitlines() if line.startswith("greenback_")]


def show_process() -> None:
    print("sites  outcomes  series     bytes   gzip     time")
    for outcomes in OUTCOMES:
        for sites in SITES:
            seconds, page = measure(sites, outcomes)
            text = "\n".join(ours(page)).encode()
            print(
                f"{sites:5}  {outcomes:8}  {len(ours(page)):6}  {len(text):8,}  "
                f"{len(gzip.compress(text)):5,}  {seconds * 1e3:4.0f} ms",
                flush=True,
            )
            last = page
    by_name: Dict[str, int] = {}
    for name in BARE.findall("\n".join(ours(last))):
        by_name[name] = by_name.get(name, 0) + 1
    print(f"\nAt {sites} sites and {outcomes} outcomes:")
    for name, count in sorted(by_name.items(), key=lambda each: -each[1]):
        print(f"{count:6}  {name}")


class Fleet(ThreadingHTTPServer):
    """Answers every scrape with the same page, whose counters go up by the second."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, page: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Scrape)
        lines = [line.rpartition(" ") for line in ours(page)]
        self._lines = [
            (
                name,
                float(value),
                not name.startswith(("greenback_portal_active{", "greenback_bridge_active{")),
            )
            for name, _, value in lines
        ]
        self._start = time.time()
        self._lock = threading.Lock()
        self._made = 0
        self._page = b""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def page(self) -> bytes:
        with self._lock:
            now = int(time.time() - self._start) + 1
            if now != self._made:
                self._made = now
                text = "".join(
                    f"{name} {value * now if grows else value}\n"
                    for name, value, grows in self._lines
                )
                self._page = gzip.compress(text.encode(), 1)
            return self._page


class _Scrape(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Fleet

    def do_GET(self) -> None:
        page = self.server.page()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *args: object) -> None:
        pass


class Prometheus:
    """A Prometheus that scrapes the fleet, with the project's rules, until it is closed."""

    def __init__(self, folder: Path, fleet: Fleet, processes: int, services: int, every: str):
        self._folder = folder
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{listener.getsockname()[1]}"
        each = processes // services
        relabel = [
            {"source_labels": ["__address__"], "target_label": "instance"},
            {"target_label": "__address__", "replacement": f"127.0.0.1:{fleet.server_port}"},
        ]
        configuration = {
            "global": {"scrape_interval": every, "evaluation_interval": "1m"},
            "rule_files": [
                str(DASHBOARDS / "prometheus" / name) for name in ("rules.yaml", "alerts.yaml")
            ],
            "scrape_configs": [
                {
                    "job_name": f"service-{job:02}",
                    "relabel_configs": relabel,
                    "static_configs": [
                        {"targets": [f"host-{job:02}-{number:04}:9464" for number in range(each)]}
                    ],
                }
                for job in range(services)
            ],
        }
        (folder / "prometheus.yaml").write_text(json.dumps(configuration))
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._folder / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    "--storage.tsdb.retention.time=1y",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=log,
            )
        while True:
            try:
                with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
                    break
            except OSError:
                if self._process.poll() is not None:
                    raise SystemExit((self._folder / "log").read_text()) from None
                time.sleep(0.5)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=150) as response:
            return json.load(response)["data"]

    def memory(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def history(recorded: List[Dict[str, Any]], until: float) -> Iterator[str]:
    """The history of the rules: six hours, or twelve weeks for the rules of panels over weeks."""
    by_name: Dict[str, List[Dict[str, str]]] = {}
    for series in recorded:
        by_name.setdefault(series["metric"].pop("__name__"), []).append(series["metric"])
    for_weeks = {name for names in HALF_HOURLY.values() for name in names}
    for name, label_sets in by_name.items():
        span, step = (84 * DAY, 1800) if name in for_weeks else (DAY // 4, 60)
        yield f"# TYPE {name} gauge\n"
        for labels in label_sets:
            text = ",".join(f'{key}="{value}"' for key, value in labels.items())
            usual = random.lognormvariate(0, 2)
            yield from (
                f"{name}{{{text}}} {usual * random.uniform(0.8, 1.2):.5g} {stamp}\n"
                for stamp in range(int(until) - span, int(until), step)
            )
    yield "# EOF\n"


def queries() -> Iterator[Tuple[str, str, Dict[str, str]]]:
    """The queries of the dashboard of all services: title, query and range."""
    path = DASHBOARDS / "grafana" / "greenback-fleet.json"
    for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$service", ".*").replace("$__range", "6h")
            if target.get("instant"):
                times = {}
            elif "timeFrom" in panel:
                times = {"span": f"{84 * DAY}", "step": f"{DAY}"}
            else:
                times = {"span": f"{DAY // 4}", "step": "60"}
            yield f"{panel['title']} {target['refId']}", expr, times


#: The queries of the same panels without rules, over the hour of data that there is at most.
WITHOUT_RULES = {
    "Bridges per second": "sum by (job) (rate(greenback_bridges_total[5m]))",
    "Hot sites": "topk(10, sum by (job, code_function_name) (rate(greenback_bridges_total[5m])))",
    "Bridge latency": (
        "histogram_quantile(0.95, "
        "sum by (job, le) (rate(greenback_bridge_duration_seconds_bucket[5m])))"
    ),
}


def timed(prometheus: Prometheus, expr: str, times: Dict[str, str]) -> Tuple[float, int]:
    now = time.time()
    start = time.perf_counter()
    if times:
        data = prometheus.get(
            "query_range",
            query=expr,
            start=f"{now - float(times['span'])}",
            end=f"{now}",
            step=times["step"],
        )
    else:
        data = prometheus.get("query", query=expr, time=f"{now}")
    return time.perf_counter() - start, len(data["result"])


def show_fleet(processes: int, services: int, sites: int, every: str, minutes: float) -> None:
    _, page = measure(sites, 1)
    fleet = Fleet(page)
    folder = Path(tempfile.mkdtemp(prefix="greenback-scale-"))
    begun = time.time()
    try:
        with closing(Prometheus(folder, fleet, processes, services, every)) as prometheus:
            # The rules look back over five minutes.
            time.sleep(minutes * 60)
            by_rules = prometheus.get("query", query='{__name__=~"job.*:greenback.*"}')["result"]
            recorded = [each for each in by_rules if not SELDOM.search(each["metric"]["__name__"])]
            recorded += [
                {"metric": {**series["metric"], "__name__": name}}
                for series in recorded
                for name in HALF_HOURLY.get(series["metric"]["__name__"], ())
            ]
            in_all = len(recorded)
        text = folder / "history.txt"
        with text.open("w") as file:
            file.writelines(history(recorded, begun))
        subprocess.run(
            [
                "promtool",
                "tsdb",
                "create-blocks-from",
                "openmetrics",
                "--quiet",
                "--max-block-duration=744h",
                str(text),
                str(folder / "data"),
            ],
            check=True,
        )
        text.unlink()
        with closing(Prometheus(folder, fleet, processes, services, every)) as prometheus:
            time.sleep(90)  # two evaluations of each rule
            (head,) = prometheus.get("query", query="count({__name__=~'greenback_.*'})")["result"]
            print(
                f"{processes:,} processes of {services} services, {sites} sites each: "
                f"{int(head['value'][1]):,} series, {in_all:,} more from rules; "
                f"Prometheus has {prometheus.memory() / 1e9:.1f} GB"
            )
            print("\nrules, seconds of each evaluation")
            for group in prometheus.get("rules")["groups"]:
                print(f"{group['evaluationTime']:8.3f}  {group['name']}")
            print("\nseconds  series  query of the dashboard of all services (median of 5)")
            worst = 0.0
            for title, expr, times in queries():
                answers = sorted(timed(prometheus, expr, times) for _ in range(5))
                seconds, series = answers[2]
                worst = max(worst, seconds)
                print(f"{seconds:7.3f}  {series:6}  {title}")
            print(f"{worst:7.3f}          the slowest")
            print("\nseconds  series  the same without rules: now, and over an hour")
            for title, expr in WITHOUT_RULES.items():
                for times in ({}, {"span": "3600", "step": "60"}):
                    seconds, count = timed(prometheus, expr, times)
                    print(f"{seconds:7.3f}  {count:6}  {title}{', over an hour' if times else ''}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=["process", "fleet"], default="process")
    parser.add_argument("--processes", type=int, default=1000)
    parser.add_argument("--services", type=int, default=20)
    parser.add_argument("--sites", type=int, default=50)
    parser.add_argument("--every", default="15s", help="how often each process is scraped")
    parser.add_argument("--minutes", type=float, default=6, help="of scraping before the queries")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        page = process(*map(int, options.one.split(",")))
        sys.stdout.buffer.write(page)
    elif options.what == "process":
        show_process()
    else:
        show_fleet(
            options.processes, options.services, options.sites, options.every, options.minutes
        )


if __name__ == "__main__":
    main()
