"""PromQL that both dashboards use."""

from __future__ import annotations

#: Drops that need attention: for all reasons but rate limits, and bridges inside the SDK.
UNPLANNED = 'greenback_trace_drop_reason!~"rate_limit|inside_sdk"'


def selector(*matchers: str) -> str:
    return "{" + ", ".join(matchers) + "}"


def occurred(metric: str, window: str) -> str:
    """How often a rare counter counted in *window*, with its first event.

    A counter has no series before its first event, so increase() misses that event. For a series
    that did not exist a window ago, the result is therefore the value itself.
    """
    return f"({metric} unless {metric} offset {window}) or increase({metric}[{window}])"


def came(now: str, before: str) -> str:
    """The versions of each service in the series *now* that are not in the series *before*."""
    by = "group by (job, service_version)"
    return f"{by} ({now}) unless {by} ({before})"


def share(part: str, whole: str) -> str:
    """*part* divided by *whole*; nothing, rather than NaN, where *whole* is 0."""
    return f"{part} / ({whole} > 0)"


def percentile(rank: float, buckets: str) -> str:
    return f"histogram_quantile({rank}, {buckets})"
