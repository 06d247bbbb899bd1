"""MultiPIT: paraphrases among tweets, to be told from others (id) and to be written (gen).

    multipit_id   source  sentence1: Another terror act … sentence2: #BREAKING another …
                  target  YES
    multipit_gen  source  Authorities investigating possible shooting at Zombicon
                  target  One dead after shooting at Zombicon

Source: Dou et al., EMNLP 2022 (the corpus); Kang, Xu and Ritter, ACL 2023 (the text form; in
their test file of multipit_gen the target is the source).
"""

from __future__ import annotations

import functools

from dora_jax.metrics.answers import mean_token_f1
from dora_jax.metrics.classification import measure_classification
from dora_jax.metrics.paraphrase import measure_paraphrases
from dora_jax.tasks.classes import check_class, check_text
from dora_jax.tasks.task import PRICES, TaskSpec

# In the order of the authors' script, which takes the first for an answer that names none.
CLASSES = ("NO", "YES")

MULTIPIT_ID = TaskSpec(
    name="multipit_id",
    kind="classification",
    prompt_prefix="multipit_id: ",
    folder="multipit_id",
    labels=CLASSES,
    price_usd_per_label=0.2,
    price_source=PRICES,
    primary_metric="accuracy",
    measure=functools.partial(measure_classification, labels=CLASSES, paper_metrics=("accuracy",)),
    check_target=functools.partial(check_class, labels=CLASSES),
    instruction=(
        "Say whether two tweets mean the same, so that one could stand for the other: YES or NO."
    ),
)

MULTIPIT_GEN = TaskSpec(
    name="multipit_gen",
    kind="text",
    prompt_prefix="multipit: ",
    folder="multipit",
    labels=(),
    price_usd_per_label=0.371,
    price_source=PRICES,
    primary_metric="bert_ibleu",
    measure=measure_paraphrases,
    check_target=check_text,
    instruction="Say what a tweet says in other words, as another tweet might.",
    # BERT-iBLEU needs a second large network, and self-BLEU alone rewards nonsense.
    selection=mean_token_f1,
    measure_with=lambda scorer_model: functools.partial(
        measure_paraphrases, scorer_model=scorer_model
    ),
)
