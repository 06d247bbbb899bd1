"""The figures of a report, as Vega-Lite.

Colours are names of the page's style (`var(--ink)`), so that light, dark and print are one
picture; `exports.py` puts real colours in. Strategies differ in shape too, not in colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dora_jax.report.content import Figure, Row

Spec = dict[str, Any]

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
STACK_COLOURS = tuple(f"var(--stack-{i})" for i in range(9))
HEIGHT = 340
CONFIG: Spec = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--ink-2)",
        "titleColor": "var(--ink-2)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--axis)",
        "tickColor": "var(--axis)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 13,
        "labelLimit": 220,
    },
    "legend": {
        "orient": "top",
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink-2)",
        "labelFontSize": 12,
        "symbolSize": 110,
        "symbolOpacity": 1,
        "title": None,
        "columns": 4,
    },
}


def pareto(points: Sequence[Row], curves: Sequence[Row], metric: str, budget: float) -> Figure:
    """Value over dollars: what was measured, the curves with their bands, and the budget.

    Args:
      points: {"strategy", "labels", "llm_labels", "usd", "value", "low", "high", "front", "runs"}.
      curves: {"arm", "strategy", "usd", "value", "low", "high", "beyond"}, along each arm.
      metric: its name.
      budget: at first, in USD; the page moves it as the signal `budget`.
    """
    usd = [row["usd"] for row in (*points, *curves)] + [budget]
    x = _log_axis("usd", "dollars (labels and compute)", min(usd), max(usd), "$,.4~g")
    colour, shape = _by_strategy([*points, *curves])
    lines = _curve_layers(curves, x, _value_axis(metric), colour)
    tooltip = _tooltip("strategy", ("runs", "run")) + [
        *(
            {"field": field, "title": title, "type": "quantitative", "format": ","}
            for field, title in (("labels", "labels"), ("llm_labels", "LLM labels"))
            if any(point[field] for point in points)
        ),
        {"field": "usd", "title": "dollars", "type": "quantitative", "format": "$,.2f"},
        *_value_tooltip(metric),
    ]
    y = _value_axis(metric)
    at_budget = {name: value for name, value in x.items() if name != "field"}
    marked = [
        {
            "data": {"values": list(points)},
            "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.6},
            "encoding": {
                "x": x,
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": colour,
            },
        },
        {
            "data": {"values": list(points)},
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": colour,
                "shape": shape,
                "stroke": {
                    "condition": {"test": "datum.front", "value": "var(--ink)"},
                    "value": "transparent",
                },
                "tooltip": tooltip,
            },
        },
        {
            "data": {"values": [{}]},
            "mark": {
                "type": "rule",
                "color": "var(--accent)",
                "strokeWidth": 2,
                "strokeDash": [6, 4],
            },
            "encoding": {"x": {**at_budget, "datum": {"expr": "budget"}}},
        },
    ]
    spec = _figure({"params": [{"name": "budget", "value": budget}], "layer": [*lines, *marked]})
    description = (
        f"{metric} over dollars for {len(points)} measured points of "
        f"{len({row['strategy'] for row in points})} strategies, with fitted curves and 95 % "
        "bands. Outlined points are on the Pareto front; the dashed line is the budget."
    )
    return Figure("pareto", "Quality over dollars", description, spec, [*points])


def learning_curves(
    name: str, axis: str, runs: Sequence[Row], curves: Sequence[Row], metric: str
) -> Figure:
    """Value over one axis: every run, the curves and their bands.

    Args:
      name: of the figure.
      axis: title of the axis.
      runs: {"arm", "strategy", "run", "x", "value", "low", "high"}.
      curves: {"arm", "strategy", "x", "value", "low", "high", "beyond"}.
      metric: its name.
    """
    places = [row["x"] for row in (*runs, *curves)]
    x = _log_axis("x", axis, min(places), max(places), ",.4~g")
    colour, shape = _by_strategy([*runs, *curves])
    tooltip = _tooltip("arm", "run") + [
        {"field": "x", "title": axis, "type": "quantitative", "format": ",.4~g"},
        *_value_tooltip(metric),
    ]
    dots = {
        "data": {"values": list(runs)},
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.9},
        "encoding": {
            "x": x,
            "y": _value_axis(metric),
            "color": colour,
            "shape": shape,
            "tooltip": tooltip,
        },
    }
    spec = _figure({"layer": [*_curve_layers(curves, x, _value_axis(metric), colour), dots]})
    description = f"{metric} over {axis}: {len(runs)} runs, with fitted curves and 95 % bands."
    return Figure(name, f"Quality over {axis}", description, spec, [*runs])


def stacked(name: str, title: str, rows: Sequence[Row], part: str, order: Sequence[str]) -> Figure:
    """Dollars of groups of runs, divided.

    Args:
      name, title: of the figure.
      rows: {"group", "part", "usd"}, the groups in the order they are shown in.
      part: what the parts are called.
      order: of the parts; those that it does not name come last.
    """
    groups = list(dict.fromkeys(row["group"] for row in rows))
    there = dict.fromkeys(row["part"] for row in rows)
    parts = list(dict.fromkeys(each for each in (*order, *there) if each in there))
    spec = _figure(
        {
            "data": {"values": [{**row, "order": parts.index(row["part"])} for row in rows]},
            "mark": {"type": "bar", "stroke": "var(--paper)", "strokeWidth": 1},
            "encoding": {
                "y": {"field": "group", "type": "nominal", "sort": groups, "title": None},
                "x": {
                    "field": "usd",
                    "type": "quantitative",
                    "title": "dollars, mean of the runs",
                    "axis": {"format": "$,.4~g", "tickCount": 5},
                },
                "color": {
                    "field": "part",
                    "type": "nominal",
                    "scale": {"domain": parts, "range": list(STACK_COLOURS[: len(parts)])},
                    "legend": {"columns": 2, "columnPadding": 8, "labelFontSize": 11},
                },
                "order": {"field": "order", "type": "quantitative"},
                "tooltip": [
                    *_tooltip("group", ("part", part)),
                    {"field": "usd", "title": "dollars", "type": "quantitative", "format": "$,.3f"},
                ],
            },
        },
        height={"step": 30},
    )
    description = f"Dollars by {part} for {len(groups)} groups of runs, as stacked bars."
    return Figure(name, title, description, spec, [*rows])


def classes(rows: Sequence[Row]) -> Figure:
    """F1 by class and strategy, one dot each.

    Args:
      rows: {"class", "strategy", "f1", "model"}.
    """
    colour, shape = _by_strategy(rows)
    spec = _figure(
        {
            "data": {"values": list(rows)},
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.9},
            "encoding": {
                "y": {"field": "class", "type": "nominal", "sort": "-x", "title": None},
                "x": {
                    "field": "f1",
                    "type": "quantitative",
                    "title": "F1, %",
                    "scale": {"domain": [0, 100]},
                },
                "color": colour,
                "shape": shape,
                "tooltip": [
                    *_tooltip("class", "model"),
                    {"field": "f1", "title": "F1", "type": "quantitative", "format": ".1f"},
                ],
            },
        },
        height={"step": 22},
    )
    description = "F1 of every class, for one model of each strategy."
    return Figure("classes", "F1 by class", description, spec, [*rows])


def training(rows: Sequence[Row], metric: str) -> Figure:
    """The value on validation during training.

    Args:
      rows: {"strategy", "run", "usd" or "step", "value"}.
      metric: its name.
    """
    colour, _ = _by_strategy(rows)
    spec = _figure(
        {
            "data": {"values": list(rows)},
            "mark": {"type": "line", "point": {"filled": True, "size": 45}},
            "encoding": {
                "x": {"field": "step", "type": "quantitative", "title": "update"},
                "y": {**_value_axis(f"{metric} on validation")},
                "color": colour,
                "detail": {"field": "run", "type": "nominal"},
                "tooltip": [
                    *_tooltip("strategy", "run"),
                    {"field": "step", "title": "update", "type": "quantitative"},
                    {"field": "value", "title": metric, "type": "quantitative", "format": ".1f"},
                ],
            },
        },
        height=260,
    )
    runs = len({row["run"] for row in rows})
    description = f"{metric} on the validation split over updates, for {runs} runs."
    return Figure("training", "Validation during training", description, spec, [*rows])


def _figure(spec: Spec, height: Any = HEIGHT) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
        **spec,
    }


def _curve_layers(curves: Sequence[Row], x: Spec, y: Spec, colour: Spec) -> list[Spec]:
    """Band and line of each arm; dotted beyond what was measured."""
    if not curves:
        return []
    detail = {"field": "arm", "type": "nominal"}
    band = {
        "data": {"values": list(curves)},
        "mark": {"type": "area", "opacity": 0.16, "line": False},
        "encoding": {
            "x": x,
            "y": {**y, "field": "low"},
            "y2": {"field": "high"},
            "color": colour,
            "detail": detail,
        },
    }
    lines = [
        {
            "data": {"values": [row for row in curves if row["beyond"] == beyond]},
            "mark": {"type": "line", "strokeWidth": 2.5, **dash},
            "encoding": {"x": x, "y": y, "color": colour, "detail": detail},
        }
        for beyond, dash in ((False, {}), (True, {"strokeDash": [2, 5]}))
    ]
    return [band, *lines]


def _log_axis(field: str, title: str, low: float, high: float, form: str) -> Spec:
    scale = {"type": "log", "domain": [low / 1.15, high * 1.15], "nice": False}
    axis = {"format": form, "tickCount": 6, "labelOverlap": True}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _value_axis(metric: str) -> Spec:
    scale = {"zero": False, "nice": True}
    title = f"{metric}, %"
    return {"field": "value", "type": "quantitative", "title": title, "scale": scale}


def _by_strategy(rows: Iterable[Row]) -> tuple[Spec, Spec]:
    """Colour and shape, the same in every figure."""
    names = sorted({row["strategy"] for row in rows})
    colours = [f"var(--{strategy_colour(name)})" for name in names]
    shapes = [SHAPES[_place(name) % len(SHAPES)] for name in names]
    field = {"field": "strategy", "type": "nominal"}
    return (
        {**field, "scale": {"domain": names, "range": colours}},
        {**field, "scale": {"domain": names, "range": shapes}},
    )


_KNOWN = ("annotate", "distill", "teacher", "llm", "llm_human", "llm_distill")


def _place(strategy: str) -> int:
    return _KNOWN.index(strategy) if strategy in _KNOWN else len(strategy) % len(_KNOWN)


def strategy_colour(strategy: str) -> str:
    """The style's name of a strategy's colour."""
    return f"strategy-{_place(strategy)}"


def _tooltip(*fields: str | tuple[str, str]) -> list[Spec]:
    """Texts under the mouse: fields, or (field, title)."""
    named = [(each, each) if isinstance(each, str) else each for each in fields]
    return [{"field": field, "title": title, "type": "nominal"} for field, title in named]


def _value_tooltip(metric: str) -> list[Spec]:
    titles = (("value", metric), ("low", "95 % from"), ("high", "95 % to"))
    return [
        {"field": field, "title": title, "type": "quantitative", "format": ".1f"}
        for field, title in titles
    ]
