"""The files for Docker and the Collector, checked without either."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict

import pytest

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("yaml") is None,
    reason="needs PyYAML, of the dependency group dashboards",
)


def load(path: str) -> Dict[str, Any]:
    import yaml

    content: Dict[str, Any] = yaml.safe_load((DASHBOARDS / path).read_text(encoding="utf-8"))
    return content


class TestCollector:
    def test_pipelines_use_what_is_configured(self) -> None:
        """Each part of a pipeline is configured, and each configuration is used."""
        configuration = load("collector/config.yaml")
        pipelines = configuration["service"]["pipelines"].values()
        for kind in ("receivers", "processors", "exporters"):
            used = {each for pipeline in pipelines for each in pipeline[kind]}
            assert used == set(configuration[kind])

    def test_sampling_keeps_what_greenback_marks(self) -> None:
        """The conditions of sampling use names that spans of greenback have."""
        policies = str(load("collector/config.yaml")["processors"]["tail_sampling"]["policies"])
        page = (ROOT / "docs" / "traces.rst").read_text(encoding="utf-8")
        for mark in ("greenback.slow_step_time", "greenback.misuse"):
            assert mark in policies
            assert f"``{mark}``" in page
        assert 'IsMatch(name, "^await_ ")' in policies
        assert "``await_ {calling function}``" in page


class TestPrometheus:
    @pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
    def test_takes_its_configuration(self) -> None:
        """Prometheus accepts the configuration, and finds its rules."""
        done = subprocess.run(
            ["promtool", "check", "config", "prometheus/prometheus.yaml"],
            cwd=DASHBOARDS,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "24 rules found" in done.stdout

    def test_scrapes_the_collector(self) -> None:
        """Prometheus scrapes the port of the Collector's exporter; services keep their names."""
        (job,) = load("prometheus/prometheus.yaml")["scrape_configs"]
        port = load("collector/config.yaml")["exporters"]["prometheus"]["endpoint"].split(":")[1]
        assert job["static_configs"] == [{"targets": [f"collector:{port}"]}]
        assert job["honor_labels"] is True


class TestCompose:
    def test_mounts_and_copies_files_that_exist(self) -> None:
        """Every path that a container mounts exists in the project."""
        compose = load("compose.yaml")
        paths = [
            DASHBOARDS / volume.split(":")[0]
            for service in compose["services"].values()
            for volume in service.get("volumes", ())
            if volume.startswith(".")
        ]
        copied = re.findall(
            r"^COPY (.+) \S+$", compose["x-load"]["build"]["dockerfile_inline"], re.M
        )
        paths += [ROOT / path for line in copied for path in line.split()]
        assert len(paths) > 10
        assert [str(path) for path in paths if not path.exists()] == []

    def test_services_find_one_another(self) -> None:
        """Every host in a configuration is a service of the composition."""
        services = load("compose.yaml")["services"]
        assert load("collector/config.yaml")["exporters"]["otlp/traces"]["endpoint"] == "tempo:4317"
        sources = load("grafana/provisioning/datasources/greenback.yaml")["datasources"]
        for source in sources:
            assert re.fullmatch(r"http://(\w+):\d+", source["url"])[1] in services  # type: ignore[index]
        assert {"collector", "tempo"} <= set(services)
