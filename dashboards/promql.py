"""PromQL that both dashboards say in the same way."""

from __future__ import annotations

#: What was left out of the telemetry without that being a setting's plain purpose.
UNPLANNED = 'greenback_trace_drop_reason!~"rate_limit|inside_sdk"'


def selector(*matchers: str) -> str:
    return "{" + ", ".join(matchers) + "}"


def occurred(metric: str, window: str) -> str:
    """How often a rare counter counted in *window*, its first time included.

    A counter that has not counted has no series, so that increase() does not see its first event:
    of a series that was not there a window ago, the value counts.
    """
    return f"({metric} unless {metric} offset {window}) or increase({metric}[{window}])"


def came(now: str, before: str) -> str:
    """The versions of each service that are among the series *now*, and not among *before*."""
    by = "group by (job, service_version)"
    return f"{by} ({now}) unless {by} ({before})"


def share(part: str, whole: str) -> str:
    """*part* of *whole*; nothing where there is no whole, rather than NaN."""
    return f"{part} / ({whole} > 0)"


def percentile(rank: float, buckets: str) -> str:
    return f"histogram_quantile({rank}, {buckets})"
