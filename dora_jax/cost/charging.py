"""Which stages each result of a run has to pay for, by itself."""

from __future__ import annotations

from dora_jax.cost.ledger_rows import LABELS

PREPARE = "prepare"
TEACHER, PRETRAIN = "teacher", "pretrain"
# Not what a run is for where something else uses their stages, which then pays for them.
BY_PRODUCTS = (TEACHER, PRETRAIN)

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
}


def results_of(strategies: tuple[str, ...]) -> tuple[str, ...]:
    """The results that a run of these strategies ends in, in the order of `STAGES`."""
    wanted = {*strategies, *([TEACHER] if "distill" in strategies else [])}
    return tuple(name for name in STAGES if name in wanted)
