"""What a page shows of quality: over dollars, and over what each arm varies."""

from __future__ import annotations

from typing import Any

import numpy as np

from dora_jax.launch.plan_input import Chosen
from dora_jax.planning.arms import COMPUTE, DOLLARS, LABELS, LLM_LABELS
from dora_jax.planning.curves import PowerLaw
from dora_jax.planning.decision import Fitted
from dora_jax.planning.dollars import usd_text
from dora_jax.planning.front import measured_points
from dora_jax.planning.words import misfit_text
from dora_jax.report import figures
from dora_jax.report.content import Figure, Section, Table

AXES = {
    LABELS: "human labels",
    LLM_LABELS: "language model's labels",
    COMPUTE: "compute dollars",
    DOLLARS: "dollars (labels and compute)",
}


def curve_rows(fitted: Fitted, chosen: Chosen, i: int) -> list[dict[str, Any]]:
    """An arm's curve and band at 60 places; none where it has no curve."""
    arm, bands = fitted.arms[i], fitted.bands[i]
    if not isinstance(bands.central, PowerLaw):
        return []
    most = max(arm.places)
    x_X = np.unique([*np.geomspace(min(arm.places), fitted.reach * most, 60), most])
    low_X, high_X = np.percentile(bands.replicates.values(x_X), [2.5, 97.5], axis=0)
    fixed, slope = arm.costs.at(chosen.market)
    rows = []
    for x, value, low, high in zip(x_X, bands.central.values(x_X)[0], low_X, high_X, strict=True):
        row = {"arm": arm.name, "strategy": arm.strategy, "x": float(x)}
        row |= {"usd": fixed + slope * float(x), "value": float(value)}
        ends = {"low": float(min(low, value)), "high": float(max(high, value))}
        rows.append(row | ends | {"beyond": bool(x > most)})
        if x == most:  # both pieces of the line end here, so that it has no gap
            rows.append(rows[-1] | {"beyond": True})
    return [row for row in rows if row["usd"] > 0]


def pareto(chosen: Chosen, fitted: Fitted, budget: float) -> Section:
    """Quality over dollars: what was measured, the curves, the budget."""
    points = [
        {
            "strategy": point.strategy,
            "labels": point.labels,
            "llm_labels": point.llm_labels,
            "usd": point.usd,
            "value": point.value,
            "low": point.interval[0],
            "high": point.interval[1],
            "front": point.on_front,
            "runs": ", ".join(point.runs[:3]) + ", …" * (len(point.runs) > 3),
        }
        for point in measured_points(chosen.results)
        if point.usd > 0
    ]
    if not points:
        return Section("pareto", "Quality over dollars")
    curves = [row for i in range(len(fitted.arms)) for row in curve_rows(fitted, chosen, i)]
    figure = figures.pareto(points, curves, chosen.metric, budget)
    llm = bool(chosen.annotators)
    front = [
        (
            p["strategy"],
            f"{p['labels']:,}",
            *([f"{p['llm_labels']:,}"] if llm else []),
            usd_text(p["usd"]),
            f"{p['value']:.1f}",
            f"{p['low']:.1f}–{p['high']:.1f}",
        )
        for p in points
        if p["front"]
    ]
    kinds = ("labels", "LLM labels") if llm else ("labels",)
    columns = ("strategy", *kinds, "$", chosen.metric, "test set, 95 %")
    table = Table("Pareto front of what was measured", columns, front, columns[1:])
    text = (
        "Each point is the mean of runs that differ in the seed alone; the bar is the interval of "
        "their test scores. A line is the fitted curve, dotted beyond what was measured."
    )
    return Section("pareto", "Quality over dollars", [text], [figure], [table])


def learning_curves(chosen: Chosen, fitted: Fitted) -> Section:
    """Quality over what each arm varies, with the laws that were fitted."""
    drawn: list[Figure] = []
    laws = []
    for axis, title in AXES.items():
        own = [i for i, arm in enumerate(fitted.arms) if arm.axis == axis]
        runs = [
            {"arm": arm.name, "strategy": arm.strategy, "run": r.name, "x": x, "value": r.value}
            | dict(zip(("low", "high"), r.interval or (r.value, r.value), strict=True))
            for arm in (fitted.arms[i] for i in own)
            for r, x in zip(arm.results, arm.places, strict=True)
        ]
        curves = [row for i in own for row in curve_rows(fitted, chosen, i)]
        if curves:
            name = f"over-{axis.lower().replace(' ', '-')}"
            drawn.append(figures.learning_curves(name, title, runs, curves, chosen.metric))
    for arm, bands in zip(fitted.arms, fitted.bands, strict=True):
        law = bands.central
        if isinstance(law, PowerLaw):
            formula = (
                f"{law.top_R[0]:.1f} − {law.drop_R[0]:.2f} · (x / {law.unit:,.4g})^"
                f"−{law.exponent_R[0]:.2f}"
            )
        else:
            formula = "none: too few runs"
        laws.append((arm.name, AXES[arm.axis], f"{len(arm.results)}", formula))
    scatter = fitted.scatter
    text = (
        f"Runs scatter about their curves, or about the mean of equal runs, by {scatter.sd:.2f} "
        f"points (standard deviation, {scatter.freedom} degrees of freedom)."
        if scatter.freedom
        else "No two runs differ in the seed alone: how much seeds matter is unknown, and every "
        "interval here is of the test set only."
    )
    table = Table("Curves", ("arm", "x", "runs", "value at x"), laws, ("runs",))
    return Section("curves", "Learning curves", [text, *misfit_text(scatter)], drawn, [table])
