"""Which stages each result of a run has to pay for, by itself."""

from __future__ import annotations

from dora_jax.cost.ledger_rows import LABELS

PREPARE = "prepare"
LLM_LABELS = "llm-labels"
LLM_SHOTS = "llm-shots"  # human labels that a language model was shown
# The settings of a training stage that has none under its own name.
TRAINED_AS = {"llm": ("llm", "train"), "llm_human": ("llm", "train"), "llm_distill": ("distill",)}
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


def results_of(strategies: tuple[str, ...]) -> tuple[str, ...]:
    """The results that a run of these strategies ends in, in the order of `STAGES`."""
    wanted = {*strategies, *([TEACHER] if "distill" in strategies else [])}
    return tuple(name for name in STAGES if name in wanted)
