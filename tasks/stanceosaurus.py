"""Stanceosaurus: where does a tweet stand towards a claim?

    source  claim: Easter is … tweet: hey @USER talk a little bit about …
    target  Discussing

Source: Zheng et al., EMNLP 2022 (the corpus); Kang, Xu and Ritter, ACL 2023 (five classes, and
the text form).
"""

from __future__ import annotations

import functools

from dora_jax.metrics.classification import measure_classification
from dora_jax.tasks.classes import check_class
from dora_jax.tasks.task import PRICES, TaskSpec

# In the order of the authors' script, which takes the first for an answer that names none.
CLASSES = ("Irrelevant", "Supporting", "Refuting", "Discussing", "Querying")

# The script computes no accuracy here.
PAPER_METRICS = (
    "micro_precision",
    "micro_recall",
    "micro_f1",
    "macro_precision",
    "macro_recall",
    "macro_f1",
)

STANCEOSAURUS = TaskSpec(
    name="stanceosaurus",
    kind="classification",
    prompt_prefix="stanceosaurus: ",
    folder="stanceosaurus",
    labels=CLASSES,
    price_usd_per_label=0.364,
    price_source=PRICES,
    primary_metric="macro_f1",
    measure=functools.partial(
        measure_classification, labels=CLASSES, primary="macro_f1", paper_metrics=PAPER_METRICS
    ),
    check_target=functools.partial(check_class, labels=CLASSES),
    instruction=(
        "Say where a tweet stands towards a claim: Supporting or Refuting if it takes the claim "
        "for true or false, Discussing if it speaks of it without taking sides, Querying if it "
        "asks whether it is true, Irrelevant if it is about something else."
    ),
)
