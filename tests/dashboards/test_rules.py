"""dashboards/prometheus/, checked by promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "dashboards" / "prometheus"
GRAFANA = ROOT / "dashboards" / "grafana"
ALERTS = re.findall(r"- alert: (\w+)", (RULES / "alerts.yaml").read_text(encoding="utf-8"))
TESTS = sorted((RULES / "tests").glob("*.yaml"))

with_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, which comes with Prometheus"
)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=RULES, capture_output=True, text=True, timeout=60, check=False
    )


class TestRules:
    @with_promtool
    def test_are_valid(self) -> None:
        """Prometheus loads the rules and the alerts."""
        done = promtool("check", "rules", "rules.yaml", "alerts.yaml")
        assert done.returncode == 0, done.stdout + done.stderr

    @with_promtool
    @pytest.mark.parametrize("path", TESTS, ids=[path.stem for path in TESTS])
    def test_do_what_their_tests_say(self, path: Path) -> None:
        """Alerts fire when they should, and only then."""
        done = promtool("test", "rules", f"tests/{path.name}")
        assert done.returncode == 0, done.stdout + done.stderr

    @with_promtool
    @pytest.mark.parametrize("alert", ALERTS)
    def test_an_alert_that_never_fires_is_noticed(self, alert: str, tmp_path: Path) -> None:
        """The tests of an alert fail if the alert never fires, and if it always does."""
        text = (RULES / "alerts.yaml").read_text(encoding="utf-8")
        shutil.copytree(RULES, tmp_path / "rules")
        about = [path for path in TESTS if alert in path.read_text(encoding="utf-8")]
        start = text.index(f"- alert: {alert}\n")
        expr = text.index("expr:", start)
        end = min(
            text.find(each, expr)
            for each in ("\n        for:", "\n        labels:")
            if text.find(each, expr) >= 0
        )
        for always in ("vector(1) < 0", "vector(1)"):
            broken = f"{text[:expr]}expr: {always}{text[end:]}"
            (tmp_path / "rules" / "alerts.yaml").write_text(broken, encoding="utf-8")
            done = subprocess.run(
                ["promtool", "test", "rules", *(f"tests/{path.name}" for path in about)],
                cwd=tmp_path / "rules",
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode != 0
            assert alert in done.stdout + done.stderr


DAY = 24 * 60
#: Two processes of a shop: at noon of the third day, in minutes, 1.1 takes over from 1.0.
DEPLOYED = 5 * DAY // 2
SERIES = [
    {"series": f'{metric}{{job="shop", instance="{instance}", {label}}}', "values": values}
    for instance, version, values in (
        ("a", "1.0", f"1x{DEPLOYED} stale"),
        ("b", "1.1", f"_x{DEPLOYED} 1x{3 * DAY}"),
    )
    for metric, label in (
        ("target_info", f'service_version="{version}"'),
        ("greenback_switches_total", 'greenback_switch_direction="to_loop"'),
    )
]


@with_promtool
@pytest.mark.parametrize("name", ["greenback-service.json", "greenback-fleet.json"])
class TestDeployments:
    """The points of a range query of Grafana: one per step, at multiples of the step."""

    def check(self, tmp_path: Path, expr: str, step: int) -> None:
        """A new version is in the first point after its deployment, and in no other."""
        for variable, value in (
            ("$service", "shop"),
            ("$instance", ".*"),
            ("$__interval", f"{step}m"),
        ):
            expr = expr.replace(variable, value)
        mark = {"labels": '{service_version="1.1"}', "value": 1}
        tests = {
            "rule_files": [str(RULES / "rules.yaml")],
            "evaluation_interval": "30m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": SERIES,
                    "promql_expr_test": [
                        {
                            "expr": f"count by (service_version) ({expr})",
                            "eval_time": f"{at}m",
                            "exp_samples": [mark] if DEPLOYED <= at < DEPLOYED + step else [],
                        }
                        for at in range(2 * DAY, 5 * DAY + 1, step)
                    ],
                }
            ],
        }
        path = tmp_path / "deployments.yaml"
        path.write_text(json.dumps(tests), encoding="utf-8")  # which is YAML
        done = promtool("test", "rules", str(path))
        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize("step", [1, 15, 60, DAY])
    def test_annotation(self, tmp_path: Path, name: str, step: int) -> None:
        """A deployment is marked exactly once, for every range of the time picker."""
        dashboard = json.loads((GRAFANA / name).read_text(encoding="utf-8"))
        [annotation] = dashboard["annotations"]["list"]
        self.check(tmp_path, annotation["expr"], step)

    def test_panels_over_weeks(self, tmp_path: Path, name: str) -> None:
        """Panels with their own range, which get no annotations, mark deployments themselves."""
        dashboard = json.loads((GRAFANA / name).read_text(encoding="utf-8"))
        panels = [panel for panel in dashboard["panels"] if "timeFrom" in panel]
        assert len(panels) >= 2
        for panel in panels:
            [expr] = [
                target["expr"]
                for target in panel["targets"]
                if "service_version" in target["legendFormat"]
            ]
            self.check(tmp_path, expr, DAY)


class TestRunbooks:
    @pytest.mark.parametrize("alert", ALERTS)
    def test_each_alert_has_one(self, alert: str) -> None:
        """An alert links to a section of the docs, and names the command that prints it."""
        text = (RULES / "alerts.yaml").read_text(encoding="utf-8")
        section = text[text.index(f"- alert: {alert}\n") :].partition("\n      - alert:")[0]
        link = re.search(
            r"runbook_url: >-\n"
            r" +{{ with \$externalLabels\.greenback_docs }}{{ \. }}/alerts\.html#([\w-]+)\n"
            r" +{{- else }}greenback-trace explain (\w+){{ end }}\n",
            section,
        )
        assert link is not None
        assert link.groups() == (alert.lower(), alert)
        page = (ROOT / "docs" / "alerts.rst").read_text(encoding="utf-8")
        assert re.search(rf"^{alert}\n-+$", page, re.MULTILINE)
