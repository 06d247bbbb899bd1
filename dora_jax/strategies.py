"""annotate, distill, llm: which stages a strategy is made of, and what it came to.

A run carries out one or both on the same data, so that they share what can be shared and
their dollars compare. Each strategy is billed for all the stages it needs, shared ones too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dora_jax.config import LLM_STRATEGIES, ModelSource
from dora_jax.cost.budget import BudgetReached
from dora_jax.cost.charging import PRETRAIN, buys_labels
from dora_jax.cost.charging import STAGES as STAGES
from dora_jax.data.token_store import TokenStore
from dora_jax.metrics.scores import Scores
from dora_jax.run_folders import place_of
from dora_jax.run_records import read_runs
from dora_jax.stages import manifest, weights
from dora_jax.stages.context import RunContext
from dora_jax.stages.evaluate import evaluate
from dora_jax.stages.label import label, within
from dora_jax.stages.label_choice import choose
from dora_jax.stages.llm_labels import LabelSet, llm_labels, with_human
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
    shared_dollars: float  # of compute_dollars: stages that lie where other runs use them too
    device_hours: float
    tokens_per_second: float | None
    tokens_per_dollar: float | None  # of compute dollars; None where compute is free


def run(context: RunContext) -> list[Result]:
    """Carries out the run's strategies, skipping what is done, and returns what they came to.

    Where the budget is reached, `context.stopped_by` says so, and what is scored is returned.
    """
    try:
        if not context.stopped_by:  # else an earlier start has spent the same budget
            _carry_out(context)
    except BudgetReached as reached:
        context.stopped_by = str(reached)
    return results(context)


def _carry_out(context: RunContext) -> None:
    wanted = context.config.strategies
    store = prepare(context)
    # First of all: a file that is missing would make useless what else is paid.
    from_llm = llm_labels(context, store) if {*wanted} & {*LLM_STRATEGIES} else None
    if buys_labels(wanted):
        context.buy_labels(len(store.examples("train")))
    student = _start(context, store, context.config.student, "student")
    if PRETRAIN in wanted:
        _start(context, store, context.config.teacher, "teacher")
    if "annotate" in wanted:
        model = finetune(context, store, "annotate", "annotate", student, context.config.annotate)
        _score(context, store, model, "annotate", "annotate")
    if "distill" in wanted:
        start = _start(context, store, context.config.teacher, "teacher")
        teacher = finetune(context, store, "teach", "distill", start, context.config.teach)
        _score(context, store, teacher, "teacher", "distill")
        labelling = within(context, teacher, student.network.vocab_size)
        how = choose(context, store, labelling, student)
        soft = label(context, store, labelling, how)
        model = distill(
            context,
            store,
            student,
            soft.unlabeled,
            context.config.distill,
            human_labels=soft.human,
        )
        _score(context, store, model, "distill", "distill")
        if "llm_distill" in wanted and from_llm is not None:
            _llm_distill(context, store, student, soft.unlabeled, from_llm)
    if from_llm is not None:
        _llm(context, store, student, from_llm)


def _llm(context: RunContext, store: TokenStore, student: weights.Start, labels: LabelSet) -> None:
    """The student on a language model's labels, alone and beside the human ones."""
    for name, train in context.config.llm_trainings().items():
        if name != "llm_distill":
            model = finetune(context, store, name, name, student, train, labels)
            _score(context, store, model, name, name)


def _llm_distill(
    context: RunContext,
    store: TokenStore,
    student: weights.Start,
    soft: Path,
    labels: LabelSet,
) -> None:
    """The student on the teacher's soft labels, with a share of human and llm ones."""
    name = "llm_distill"
    train = context.config.llm_trainings()[name]
    model = distill(context, store, student, soft, train, name, with_human(store, labels))
    _score(context, store, model, name, name)


def _score(context: RunContext, store: TokenStore, model: Model, name: str, strategy: str) -> None:
    evaluate(context, store, model, name, strategy)
    if model.stopped_by:
        raise BudgetReached(model.stopped_by)


def _start(context: RunContext, store: TokenStore, source: ModelSource, name: str) -> weights.Start:
    """A model's first parameters: its checkpoint, or pretraining where none is named."""
    if source.weights:
        return weights.from_checkpoint(context, source)
    model: Model = pretrain(context, store, source, name)
    return weights.Start(model.network, model.fingerprint, lambda: model.params(context))


def results(context: RunContext) -> list[Result]:
    """What the run has scored, each with all that it costs by itself."""
    here = context.directory.resolve()
    return [
        Result(
            name=record.strategy,
            scores=_scores(context, record.strategy),
            labels=record.labels + record.llm_labels,
            label_dollars=record.label_dollars + record.llm_dollars,
            compute_dollars=record.compute_dollars,
            shared_dollars=sum(
                dollars
                for stage, dollars in record.dollars_by_stage.items()
                if place_of(here, record.settings, stage).parent != here
            ),
            device_hours=record.device_hours,
            tokens_per_second=record.tokens / record.seconds if record.seconds else None,
            tokens_per_dollar=record.tokens_per_dollar,
        )
        for record in read_runs(context.directory)
        if record.value is not None
    ]


def _scores(context: RunContext, name: str) -> Scores:
    outputs = manifest.read(context.directory / f"evaluate-{name}")["outputs"]
    return Scores.from_json(outputs["scores"])
