"""Natural Questions: short answers from memory.

    source  when was the first hunger games book published?
    target  2008

Source: Kwiatkowski et al., TACL 2019 (the corpus); Kang, Xu and Ritter, ACL 2023 (without
passages, one answer to a question).
"""

from __future__ import annotations

from dora_jax.metrics.answers import measure_answers
from dora_jax.tasks.classes import check_text
from dora_jax.tasks.task import PRICES, TaskSpec

NQ = TaskSpec(
    name="nq",
    kind="text",
    prompt_prefix="nq: ",
    folder="nq",
    labels=(),
    price_usd_per_label=0.129,
    price_source=PRICES,
    primary_metric="f1",
    measure=measure_answers,
    check_target=check_text,
    instruction="Answer a question from memory, in as few words as possible.",
    test_split="dev",
)
