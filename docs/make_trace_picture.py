"""Draws the last trace of a file of OTLP JSON lines, as in a trace viewer.

    cp docs/shop.py /tmp && cd /tmp && GREENBACK_TRACE=1 python shop.py trace.jsonl
    python docs/make_trace_picture.py /tmp/trace.jsonl docs/_static/trace.svg

Below the spans are the attributes of the portal and of the first bridge.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

WIDTH = 1000
NAMES = 300
ROW = 26
LINE = 17
MARGIN = 12
COLOURS = {"greenback": "#2f855a", "opentelemetry.instrumentation.httpx": "#2b6cb0"}
OTHER_COLOUR = "#6b46c1"
ERROR_COLOUR = "#c53030"
STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1a202c; }
.code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 11px; }
.quiet { fill: #5a6475; font-size: 11px; }
"""


class Span:
    def __init__(self, scope: str, fields: Dict[str, Any]) -> None:
        self.scope = scope
        self.name: str = fields["name"]
        self.id: str = fields["spanId"]
        self.trace: str = fields["traceId"]
        self.parent: str = fields.get("parentSpanId", "")
        self.start = int(fields["startTimeUnixNano"])
        self.end = int(fields["endTimeUnixNano"])
        self.failed = fields.get("status", {}).get("code") == 2
        self.attributes = {
            each["key"]: _value(each["value"]) for each in fields.get("attributes", ())
        }

    @property
    def colour(self) -> str:
        return COLOURS.get(self.scope, OTHER_COLOUR)


def _value(value: Dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [_value(each) for each in content.get("values", ())]
    return int(content) if kind == "intValue" else content


def load(path: Path) -> List[Span]:
    """The spans of the trace that ended last."""
    spans = [
        Span(scope["scope"]["name"], fields)
        for line in path.read_text(encoding="utf-8").splitlines()
        for resource in json.loads(line).get("resourceSpans", ())
        for scope in resource["scopeSpans"]
        for fields in scope["spans"]
    ]
    last = max(spans, key=lambda span: span.end).trace
    return [span for span in spans if span.trace == last]


def in_order(spans: List[Span]) -> Iterator[Tuple[int, Span]]:
    """Each span after its parent, with its depth."""
    known = {span.id for span in spans}
    children: Dict[str, List[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start):
        children.setdefault(span.parent if span.parent in known else "", []).append(span)

    def below(parent: str, depth: int) -> Iterator[Tuple[int, Span]]:
        for span in children.get(parent, ()):
            yield depth, span
            yield from below(span.id, depth + 1)

    return below("", 0)


def draw(spans: List[Span]) -> str:
    start = min(span.start for span in spans)
    whole = max(span.end for span in spans) - start
    room = WIDTH - NAMES - 2 * MARGIN - 80
    parts: List[str] = []

    def text(x: float, y: float, content: str, kind: str = "", **more: object) -> None:
        extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
        parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{extra}>{escape(content)}</text>'
        )

    def x_of(moment: int) -> float:
        return MARGIN + NAMES + (moment - start) / whole * room

    rows = list(in_order(spans))
    top = 34
    bottom = top + ROW * len(rows)
    for tick in range(5):
        moment = start + whole * tick // 4
        parts.append(
            f'<line x1="{x_of(moment):.1f}" x2="{x_of(moment):.1f}" y1="{top - 6}" y2="{bottom}" '
            'stroke="#d5dae3"/>'
        )
        text(x_of(moment), top - 12, _duration(whole * tick // 4), "quiet", text_anchor="middle")
    for row, (depth, span) in enumerate(rows):
        y = top + row * ROW
        left = MARGIN + depth * 16
        parts.append(f'<rect x="{left}" y="{y + 5}" width="4" height="16" fill="{span.colour}"/>')
        text(left + 10, y + 18, span.name)
        width = max((span.end - span.start) / whole * room, 2)
        parts.append(
            f'<rect x="{x_of(span.start):.1f}" y="{y + 6}" width="{width:.1f}" height="14" '
            f'rx="2" fill="{span.colour}"/>'
        )
        note = _duration(span.end - span.start)
        if span.failed:
            note += f"  ✕ {span.attributes.get('error.type', 'error')}"
        after = x_of(span.start) + width + 6
        if after + 7 * len(note) < WIDTH:
            text(after, y + 18, note, "quiet", **({"style": _ERROR} if span.failed else {}))
        else:
            text(
                x_of(span.start) + width - 6,
                y + 17,
                note,
                "quiet",
                text_anchor="end",
                style="fill: #fff",
            )
    y = bottom + 16
    for scope, colour in (*COLOURS.items(), ("the program's own", OTHER_COLOUR)):
        parts.append(f'<rect x="{MARGIN + 2}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        text(MARGIN + 18, y, scope, "quiet")
        y += LINE
    portals = [span for _, span in rows if span.name.startswith("portal ")]
    bridges = [span for _, span in rows if span.name.startswith("await_ ")]
    for span in (*portals[:1], *bridges[:1]):
        y += 14
        text(MARGIN, y, span.name)
        y += 6
        for key, value in sorted(span.attributes.items()):
            for number, each in enumerate(value if isinstance(value, list) else [value]):
                y += LINE
                if not number:
                    text(MARGIN + 10, y, key, "code")
                text(MARGIN + NAMES, y, _shown(each), "code")
        y += LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" '
        f'width="{WIDTH}" height="{y}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


_ERROR = f"fill: {ERROR_COLOUR}"


def _duration(nanoseconds: int) -> str:
    if nanoseconds < 1_000_000:
        return f"{nanoseconds / 1e3:.0f} µs"
    return f"{nanoseconds / 1e6:.1f} ms"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(load(Path(sys.argv[1]))), encoding="utf-8")
