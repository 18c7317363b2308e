"""Writes grafana/*.json. ``python -m dashboards.build --check`` says whether they are current."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from . import fleet, service

GRAFANA = Path(__file__).resolve().parent / "grafana"
DASHBOARDS = {
    "greenback-service.json": service.dashboard,
    "greenback-fleet.json": fleet.dashboard,
}


def render(dashboard: Dashboard) -> str:
    # Grafana knows panels by their ids. Without ids, it would take two panels for the same one.
    for number, panel in enumerate(dashboard.panels or [], 1):
        panel.id_val = number
    return json.dumps(dashboard, cls=JSONEncoder, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    check = parser.parse_args().check
    stale = []
    for name, make in DASHBOARDS.items():
        path = GRAFANA / name
        text = render(make())
        if check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(
            f"{', '.join(stale)}: not what the code makes; run 'python -m dashboards.build'",
            file=sys.stderr,
        )
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
