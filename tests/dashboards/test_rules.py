"""dashboards/prometheus/, as promtool sees it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "dashboards" / "prometheus"
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
        """Alerts fire when they should, and do not when they should not."""
        done = promtool("test", "rules", f"tests/{path.name}")
        assert done.returncode == 0, done.stdout + done.stderr

    @with_promtool
    @pytest.mark.parametrize("alert", ALERTS)
    def test_an_alert_that_never_fires_is_noticed(self, alert: str, tmp_path: Path) -> None:
        """The tests of an alert fail if it cannot fire, and if it always does."""
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


class TestRunbooks:
    @pytest.mark.parametrize("alert", ALERTS)
    def test_each_alert_has_one(self, alert: str) -> None:
        """The link of an alert leads to a section of the documentation."""
        text = (RULES / "alerts.yaml").read_text(encoding="utf-8")
        section = text[text.index(f"- alert: {alert}\n") :]
        link = re.search(r"runbook_url: docs/alerts\.html#([\w-]+)", section)
        assert link is not None
        assert link[1] == alert.lower()
        page = (ROOT / "docs" / "alerts.rst").read_text(encoding="utf-8")
        assert re.search(rf"^{alert}\n-+$", page, re.MULTILINE)
