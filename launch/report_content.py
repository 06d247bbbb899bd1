"""From chosen runs to the page about them: figures, tables and the answers for every budget."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from dora_jax.config import LLM_STRATEGIES
from dora_jax.cost.charging import LLM_LABELS, TEACHER
from dora_jax.launch.plan import run_command
from dora_jax.launch.plan_input import Chosen
from dora_jax.launch.report_examples import (
    comparisons,
    exemplars,
    quotes,
    read_models,
    samples,
    training,
)
from dora_jax.planning.arms import COMPUTE, DOLLARS, LABELS
from dora_jax.planning.curves import PowerLaw
from dora_jax.planning.decision import Fitted, break_evens, near_optimal, plans
from dora_jax.planning.front import budget_grid, measured_points
from dora_jax.planning.next_measurement import measure_next
from dora_jax.planning.words import line_of, measurement_text, region_text, turn, verdict
from dora_jax.report import figures
from dora_jax.report.content import Budgets, Figure, Page, Section, Table
from dora_jax.run_records import RunRecord, seeds_together

AXES = {
    LABELS: "human labels",
    COMPUTE: "compute dollars",
    DOLLARS: "dollars (labels and compute)",
}
MAX_GROUPS = 16  # bars in a figure
_STAGES = (
    "prepare",
    "pretrain-teacher",
    "teach",
    "choose-labels",
    "label",
    "pretrain-student",
    "annotate",
    "distill",
    LLM_LABELS,
    *LLM_STRATEGIES,
)
_PHASES = ("step", "input wait", "compile", "label", "evaluate", "checkpoint", "startup", "idle")


def page_of(chosen: Chosen, fitted: Fitted, budget_usd: float | None) -> Page:
    """The page about these runs.

    Args:
      chosen: runs of one kind.
      fitted: their curves.
      budget_usd: that the page begins with; None takes the middle of the budgets.
    """
    budgets = _budgets(chosen, fitted, budget_usd)
    first = budgets.answers[budgets.first]["usd"]
    models = exemplars(chosen.records)
    read = read_models(models)
    texts, tables = comparisons(read, chosen.metric)
    remarks, found = samples(read)
    sections = [
        _pareto(chosen, fitted, first),
        _curves(chosen, fitted),
        _turns(chosen, fitted, first),
        _next(chosen, fitted, first),
        _costs(chosen, models),
        _classes(models),
        Section("pairs", "Paired comparisons", texts, tables=tables),
        _training(chosen, models),
        Section("samples", "Sample predictions", remarks, samples=found),
        _provenance(chosen),
    ]
    return Page(
        title=f"{chosen.task}: distill or annotate?",
        mark=(
            "Rehearsal: small networks on little data. It shows that all works and what it costs "
            "here; it is no result of the paper's scale."
        )
        * (chosen.scale == "rehearsal"),
        facts=_facts(chosen),
        budgets=budgets,
        sections=[s for s in sections if s.texts or s.figures or s.tables or s.samples],
        footer=(
            f"dora_jax {metadata.version('dora_jax')}, "
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC. Bands and intervals are "
            "95 %, by bootstrap over runs and test set. Dollars are those of one model alone, "
            "counted from nothing. Drawn with Vega; the page fetches nothing."
        ),
    )


def _facts(chosen: Chosen) -> list[tuple[str, str]]:
    results, kinds = chosen.results, {r.device_kind for r in chosen.records if r.device_kind}
    market = chosen.market
    facts = [
        ("task", chosen.task),
        ("scale", chosen.scale),
        ("metric", chosen.metric),
        ("models scored", f"{len(results)}"),
        ("label price", f"${market.label_usd:,.3g}"),
        ("devices", ", ".join(sorted(kinds)) or "unknown"),
    ]
    if market.students > 1:
        facts.append(("students a teacher", f"{market.students:g}"))
    return facts


def _budgets(chosen: Chosen, fitted: Fitted, budget_usd: float | None) -> Budgets:
    usd = budget_grid(fitted, chosen.market)
    if budget_usd is not None:
        usd = np.unique([*usd, budget_usd])
    first = len(usd) // 2 if budget_usd is None else int(np.searchsorted(usd, budget_usd))
    columns = ("plan", chosen.metric, "95 %", "best", "labels", "$ labels", "$ else", "$", "from")
    return Budgets([_answer(chosen, fitted, float(each)) for each in usd], columns, first)


def _answer(chosen: Chosen, fitted: Fitted, usd: float) -> dict[str, Any]:
    found = plans(fitted, usd, chosen.market)
    rows = [
        (
            *line_of(plan),
            {"points": "single runs", "beyond": "curve, beyond runs"}.get(plan.measured, "curve"),
        )
        for plan in found
    ]
    near = near_optimal(fitted, usd, chosen.market) if found else []
    return {
        "usd": usd,
        "text": f"${usd:,.2f}",
        "verdict": verdict(found, chosen.metric, usd),
        "plans": rows,
        "near": [region_text(region) for region in near],
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


def _pareto(chosen: Chosen, fitted: Fitted, budget: float) -> Section:
    points = [
        {
            "strategy": point.strategy,
            "labels": point.labels,
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
    front = [
        (
            p["strategy"],
            f"{p['labels']:,}",
            f"{p['usd']:,.2f}",
            f"{p['value']:.1f}",
            f"{p['low']:.1f}–{p['high']:.1f}",
        )
        for p in points
        if p["front"]
    ]
    columns = ("strategy", "labels", "$", chosen.metric, "test set, 95 %")
    table = Table("Pareto front of what was measured", columns, front, columns[1:])
    text = (
        "Each point is the mean of runs that differ in the seed alone; the bar is the interval of "
        "their test scores. A line is the fitted curve, dotted beyond what was measured."
    )
    return Section("pareto", "Quality over dollars", [text], [figure], [table])


def _curves(chosen: Chosen, fitted: Fitted) -> Section:
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
            drawn.append(
                figures.learning_curves(f"over-{axis}", title, runs, curves, chosen.metric)
            )
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
        f"Runs that differ in the seed alone scatter by {scatter.sd:.2f} points (standard "
        f"deviation, {scatter.freedom} degrees of freedom)."
        if scatter.freedom
        else "No two runs differ in the seed alone: how much seeds matter is unknown, and every "
        "interval here is of the test set only."
    )
    table = Table("Curves", ("arm", "x", "runs", "value at x"), laws, ("runs",))
    return Section("curves", "Learning curves", [text], drawn, [table])


def _turns(chosen: Chosen, fitted: Fitted, budget: float) -> Section:
    if len(fitted.arms) < 2 or not plans(fitted, budget, chosen.market):
        return Section("turns", "Where the winner changes")
    rows = [tuple(turn(found)) for found in break_evens(fitted, budget, chosen.market)]
    if not rows:
        return Section("turns", "Where the winner changes")
    columns = ("what", "now", "wins then", "where", "95 %", "chance of a change")
    text = f"At a budget of ${budget:,.2f}, one price moved and the others as they are."
    table = Table("", columns, rows, columns[-1:])
    return Section("turns", "Where the winner changes", [text], tables=[table])


def _next(chosen: Chosen, fitted: Fitted, budget: float) -> Section:
    wanted = measure_next(fitted, budget, chosen.market)
    rows = [(measurement_text(m), run_command(chosen, fitted, m)) for m in wanted]
    if not rows:
        return Section("next", "What to measure next", ["Nothing: the runs decide this budget."])
    return Section(
        "next",
        "What to measure next",
        [f"For a budget of ${budget:,.2f}, the most worthwhile first."],
        tables=[Table("", ("run", "command"), rows)],
    )


def _costs(chosen: Chosen, models: Sequence[RunRecord]) -> Section:
    groups = [
        group
        for group in seeds_together([r for r in chosen.records if r.value is not None and r.chosen])
        if group[0].strategy != TEACHER
    ]
    groups.sort(key=lambda group: (group[0].strategy, group[0].labels))
    if len(groups) > MAX_GROUPS:
        kept = np.unique(np.linspace(0, len(groups) - 1, MAX_GROUPS).round().astype(int))
        groups = [groups[i] for i in kept]
    stages, phases = [], []
    for group in groups:
        name = f"{group[0].strategy}, {group[0].labels:,} labels"
        paid = [("human labels", r.label_dollars) for r in group]
        paid += [("language model", r.llm_dollars) for r in group]
        paid += [
            ("evaluate" if stage.startswith("evaluate") else stage, usd)
            for r in group
            for stage, usd in r.dollars_by_stage.items()
        ]
        stages += _divided(name, paid, len(group))
        phases += _divided(
            name, [pair for r in group for pair in r.dollars_by_phase.items()], len(group)
        )
    order = ("human labels", "language model", *_STAGES, "evaluate")
    drawn = []
    if stages:
        drawn.append(
            figures.stacked("stages", "What models cost, by stage", stages, "stage", order)
        )
    if phases:
        drawn.append(figures.stacked("phases", "Compute, by phase", phases, "phase", _PHASES))
    return Section("costs", "Costs", figures=drawn, tables=quotes(models))


def _divided(group: str, paid: Sequence[tuple[str, float]], runs: int) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for name, _ in paid)
    sums = {name: sum(usd for each, usd in paid if each == name) / runs for name in names}
    return [{"group": group, "part": name, "usd": usd} for name, usd in sums.items() if usd > 0]


def _classes(models: Sequence[RunRecord]) -> Section:
    rows = [
        {"class": name, "strategy": r.strategy, "f1": f1, "model": f"{r.strategy} of {r.name}"}
        for r in models
        for name, f1 in r.per_class.items()
    ]
    if not rows:
        return Section("classes", "Classes")
    text = "Models: " + ", ".join(f"{r.strategy} of {r.name}" for r in models) + "."
    return Section("classes", "Classes", [text], [figures.classes(rows)])


def _training(chosen: Chosen, models: Sequence[RunRecord]) -> Section:
    rows = training(models)
    drawn = [figures.training(rows, chosen.metric)] if rows else []
    return Section("training", "Training", figures=drawn)


def _provenance(chosen: Chosen) -> Section:
    columns = (
        "run", "result", "status", "labels", "seed", chosen.metric, "95 %", "$ labels",
        "$ compute", "device-h", "devices", "code",
    )  # fmt: skip
    rows = [_record_row(record) for record in chosen.records]
    numbers = columns[3:10]
    table = Table("All results", columns, rows, numbers, folded=len(rows) > 24)
    text = (
        f"{len(rows)} results. Each run's folder has its configuration (config.gin), its receipt "
        "(ledger.jsonl), and for every stage the fingerprints of what went in (manifest.json)."
    )
    return Section("provenance", "Provenance", [text, *chosen.remarks], tables=[table])


def _record_row(record: RunRecord) -> tuple[str, ...]:
    value, interval = record.value, record.interval
    return (
        record.name,
        record.strategy,
        record.status if not record.reason else f"{record.status}: {record.reason}",
        f"{record.labels:,}",
        f"{record.seed}",
        "–" if value is None else f"{value:.1f}",
        "–" if interval is None else f"{interval[0]:.1f}–{interval[1]:.1f}",
        f"{record.label_dollars:,.2f}",
        f"{record.compute_dollars:,.2f}",
        f"{record.device_hours:.3f}",
        f"{record.devices} × {record.device_kind}" if record.device_kind else "–",
        record.code_version or "–",
    )
