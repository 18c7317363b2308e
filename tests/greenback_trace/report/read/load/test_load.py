"""Files of OTLP JSON lines -> totals."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

import greenback
from greenback_trace.count.caller import Caller
from greenback_trace.report.read import inputs
from greenback_trace.report.read import load as _load
from greenback_trace.report.read.inputs import NothingToReportError
from greenback_trace.report.read.load import Selection, load

from .lines import BRIDGES, metrics, numbers, points, requests, write

pytest.importorskip("opentelemetry.sdk", reason="a trace needs greenback[report]")


REPOSITORY = Path(__file__).resolve().parents[5]


#: The trace of a smaller SHOP, from a greenback whose traces did not name their version.
VERSION_1 = Path(__file__).with_name("traces") / "version1.jsonl"


def bridges(*paths: Any, **selection: Any) -> float:
    return load(list(map(str, paths)), selection=Selection(**selection)).total.bridges


class TestTrace:
    def test_sites(self, shop: Path) -> None:
        """Each site has its exact numbers, and the exact numbers of each sync chain."""
        trace = load([str(shop)])
        assert trace.total.bridges == BRIDGES
        assert trace.broken == []
        sites = {site.function.replace("__main__.", ""): site for site in trace.sites}
        counted = {
            name: (site.ok, site.errors, site.cancelled, site.suspended)
            for name, site in sites.items()
        }
        assert counted == {
            "Prices.__getitem__": (45, 0, 0, 45),
            "Prices.known": (45, 0, 0, 0),
            "stock": (0, 15, 0, 0),
            "total": (2, 0, 0, 0),
            "wait": (0, 0, 2, 2),
            "day": (2, 0, 0, 2),
        }
        [(chain, of_chain)] = sites["Prices.known"].chains.items()
        names = [each.function.replace("__main__.", "") for each in chain]
        assert names == ["bill", "line", "Prices.known"]
        assert of_chain.bridges == 45
        assert list(sites["day"].chains) == [()]
        assert sites["total"].time >= sites["total"].holding_time >= 0.06
        assert 0 < sites["wait"].suspended_time <= sites["wait"].time

    def test_spans(self, shop: Path) -> None:
        """Awaitables, tasks and types of errors come from spans."""
        trace = load([str(shop)])
        sites = {site.function.replace("__main__.", ""): site.observed for site in trace.sites}
        assert sites["Prices.known"].spans == 45
        assert sites["Prices.known"].awaitables == {"known": 45}
        assert sites["Prices.known"].tasks == {"order *": 45}
        assert sites["Prices.known"].portals == 15
        assert sites["stock"].error_types == {"LookupError": 15}
        assert sites["wait"].tasks == {"waiter": 2}
        shortest, longest = (sites["total"].durations.quantile(share) for share in (0.01, 1))
        assert shortest is not None
        assert longest is not None
        assert 0.028 < shortest <= longest < 10

    def test_portals(self, shop: Path) -> None:
        """Portals are counted by kind, with lifetimes and slow steps."""
        portals = load([str(shop)]).portals
        assert {kind: (each.opened, each.active) for kind, each in portals.items()} == {
            "task": (17, 0),
            "run_sync": (4, 0),
        }
        assert portals["run_sync"].lifetimes.count == 4
        assert 2 <= portals["run_sync"].slow_steps <= 4
        assert portals["task"].spans == 17

    def test_the_rest(self, shop: Path) -> None:
        """A trace has steps, slow steps, misuses, and its begin and end."""
        trace = load([str(shop)])
        assert trace.step_durations.count == trace.steps > 0
        assert trace.bridge_durations.count == BRIDGES
        assert sum(trace.slow_steps.values()) >= 2
        assert trace.misuses[("async_caller", "__main__.day")] == 2
        assert trace.begin is not None
        assert trace.end is not None
        assert 0 < trace.end - trace.begin < 60e9
        assert not trace.is_sampled

    def test_left_out(self, sampled: Path) -> None:
        """What tracing left out is counted, and the numbers stay exact."""
        trace = load([str(sampled)])
        assert trace.dropped[("span", "rate_limit")] > 0
        assert trace.spans < BRIDGES
        assert trace.total.bridges == BRIDGES

    def test_each_span(self, shop: Path) -> None:
        """`on_span` gets each span, with the attributes of its resource."""
        got: List[Any] = []
        load([str(shop)], on_span=lambda span, about: got.append((span, about)))
        written = [
            span
            for request in requests(shop, "resourceSpans")
            for resource in request["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]
        assert len(got) == len(written)
        for (span, about), whole in zip(got, written):
            assert about["service.name"] == "shop"
            assert list(span.attributes) == [each["key"] for each in whole["attributes"]]
            assert (span.id, span.name) == (whole["spanId"], whole["name"])
            assert span.begin == int(whole["startTimeUnixNano"])
            assert span.end == int(whole["endTimeUnixNano"])
            assert span.parent == whole.get("parentSpanId", "")
            assert span.failed == (whole["status"].get("code") == 2)
            assert [span.portal] == [link["spanId"] for link in whole.get("links", ())] or [""]

    def test_several(self, shop: Path, till: Path) -> None:
        """Several files are added up, and a file named twice is read once."""
        assert bridges(shop, till) == 2 * BRIDGES
        assert bridges(shop, shop, shop.parent / "." / shop.name) == BRIDGES

    def test_patterns(self, shop: Path, till: Path, tmp_path: Path) -> None:
        """A pattern stands for the files that it matches; two stars match any depth."""
        below = tmp_path / "a" / "b"
        below.mkdir(parents=True)
        (below / "one.jsonl").write_bytes(shop.read_bytes())
        (tmp_path / "a" / "two.jsonl").write_bytes(till.read_bytes())
        assert bridges(tmp_path / "a" / "*.jsonl") == BRIDGES
        assert bridges(tmp_path / "**" / "*.jsonl") == 2 * BRIDGES

    def test_name_like_a_pattern(self, shop: Path, tmp_path: Path) -> None:
        """A file whose name looks like a pattern is that file."""
        odd = tmp_path / "trace[1].jsonl"
        odd.write_bytes(shop.read_bytes())
        assert bridges(odd) == BRIDGES

    def test_directory(self, shop: Path, till: Path, tmp_path: Path) -> None:
        """A directory stands for the traces in and below it, without other files."""
        below = tmp_path / "below"
        below.mkdir()
        (tmp_path / "one.jsonl").write_bytes(shop.read_bytes())
        (below / "two.json.gz").write_bytes(gzip.compress(till.read_bytes()))
        (tmp_path / "notes.txt").write_text("not a trace")
        trace = load([str(tmp_path)])
        assert trace.total.bridges == 2 * BRIDGES
        assert trace.broken_lines == 0

    @pytest.mark.parametrize("name", ["trace.jsonl.gz", "trace"])
    def test_gzip(self, shop: Path, tmp_path: Path, name: str) -> None:
        """A compressed file is read whatever its name, even if it has several parts."""
        half = len(shop.read_bytes()) // 2
        file = tmp_path / name
        content = shop.read_bytes()
        file.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
        assert bridges(file) == BRIDGES

    def test_truncated_gzip(self, shop: Path, till: Path, tmp_path: Path) -> None:
        """A compressed file that ends too early is read up to its end."""
        file = tmp_path / "trace.jsonl.gz"
        whole = gzip.compress(shop.read_bytes())
        # A flushed block, as a writer that is still running leaves it.
        file.write_bytes(whole + gzip.compress(till.read_bytes())[:-200])
        trace = load([str(file)])
        assert trace.total.bridges >= BRIDGES
        assert trace.broken_lines == 1
        assert trace.broken[0].startswith(f"{file}:")
        assert "the compressed data end or are damaged here" in trace.broken[0]

    @pytest.mark.parametrize("is_compressed", [False, True])
    def test_standard_input(self, shop: Path, is_compressed: bool) -> None:
        """A hyphen stands for standard input, which can be a pipe."""
        program = (
            "from greenback_trace.report.read.load import load; print(load(['-']).total.bridges)"
        )
        content = shop.read_bytes()
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=gzip.compress(content) if is_compressed else content,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            check=True,
            timeout=60,
        )
        assert float(done.stdout) == BRIDGES

    def test_progress(self, shop: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`progress` is called with how many of all bytes are read."""
        monkeypatch.setattr(inputs, "_TELL_EVERY", 10_000)
        source = inputs.Input([str(shop)])
        told: List[int] = []
        load([str(shop)], progress=told.append)
        assert source.size == shop.stat().st_size
        assert told == sorted(told)
        assert len(told) > 2
        assert source.size * 0.5 < told[-1] <= source.size


class TestFleet:
    def test_services(self, shop: Path, till: Path) -> None:
        """Processes are counted by service, and one service can be selected."""
        trace = load([str(shop), str(till)])
        assert trace.processes == 2
        assert trace.services == {"shop": 1, "till": 1}
        assert trace.engines == {greenback.engine: 2}
        of_till = load([str(shop), str(till)], selection=Selection(service="till"))
        assert of_till.services == {"till": 1}
        assert numbers(of_till) == numbers(load([str(till)]))

    def test_collector(self, shop: Path, till: Path, path: Path) -> None:
        """Processes are told apart if a Collector joins their lines and adds to their resources."""
        content: List[Dict[str, Any]] = []
        for signal in ("resourceSpans", "resourceMetrics"):
            resources = [
                resource
                for file in (shop, till)
                for request in requests(file, signal)
                for resource in request[signal]
            ]
            for resource in resources:
                resource["resource"]["attributes"].append(
                    {"key": f"k8s.{signal}", "value": {"stringValue": "added"}}
                )
                resource["schemaUrl"] = ""
            content.append({signal: resources})
        trace = load([str(write(path, content))])
        assert trace.processes == 2
        assert numbers(trace) == numbers(load([str(shop), str(till)]))

    def test_numbers_as_strings_or_not(self, shop: Path, path: Path) -> None:
        """Numbers of 64 bits may be JSON numbers, and zeros may be missing."""

        def plainly(value: Any) -> Any:
            if isinstance(value, list):
                return [plainly(each) for each in value]
            if isinstance(value, str):
                return int(value) if value.isdigit() else value
            if not isinstance(value, dict):
                return value
            return {
                name: each if name in ("stringValue", "spanId", "traceId") else plainly(each)
                for name, each in value.items()
            }

        trace = load([str(write(path, plainly(requests(shop))))])
        assert numbers(trace) == numbers(load([str(shop)]))

    def test_any_order(self, shop: Path, till: Path, path: Path) -> None:
        """The latest point counts, wherever it is in the files."""
        content = requests(till) + requests(shop)
        assert numbers(load([str(write(path, content[::-1]))])) == numbers(
            load([str(shop), str(till)])
        )

    def test_twice(self, shop: Path, path: Path) -> None:
        """Metrics delivered twice are counted once."""
        content = requests(shop, "resourceMetrics")
        assert bridges(write(path, content + content)) == BRIDGES

    def test_restart(self, shop: Path, path: Path) -> None:
        """The counts of a process that started again under the same name are added up."""
        again = requests(shop, "resourceMetrics")
        for request in again:
            for point in points(request):
                for field in ("startTimeUnixNano", "timeUnixNano"):
                    point[field] = str(int(point[field]) + 10**12)
        content = requests(shop, "resourceMetrics") + again
        assert bridges(write(path, content)) == 2 * BRIDGES
        assert bridges(write(path, content[::-1])) == 2 * BRIDGES

    def test_deltas(self, shop: Path, path: Path) -> None:
        """Delta points are added up, also those of histograms."""
        [first, *_] = requests(shop, "resourceMetrics")
        once = load([str(write(path, [first]))])
        for metric in metrics(first):
            if "gauge" not in metric:
                (metric.get("sum") or metric["histogram"])["aggregationTemporality"] = 1
        twice = load([str(write(path, [first, first]))])
        assert twice.total.bridges == 2 * once.total.bridges > 0
        assert twice.total.time == pytest.approx(2 * once.total.time)
        assert twice.bridge_durations.count == 2 * once.bridge_durations.count

    def test_functions_only(self, shop: Path, path: Path) -> None:
        """Metrics of an application's own SDK count per function; spans add the file and line."""
        content = requests(shop)
        for request in content:
            for resource in request.get("resourceMetrics", ()):
                for scope in resource["scopeMetrics"]:
                    scope["metrics"] = [
                        metric for metric in scope["metrics"] if ".chain." not in metric["name"]
                    ]
        exact = {site.function: site for site in load([str(shop)]).sites}
        trace = load([str(write(path, content))])
        assert trace.total.bridges == BRIDGES
        for site in trace.sites:
            assert not site.chains
            assert (site.file, site.line) == (exact[site.function].file, exact[site.function].line)
            assert site.observed == exact[site.function].observed or site.observed.spans

    def test_spans_only(self, shop: Path, till: Path, path: Path) -> None:
        """The spans of a process without metrics are counted, and the trace is called sampled."""
        write(path, requests(shop, "resourceSpans"))
        trace = load([str(path), str(till)])
        assert trace.is_sampled
        assert trace.total.bridges == 2 * BRIDGES
        assert trace.portals["task"].opened == 34
        assert trace.portals["task"].lifetimes.count == 34
        exact = {site.function: site for site in load([str(till)]).sites}
        for site in trace.sites:
            assert site.errors == 2 * exact[site.function].errors
            assert site.suspended == 2 * exact[site.function].suspended
            assert {chain: each.bridges for chain, each in site.chains.items()} == {
                chain: 2 * each.bridges for chain, each in exact[site.function].chains.items()
            }

    def test_no_bridge_yet(self, shop: Path, path: Path) -> None:
        """A portal in both metrics and spans is counted once, also without any bridge."""
        content = requests(shop)
        for request in content:
            for resource in request.get("resourceMetrics", []) + request.get("resourceSpans", []):
                for scope in resource.get("scopeMetrics", []) + resource.get("scopeSpans", []):
                    for part in {"metrics", "spans"} & set(scope):
                        scope[part] = [
                            each
                            for each in scope[part]
                            if each["name"].startswith(("greenback.portal", "portal "))
                        ]
        trace = load([str(write(path, content))])
        assert trace.sites == []
        assert trace.portals["task"].opened == trace.portals["task"].lifetimes.count == 17

    def test_other_scopes(self, shop: Path, path: Path) -> None:
        """The application's own spans and metrics are left out."""
        content = requests(shop)
        for request in requests(shop):
            for resource in request.get("resourceMetrics", []) + request.get("resourceSpans", []):
                for scope in resource.get("scopeMetrics", []) + resource.get("scopeSpans", []):
                    scope["scope"]["name"] = "shop"
            content.append(request)
        assert numbers(load([str(write(path, content))])) == numbers(load([str(shop)]))


class TestWindow:
    @pytest.fixture
    def days(self, shop: Path, path: Path) -> Path:
        """The metrics of SHOP, and points of one ns after its start with a part of each count."""
        content = requests(shop, "resourceMetrics")[-1:]
        early = json.loads(json.dumps(content[0]))
        for point in points(early):
            point["timeUnixNano"] = str(int(point["startTimeUnixNano"]) + 1)
            # A third of the orders: 5 of 15, and none of 2.
            if "asInt" in point:
                point["asInt"] = str(int(point["asInt"]) // 3)
            if "bucketCounts" in point:
                point["bucketCounts"] = [str(int(each) // 3) for each in point["bucketCounts"]]
            if "__main__.stock" in json.dumps(point) and "asInt" in point:
                point["asInt"] = "15"
        return write(path, [*content, early])

    def between(self, days: Path) -> int:
        return int(points(requests(days)[1])[0]["timeUnixNano"])

    def test_counters(self, days: Path) -> None:
        """A counter counts by how much it has grown in the window."""
        between = self.between(days)
        assert bridges(days) == BRIDGES
        assert bridges(days, until=between) == 15 + 15 + 15
        assert bridges(days, since=between) == BRIDGES - 45
        assert bridges(days, since=between, until=between + 10**15) == BRIDGES - 45
        trace = load([str(days)], selection=Selection(since=between))
        assert trace.portals["task"].opened == 17 - 17 // 3
        assert 0 < trace.bridge_durations.count < BRIDGES

    def test_sites(self, days: Path) -> None:
        """A site without bridges in the window is left out; begin and end are the window's."""
        between = self.between(days)
        trace = load([str(days)], selection=Selection(since=between))
        assert {site.function for site in trace.sites} == {
            site.function for site in load([str(days)]).sites
        } - {"__main__.stock"}
        assert trace.begin == between
        assert trace.end == load([str(days)]).end

    def test_spans(self, shop: Path, path: Path) -> None:
        """Spans count if they end in the window."""
        write(path, requests(shop, "resourceSpans"))
        ends = sorted(
            int(span["endTimeUnixNano"])
            for request in requests(path)
            for resource in request["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        )
        middle = ends[len(ends) // 2]
        until = load([str(path)], selection=Selection(until=middle)).spans
        since = load([str(path)], selection=Selection(since=middle)).spans
        assert until == len(ends) // 2 + 1
        assert until + since == len(ends)

    @pytest.mark.parametrize("window", [Selection(until=1), Selection(since=10**19)])
    def test_nothing(self, shop: Path, window: Selection) -> None:
        """An empty window is an error that says what to change."""
        with pytest.raises(NothingToReportError, match="Change since or until"):
            load([str(shop)], selection=window)


def as_version_1(request: Dict[str, Any]) -> Dict[str, Any]:
    """A line as in version 1: without the version, and without the parts of functions."""
    for part in (*request.get("resourceMetrics", ()), *request.get("resourceSpans", ())):
        resource = part["resource"]
        resource["attributes"] = [
            each for each in resource["attributes"] if each["key"] != "greenback.trace.version"
        ]
        for scope in part.get("scopeMetrics", ()):
            scope["metrics"] = [
                metric
                for metric in scope["metrics"]
                if metric["name"] != "greenback.chain.functions"
            ]
    return request


class TestVersions:
    def test_1(self) -> None:
        """A file of version 1 has all numbers, and chains without the modules."""
        trace = load([str(VERSION_1)])
        assert trace.broken == []
        assert trace.engines == {}
        found = {
            (site.function, tuple(chain)): (each.ok, each.errors, each.suspended)
            for site in trace.sites
            for chain, each in site.chains.items()
        }
        file = "/srv/shop/shop.py"
        bill = Caller("", "__main__.bill", file, 29)
        items = Caller("", "__main__.bill.<locals>.<listcomp>", file, 29)
        line = Caller("", "__main__.line", file, 24)
        price = Caller("", "__main__.Prices.__getitem__", file, 20)
        assert found == {
            ("__main__.Prices.__getitem__", (bill, items, line, price)): (6, 0, 6),
            ("__main__.stock", (Caller("", "__main__.stock", file, 34),)): (0, 2, 0),
            ("__main__.order", ()): (2, 0, 2),
        }

    def test_2_has_no_text_taken_apart(self, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file of version 2 has the parts of each function in a chain."""
        monkeypatch.delattr(_load, "caller_of")
        trace = load([str(shop)])
        callers = {caller for site in trace.sites for chain in site.chains for caller in chain}
        assert {(each.module, each.qualname) for each in callers} == {
            ("__main__", name)
            for name in ("bill", "line", "Prices.__getitem__", "Prices.known", "stock", "total")
            + ("wait",)
        }
        assert all(each.file.endswith("shop.py") and each.line for each in callers)

    def test_killed_before_its_first_metrics(
        self, run_main: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The chains in the spans of a killed process have the parts of each function, too."""
        program = """
            import asyncio
            import os
            import greenback

            def work():
                for _ in range(1000):
                    greenback.await_(asyncio.sleep(0))
                while True:
                    with open(os.environ["GREENBACK_TRACE_FILE"]) as file:
                        text = file.read()
                    if "resourceSpans" in text and text.endswith("\\n"):
                        os._exit(0)

            asyncio.run(greenback.with_portal_run_sync(work))
        """
        trace_file = run_main({"main.py": program})
        monkeypatch.delattr(_load, "caller_of")
        trace = load([str(trace_file)])
        assert trace.is_sampled
        (site,) = trace.sites
        ((caller,),) = site.chains
        assert (caller.module, caller.qualname) == ("__main__", "work")

    def test_text_that_misleads(self, shop: Path, path: Path) -> None:
        """A file whose name looks like the end of a chain's text is not mistaken for that end."""
        name = "shop (1:2).py"
        text = shop.read_text().replace(str(shop.with_name("shop.py")), name)
        assert name in text
        path.write_text(text)
        callers = {
            caller for site in load([str(path)]).sites for chain in site.chains for caller in chain
        }
        assert {each.file for each in callers} == {name}
        assert {each.module for each in callers} == {"__main__"}

    @pytest.mark.parametrize("is_first", [False, True])
    def test_both(self, shop: Path, till: Path, path: Path, is_first: bool) -> None:
        """The same chain in files of both versions is one chain."""
        write(path, [as_version_1(request) for request in requests(till)])
        files = [path, shop] if is_first else [shop, path]
        assert numbers(load(list(map(str, files)))) == numbers(load([str(shop), str(till)]))

    @pytest.mark.parametrize("signal", ["resourceMetrics", "resourceSpans"])
    def test_newer(self, shop: Path, path: Path, signal: str) -> None:
        """A trace of a newer version is an error that names the file, and says what to do."""
        newer = requests(shop, signal)
        for request in newer:
            for each in request[signal][0]["resource"]["attributes"]:
                if each["key"] == "greenback.trace.version":
                    each["value"] = {"intValue": "3"}
        write(path, newer)
        with pytest.raises(NothingToReportError) as caught:
            load([str(shop), str(path)])
        assert str(caught.value) == (
            f"{path}: a trace of version 3, and this greenback reads those up to version 2. "
            "Upgrade it: pip install --upgrade greenback"
        )


class TestMemory:
    def test_does_not_grow(self, shop: Path, path: Path) -> None:
        """Loading more lines of the same process takes no more memory."""

        tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy has none")

        def peak(times: int) -> int:
            with path.open("wb") as file:
                for _ in range(times):
                    file.write(shop.read_bytes())
            tracemalloc.start()
            try:
                load([str(path)])
                return int(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()

        load([str(shop)])  # imports and caches, which the measurement leaves out
        assert peak(32) < 1.1 * peak(8)
