"""What a page shows of receipts: what models cost, and where every result comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dora_jax.config import LLM_STRATEGIES
from dora_jax.cost.charging import LLM_LABELS, TEACHER
from dora_jax.launch.plan_input import Chosen
from dora_jax.launch.report_examples import quotes
from dora_jax.planning.arms import labels_text
from dora_jax.planning.dollars import usd_text
from dora_jax.report import figures
from dora_jax.report.content import Section, Table
from dora_jax.run_records import RunRecord, seeds_together

MAX_GROUPS = 16  # bars in a figure
TRAINING = "train the student"
_PARTS = (
    "human labels",
    "language model",
    "prepare",
    "pretrain-teacher",
    "teach",
    "label",
    "pretrain-student",
    TRAINING,
    "evaluate",
)
# More parts than the eye tells apart by colour are told together.
_PART_OF = {"choose-labels": "label", LLM_LABELS: "prepare"} | dict.fromkeys(
    ("annotate", "distill", *LLM_STRATEGIES), TRAINING
)
_PHASES = ("step", "input wait", "compile", "label", "evaluate", "checkpoint", "startup", "idle")


def costs(chosen: Chosen, models: Sequence[RunRecord]) -> Section:
    """Dollars by stage and phase, and one run's quote beside its bill."""
    groups = [
        group
        for group in seeds_together([r for r in chosen.records if r.value is not None and r.chosen])
        if group[0].strategy != TEACHER
    ]
    groups.sort(key=lambda group: (group[0].strategy, group[0].labels, group[0].llm_labels))
    if len(groups) > MAX_GROUPS:
        kept = np.unique(np.linspace(0, len(groups) - 1, MAX_GROUPS).round().astype(int))
        groups = [groups[i] for i in kept]
    stages, phases = [], []
    for group in groups:
        name = f"{group[0].strategy}, {labels_text(group[0].labels, group[0].llm_labels)}"
        paid = [("human labels", r.label_dollars) for r in group]
        paid += [("language model", r.llm_dollars) for r in group]
        paid += [
            ("evaluate" if stage.startswith("evaluate") else _PART_OF.get(stage, stage), usd)
            for r in group
            for stage, usd in r.dollars_by_stage.items()
        ]
        stages += _divided(name, paid, len(group))
        phases += _divided(
            name, [pair for r in group for pair in r.dollars_by_phase.items()], len(group)
        )
    drawn = []
    if stages:
        title = "What models cost, by stage"
        drawn.append(figures.stacked("stages", title, stages, "stage", _PARTS))
    if phases:
        drawn.append(figures.stacked("phases", "Compute, by phase", phases, "phase", _PHASES))
    return Section("costs", "Costs", figures=drawn, tables=quotes(models))


def _divided(group: str, paid: Sequence[tuple[str, float]], runs: int) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for name, _ in paid)
    sums = {name: sum(usd for each, usd in paid if each == name) / runs for name in names}
    return [{"group": group, "part": name, "usd": usd} for name, usd in sums.items() if usd > 0]


def provenance(chosen: Chosen) -> Section:
    """Every result with its status, its costs and the code that made it."""
    llm = bool(chosen.annotators)
    kinds, usd = (
        (("labels", "LLM labels"), ("$ labels", "$ LLM"))
        if llm
        else (
            ("labels",),
            ("$ labels",),
        )
    )
    numbers = (*kinds, "seed", chosen.metric, "95 %", *usd, "$ compute", "device-h")
    columns = ("run", "result", "status", *numbers, "devices", "code")
    rows = [_record_row(record, llm) for record in chosen.records]
    table = Table("All results", columns, rows, numbers, folded=len(rows) > 24)
    text = (
        f"{len(rows)} results. Each run's folder has its configuration (config.gin), its receipt "
        "(ledger.jsonl), and for every stage the fingerprints of what went in (manifest.json)."
    )
    return Section("provenance", "Provenance", [text, *chosen.remarks], tables=[table])


def _record_row(record: RunRecord, llm: bool) -> tuple[str, ...]:
    value, interval = record.value, record.interval
    of_llm = (f"{record.llm_labels:,}", usd_text(record.llm_dollars))
    return (
        record.name,
        record.strategy,
        record.status if not record.reason else f"{record.status}: {record.reason}",
        f"{record.labels:,}",
        *of_llm[:llm],
        f"{record.seed}",
        "–" if value is None else f"{value:.1f}",
        "–" if interval is None else f"{interval[0]:.1f}–{interval[1]:.1f}",
        usd_text(record.label_dollars),
        *(of_llm[1:] if llm else ()),
        usd_text(record.compute_dollars),
        f"{record.device_hours:.3f}",
        f"{record.devices} × {record.device_kind}" if record.device_kind else "–",
        record.code_version or "–",
    )
