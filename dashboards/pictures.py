"""Draws a dashboard with matplotlib, from the answers of a Prometheus to its own queries.

    python -m dashboards.pictures http://localhost:9090 service --service site out.png
    python -m dashboards.pictures http://localhost:9090 fleet out.png

The pictures in docs/ are made so, without Grafana. Grafana's own drawing looks different.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import textwrap
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Callable, Sequence

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from PIL import Image

GRAFANA = Path(__file__).resolve().parent / "grafana"
#: The size of one unit of Grafana's grid, in inches.
WIDTH, HEIGHT = 0.66, 0.42
COLOURS = ["#2f855a", "#2b6cb0", "#b7791f", "#6b46c1", "#c53030", "#00838f", "#d53f8c", "#718096"]
GOOD, BAD = "#2f855a", "#c53030"

Series = dict[str, Any]
Ask = Callable[[str, bool], list[Series]]


def seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return "0" if not value else f"{value * 1e9:.3g} ns"


def plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


UNITS: dict[str, Callable[[float], str]] = {
    "s": seconds,
    "percentunit": lambda value: f"{value * 100:.3g} %",
    "ops": lambda value: f"{plain(value)} /s",
    "short": plain,
}


def legend_of(target: dict[str, Any], labels: dict[str, str]) -> str:
    template = target.get("legendFormat", "")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


def unit_of(panel: dict[str, Any]) -> str:
    unit: str = panel["fieldConfig"]["defaults"].get("unit", "short")
    return unit


def draw_lines(axes: Axes, panel: dict[str, Any], ask: Ask, now: float) -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    for target in panel["targets"]:
        for series in ask(target["expr"], True):
            points = [(float(at), float(value)) for at, value in series["values"]]
            found[legend_of(target, series["metric"])] = points
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    if custom.get("stacking", {}).get("mode") == "normal":
        times = sorted({at for points in found.values() for at, _ in points})
        heights = [
            [dict(points).get(at, 0.0) if points else 0.0 for at in times]
            for points in found.values()
        ]
        x = [(at - now) / 60 for at in times]
        if heights:
            axes.stackplot(x, heights, labels=list(found), colors=COLOURS, alpha=0.8)
    else:
        for colour, (name, points) in zip(COLOURS * 3, found.items()):
            x, y = [(at - now) / 60 for at, _ in points], [value for _, value in points]
            marker = "." if len(points) < 4 else ""
            axes.plot(x, y, label=name, color=colour, linewidth=1.3, marker=marker)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: UNITS[unit_of(panel)](value)))
    axes.grid(alpha=0.3)
    if found:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=7, frameon=False
        )
    else:
        _say(axes, "No data")


def draw_heat(axes: Axes, panel: dict[str, Any], ask: Ask, now: float) -> None:
    cumulative = {
        float(series["metric"]["le"]): {float(at): float(n) for at, n in series["values"]}
        for series in ask(panel["targets"][0]["expr"], True)
    }
    bounds = sorted(cumulative)
    times = sorted({at for counts in cumulative.values() for at in counts})
    if not times:
        _say(axes, "No data")
        return
    rows = []
    below = dict.fromkeys(times, 0.0)
    for bound in bounds:
        counts = cumulative[bound]
        rows.append([max(counts.get(at, 0) - below[at], 0) for at in times])
        below = {at: counts.get(at, below[at]) for at in times}
    used = [number for number, row in enumerate(rows) if any(row)] or [0]
    low, high = used[0], used[-1] + 1
    x = [(at - now) / 60 for at in times]
    y = range(low, high)
    axes.pcolormesh(x, y, [rows[number] for number in y], cmap="Oranges", shading="nearest")
    labels = ["more" if math.isinf(bounds[number]) else seconds(bounds[number]) for number in y]
    axes.set_yticks(list(y), labels)


def draw_number(axes: Axes, panel: dict[str, Any], ask: Ask, now: float) -> None:
    found = ask(panel["targets"][0]["expr"], False)
    value = float(found[0]["value"][1]) if found else 0.0
    axes.set_facecolor(BAD if value else GOOD)
    axes.text(
        0.5,
        0.5,
        f"{value:.0f}",
        transform=axes.transAxes,
        fontsize=24,
        color="white",
        ha="center",
        va="center",
    )
    axes.set_xticks([])
    axes.set_yticks([])


def draw_table(axes: Axes, panel: dict[str, Any], ask: Ask, now: float) -> None:
    transformations = {each["id"]: each["options"] for each in panel["transformations"]}
    names: dict[str, str] = transformations["organize"]["renameByName"]
    keys = [name for name in names if not name.startswith("Value")]
    units = {
        each["matcher"]["options"]: each["properties"][0]["value"]
        for each in panel["fieldConfig"]["overrides"]
        if each["properties"][0]["id"] == "unit"
    }
    columns = [name for label, name in names.items() if label.startswith("Value")]
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for column, target in zip(columns, panel["targets"]):
        for series in ask(target["expr"], False):
            key = tuple(series["metric"].get(label, "") for label in keys)
            rows.setdefault(key, {})[column] = float(series["value"][1])
    first = columns[0]
    ranked = sorted(rows.items(), key=lambda row: -row[1].get(first, 0))[:8]
    text = [
        [*key, *(UNITS[units[each]](row[each]) if each in row else "-" for each in columns)]
        for key, row in ranked
    ]
    axes.axis("off")
    if not text:
        _say(axes, "-")
        return
    heads = ["\n".join(textwrap.wrap(each, 11)) for each in columns]
    widths = [0.34, *([0.14] * (len(keys) - 1))]
    widths += [(0.98 - sum(widths)) / len(columns)] * len(columns)
    table = axes.table(
        text,
        colLabels=[*(names[key] for key in keys), *heads],
        colWidths=widths,
        cellLoc="left",
        loc="upper left",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    table.scale(1, 1.35)
    for (row, _), cell in table.get_celld().items():
        if row == 0:
            cell.set_height(cell.get_height() * 1.5)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color="#718096")


DRAW = {
    "timeseries": draw_lines,
    "heatmap": draw_heat,
    "stat": draw_number,
    "table": draw_table,
}


def draw(
    dashboard: dict[str, Any], ask: Ask, now: float, span: float, rows: Sequence[str], path: str
) -> None:
    shown: list[dict[str, Any]] = []
    row, moved, top = "", 0, 0
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            # A row that is left out leaves no gap.
            moved = panel["gridPos"]["y"] - top
        if row in rows:
            panel["gridPos"]["y"] -= moved
            top = max(top, panel["gridPos"]["y"] + panel["gridPos"]["h"])
            shown.append(panel)
    seen = [
        float(series["values"][0][0])
        for annotation in dashboard["annotations"]["list"]
        for series in ask(annotation["expr"], True)
    ]
    # Versions seen at the beginning of the picture were deployed before it.
    marks = [at for at in seen if at > now - span + 15]
    figure = plt.figure(figsize=(24 * WIDTH, top * HEIGHT), dpi=72)
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    for panel in shown:
        place = panel["gridPos"]
        x, y = place["x"] / 24, 1 - place["y"] / top
        if panel["type"] == "row":
            figure.text(x + 0.005, y - 0.7 / top, panel["title"], fontsize=12, weight="bold")
            continue
        is_wide = panel["type"] in ("stat", "table")
        left, right = (0.006, 0.006) if is_wide else (0.045, 0.008)
        above, below = 0.9 / top, (0.25 if is_wide else 2.0) / top
        axes = figure.add_axes(
            (
                x + left,
                y - place["h"] / top + below,
                place["w"] / 24 - left - right,
                place["h"] / top - above - below,
            )
        )
        axes.tick_params(labelsize=7)
        axes.set_title(panel["title"], fontsize=9, loc="left")
        DRAW[panel["type"]](axes, panel, ask, now)
        if not is_wide:
            for mark in marks:
                axes.axvline((mark - now) / 60, color="#2b6cb0", linestyle=":", linewidth=1)
    figure.text(
        0.5,
        0.1 / top,
        "Time is in minutes before now. A dotted line is a deployment.",
        fontsize=7,
        ha="center",
    )
    figure.savefig(path)
    # Fewer colours make the file a third of the size.
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(64)
    small.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prometheus", help="its address")
    parser.add_argument("dashboard", choices=["service", "fleet"])
    parser.add_argument("path", help="of the picture")
    parser.add_argument("--service", default=".*")
    parser.add_argument("--rows", help="their titles, with commas; all if left out")
    parser.add_argument("--minutes", type=int, default=8, help="how far to look back")
    parser.add_argument("--interval", type=int, default=20, help="$__rate_interval, in seconds")
    options = parser.parse_args()
    now = time.time()

    def ask(expr: str, is_range: bool) -> list[Series]:
        for name, value in (
            ("__interval", "5s"),
            ("__rate_interval", f"{options.interval}s"),
            ("__range", f"{options.minutes}m"),
            ("service", options.service),
            *((name, ".*") for name in ("instance", "library", "function")),
        ):
            expr = expr.replace(f"${name}", value)
        parameters = {"query": expr}
        if is_range:
            start = now - options.minutes * 60
            parameters |= {"start": f"{start}", "end": f"{now}", "step": "5"}
        else:
            parameters["time"] = f"{now}"
        kind = "query_range" if is_range else "query"
        url = f"{options.prometheus}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url) as response:
            found: list[Series] = json.load(response)["data"]["result"]
        return found

    text = (GRAFANA / f"greenback-{options.dashboard}.json").read_text(encoding="utf-8")
    dashboard = json.loads(text)
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    rows = options.rows.split(",") if options.rows else titles
    draw(dashboard, ask, now, options.minutes * 60, rows, options.path)


if __name__ == "__main__":
    main()
