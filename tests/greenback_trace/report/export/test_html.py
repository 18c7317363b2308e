"""``greenback-trace export --format html``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from greenback_trace.count.caller import Caller
from greenback_trace.report.export.html import html
from greenback_trace.report.export.timeline import (
    SLOW_STEP,
    STEP,
    Process,
    Span,
    all_slices,
    lanes,
    read,
)
from greenback_trace.report.planning.plan import make_plan
from greenback_trace.report.read.load import load
from greenback_trace.report.read.trace import Numbers, SiteReport, Trace

from .exporting import GENEXPR, exported

pytest.importorskip("click", reason="the report needs greenback[report]")
pytest.importorskip("rich", reason="the report needs greenback[report]")
pytest.importorskip("opentelemetry.sdk", reason="the report needs greenback[report]")


def with_other_spans(text: str, key: int) -> str:
    """A trace with the ids that the spans of another process would have."""
    return re.sub(
        '"((?:parentSpan|span)Id)":"([0-9a-f]+)"',
        lambda match: f'"{match[1]}":"{int(match[2], 16) ^ key:016x}"',
        text,
    )


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
