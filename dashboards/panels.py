"""The panels, variables and links that both dashboards use."""

from __future__ import annotations

import json
from typing import Mapping, Sequence, Union
from urllib.parse import quote

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboard_builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from .promql import came

Panel = Union[stat.Panel, timeseries.Panel, heatmap.Panel, table.Panel]

#: A variable in place of a data source, so that a dashboard can be imported anywhere.
PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="${prometheus}")
FUNCTION = "code_function_name"

_GOOD, _BAD = "green", "red"
#: The colour of deployments.
_MARK = "blue"


def number(title: str, description: str, expr: str, *, unit: str = "short") -> stat.Panel:
    """One number, which should be 0. A counter that never counted has no series, and shows 0."""
    steps = [models.Threshold(None, _GOOD), models.Threshold(1e-9, _BAD)]
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .unit(unit)
        .decimals(0)
        .no_value("0")
        .thresholds(dashboard_builders.ThresholdsConfig().steps(steps))
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.NONE)
        .span(4)
        .height(4)
        .with_target(_query(expr).instant())
    )


def lines(
    title: str,
    description: str,
    queries: Mapping[str, str],
    *,
    unit: str,
    span: int = 8,
    stacked: bool = False,
    links: Sequence[tuple[str, str]] = (),
    over: str = "",
    versions: str = "",
) -> timeseries.Panel:
    """Lines over time.

    Args:
        queries: Queries by legend.
        over: A range of days that the time picker does not change. The panel has a bar per day.
        versions: The labels that choose services, to mark the deployments of. Grafana shows
            annotations only for the time of the picker
            (https://github.com/grafana/grafana/issues/60836), so panels with *over* need these.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .span(span)
        .height(8)
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if over:
        panel.time_from(over).interval("1d").draw_style(common.GraphDrawStyle.BARS)
    if links:
        panel.data_links([_link(*link) for link in links])
    for reference, (legend, expr) in zip("ABCDEFGH", queries.items()):
        panel.with_target(_query(expr, reference).range().legend_format(legend))
    if versions:
        _mark_versions(panel, versions)
    return panel


def _mark_versions(panel: timeseries.Panel, selector: str) -> None:
    """Add a point at the upper edge for each day on which a version was first seen."""
    recorded = f"last_over_time(job_version:greenback_processes:count{selector}[1d]"
    panel.with_target(
        _query(came(f"{recorded})", f"{recorded} offset 1d)"), "V")
        .range()
        .legend_format("{{job}} {{service_version}}")
    )
    deployed = models.ValueMap(
        options={"1": models.ValueMappingResult(text="deployed", color=_MARK)}
    )
    panel.override_by_query(
        "V",
        [
            models.DynamicConfigValue(name, value)
            for name, value in (
                ("custom.drawStyle", "points"),
                ("custom.showPoints", "always"),
                ("custom.pointSize", 8),
                ("custom.stacking", {"mode": "none", "group": "V"}),
                ("custom.axisPlacement", "hidden"),
                ("custom.hideFrom", {"legend": True, "tooltip": False, "viz": False}),
                ("max", 1.05),
                ("color", {"mode": "fixed", "fixedColor": _MARK}),
                ("mappings", [deployed]),
                ("links", []),
            )
        ],
    )


def heat(title: str, description: str, expr: str) -> heatmap.Panel:
    """The buckets of a histogram over time. *expr* gives their counts by ``le``."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .exponent(0.5)
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .span(8)
        .height(8)
        .with_target(_query(expr).range().format(PromQueryFormat.HEATMAP).legend_format("{{le}}"))
    )


def listing(
    title: str,
    description: str,
    key: Mapping[str, str],
    columns: Mapping[str, tuple[str, str]],
    *,
    links: Sequence[tuple[str, str]],
    span: int = 24,
) -> table.Panel:
    """A table with a row for each value of the labels *key*, and instant queries as columns.

    Args:
        key: The names of the columns, by label. The first column has the links.
        columns: Query and unit of each column, by name. The first sorts the table.
    """
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .no_value("-")
        .span(span)
        .height(10)
    )
    names = dict(key)
    for reference, (name, (expr, unit)) in zip("ABCDEFGH", columns.items()):
        panel.with_target(_query(expr, reference).instant().format(PromQueryFormat.TABLE))
        # Grafana gives the values of queries these names when it merges queries into one table.
        names[f"Value #{reference}" if len(columns) > 1 else "Value"] = name
        panel.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
    panel.override_by_name(
        next(iter(key.values())),
        [
            models.DynamicConfigValue(
                "links", [{"title": each, "url": url} for each, url in links]
            ),
            models.DynamicConfigValue("custom.width", 420),
        ],
    )
    order = {name: position for position, name in enumerate(names)}
    return (
        panel.with_transformation(models.DataTransformerConfig("merge", options={}))
        .with_transformation(
            models.DataTransformerConfig(
                "organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": order,
                    "renameByName": names,
                },
            )
        )
        .sort_by(
            [common_builders.TableSortByFieldState().display_name(next(iter(columns))).desc(True)]
        )
    )


def data_source(name: str, label: str, kind: str) -> dashboard_builders.DatasourceVariable:
    return dashboard_builders.DatasourceVariable(name).label(label).type(kind)


def label_values(
    name: str, label: str, metric: str, of: str, *, many: bool = True
) -> dashboard_builders.QueryVariable:
    """A variable with the values of the label *of* at *metric*.

    Args:
        many: Whether the user may choose several values, or all.
    """
    variable = (
        dashboard_builders.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query({"query": f"label_values({metric}, {of})", "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    if many:
        everything = models.VariableOption(text=["All"], value=["$__all"])
        variable.multi(True).include_all(True).all_value(".*").current(everything)
    return variable


def deployments(selector: str) -> dashboard_builders.AnnotationQuery:
    """Marks where a version of a service is seen for the first time in ten minutes.

    The ten minutes end at the point before: points are further apart the longer the time shown is.
    """
    return (
        dashboard_builders.AnnotationQuery()
        .name("Deployments")
        .datasource(PROMETHEUS)
        .enable(True)
        .icon_color(_MARK)
        .expr(
            came(
                f"target_info{selector}",
                f"last_over_time(target_info{selector}[10m] offset $__interval)",
            )
        )
    )


def to_service(title: str, **variables: str) -> tuple[str, str]:
    """A link to the dashboard of a service, with the time and these variables set."""
    given = "".join(f"&var-{name}={value}" for name, value in variables.items())
    kept = ["prometheus", "tempo", "jaeger"]
    if "service" not in variables:
        kept += ["service", "instance", "library"]
    given = "".join(f"&${{{name}:queryparam}}" for name in kept) + given
    return title, f"/d/greenback-service?${{__url_time_range}}{given}"


def to_traces(service: str, function: str = "") -> list[tuple[str, str]]:
    """Links that search a service's spans, or those of one function, in Tempo and in Jaeger."""
    conditions = [f'resource.service.name="{service}"', 'instrumentation:name="greenback"']
    jaeger = {"queryType": "search", "service": service}
    if function:
        conditions.append(f'span.code.function.name="{function}"')
        jaeger["tags"] = f"code.function.name={function}"
    tempo = {"queryType": "traceql", "query": "{" + " && ".join(conditions) + "}"}
    return [
        ("Traces in Tempo", _explore("tempo", tempo)),
        ("Traces in Jaeger", _explore("jaeger", jaeger)),
    ]


def _explore(source: str, query: Mapping[str, str]) -> str:
    pane = {
        "datasource": f"${{{source}}}",
        "queries": [
            {"refId": "A", "datasource": {"type": source, "uid": f"${{{source}}}"}, **query}
        ],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    # Grafana fills in its variables before it parses the address, so they must stay unquoted.
    panes = quote(json.dumps({"traces": pane}, separators=(",", ":")), safe="${}:,[]_.")
    return f"/explore?schemaVersion=1&orgId=1&panes={panes}"


def in_rows(
    builder: dashboard_builders.Dashboard, rows: Mapping[str, Sequence[Panel]]
) -> models.Dashboard:
    """The dashboard with *rows*: panels by title, from top to bottom."""
    for title, panels in rows.items():
        builder.with_row(dashboard_builders.Row(title))
        for panel in panels:
            builder.with_panel(panel)
    return builder.build()


def _query(expr: str, reference: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().datasource(PROMETHEUS).expr(expr).ref_id(reference)


def _link(title: str, url: str) -> dashboard_builders.DashboardLink:
    return dashboard_builders.DashboardLink(title).url(url)
