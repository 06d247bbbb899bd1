"""From chosen runs to the page about them: figures, tables and the answers for every budget."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from dora_jax.launch.plan import run_command
from dora_jax.launch.plan_input import Chosen
from dora_jax.launch.report_costs import costs, provenance
from dora_jax.launch.report_curves import learning_curves, pareto
from dora_jax.launch.report_examples import (
    comparisons,
    exemplars,
    read_models,
    samples,
    training,
)
from dora_jax.planning.annotators import Annotator, annotator_text
from dora_jax.planning.arms import llm_label_price
from dora_jax.planning.decision import Fitted, break_evens, near_optimal, plans
from dora_jax.planning.dollars import price_text, usd_text
from dora_jax.planning.front import budget_grid
from dora_jax.planning.next_measurement import measure_next
from dora_jax.planning.words import (
    NO_TURNS,
    columns_of,
    line_of,
    measurement_text,
    nothing_next_text,
    region_text,
    turn,
    verdict,
)
from dora_jax.report import figures
from dora_jax.report.content import Budgets, Page, Section, Table
from dora_jax.run_records import RunRecord


def page_of(chosen: Chosen, fitted: Fitted, budget_usd: float | None, files: bool) -> Page:
    """The page about these runs.

    Args:
      chosen: runs of one kind.
      fitted: their curves.
      budget_usd: that the page begins with; None takes the middle of the budgets.
      files: whether every figure is written beside the page too.
    """
    budgets = _budgets(chosen, fitted, budget_usd)
    models = exemplars(chosen.records)
    read = read_models(models)
    texts, tables = comparisons(read, chosen.metric)
    remarks, found = samples(read)
    sections = [
        pareto(chosen, fitted, budgets.answers[budgets.first]["usd"]),
        *_by_budget(budgets),
        learning_curves(chosen, fitted),
        _annotators(chosen.annotators),
        costs(chosen, models),
        _classes(models),
        Section("pairs", "Paired comparisons", texts, tables=tables),
        _training(chosen, models),
        Section("samples", "Sample predictions", remarks, samples=found),
        provenance(chosen),
    ]
    return Page(
        title=f"{chosen.task}: distill or annotate?",
        mark=(
            "Rehearsal: small networks on little data. It shows that all works and what it costs "
            "here; it is no result of the paper's scale."
        )
        * (chosen.scale == "rehearsal"),
        facts=_facts(chosen, fitted),
        budgets=budgets,
        figure_files=files,
        sections=[s for s in sections if s.texts or s.figures or s.tables or s.samples],
        footer=(
            f"dora_jax {metadata.version('dora_jax')}, "
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC. Bands and intervals are "
            "95 %, by bootstrap over runs and test set. Dollars are those of one model alone, "
            "counted from nothing. Drawn with Vega; the page fetches nothing."
        ),
    )


def _facts(chosen: Chosen, fitted: Fitted) -> list[tuple[str, str]]:
    results, kinds = chosen.results, {r.device_kind for r in chosen.records if r.device_kind}
    market = chosen.market
    facts = [
        ("task", chosen.task),
        ("scale", chosen.scale),
        ("metric", chosen.metric),
        ("models scored", f"{len(results)}"),
        ("label price", f"${price_text(market.label_usd)}"),
        ("devices", ", ".join(sorted(kinds)) or "unknown"),
    ]
    if (llm_usd := llm_label_price(fitted.arms)) is not None:
        facts.insert(-1, ("LLM label price", f"${price_text(llm_usd)}"))
    if market.students > 1:
        facts.append(("students a teacher", f"{market.students:g}"))
    return facts


def _budgets(chosen: Chosen, fitted: Fitted, budget_usd: float | None) -> Budgets:
    usd = budget_grid(fitted, chosen.market)
    if budget_usd is not None:
        usd = np.unique([*usd, budget_usd])
    first = len(usd) // 2 if budget_usd is None else int(np.searchsorted(usd, budget_usd))
    columns = columns_of(chosen.metric, bool(chosen.annotators))
    return Budgets([_answer(chosen, fitted, float(each)) for each in usd], columns, first)


def _answer(chosen: Chosen, fitted: Fitted, usd: float) -> dict[str, Any]:
    """All that the page says of one budget: sentences, and rows of its tables."""
    found = plans(fitted, usd, chosen.market)
    near = near_optimal(fitted, usd, chosen.market) if found else []
    turns = break_evens(fitted, usd, chosen.market) if found else []
    wanted = measure_next(fitted, usd, chosen.market)
    at = f"At a budget of ${usd:,.2f}"
    return {
        "usd": usd,
        "text": f"${usd:,.2f}",
        "verdict": verdict(found, chosen.metric, usd),
        "near": [region_text(region) for region in near],
        "rows": {
            "plans": [line_of(plan, bool(chosen.annotators)) for plan in found],
            "turns": [turn(each) for each in turns],
            "next": [(measurement_text(m), run_command(chosen, fitted, m)) for m in wanted],
        },
        "texts": {
            "turns": f"{at}, one price moved and the others as they are."
            if turns
            else f"{at}: {NO_TURNS}",
            "next": f"{at}, the most worthwhile first."
            if wanted
            else f"{at}: {nothing_next_text(found)}",
        },
    }


_TURNS = ("what", "now", "where", "wins then", "95 %", "chance of a change")


def _by_budget(budgets: Budgets) -> list[Section]:
    """What moves with the slider, beside the plans."""
    rows = budgets.answers[budgets.first]["rows"]
    turns, wanted = (
        Table("", _TURNS, rows["turns"], _TURNS[-1:]),
        Table("", ("run", "command"), rows["next"]),
    )
    sections = [
        Section("turns", "Where the winner changes", tables=[turns], by_budget=True),
        Section("next", "What to measure next", tables=[wanted], by_budget=True),
    ]
    shown = any(answer["rows"]["turns"] for answer in budgets.answers)
    return sections if shown else sections[1:]


def _annotators(annotators: Sequence[Annotator]) -> Section:
    """Language models that labelled, with their price and error rate."""
    rows = []
    for each in annotators:
        audit = each.audit
        rows.append(
            (
                each.model or "unknown",
                f"{each.labels:,}",
                price_text(each.usd_per_label),
                f"{audit.error_rate:.1f}" if audit else "not audited",
                f"{100 - audit.interval[1]:.1f}–{100 - audit.interval[0]:.1f}" if audit else "–",
                f"{audit.rows:,}" if audit else "–",
                f"{audit.set_aside:,}" if audit else "–",
                usd_text(audit.usd) if audit else "–",
            )
        )
    if not rows:
        return Section("annotators", "Language models as annotators")
    columns = (
        "model", "labels used", "$ a label", "error rate, %", "95 %", "texts audited",
        "without an answer", "$ audit",
    )  # fmt: skip
    text = (
        "The error rate is 100 − the metric of the model's labels against people's, on validation "
        "texts that both labelled. No result is charged for the audit."
    )
    return Section(
        "annotators",
        "Language models as annotators",
        [text, *(annotator_text(each) for each in annotators if each.audit is None)],
        tables=[Table("", columns, rows, columns[1:])],
    )


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
