"""The command ``greenback-trace export``, on the trace of a program that does a bit of it all."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")

from click.testing import CliRunner, Result

from greenback_trace.cli import main
from greenback_trace.count.caller import Caller
from greenback_trace.report.export.flames import stacks
from greenback_trace.report.export.html import html
from greenback_trace.report.export.perfetto import perfetto
from greenback_trace.report.export.timeline import (
    BRIDGE,
    PORTAL,
    SLOW_STEP,
    STEP,
    Lane,
    Process,
    Slice,
    Span,
    all_slices,
    lanes,
    read,
)
from greenback_trace.report.planning.plan import make_plan
from greenback_trace.report.read.load import Numbers, SiteReport, Trace, load

PROGRAM = """
import asyncio
import time

import greenback
from greenback import await_


class Prices:
    def __init__(self):
        self.rate = await_(fetch(1))

    def __getitem__(self, item):
        return await_(fetch(item))


async def fetch(value):
    await asyncio.sleep(0.001)
    return value


async def known():
    return 1


async def missing():
    raise KeyError("milk")


def bill(items):
    prices = Prices()
    total = sum(prices[item] for item in items)
    await_(known())
    try:
        await_(missing())
    except KeyError:
        pass
    time.sleep(0.02)
    return total


async def order(items):
    return await greenback.with_portal_run_sync(bill, items)


def outer():
    return await_(order([1]))


async def long_lived():
    await greenback.ensure_portal()
    bill([1])
    await asyncio.sleep(0.001)
    await_(known())


async def main():
    twins = [asyncio.create_task(order([1, 2, 3]), name="order") for _ in range(2)]
    await asyncio.gather(*twins)
    await asyncio.create_task(greenback.with_portal_run_sync(outer), name="nested")
    await asyncio.create_task(long_lived(), name="long")


asyncio.run(main())
"""
#: Code objects have known since 3.11 what they are in.
GENEXPR = "bill.<locals>.<genexpr>" if sys.version_info >= (3, 11) else "<genexpr>"
#: What the program does: four bills, for three, three, one and one items.
BRIDGES = {
    "__main__.bill": 8,
    "__main__.bill;__main__.Prices.__init__": 4,
    f"__main__.bill;__main__.{GENEXPR};__main__.Prices.__getitem__": 8,
    "__main__.outer": 1,
    "__main__.long_lived": 1,
}


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export")
    program, trace = directory / "shop.py", directory / "trace.jsonl"
    program.write_text(PROGRAM)
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GREENBACK_")},
        "GREENBACK_TRACE": "1",
        "GREENBACK_TRACE_FILE": str(trace),
        # Shorter than the sleep in bill().
        "GREENBACK_TRACE_SLOW": "0.015",
    }
    subprocess.run([sys.executable, str(program)], env=environ, check=True, timeout=60)
    return trace


def with_other_spans(text: str, key: int) -> str:
    """A trace with the ids that the spans of another process would have."""
    return re.sub(
        '"((?:parentSpan|span)Id)":"([0-9a-f]+)"',
        lambda match: f'"{match[1]}":"{int(match[2], 16) ^ key:016x}"',
        text,
    )


def export(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def exported(*arguments: Any) -> bytes:
    result = export(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


class TestFolded:
    def weights(self, *arguments: Any) -> Dict[str, int]:
        lines = exported("--format", "folded", *arguments).decode().splitlines()
        return {stack: int(weight) for stack, weight in (line.rsplit(" ", 1) for line in lines)}

    def test_bridges(self, path: Path) -> None:
        """By bridges, each sync chain has a line with exactly the bridges that it has made."""
        assert self.weights("--weight", "bridges", path) == BRIDGES

    def test_time(self, path: Path) -> None:
        """By time, which is the default, the lines add up to the report's total, in us."""
        weights = self.weights(path)
        assert set(weights) == set(BRIDGES)
        total = sum(site.time for site in load([str(path)]).sites) * 1e6
        assert sum(weights.values()) == pytest.approx(total, abs=len(weights))

    def test_names(self) -> None:
        """A name with what separates stacks in it, from generated code, does not break a line."""
        from greenback_trace.report.export.folded import folded

        site = SiteReport(function="a", chains={(Caller("", "a;b\nc", "/x.py", 1),): Numbers(ok=3)})
        assert folded(Trace(sites=[site]), "bridges") == "a:b c 3\n"
        nameless = SiteReport(function=" ", chains={(): Numbers(ok=3)})
        assert folded(Trace(sites=[nameless]), "bridges") == "? 3\n"


@pytest.fixture(scope="class")
def schema() -> Any:
    # That of the npm package speedscope 1.25.0 (MIT licence).
    return json.loads((Path(__file__).parent / "speedscope-file-format-schema.json").read_text())


class TestSpeedscope:
    @pytest.mark.parametrize("weight", ["time", "bridges"])
    def test_schema(self, path: Path, schema: Any, weight: str) -> None:
        """The file is what speedscope's published schema says."""
        jsonschema = pytest.importorskip("jsonschema")
        file = json.loads(exported("--format", "speedscope", "--weight", weight, path))
        jsonschema.validate(file, schema)
        file["profiles"][0]["unit"] = "bridges"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(file, schema)

    def test_weights(self, path: Path) -> None:
        """There is a profile for each weight, the one asked for first, of exact numbers."""
        file = json.loads(exported("--format", "speedscope", "--weight", "bridges", path))
        names = [frame["name"] for frame in file["shared"]["frames"]]
        first = file["profiles"][file["activeProfileIndex"]]
        counted = {
            ";".join(names[index] for index in sample): weight
            for sample, weight in zip(first["samples"], first["weights"])
        }
        assert counted == BRIDGES
        assert first["endValue"] == sum(BRIDGES.values())
        sites = load([str(path)]).sites
        ends = {profile["name"]: profile["endValue"] for profile in file["profiles"]}
        assert ends["time in bridges"] == pytest.approx(sum(site.time for site in sites))
        assert ends["time waiting for the event loop"] == pytest.approx(
            sum(site.suspended_time for site in sites)
        )

    def test_files(self, path: Path) -> None:
        """A frame tells the file that its function is in."""
        file = json.loads(exported("--format", "speedscope", path))
        assert {frame["file"] for frame in file["shared"]["frames"]} == {
            str(path.parent / "shop.py")
        }


def only(found: List[Lane]) -> Slice:
    """The one slice of the one lane."""
    (lane,) = found
    (portal,) = lane.slices
    return portal


def span_ids(slices: List[Slice]) -> List[str]:
    return sorted(each.span.id for each in all_slices(slices) if each.span is not None)


@pytest.fixture(scope="class")
def spans(path: Path) -> List[Span]:
    return read([str(path)])[1]


class TestTimeline:
    def of_task(self, spans: List[Span], name: str) -> List[Lane]:
        return [lane for lane in lanes(spans) if lane.name == name]

    def test_everything_is_there_once(self, spans: List[Span]) -> None:
        """Each span has one slice, and no slice reaches out of the one that it is in."""
        found = [each for lane in lanes(spans) for each in lane.slices]
        assert span_ids(found) == sorted(span.id for span in spans)
        for each in all_slices(found):
            last = each.start
            for below in each.below:
                assert last <= below.start <= below.end <= each.end
                last = below.end

    def test_tasks_of_one_name(self, spans: List[Span]) -> None:
        """Tasks of one name that run at the same time have a lane each."""
        first, second = self.of_task(spans, "order")
        assert first.slices[0].end > second.slices[0].start

    def test_tasks_one_after_another(self, spans: List[Span]) -> None:
        """Portals that are opened one after another in tasks of one name share a lane."""
        (lane,) = self.of_task(
            [span for span in spans if span.attributes.get("greenback.task.name") != "order"]
            + self.one_after_another(spans),
            "order",
        )
        assert len(lane.slices) == 2

    def one_after_another(self, spans: List[Span]) -> List[Span]:
        twins = [span for span in spans if span.attributes.get("greenback.task.name") == "order"]
        first, second = sorted(twins, key=lambda span: span.start)
        moved = Span(**{**vars(second), "start": first.end, "end": first.end + 1_000_000})
        return [first, moved]

    def test_steps(self, spans: List[Span]) -> None:
        """Under with_portal_run_sync(), a task waits in a bridge or holds the loop in a step."""
        for lane in self.of_task(spans, "order"):
            (portal,) = lane.slices
            length = {STEP: 0, BRIDGE: 0}
            for each in portal.below:
                length[each.kind] += each.end - each.start
            assert sum(length.values()) == portal.end - portal.start
            assert length[STEP] >= 20_000_000  # the sleep
            # One to fetch the rate, three for the prices. The two that do not wait are in a step.
            assert [each.kind for each in portal.below] == [STEP, BRIDGE] * 4 + [STEP]
            assert [each.kind for each in portal.below[-1].below] == [BRIDGE] * 2

    def test_slow_steps(self, spans: List[Span]) -> None:
        """A step that held the loop for longer than GREENBACK_TRACE_SLOW is called slow."""
        for lane in self.of_task(spans, "order"):
            (portal,) = lane.slices
            slow = [each for each in portal.below if each.name == SLOW_STEP]
            assert portal.span is not None
            assert len(slow) == portal.span.attributes["greenback.portal.slow_steps"]
            others = [each for each in portal.below if each.kind == STEP and each not in slow]
            # The one with the sleep.
            assert portal.below[-1] in slow
            assert all(each.end - each.start <= 20_000_000 for each in others)

    def test_no_steps_where_it_may_wait_elsewhere(self, spans: List[Span]) -> None:
        """An async task also waits without a bridge, so that no steps are claimed."""
        portal = only(self.of_task(spans, "long"))
        assert {each.kind for each in portal.below} == {BRIDGE}

    def test_no_steps_without_all_bridges(self, spans: List[Span]) -> None:
        """Where a span is missing, its time is not taken for a step."""
        waited = next(span for span in spans if span.name == "await_ Prices.__init__")
        kinds = {
            each.kind
            for lane in lanes([span for span in spans if span is not waited])
            for portal in lane.slices
            if portal.span is not None and portal.span.id == waited.portal
            for each in portal.below
        }
        assert kinds == {BRIDGE}

    def test_bridges_in_bridges(self, spans: List[Span]) -> None:
        """What an awaited function bridges in turn is below its bridge."""
        portal = only(self.of_task(spans, "nested"))
        (outer,) = [each for each in all_slices([portal]) if each.name == "await_ outer"]
        assert {each.name for each in outer.below} == {
            "await_ Prices.__init__",
            "await_ Prices.__getitem__",
            "await_ bill",
        }

    def test_portals_without_a_span(self, spans: List[Span]) -> None:
        """The bridges of a portal whose span is missing, as of one still open, have a lane."""
        portals = {span.id for span in spans if span.name.startswith("portal ")}
        found = lanes([span for span in spans if span.id not in portals])
        assert {lane.name for lane in found} == {"portals without a span"}
        assert sum(len(list(all_slices(lane.slices))) for lane in found) == len(spans) - len(
            portals
        )

    def test_kinds(self, spans: List[Span]) -> None:
        """A lane has portals; what fails is marked."""
        found = [each for lane in lanes(spans) for each in lane.slices]
        assert {each.kind for each in found} == {PORTAL}
        failed = [each for each in all_slices(found) if each.span is not None and each.span.failed]
        assert [each.name for each in failed] == ["await_ bill"] * 4


@pytest.fixture(scope="class")
def packets(path: Path) -> Any:
    # The published schema, which needs a newer protobuf than Python 3.8 has.
    protos = pytest.importorskip(
        "perfetto.protos.perfetto.trace.perfetto_trace_pb2", exc_type=Exception
    )
    trace = protos.Trace.FromString(exported("--format", "perfetto", path))
    return trace.packet


class TestPerfetto:
    def test_schema(self, packets: Any) -> None:
        """There is nothing in the file that Perfetto's published schema does not know."""
        from google.protobuf.unknown_fields import UnknownFieldSet

        left = list(packets)
        assert left
        while left:
            message = left.pop()
            assert not len(UnknownFieldSet(message))
            for field, value in message.ListFields():
                if field.message_type is not None:
                    left += [value] if hasattr(value, "ListFields") else list(value)

    def test_tracks(self, packets: Any, path: Path) -> None:
        """The process is a track with a track for each lane, in the order of the lanes."""
        process, *tracks = [
            packet.track_descriptor for packet in packets if packet.HasField("track_descriptor")
        ]
        assert process.process.process_name == "shop.py"
        assert process.process.pid > 0
        assert [track.name for track in tracks] == [
            lane.name for lane in lanes(read([str(path)])[1])
        ]
        assert {track.parent_uuid for track in tracks} == {process.uuid}
        assert len({track.uuid for track in [process, *tracks]}) == len(tracks) + 1

    def test_slices(self, packets: Any, path: Path) -> None:
        """What is read back, as Perfetto reads it, are the slices of the timeline."""
        found: List[Tuple[str, str, int, int]] = []
        stacks_: Dict[int, List[Any]] = {}
        last: Dict[int, int] = {}
        for packet in packets:
            if packet.HasField("track_event"):
                event = packet.track_event
                assert packet.timestamp >= last.get(event.track_uuid, 0)
                last[event.track_uuid] = packet.timestamp
                stack = stacks_.setdefault(event.track_uuid, [])
                if event.type == event.TYPE_SLICE_BEGIN:
                    stack.append((event.categories[0], event.name, packet.timestamp))
                else:
                    assert event.type == event.TYPE_SLICE_END
                    found.append((*stack.pop(), packet.timestamp))
        assert not any(stacks_.values())
        assert sorted(found) == sorted(
            (each.kind, each.name, each.start, each.end)
            for lane in lanes(read([str(path)])[1])
            for each in all_slices(lane.slices)
        )

    def test_attributes(self, packets: Any) -> None:
        """A slice has the attributes of its span, a sync chain among them."""
        event = next(
            packet.track_event
            for packet in packets
            if packet.track_event.name == "await_ Prices.__getitem__"
        )
        values = {annotation.name: annotation for annotation in event.debug_annotations}
        assert values["code.function.name"].string_value == "__main__.Prices.__getitem__"
        assert values["greenback.suspended"].bool_value is True
        assert values["greenback.sync_depth"].int_value == 3
        assert values["greenback.suspended_time"].double_value > 0
        chain = [item.string_value for item in values["greenback.sync_chain"].array_values]
        assert [caller.split(" ")[0] for caller in chain] == [
            "__main__.bill",
            f"__main__.{GENEXPR}",
            "__main__.Prices.__getitem__",
        ]

    def test_deep(self) -> None:
        """A trace can have spans that are thousands of times within one another."""
        spans = [
            Span(
                id=str(number),
                parent="",
                portal="portal",
                name="await_ f",
                start=number,
                end=100_000 - number,
                process=Process("shop", 1),
                failed=False,
                attributes={"greenback.sync_chain": ("f",)},
            )
            for number in range(3_000)
        ]
        assert len(b"".join(perfetto(lanes(spans)))) > 3_000


@pytest.fixture(scope="class")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(
                executable_path=installed, args=["--no-sandbox"], timeout=60_000
            )
        except sync_api.Error:
            pytest.skip("no browser; run: playwright install chromium")
        yield browser
        browser.close()


@pytest.fixture(scope="class")
def page_path(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page") / "page.html"
    trace, spans = read([str(path)])
    text = html(trace, lanes(spans), make_plan(trace, "bridges"), "bridges")
    page.write_text(text, encoding="utf-8")
    return page


@pytest.fixture(params=["light", "dark"], scope="class")
def page(browser: Any, page_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(
        color_scheme=request.param, viewport={"width": 1280, "height": 900}, offline=True
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.trouble = []
    page.requested = []
    page.on("console", lambda message: page.trouble.append(message.text))
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.on("request", lambda each: page.requested.append(each.url))
    page.goto(page_path.as_uri())
    # Drawn last.
    page.wait_for_selector("#plan-note", state="attached")
    yield page
    context.close()


class TestHTML:
    def test_is_self_contained(self, page: Any, page_path: Path) -> None:
        """The page is one file below 2 MB, which asks for nothing else and meets no error."""
        assert page_path.stat().st_size < 2_000_000
        assert page.requested == [page_path.as_uri()]
        assert page.trouble == []

    def test_policy(self, page: Any) -> None:
        """The page runs its own scripts only, and a name of the trace cannot reach a network."""
        refused = page.evaluate(
            """async () => {
                const refused = [];
                document.addEventListener("securitypolicyviolation",
                    event => refused.push(event.effectiveDirective));
                const told = count => new Promise(resolve => {
                    const look = () => refused.length >= count ? resolve() : setTimeout(look, 10);
                    look();
                });
                const script = document.createElement("script");
                script.textContent = "window.ran = true";
                document.body.append(script);
                await told(1);
                await fetch("http://192.0.2.1/").catch(() => null);
                await told(2);
                return [window.ran, ...refused];
            }"""
        )
        assert refused == [None, "script-src-elem", "connect-src"]
        page.trouble.clear()

    def test_headline(self, page: Any) -> None:
        """The numbers of the whole trace come first."""
        text = page.inner_text("#headline")
        assert text.startswith("22 bridges from 6 sites, 12 of them suspended: ")

    def test_flame_graph(self, page: Any) -> None:
        """Each sync chain is a stack in the flame graph, with the exact numbers of bridges."""
        page.check("#weights input[value=bridges]")
        titles = page.locator("#flame title").all_text_contents()
        shown = [title.split(" · ") for title in titles]
        assert {(parts[0], parts[-1].split(",")[0]) for parts in shown if parts[0]} == {
            ("all", "22 bridges"),
            ("__main__.bill", "20 bridges"),
            ("__main__.Prices.__init__", "4 bridges"),
            (f"__main__.{GENEXPR}", "8 bridges"),
            ("__main__.Prices.__getitem__", "8 bridges"),
            ("__main__.outer", "1 bridge"),
            ("__main__.long_lived", "1 bridge"),
        }

    def test_weights(self, page: Any) -> None:
        """The width of a function follows the weight that is chosen."""

        def settled(name: str, expected: float) -> None:
            # It moves there; what has no width is not drawn.
            page.wait_for_function(
                """([name, expected]) => {
                    const frames = [...document.querySelectorAll("#flame g.frame")];
                    const width = (start) => Number(frames.find((frame) =>
                        frame.querySelector("title").textContent.startsWith(start))
                        ?.querySelector("rect").getAttribute("width") ?? 0);
                    return Math.abs(width(name) / width("all") - expected) < 0.01;
                }""",
                arg=[name, expected],
            )

        page.check("#weights input[value=bridges]")
        settled("__main__.Prices.__getitem__", 8 / 22)
        page.check("#weights input[value=waiting]")
        settled("__main__.outer", 0)
        page.check("#weights input[value=bridges]")
        settled("__main__.outer", 1 / 22)

    def test_find(self, page: Any) -> None:
        """What is searched for is highlighted."""
        page.fill("#find", "PRICES")
        lit = page.locator('#flame g.frame:has(rect[fill="var(--found)"]) title')
        page.wait_for_function(
            """() => document.querySelectorAll('#flame rect[fill="var(--found)"]').length === 2"""
        )
        names = {text.split(" · ")[0] for text in lit.all_text_contents()}
        page.fill("#find", "")
        assert names == {"__main__.Prices.__init__", "__main__.Prices.__getitem__"}

    def test_timeline(self, page: Any, path: Path) -> None:
        """The timeline has a lane for each task, and in it its portals, bridges and steps."""
        found = lanes(read([str(path)])[1])
        names = page.locator(".lane-name").evaluate_all(
            "all => all.map((name) => name.firstChild.textContent)"
        )
        assert names == [lane.name for lane in found]
        slices = [each for lane in found for each in all_slices(lane.slices)]
        assert page.locator(".slice").count() == len(slices)
        assert page.locator(".slice.portal").count() == 4
        assert page.locator(".slice.failed").count() == 4
        assert page.locator(".slice.waits").count() == 12
        steps = [each for each in slices if each.kind == STEP]
        slow = [each for each in steps if each.name == SLOW_STEP]
        assert page.locator(".slice.slow").count() == len(slow) > 0
        assert page.locator(".slice.step").count() == len(steps) - len(slow)

    def test_details(self, page: Any) -> None:
        """What the pointer is over is described in words."""
        # An element that is drawn in the middle of another's is not what is hit.
        page.locator(".slice.failed").first.dispatch_event("mouseenter")
        assert re.fullmatch(
            r"await_ bill · order · at .*, took .* · .*shop\.py:\d+ · awaits missing · "
            r"failed with KeyError",
            page.inner_text("#lane-details"),
        )

    def test_zoom(self, page: Any) -> None:
        """The timeline is enlarged with Ctrl and the wheel, and a button shows it all again."""

        def width() -> float:
            rect = page.locator(".slice.portal rect").first
            return float(rect.get_attribute("width"))

        before = width()
        page.locator("#lanes").scroll_into_view_if_needed()
        box = page.locator(".slice.portal rect").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -300)
        page.keyboard.up("Control")
        page.wait_for_function(
            """before => document.querySelector(".slice.portal rect")
                .getAttribute("width") > 1.5 * before""",
            arg=before,
        )
        page.click("#whole")
        assert width() == pytest.approx(before)

    def test_hot_spots(self, page: Any) -> None:
        """The hot spots are in a table, by total time, and by any column that one clicks."""

        def column(number: int) -> List[str]:
            return list(page.locator(f"#sites td:nth-child({number})").all_inner_texts())

        assert page.locator("#sites th[aria-sort]").inner_text().startswith("total")
        page.click("#sites th:has-text('bridges') button")
        assert [int(text) for text in column(2)] == [8, 4, 4, 4, 1, 1]
        assert column(1)[0].startswith("__main__.Prices.__getitem__")
        page.click("#sites th:has-text('bridges') button")
        assert [int(text) for text in column(2)] == [1, 1, 4, 4, 4, 8]

    def test_plan(self, page: Any, path: Path) -> None:
        """Each step of the plan is there with its functions, its edits and the share it removes."""
        plan = make_plan(load([str(path)]), "bridges")
        articles = page.locator("#plan article")
        assert articles.count() == len(plan.steps) > 1
        for number, step in enumerate(plan.steps):
            article = articles.nth(number)
            assert f"{step.share:.1%} removed so far" in article.inner_text()
            assert article.locator(".functions .code:not(.place)").all_text_contents() == [
                frame.function for frame in step.functions
            ]
            shown = zip(
                article.locator(".edits .what").all_text_contents(),
                article.locator(".edits .place").all_text_contents(),
            )
            edits = [*step.edits, *step.breaks]
            assert edits
            assert list(shown) == [
                (edit.what, f"{Path(edit.file).name}:{edit.line}") for edit in edits
            ]

    def test_what_stays(self, page: Any, path: Path) -> None:
        """What no step removes is listed with what is in the way, and what to write instead."""
        blocked = make_plan(load([str(path)]), "bridges").blocked
        rows = page.locator("#plan tbody tr").all_inner_texts()
        assert len(rows) == len(blocked) > 1
        for row, chain in zip(rows, blocked):
            assert chain.verdict.by in row
            assert chain.verdict.idiom in row

    def test_contrast(self, page: Any) -> None:
        """Text is readable on what is behind it, whether the scheme is light or dark."""
        ratios = page.evaluate(
            """() => {
                const canvas = document.createElement("canvas").getContext("2d");
                const light = (colour) => {
                    canvas.fillStyle = colour;
                    canvas.fillRect(0, 0, 1, 1);
                    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((each) => {
                        const part = each / 255;
                        return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
                    });
                    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
                };
                const ratio = (one, other) => {
                    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
                    return (high + 0.05) / (low + 0.05);
                };
                const style = (selector) => getComputedStyle(document.querySelector(selector));
                const ground = style("body").backgroundColor;
                const result = {
                    body: ratio(style("body").color, ground),
                    note: ratio(style(".note").color, ground),
                    link: ratio(style("nav a").color, ground),
                    place: ratio(style(".place").color, ground),
                    share: ratio(style(".share").color, ground),
                };
                for (const frame of document.querySelectorAll("#flame g.frame")) {
                    result[frame.querySelector("title").textContent] = ratio(
                        getComputedStyle(frame.querySelector(".d3-flame-graph-label")).color,
                        getComputedStyle(frame.querySelector("rect")).fill,
                    );
                }
                for (const slice of document.querySelectorAll(".slice")) {
                    result[slice.getAttribute("class")] = ratio(
                        getComputedStyle(slice.querySelector("text")).fill,
                        getComputedStyle(slice.querySelector("rect")).fill,
                    );
                }
                result.ground = light(ground);
                return result;
            }"""
        )
        is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert (ratios.pop("ground") < 0.1) == is_dark
        assert len(ratios) > 10
        assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}

    def test_names_are_not_markup(self, browser: Any, tmp_path: Path) -> None:
        """A name that looks like markup is shown as it is, and nothing in it is run."""
        name = "shop.</script><img src=x onerror='document.title = 1'>{data}<!--<script>"
        numbers = Numbers(ok=1, time=1.0)
        chains = {
            (Caller("", name, f"/{name}.py", 1),): numbers,
            (Caller(name, "__init__", "/x.py", 1),): numbers,
        }
        site = SiteReport(ok=2, time=2.0, function=name, file=name, line=1, chains=chains)
        trace = Trace(sites=[site], processes=1)
        span = Span(
            id="1",
            parent="",
            portal="",
            name=f"await_ {name}",
            start=0,
            end=1_000_000,
            process=Process(name, 1),
            failed=False,
            attributes={"greenback.awaitable": name, "greenback.task.name": name},
        )
        portal = Span(**{**vars(span), "id": "2", "name": "portal task"})
        path = tmp_path / "page.html"
        text = html(trace, lanes([span, portal]), make_plan(trace, "time"), "time")
        path.write_text(text, encoding="utf-8")
        page = browser.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector("#plan-note", state="attached")
        assert page.locator("#sites td .code").first.inner_text() == name
        assert page.locator("#plan .functions .code").first.inner_text() == name
        assert f"{name}.__init__" in page.inner_text("#plan table")
        assert name in page.locator(".lane-name title").all_text_contents()[0]
        assert page.locator("img").count() == 0
        assert page.title() == "greenback: where it bridges"
        page.close()

    def test_processes(self, browser: Any, path: Path, tmp_path: Path) -> None:
        """Of several processes, the lanes of each are below a name that it alone has."""
        text = path.read_text()
        identity = re.search(r'"service.instance.id","value":{"stringValue":"(.*?)"', text)
        pid = re.search(r'"process.pid","value":{"intValue":"?(\d+)', text)
        assert identity is not None
        assert pid is not None
        # As the same program in another container, where it has the same pid; and as another one.
        twin = with_other_spans(text.replace(identity[1], "twin"), 1)
        other = with_other_spans(text.replace(identity[1], "other"), 2)
        other = other.replace('"shop.py"', '"till"')
        files = []
        for name, content in (("1", text), ("2", twin), ("3", other)):
            files.append(tmp_path / f"{name}.jsonl")
            files[-1].write_text(content)
        output = tmp_path / "page.html"
        assert exported("--format", "html", "-o", output, *files) == b""
        page = browser.new_page()
        page.goto(output.as_uri())
        page.wait_for_selector("#plan-note", state="attached")
        # From the top to the bottom.
        shown = page.evaluate(
            """() => [...document.querySelectorAll(".lane-process, .lane-name")]
                .sort((a, b) => a.getAttribute("y") - b.getAttribute("y"))
                .map((each) => [each.getAttribute("class"), each.firstChild.textContent])"""
        )
        tasks = [lane.name for lane in lanes(read([str(path)])[1])]
        expected = []
        for process in (
            f"shop.py ({pid[1]}), instance {identity[1]}",
            f"shop.py ({pid[1]}), instance twin",
            f"till ({pid[1]})",
        ):
            expected.append(["lane-process", process])
            expected += [["lane-name", task] for task in tasks]
        assert shown == expected
        page.locator(".slice.portal").last.dispatch_event("mouseenter")
        assert f" · till ({pid[1]}) · " in page.inner_text("#lane-details")
        page.close()

    def test_without_spans(self, browser: Any, path: Path, tmp_path: Path) -> None:
        """From metrics alone, the page has all but the timeline, and says why."""
        trace = load([str(path)])
        page = browser.new_page()
        trouble: List[str] = []
        page.on("pageerror", lambda error: trouble.append(str(error)))
        output = tmp_path / "page.html"
        output.write_text(html(trace, [], make_plan(trace, "time"), "time"), encoding="utf-8")
        page.goto(output.as_uri())
        page.wait_for_selector("#plan-note", state="attached")
        assert "no spans" in page.inner_text("#timeline-note")
        assert not page.locator("#lanes").is_visible()
        assert page.locator("#flame g.frame").count() > 1
        assert page.locator("#plan article").count() > 1
        assert trouble == []
        page.close()

    def test_large(self, browser: Any, tmp_path: Path) -> None:
        """A trace of 200 sites and 10,000 spans is still a page below 2 MB that draws itself."""
        sites, spans = [], []
        for number in range(200):
            module = f"shop.part{number % 20}"
            outer = Caller(module, f"outer{number}", "/x.py", number)
            inner = Caller(module, f"inner{number}", "/x.py", number)
            numbers = Numbers(ok=50, time=1.0)
            site = SiteReport(ok=50, time=1.0, function=inner.function, file="/x.py", line=number)
            site.chains = {(outer, inner): numbers}
            sites.append(site)
        for number in range(10_000):
            portal = number % 100 == 0
            start = number * 1_000
            spans.append(
                Span(
                    id=str(number),
                    parent="",
                    portal="" if portal else str(number // 100 * 100),
                    name="portal task" if portal else f"await_ inner{number % 200}",
                    start=start,
                    end=start + (100_000 if portal else 900),
                    process=Process("shop", 1),
                    failed=False,
                    attributes={"greenback.task.name": f"task {number // 100}"} if portal else {},
                )
            )
        trace = Trace(sites=sites, processes=1, spans=len(spans))
        path = tmp_path / "page.html"
        text = html(trace, lanes(spans), make_plan(trace, "time"), "time")
        path.write_text(text, encoding="utf-8")
        assert path.stat().st_size < 2_000_000
        page = browser.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector("#plan-note", state="attached")
        assert page.locator("#sites tbody tr").count() == 200
        assert page.locator(".slice").count() == 3000
        assert page.locator("#plan article").count() == 100
        assert "100 more steps" in page.inner_text("#plan-note")
        page.close()

    def test_the_longest_slices(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of too many slices, the longest are shown, each with those that it is within."""
        monkeypatch.setattr("greenback_trace.report.export.html._SLICES", 9)
        found = lanes(read([str(path)])[1])
        trace = load([str(path)])
        text = html(trace, found, make_plan(trace, "time"), "time")
        match = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
        assert match is not None
        data = json.loads(match[1])
        count = sum(len(list(all_slices(lane.slices))) for lane in found)
        assert f"the 9 longest of {count} slices" in data["timelineNote"]
        shown = [each for lane in data["lanes"] for each in lane["slices"]]
        lengths = sorted(
            (each.end - each.start for lane in found for each in all_slices(lane.slices)),
            reverse=True,
        )
        assert sorted((each["length"] * 1e3 for each in shown), reverse=True) == pytest.approx(
            lengths[:9]
        )
        for lane in data["lanes"]:
            depths = [each["depth"] for each in lane["slices"]]
            assert depths[0] == 0
            assert all(after <= before + 1 for before, after in zip(depths, depths[1:]))

    def test_command(self, path: Path, tmp_path: Path) -> None:
        """The command writes the page into the file that -o names, with the plan of the trace."""
        output = tmp_path / "page.html"
        assert exported("--format", "html", "-o", output, path) == b""
        text = output.read_text(encoding="utf-8")
        assert text.startswith("<!DOCTYPE html>")
        steps = make_plan(load([str(path)]), "time").steps
        functions = [frame.function for step in steps for frame in step.functions]
        assert functions
        plan = text[text.index('"plan":{') :]
        assert all(json.dumps(function).replace("<", "\\u003c") in plan for function in functions)


class TestInput:
    @pytest.mark.parametrize("kind", ["speedscope", "perfetto", "folded", "html"])
    def test_directory(self, kind: str, path: Path, tmp_path: Path) -> None:
        """A directory with compressed files is read like the file."""
        (tmp_path / "trace.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        assert exported("--format", kind, tmp_path) == exported("--format", kind, path)


class TestBadInput:
    @pytest.mark.parametrize("kind", ["speedscope", "perfetto", "folded", "html"])
    @pytest.mark.parametrize("content", [None, "", "nonsense\n", '{"resourceSpans": []}\n'])
    def test_nothing_in_it(self, kind: str, content: Any, tmp_path: Path) -> None:
        """Without a trace, the command says how to get one, and leaves no file behind."""
        trace, output = tmp_path / "trace.jsonl", tmp_path / "output"
        if content is not None:
            trace.write_text(content)
        result = export("--format", kind, "-o", output, trace)
        assert result.exit_code == 2
        assert "GREENBACK_TRACE=1" in result.output
        assert not output.exists()

    def metrics_only(self, path: Path, tmp_path: Path, left_out: str) -> Path:
        """A trace without spans, and without metrics whose name has *left_out* in it."""
        file = tmp_path / "metrics.jsonl"
        with file.open("w") as to:
            for line in path.read_text().splitlines():
                request = json.loads(line)
                for resource in request.get("resourceMetrics", ()):
                    for scope in resource["scopeMetrics"]:
                        scope["metrics"] = [
                            metric for metric in scope["metrics"] if left_out not in metric["name"]
                        ]
                    to.write(json.dumps(request) + "\n")
        return file

    @pytest.mark.parametrize("kind", ["speedscope", "folded", "html"])
    def test_no_chains(self, kind: str, path: Path, tmp_path: Path) -> None:
        """Numbers per function alone make no flame graph, and the command says so."""
        result = export("--format", kind, self.metrics_only(path, tmp_path, ".chain."))
        assert result.exit_code == 2
        assert "no sync chains" in result.output

    def test_no_spans(self, path: Path, tmp_path: Path) -> None:
        """Without spans there is no timeline, and the command says so."""
        file = self.metrics_only(path, tmp_path, "nothing")
        result = export("--format", "perfetto", file)
        assert result.exit_code == 2
        assert "no spans" in result.output
        assert b"no spans" in exported("--format", "html", file)

    def test_cannot_be_written(self, path: Path, tmp_path: Path) -> None:
        """An output that cannot be written is an error that names it."""
        output = tmp_path / "missing" / "page.html"
        result = export("--format", "folded", "-o", output, path)
        assert result.exit_code == 2
        assert f"{output} cannot be written: No such file or directory" in result.output


class TestStacks:
    def test_lines_of_one_function(self) -> None:
        """Calls from several lines of a function are one frame, with their sum."""
        chains = {
            (Caller("a", "f", "/x.py", 1), Caller("a", "g", "/x.py", 9)): Numbers(ok=1, time=0.5),
            (Caller("a", "f", "/x.py", 2), Caller("a", "g", "/x.py", 9)): Numbers(ok=2, time=0.25),
        }
        (stack,) = stacks(Trace(sites=[SiteReport(function="a.g", chains=chains)]))
        assert [frame.function for frame in stack.frames] == ["a.f", "a.g"]
        assert (stack.numbers.bridges, stack.numbers.time) == (3, 0.75)
