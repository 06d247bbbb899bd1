"""annotate and distill: which stages a strategy is made of, and what it came to.

A run carries out one or both on the same data, so that they share what can be shared and
their dollars compare. Each strategy is billed for all the stages it needs, shared ones too.
"""

from __future__ import annotations

import dataclasses

from dora_jax.config import ModelSource
from dora_jax.cost.charging import STAGES
from dora_jax.cost.ledger import LABELS
from dora_jax.data.token_store import TokenStore
from dora_jax.metrics.scores import Scores
from dora_jax.stages import weights
from dora_jax.stages.context import RunContext
from dora_jax.stages.evaluate import evaluate
from dora_jax.stages.label import label, within
from dora_jax.stages.label_choice import choose
from dora_jax.stages.prepare import prepare
from dora_jax.stages.train import Model, distill, finetune, pretrain


@dataclasses.dataclass(frozen=True)
class Result:
    """One trained model of a run: how good it is and what it cost."""

    name: str
    scores: Scores
    labels: int
    label_dollars: float
    compute_dollars: float
    device_hours: float
    tokens_per_second: float | None
    tokens_per_dollar: float | None  # of compute dollars; None where compute is free


def run(context: RunContext) -> list[Result]:
    """Carries out the run's strategies, skipping what is done, and returns what they came to."""
    store = prepare(context)
    labels = len(store.examples("train"))
    context.buy_labels(labels)
    student = _start(context, store, context.config.student, "student")
    scores: dict[str, Scores] = {}
    if "annotate" in context.config.strategies:
        model = finetune(context, store, "annotate", "annotate", student, context.config.annotate)
        scores["annotate"] = evaluate(context, store, model, "annotate", "annotate")
    if "distill" in context.config.strategies:
        start = _start(context, store, context.config.teacher, "teacher")
        teacher = finetune(context, store, "teach", "distill", start, context.config.teach)
        scores["teacher"] = evaluate(context, store, teacher, "teacher", "distill")
        labelling = within(context, teacher, student.network.vocab_size)
        how = choose(context, store, labelling, student)
        model = distill(context, store, student, label(context, store, labelling, how))
        scores["distill"] = evaluate(context, store, model, "distill", "distill")
    return [_result(context, name, scores[name], labels) for name in STAGES if name in scores]


def _start(context: RunContext, store: TokenStore, source: ModelSource, name: str) -> weights.Start:
    """A model's first parameters: its checkpoint, or pretraining where none is named."""
    if source.weights:
        return weights.from_checkpoint(context, source)
    model: Model = pretrain(context, store, source, name)
    return weights.Start(model.network, model.fingerprint, lambda: model.params(context))


def _result(context: RunContext, name: str, scores: Scores, labels: int) -> Result:
    bought = context.ledger.totals(stages=[LABELS])
    work = context.ledger.totals(stages=[stage for stage in STAGES[name] if stage != LABELS])
    return Result(
        name=name,
        scores=scores,
        labels=labels,
        label_dollars=bought.dollars,
        compute_dollars=work.dollars,
        device_hours=work.device_hours,
        tokens_per_second=work.tokens_per_second,
        tokens_per_dollar=work.tokens_per_dollar,
    )
