"""The dashboard of all services.

It reads only recording rules (prometheus/rules.yaml). So its cost depends on the number of services
and functions, not on the number of processes.
"""

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
from .promql import percentile, selector, share

_SERVICES = 'job=~"$service"'
ALL = selector(_SERVICES)
_RANKS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def rule(name: str) -> str:
    return name + ALL


def by_job(name: str) -> str:
    return f"sum by (job) ({rule(name)})"


BRIDGES = by_job("job:greenback_bridges:rate5m")
TIME = by_job("job:greenback_bridge_time_seconds:rate5m")
WAITING = by_job("job:greenback_bridge_suspended_time_seconds:rate5m")
SUSPENSIONS = by_job("job:greenback_bridge_suspensions:rate5m")


def health() -> list[Panel]:
    misuses = rule("job_kind_function:greenback_misuses:increase5m")
    slow = rule("job_function:greenback_slow_steps:increase5m")
    dropped = rule("job_item_reason:greenback_trace_item_dropped:increase5m")

    def worst(recorded: str) -> str:
        return f"sum(max_over_time({recorded}[$__range]))"

    most = "The most in five minutes within the time shown, of each service and kind, added up."
    to_one = [to_service("This service", service="${__field.labels.job}")]
    return [
        number("Misuses", f"Bridges from unsafe places. {most}", worst(misuses)),
        number("Slow steps", f"Steps that held an event loop for too long. {most}", worst(slow)),
        number("Dropped telemetry", f"What the rate limits do not explain. {most}", worst(dropped)),
        lines(
            "Misuses and slow steps by service",
            "In five minutes.",
            {
                "misuse: {{job}}": f"sum by (job) ({misuses})",
                "slow step: {{job}}": f"sum by (job) ({slow})",
            },
            unit="short",
            span=6,
            links=to_one,
        ),
        lines(
            "Processes",
            "That send greenback's metrics, by service.",
            {"{{job}}": rule("job:greenback_processes:count")},
            unit="short",
            span=6,
            links=to_one,
        ),
    ]


def services() -> list[Panel]:
    return [
        listing(
            "Services",
            "The longest time in bridges first. One second per second is one task that is always "
            "in a bridge.",
            {"job": "Service"},
            {
                "Time per second": (TIME, "s"),
                "Waiting per second": (WAITING, "s"),
                "Bridges per second": (BRIDGES, "ops"),
                "Suspended": (share(SUSPENSIONS, BRIDGES), "percentunit"),
                "Mean": (rule("job:greenback_bridge_time_seconds:mean5m"), "s"),
                "Open portals": (by_job("job_kind:greenback_portal_active:sum"), "short"),
                "Loop held, worst process": (
                    f"max by (job) ({rule('job_instance:greenback_step_time_seconds:rate5m')})",
                    "percentunit",
                ),
                "Processes": (rule("job:greenback_processes:count"), "short"),
            },
            links=[
                to_service("This service", service="${__value.text}"),
                *to_traces("${__value.text}"),
            ],
        )
    ]


def bridges() -> list[Panel]:
    buckets = rule("job_le:greenback_bridge_duration_seconds_bucket:rate5m")
    links = [
        to_service("This service", service="${__field.labels.job}"),
        *to_traces("${__field.labels.job}"),
    ]
    return [
        lines(
            "Bridges per second",
            "By service. Exact.",
            {"{{job}}": BRIDGES},
            unit="ops",
            stacked=True,
            links=links,
        ),
        lines(
            "Suspended share",
            "Of the bridges of each service, those that waited for the event loop. Exact.",
            {"{{job}}": share(SUSPENSIONS, BRIDGES)},
            unit="percentunit",
            links=links,
        ),
        lines(
            "Bridge latency, mean",
            "By service. Exact.",
            {"{{job}}": rule("job:greenback_bridge_time_seconds:mean5m")},
            unit="s",
            links=links,
        ),
        heat(
            "Bridge latency",
            "Of all services: how many bridges per second took how long. Of a sample.",
            f"sum by (le) ({buckets})",
        ),
        lines(
            "Bridge latency, percentiles",
            "Of all services. Of a sample.",
            {name: percentile(rank, f"sum by (le) ({buckets})") for name, rank in _RANKS.items()},
            unit="s",
        ),
        lines(
            "Bridge latency by service, p95",
            "Of a sample.",
            {"{{job}}": percentile(0.95, buckets)},
            unit="s",
            links=links,
        ),
    ]


def hot_sites() -> list[Panel]:
    def each(name: str) -> str:
        return f"sum by ({FUNCTION}, job) ({rule(name)})"

    # The rule has just the labels that the panel needs. Adding it up would take longer than the
    # rest of the query.
    recorded = rule("job_function:greenback_bridges:rate5m")
    count = each("job_function:greenback_bridges:rate5m")
    time = each("job_function:greenback_bridge_time_seconds:rate5m")
    suspensions = each("job_function:greenback_bridge_suspensions:rate5m")
    return [
        listing(
            "Hot sites",
            "The functions that call await_, of all services, by the time spent in their bridges.",
            {FUNCTION: "Function", "job": "Service"},
            {
                "Time per second": (f"topk(100, {time})", "s"),
                "Bridges per second": (count, "ops"),
                "Suspended": (share(suspensions, count), "percentunit"),
                "Mean": (share(time, count), "s"),
            },
            links=[
                to_service(
                    "Only this function",
                    service="${__data.fields.Service}",
                    function="${__value.text}",
                ),
                *to_traces("${__data.fields.Service}", "${__value.text}"),
            ],
            span=14,
        ),
        lines(
            "Bridges per second by function",
            "The ten with the most, of all services.",
            {f"{{{{job}}}} {{{{{FUNCTION}}}}}": f"topk(10, {recorded})"},
            unit="ops",
            span=10,
            stacked=True,
            links=[
                to_service(
                    "Only this function",
                    service="${__field.labels.job}",
                    function=f"${{__field.labels.{FUNCTION}}}",
                )
            ],
        ).height(10),
    ]


def portals() -> list[Panel]:
    kind = "greenback_portal_kind"
    buckets = rule("job_kind_le:greenback_portal_duration_seconds_bucket:rate5m")
    return [
        lines(
            "Open portals",
            "By service.",
            {"{{job}}": by_job("job_kind:greenback_portal_active:sum")},
            unit="short",
            stacked=True,
        ),
        lines(
            "Portals opened per second",
            "By kind. Exact.",
            {f"{{{{{kind}}}}}": f"sum by ({kind}) ({rule('job_kind:greenback_portals:rate5m')})"},
            unit="ops",
            stacked=True,
        ),
        lines(
            "Portal lifetime, p95",
            "By kind. Of a sample.",
            {f"{{{{{kind}}}}}": percentile(0.95, f"sum by (le, {kind}) ({buckets})")},
            unit="s",
        ),
    ]


def switches() -> list[Panel]:
    direction = "greenback_switch_direction"
    buckets = rule("job_direction_le:greenback_switch_duration_seconds_bucket:rate5m")
    return [
        lines(
            "Switches per second",
            "By service, both directions. Exact.",
            {"{{job}}": by_job("job_direction:greenback_switches:rate5m")},
            unit="ops",
            span=12,
        ),
        lines(
            "Switch latency, p99",
            "By direction, of all services. Of a sample.",
            {f"{{{{{direction}}}}}": percentile(0.99, f"sum by (le, {direction}) ({buckets})")},
            unit="s",
            span=12,
        ),
    ]


def loop_holding() -> list[Panel]:
    held = rule("job_instance:greenback_step_time_seconds:rate5m")
    buckets = rule("job_le:greenback_step_duration_seconds_bucket:rate5m")
    slow = rule("job_function:greenback_slow_steps:increase5m")
    return [
        lines(
            "Share of time that portal tasks hold the loop",
            "The ten processes that do most. Near 100 % nothing else gets to run. Exact.",
            {"{{job}} {{instance}}": f"topk(10, {held})"},
            unit="percentunit",
            links=[
                to_service(
                    "This process",
                    service="${__field.labels.job}",
                    instance="${__field.labels.instance}",
                )
            ],
        ),
        lines(
            "How long a step holds the loop, p99",
            "By service. Of a sample.",
            {"{{job}}": percentile(0.99, buckets)},
            unit="s",
        ),
        listing(
            "Slow steps by function",
            "The most in five minutes within the time shown.",
            {FUNCTION: "Function", "job": "Service"},
            {"Slow steps": (f"topk(100, max_over_time({slow}[$__range]))", "short")},
            links=[
                to_service(
                    "Only this function",
                    service="${__data.fields.Service}",
                    function="${__value.text}",
                )
            ],
            span=8,
        ).height(8),
    ]


def migration() -> list[Panel]:
    links = [to_service("This service", service="${__field.labels.job}")]
    recorded = "From a recording rule, whose first value takes half an hour."
    return [
        lines(
            "Bridges per day",
            "Twelve weeks. Points are deployments: is it going down? By function: follow "
            f"the link of a service. {recorded}",
            {"{{job}}": f"sum_over_time({rule('job:greenback_bridges:increase30m')}[1d])"},
            unit="short",
            span=12,
            stacked=True,
            over="12w",
            versions=selector(_SERVICES),
            links=links,
        ),
        lines(
            "Functions that bridge",
            f"How many called await_ in a day. At zero, the portal can go. {recorded}",
            {"{{job}}": f"last_over_time({rule('job:greenback_functions:count1d')}[1h])"},
            unit="short",
            span=12,
            over="12w",
            versions=selector(_SERVICES),
            links=links,
        ),
    ]


def dashboard() -> models.Dashboard:
    builder = (
        builders.Dashboard("greenback: all services")
        .uid("greenback-fleet")
        .description("Services that use greenback, from the recording rules that come with it.")
        .tags(["greenback"])
        .time("now-6h", "now")
        .refresh("1m")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .editable()
        .with_variable(data_source("prometheus", "Prometheus", "prometheus"))
        .with_variable(data_source("tempo", "Tempo", "tempo"))
        .with_variable(data_source("jaeger", "Jaeger", "jaeger"))
        .with_variable(label_values("service", "Service", "job:greenback_processes:count", "job"))
        .annotation(deployments(selector(_SERVICES, 'service_version!=""')))
    )
    rows = {
        "Health": health(),
        "Services": services(),
        "Bridges": bridges(),
        "Hot sites": hot_sites(),
        "Portals": portals(),
        "Switches": switches(),
        "Loop holding": loop_holding(),
        "Migration": migration(),
    }
    return in_rows(builder, rows)
