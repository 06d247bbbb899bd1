"""Which stages each result of a run has to pay for, by itself."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dora_jax.cost.ledger_rows import LABELS, LedgerRow

PREPARE = "prepare"
LLM_LABELS = "llm-labels"
LLM_SHOTS = "llm-shots"  # human labels that a language model was shown
# The settings of a training stage that has none under its own name.
TRAINED_AS = {"llm": ("llm", "train"), "llm_human": ("llm", "train"), "llm_distill": ("distill",)}
TEACHER, PRETRAIN = "teacher", "pretrain"
# Not what a run is for where something else uses their stages, which then pays for them.
BY_PRODUCTS = (TEACHER, PRETRAIN)

# Stages that other runs may need too. A student and its score are a run's own.
SHAREABLE = (
    PREPARE,
    "pretrain-teacher",
    "pretrain-student",
    "teach",
    "evaluate-teacher",
    "choose-labels",
    "label",
)

# A result pays for all the stages it needs, those it shares with others too: that is what it
# would cost alone.
STAGES = {
    PRETRAIN: (PREPARE, "pretrain-teacher", "pretrain-student"),
    TEACHER: (PREPARE, LABELS, "pretrain-teacher", "teach", "evaluate-teacher"),
    "annotate": (PREPARE, LABELS, "pretrain-student", "annotate", "evaluate-annotate"),
    "distill": (
        PREPARE,
        LABELS,
        "pretrain-teacher",
        "teach",
        "choose-labels",
        "label",
        "pretrain-student",
        "distill",
        "evaluate-distill",
    ),
    # A language model's labels, alone, beside the human ones, and beside a teacher's.
    "llm": (PREPARE, LLM_SHOTS, LLM_LABELS, "pretrain-student", "llm", "evaluate-llm"),
    "llm_human": (
        PREPARE,
        LABELS,
        LLM_LABELS,
        "pretrain-student",
        "llm_human",
        "evaluate-llm_human",
    ),
    "llm_distill": (
        PREPARE,
        LABELS,
        LLM_LABELS,
        "pretrain-teacher",
        "teach",
        "choose-labels",
        "label",
        "pretrain-student",
        "llm_distill",
        "evaluate-llm_distill",
    ),
}

# What the time of each of a teacher's stages is spent on.
_TEACHERS = {
    "pretrain-teacher": "tune",
    "teach": "tune",
    "choose-labels": "generate",
    "label": "generate",
}


def results_of(strategies: tuple[str, ...]) -> tuple[str, ...]:
    """The results that a run of these strategies ends in, in the order of `STAGES`."""
    wanted = {*strategies, *([TEACHER] if "distill" in strategies else [])}
    return tuple(name for name in STAGES if name in wanted)


def teacher_split(rows: Iterable[LedgerRow]) -> dict[str, float]:
    """What a teacher's dollars were for: to tune it, to generate labels, to score them, idling.

    Greedy labels are generated and scored in one pass, which counts as generating; "score" is the
    second pass that drawn labels take.
    """
    split = {"tune": 0.0, "generate": 0.0, "score": 0.0, "idle": 0.0}
    for row in rows:
        if row.stage not in _TEACHERS or not (seconds := sum(row.seconds.values())):
            continue
        for phase, of_phase in row.seconds.items():
            part = phase if phase in ("idle", "score") else _TEACHERS[row.stage]
            split[part] += row.dollars * of_phase / seconds
    return split


def buys_labels(strategies: Iterable[str]) -> bool:
    """Whether a run of these strategies buys human labels (`llm` pays for those it shows)."""
    return any(LABELS in STAGES[strategy] for strategy in strategies)


@dataclasses.dataclass(frozen=True)
class Users:
    """How many results use each stage.

    A by-product, such as a teacher that a student learns from, pays for nothing that another
    result uses.
    """

    results: Counter[Path]
    by_products: Counter[Path]

    def share(self, place: Path, strategy: str) -> float:
        """Which part of a stage's dollars a result pays."""
        if strategy not in BY_PRODUCTS:
            return 1 / self.results[place]
        return 0.0 if self.results[place] else 1 / self.by_products[place]
