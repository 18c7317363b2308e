"""The dashboard of one service. Only its last row needs recording rules."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from .panels import (
    FUNCTION,
    Panel,
    data_source,
    deployments,
    heat,
    in_rows,
    label_values,
    lines,
    listing,
    number,
    to_service,
    to_traces,
)
from .promql import UNPLANNED, occurred, percentile, selector, share

W = "$__rate_interval"
_SERVICE = 'job="$service"'
_INSTANCE = 'instance=~"$instance"'
#: Filters for all series, for series with an async library, and for series with a function.
ALL = selector(_SERVICE, _INSTANCE)
LIBRARY = selector(_SERVICE, _INSTANCE, 'greenback_async_library=~"$library"')
SITES = selector(_SERVICE, _INSTANCE, f'{FUNCTION}=~"$function"')
VERSIONS = selector(_SERVICE, _INSTANCE, 'service_version!=""')

_SAMPLED = "Of a sample: see GREENBACK_TRACE_MEASUREMENT_RATE."
_RANKS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def rate(name: str, by: str, which: str = SITES) -> str:
    return f"sum by ({by}) (rate({name}{which}[{W}]))" if by else f"sum(rate({name}{which}[{W}]))"


def buckets(name: str, by: str, which: str) -> str:
    return rate(f"{name}_bucket", by, which)


def so_far(name: str, which: str, by: str = "") -> str:
    """The count of a counter since each process started, over all processes in the time shown."""
    return f"sum by ({by}) (max_over_time({name}{which}[$__range]))"


def health() -> list[Panel]:
    def new(name: str, by: str, which: str) -> str:
        return f"sum by ({by}) ({occurred(name + which, W)})"

    since = "Since the processes that are seen here have started."
    return [
        number(
            "Misuses",
            f"Bridges from unsafe places, found by GREENBACK_TRACE=debug. {since}",
            so_far("greenback_misuses_total", SITES),
        ),
        number(
            "Slow steps",
            f"Steps that held the event loop longer than GREENBACK_TRACE_SLOW. {since}",
            so_far("greenback_slow_steps_total", SITES),
        ),
        number(
            "Dropped telemetry",
            f"Spans, sites and lines that were left out, but for what the rate limits leave out by "
            f"design. {since}",
            so_far(
                "greenback_trace_item_dropped_total",
                selector(_SERVICE, _INSTANCE, UNPLANNED),
            ),
        ),
        lines(
            "Misuses and slow steps",
            "How many occurred in each interval. What is not seen here did not occur.",
            {
                "misuse: {{greenback_misuse_kind}}": new(
                    "greenback_misuses_total", "greenback_misuse_kind", SITES
                ),
                "slow step: {{code_function_name}}": new(
                    "greenback_slow_steps_total", FUNCTION, SITES
                ),
            },
            unit="short",
            span=6,
            links=to_traces("${service}"),
        ),
        lines(
            "Left out of the telemetry",
            "By what was left out, and why. Counters stay exact whatever is left out.",
            {
                "{{greenback_trace_item}}: {{greenback_trace_drop_reason}}": new(
                    "greenback_trace_item_dropped_total",
                    "greenback_trace_item, greenback_trace_drop_reason",
                    ALL,
                )
            },
            unit="short",
            span=6,
        ),
    ]


def bridges() -> list[Panel]:
    all_bridges = rate("greenback_bridges_total", "")
    duration = "greenback_bridge_duration_seconds"
    return [
        lines(
            "Bridges per second",
            "Calls of await_ that have finished, by outcome. Exact.",
            {"{{greenback_outcome}}": rate("greenback_bridges_total", "greenback_outcome")},
            unit="ops",
            stacked=True,
            links=to_traces("${service}"),
        ),
        lines(
            "Suspended share",
            "Of the bridges, those that waited for the event loop; of their time, what they waited."
            " A bridge that never suspends gains nothing from being async. Exact.",
            {
                "bridges that suspended": share(
                    rate("greenback_bridge_suspensions_total", ""), all_bridges
                ),
                "time spent waiting": share(
                    rate("greenback_bridge_suspended_time_seconds_total", ""),
                    rate("greenback_bridge_time_seconds_total", ""),
                ),
            },
            unit="percentunit",
        ),
        lines(
            "Bridges under way",
            "At this moment, by async library.",
            {
                "{{greenback_async_library}}": (
                    f"sum by (greenback_async_library) (greenback_bridge_active{LIBRARY})"
                )
            },
            unit="short",
        ),
        heat(
            "Bridge latency",
            f"How many bridges took how long. {_SAMPLED}",
            f"sum by (le) (increase({duration}_bucket{LIBRARY}[{W}]))",
        ),
        lines(
            "Bridge latency, percentiles",
            _SAMPLED,
            {
                name: percentile(rank, buckets(duration, "le", LIBRARY))
                for name, rank in _RANKS.items()
            },
            unit="s",
            links=to_traces("${service}"),
        ),
        lines(
            "Bridge latency, mean",
            "Exact, and for the functions that are chosen.",
            {
                "in all": share(rate("greenback_bridge_time_seconds_total", ""), all_bridges),
                "waiting": share(
                    rate("greenback_bridge_suspended_time_seconds_total", ""), all_bridges
                ),
            },
            unit="s",
        ),
    ]


def hot_sites() -> list[Panel]:
    def each(name: str) -> str:
        return f"sum by ({FUNCTION}) (rate({name}{SITES}[$__range]))"

    count, time = each("greenback_bridges_total"), each("greenback_bridge_time_seconds_total")
    return [
        listing(
            "Hot sites",
            "The functions that call await_, by the time spent in their bridges. One second per "
            "second is one task that is always in a bridge. Exact.",
            {FUNCTION: "Function"},
            {
                "Time per second": (f"topk(100, {time})", "s"),
                "Waiting per second": (each("greenback_bridge_suspended_time_seconds_total"), "s"),
                "Bridges per second": (count, "ops"),
                "Suspended": (
                    share(each("greenback_bridge_suspensions_total"), count),
                    "percentunit",
                ),
                "Mean": (share(time, count), "s"),
            },
            links=[
                to_service("Only this function", function="${__value.text}"),
                *to_traces("${service}", "${__value.text}"),
            ],
            span=14,
        ),
        lines(
            "Bridges per second by function",
            "The ten with the most. Exact.",
            {f"{{{{{FUNCTION}}}}}": f"topk(10, {rate('greenback_bridges_total', FUNCTION)})"},
            unit="ops",
            span=10,
            stacked=True,
            links=[
                to_service("Only this function", function=f"${{__field.labels.{FUNCTION}}}"),
                *to_traces("${service}", f"${{__field.labels.{FUNCTION}}}"),
            ],
        ).height(10),
    ]


def portals() -> list[Panel]:
    kind = "greenback_portal_kind"
    lifetime = buckets("greenback_portal_duration_seconds", f"le, {kind}", ALL)
    return [
        lines(
            "Open portals",
            "By kind. If this only ever grows, portals leak: tasks never end.",
            {f"{{{{{kind}}}}}": f"sum by ({kind}) (greenback_portal_active{ALL})"},
            unit="short",
            stacked=True,
        ),
        lines(
            "Portals opened per second",
            "By kind. Exact.",
            {f"{{{{{kind}}}}}": rate("greenback_portals_total", kind, ALL)},
            unit="ops",
            stacked=True,
        ),
        lines(
            "Portal lifetime",
            f"From opening to closing, by kind. {_SAMPLED}",
            {
                f"{name} {{{{{kind}}}}}": percentile(rank, lifetime)
                for name, rank in (("p50", 0.5), ("p95", 0.95))
            },
            unit="s",
        ),
    ]


def switches() -> list[Panel]:
    direction = "greenback_switch_direction"
    latency = buckets("greenback_switch_duration_seconds", f"le, {direction}", ALL)
    return [
        lines(
            "Switches per second",
            "Greenlet switches made by bridges, by direction. Exact.",
            {f"{{{{{direction}}}}}": rate("greenback_switches_total", direction, ALL)},
            unit="ops",
            span=12,
        ),
        lines(
            "Switch latency",
            f"From just before a switch to just after it, on the other side. {_SAMPLED}",
            {
                f"{name} {{{{{direction}}}}}": percentile(rank, latency)
                for name, rank in (("p50", 0.5), ("p99", 0.99))
            },
            unit="s",
            span=12,
        ),
    ]


def loop_holding() -> list[Panel]:
    held = "greenback_step_duration_seconds"
    return [
        lines(
            "Share of time that portal tasks hold the loop",
            "By instance, of one event loop's time: near 100 % nothing else gets to run. Exact.",
            {"{{instance}}": rate("greenback_step_time_seconds_total", "instance", LIBRARY)},
            unit="percentunit",
        ),
        lines(
            "How long a step holds the loop",
            f"A step is one run of a portal task between two traps. {_SAMPLED}",
            {name: percentile(rank, buckets(held, "le", LIBRARY)) for name, rank in _RANKS.items()},
            unit="s",
        ),
        listing(
            "Slow steps by function",
            "The last function that bridged in the step, else the async function that waits next. "
            "Since the processes that are seen here have started. Exact.",
            {FUNCTION: "Function"},
            {
                "Slow steps": (
                    so_far("greenback_slow_steps_total", SITES, by=FUNCTION),
                    "short",
                )
            },
            links=[
                to_service("Only this function", function="${__value.text}"),
                *to_traces("${service}"),
            ],
            span=8,
        ).height(8),
    ]


def migration() -> list[Panel]:
    recorded = selector(_SERVICE, f'{FUNCTION}=~"$function"')
    daily = (
        f"sum by ({FUNCTION}) "
        f"(sum_over_time(job_function:greenback_bridges:increase30m{recorded}[1d]))"
    )
    rule = "From a recording rule, whose first value takes half an hour; for all instances."
    return [
        lines(
            "Bridges per day",
            f"Twelve weeks. Points are deployments: is it going down? {rule}",
            {"bridges": f"sum({daily})"},
            unit="short",
            over="12w",
            versions=selector(_SERVICE),
        ),
        lines(
            "Functions that bridge",
            f"How many called await_ on each day. At zero, the portal can go. {rule}",
            {"functions": f"count({daily} > 0)"},
            unit="short",
            over="12w",
            versions=selector(_SERVICE),
        ),
        lines(
            "Bridges per day by function",
            f"The ten with the most. {rule}",
            {f"{{{{{FUNCTION}}}}}": f"topk(10, {daily})"},
            unit="short",
            stacked=True,
            over="12w",
            versions=selector(_SERVICE),
            links=[to_service("Only this function", function=f"${{__field.labels.{FUNCTION}}}")],
        ),
    ]


def dashboard() -> models.Dashboard:
    # `greenback_switches_total` has series from the start of a process on.
    everything = "greenback_switches_total" + selector(_SERVICE)
    builder = (
        builders.Dashboard("greenback: one service")
        .uid("greenback-service")
        .description("Bridges, portals and switches of one service that uses greenback.")
        .tags(["greenback"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .editable()
        .with_variable(data_source("prometheus", "Prometheus", "prometheus"))
        .with_variable(data_source("tempo", "Tempo", "tempo"))
        .with_variable(data_source("jaeger", "Jaeger", "jaeger"))
        .with_variable(
            label_values("service", "Service", "greenback_switches_total", "job", many=False)
        )
        .with_variable(label_values("instance", "Instance", everything, "instance"))
        .with_variable(
            label_values(
                "library",
                "Async library",
                "greenback_steps_total" + ALL,
                "greenback_async_library",
            )
        )
        .with_variable(
            label_values("function", "Function", "greenback_bridges_total" + ALL, FUNCTION)
        )
        .annotation(deployments(VERSIONS))
        .link(
            builders.DashboardLink("All services")
            .type(models.DashboardLinkType.LINK)
            .url("/d/greenback-fleet")
            .keep_time(True)
        )
    )
    rows = {
        "Health": health(),
        "Bridges": bridges(),
        "Hot sites": hot_sites(),
        "Portals": portals(),
        "Switches": switches(),
        "Loop holding": loop_holding(),
        "Migration": migration(),
    }
    return in_rows(builder, rows)
