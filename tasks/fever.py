"""FEVER: is a claim supported or refuted by what is known?

    source  Sean Penn is only ever a stage actor.
    target  REFUTES

Source: Thorne et al., NAACL 2018 (the corpus); Kang, Xu and Ritter, ACL 2023 (without evidence,
and with the claims of two classes only).
"""

from __future__ import annotations

import functools

from dora_jax.metrics.classification import measure_classification
from dora_jax.tasks.classes import check_class
from dora_jax.tasks.task import PRICES, TaskSpec

# In the order of the authors' script, which takes the first for an answer that names none.
CLASSES = ("REFUTES", "SUPPORTS")

FEVER = TaskSpec(
    name="fever",
    kind="classification",
    prompt_prefix="fever: ",
    folder="fever",
    labels=CLASSES,
    price_usd_per_label=0.129,
    price_source=PRICES,
    primary_metric="accuracy",
    measure=functools.partial(measure_classification, labels=CLASSES, paper_metrics=("accuracy",)),
    check_target=functools.partial(check_class, labels=CLASSES),
    instruction=(
        "Say whether a claim is supported or refuted by what is generally known, as an "
        "encyclopedia would have it."
    ),
    test_split="dev",
)
