"""Every query that dashboards/ makes, answered by a real Prometheus from real programs.

The site of demo/ runs three times: on asyncio and on Trio with the Prometheus exporter, and once
more with OTLP through a stand-in for the Collector. dashboards/trouble.py makes every alert
fire. In the rules, a minute is half a second.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Tuple

import pytest
from typing_extensions import Self

from ..installed import missing

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"
NEEDED = [
    *("docutils", "httpx", "hypercorn", "jinja2", "markdown-it-py", "trio"),
    *("opentelemetry-distro", "opentelemetry-exporter-otlp-proto-http"),
    *("opentelemetry-exporter-prometheus",),
]
#: Seconds until everything must have been seen. An idle machine takes 45, until the leak fires.
#: Everything else happens meanwhile.
PATIENCE = 300
#: Metrics of which a healthy service has no values.
RARE = re.compile("misuses|slow_steps|item_dropped")


MISSING = [*([] if shutil.which("prometheus") else ["prometheus"]), *missing(NEEDED)]

pytestmark = [
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"needs Prometheus and the dependency groups dashboards and demo: no {MISSING}",
    ),
    pytest.mark.timeout(PATIENCE + 60),
]


class Query(NamedTuple):
    where: str
    expr: str
    is_range: bool
    #: The range of a panel that does not follow the time picker.
    over_weeks: bool = False


def queries_of(name: str) -> List[Query]:
    """The queries of the panels and annotations of a dashboard."""
    dashboard = json.loads((DASHBOARDS / "grafana" / name).read_text(encoding="utf-8"))
    found = [
        Query(
            f"{panel['title']} {target['refId']}",
            target["expr"],
            not target.get("instant"),
            "timeFrom" in panel,
        )
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    assert len(found) > 20
    return found + [
        Query(each["name"], each["expr"], is_range=True)
        for each in dashboard["annotations"]["list"]
    ]


def variables_of(name: str) -> Dict[str, Tuple[str, str]]:
    """The metric and the label of which each variable has the values."""
    dashboard = json.loads((DASHBOARDS / "grafana" / name).read_text(encoding="utf-8"))
    found = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert match is not None
            found[variable["name"]] = match.group(1), match.group(2)
    return found


def fill(expr: str, **variables: str) -> str:
    """Fill in variables as Grafana does. All is ``.*``, and the time picker is at one minute."""
    values = {
        "instance": ".*",
        "library": ".*",
        "function": ".*",
        "__interval": "1s",
        "__rate_interval": "3s",
        "__range": "60s",
        **variables,
    }
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(f"${name}", values[name])
    assert "$" not in expr, f"a variable that has no value: {expr}"
    return expr


def faster(rules: str) -> str:
    """The same rules, with half a second for each minute."""

    def scale(match: re.Match[str]) -> str:
        minutes = int(match[2]) * {"m": 1, "h": 60, "d": 1440}[match[3]]
        return f"{match[1]}{minutes * 500}ms"

    text, count = re.subn(r"(\[|offset |for: |interval: )(\d+)([mhd])\b", scale, rules)
    assert count > 3
    return text


class Prometheus:
    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {json.load(error)['error']}") from None

    def ask(self, query: Query, **variables: str) -> List[Dict[str, Any]]:
        """The series that a panel would show: those with a number."""
        expr = fill(query.expr, **variables)
        now = time.time()
        if query.is_range:
            # A new deployment is to be seen for a second only, at any time since the beginning.
            span, step = (84 * 86400, 86400) if query.over_weeks else (PATIENCE, 1)
            data = self.get(
                "query_range", query=expr, start=f"{now - span}", end=f"{now}", step=f"{step}"
            )
        else:
            data = self.get("query", query=expr, time=f"{now}")
        return [
            series
            for series in data["result"]
            if any(
                not math.isnan(float(value))
                for _, value in series.get("values", [series.get("value")])
            )
        ]


class Program(NamedTuple):
    process: subprocess.Popen[bytes]
    log: Path


class Stage(NamedTuple):
    prometheus: Prometheus
    programs: List[Program]
    deadline: float

    def eventually(self, check: Callable[[], Any]) -> None:
        """Wait until *check* returns nothing; fail with its last result otherwise."""
        while True:
            wrong = check()
            if not wrong:
                return
            for program in self.programs:
                assert program.process.poll() is None, program.log.read_text(errors="replace")
            assert time.monotonic() < self.deadline, wrong
            time.sleep(0.25)  # between two requests to another process

    def all_have_data(self, name: str, *, may_lack_rare: bool, **variables: str) -> None:
        waiting = [
            query for query in queries_of(name) if not (may_lack_rare and RARE.search(query.expr))
        ]

        def without_data() -> List[str]:
            waiting[:] = [each for each in waiting if not self.prometheus.ask(each, **variables)]
            return [f"no data: {each.where}: {fill(each.expr, **variables)}" for each in waiting]

        self.eventually(without_data)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def environment(service: str, **variables: str) -> Dict[str, str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GREENBACK_TRACE", "OTEL_"))
    }
    return {
        **clean,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_RESOURCE_ATTRIBUTES": f"service.version=1.2,service.instance.id={service}-1",
        "OTEL_SERVICE_NAME": service,
        **variables,
    }


def by_exporter(service: str, port: int, **variables: str) -> Dict[str, str]:
    return environment(
        service,
        OTEL_METRICS_EXPORTER="prometheus",
        OTEL_EXPORTER_PROMETHEUS_HOST="127.0.0.1",
        OTEL_EXPORTER_PROMETHEUS_PORT=str(port),
        **variables,
    )


def by_otlp(service: str, address: str) -> Dict[str, str]:
    return environment(
        service,
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{address}",
        OTEL_METRIC_EXPORT_INTERVAL="500",
    )


class Programs:
    """A context manager that ends the processes it has started, by closing their standard input."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.running: List[Program] = []

    def __enter__(self) -> Self:
        return self

    def start(self, name: str, command: List[str], environ: Mapping[str, str]) -> None:
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=dict(environ), stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        self.running.append(Program(process, log))

    def __exit__(self, *failure: object) -> None:
        for process, log in self.running:
            assert process.stdin is not None
            process.stdin.close()
            if log.stem == "prometheus":
                process.terminate()
        for process, _ in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Prometheus, and all processes that it scrapes."""
    from .collector import Collector  # here, since it needs protobuf

    folder = tmp_path_factory.mktemp("prometheus")
    deadline = time.monotonic() + PATIENCE
    with Collector() as collector, Programs(folder) as programs:
        on_asyncio, on_trio, trouble, web = (free_port() for _ in range(4))
        for name, library, environ in (
            ("asyncio", "asyncio", by_exporter("site", on_asyncio)),
            ("trio", "trio", by_exporter("site", on_trio)),
            ("otlp", "asyncio", by_otlp("site-otlp", collector.address)),
        ):
            load = [sys.executable, str(DASHBOARDS / "load.py"), library]
            programs.start(name, [*load, "--readers", "2", "--pause", "0.2"], environ)
        instrument = str(Path(sys.executable).parent / "opentelemetry-instrument")
        programs.start(
            "trouble",
            [instrument, sys.executable, str(DASHBOARDS / "trouble.py")],
            by_exporter(
                "trouble",
                trouble,
                GREENBACK_TRACE="debug",
                GREENBACK_TRACE_SLOW="0.02",
                GREENBACK_TRACE_SITES="2",
            ),
        )
        jobs = {
            "site": [f"127.0.0.1:{on_asyncio}", f"127.0.0.1:{on_trio}"],
            "trouble": [f"127.0.0.1:{trouble}"],
            "collector": [collector.address],
        }
        configuration = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["rules.yaml", "alerts.yaml"],
            "scrape_configs": [
                {
                    "job_name": job,
                    "honor_labels": job == "collector",
                    "static_configs": [{"targets": targets}],
                }
                for job, targets in jobs.items()
            ],
        }
        # JSON is YAML.
        (folder / "prometheus.yaml").write_text(json.dumps(configuration))
        for name in ("rules.yaml", "alerts.yaml"):
            rules = (DASHBOARDS / "prometheus" / name).read_text(encoding="utf-8")
            (folder / name).write_text(faster(rules))
        address = f"127.0.0.1:{web}"
        programs.start(
            "prometheus",
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            os.environ,
        )
        stage = Stage(Prometheus(address), programs.running, deadline)
        stage.eventually(lambda: not is_ready(address) and "Prometheus has not started")
        yield stage


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


class TestQueries:
    @pytest.mark.parametrize("service", ["site", "site-otlp"])
    def test_a_service_fills_its_dashboard(self, stage: Stage, service: str) -> None:
        """Every panel has data, from the Prometheus exporter and from OTLP through a Collector."""
        stage.all_have_data("greenback-service.json", may_lack_rare=True, service=service)

    def test_one_function_fills_its_panels(self, stage: Stage) -> None:
        """Choosing one function, instance and library leaves no panel empty."""
        stage.all_have_data(
            "greenback-service.json",
            may_lack_rare=True,
            service="site",
            library="trio",
            instance=r"127\\.0\\.0\\.1:\\d+",
            function=r"clients\\.Database\\.run",
        )

    def test_trouble_fills_the_row_health(self, stage: Stage) -> None:
        """The panels of misuses, slow steps and drops have data for a service with all of these."""
        stage.all_have_data("greenback-service.json", may_lack_rare=False, service="trouble")

    def test_all_services_fill_the_dashboard_of_the_fleet(self, stage: Stage) -> None:
        """Every panel of the dashboard of all services has data, from recording rules only."""
        stage.all_have_data("greenback-fleet.json", may_lack_rare=False, service=".*")

    def test_a_panel_by_service_has_each_of_them(self, stage: Stage) -> None:
        """Services with different exporters are side by side."""
        query = next(
            each
            for each in queries_of("greenback-fleet.json")
            if each.where == "Bridges per second A"
        )

        def absent() -> Any:
            shown = stage.prometheus.ask(query, service=".*")
            return {"site", "site-otlp", "trouble"} - {each["metric"]["job"] for each in shown}

        stage.eventually(absent)

    @pytest.mark.parametrize(
        ("dashboard", "variable", "expected"),
        [
            ("greenback-service.json", "service", {"site", "site-otlp", "trouble"}),
            ("greenback-service.json", "instance", None),
            ("greenback-service.json", "library", {"asyncio", "trio"}),
            (
                "greenback-service.json",
                "function",
                {"clients.Database.run", "clients.TemplateServer.get"},
            ),
            ("greenback-fleet.json", "service", {"site", "site-otlp", "trouble"}),
        ],
    )
    def test_variables_offer_what_there_is(
        self, stage: Stage, dashboard: str, variable: str, expected: Any
    ) -> None:
        """Each variable offers the values that a user would choose from."""
        metric, label = variables_of(dashboard)[variable]

        def wrong() -> Any:
            values = stage.prometheus.get(
                f"label/{label}/values", **{"match[]": fill(metric, service="site")}
            )
            is_right = set(values) == expected if expected else len(values) == 2
            return not is_right and f"{variable}: {values}"

        stage.eventually(wrong)

    def test_every_rule_records(self, stage: Stage) -> None:
        """No rule fails, and each recording rule has a series."""

        def wrong() -> List[str]:
            groups = stage.prometheus.get("rules")["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            assert {rule["type"] for rule in rules} == {"recording", "alerting"}
            failed = [
                f"{each['name']}: {each['lastError']}" for each in rules if each.get("lastError")
            ]
            assert not failed
            return [
                f"{each['name']} is {each['health']}, or has recorded nothing"
                for each in rules
                if each["health"] != "ok"
                or (
                    each["type"] == "recording"
                    and not stage.prometheus.ask(Query("", each["name"], is_range=False))
                )
            ]

        stage.eventually(wrong)

    def test_every_expression_of_an_alert_is_answered(self, stage: Stage) -> None:
        """Prometheus evaluates each alert's expression without an error or a warning."""
        groups = stage.prometheus.get("rules", type="alert")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) == 6
        for rule in rules:
            stage.prometheus.ask(Query(rule["name"], rule["query"], is_range=True))

    def test_alerts_fire_where_there_is_trouble(self, stage: Stage) -> None:
        """The alerts of a misuse, a held loop, a leak and dropped telemetry fire, and say where."""
        expected = {
            "GreenbackMisuse",
            "GreenbackLoopHeld",
            "GreenbackPortalLeak",
            "GreenbackTelemetryDropped",
        }

        def absent() -> Any:
            alerts = stage.prometheus.get("alerts")["alerts"]
            return expected - {
                each["labels"]["alertname"]
                for each in alerts
                if each["state"] == "firing" and each["labels"]["job"] == "trouble"
            }

        stage.eventually(absent)
        alerts = stage.prometheus.get("alerts")["alerts"]
        elsewhere = [
            each["labels"]
            for each in alerts
            if each["state"] == "firing"
            and each["labels"]["job"] != "trouble"
            and each["labels"]["alertname"] in {"GreenbackMisuse", "GreenbackTelemetryDropped"}
        ]
        assert not elsewhere
