"""choose-labels: how the teacher labels this job most cheaply, by measurement.

`LabelConfig.batch_size = 0` leaves batch and widths open, `top_k = 0` the number of entries kept.
What is chosen is on disk before the first label is made: a restart makes the same labels, however
fast its machine is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from dora_jax.config import LabelConfig
from dora_jax.data.loader import PackedLoader, balanced_row_lengths
from dora_jax.data.packing import Example, Share
from dora_jax.data.token_store import TokenStore
from dora_jax.model.t5 import T5, Params
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import data_shards, own_shards
from dora_jax.shapes import Examples, Seq2SeqBatch
from dora_jax.stages import manifest, weights
from dora_jax.stages.context import RunContext
from dora_jax.stages.label_cost import Cost, LabelTimer, cheapest
from dora_jax.stages.probe import TOP_KS, Probe, probe
from dora_jax.stages.probe import Model as ProbedModel

STAGE = "choose-labels"
PROBED_TEXTS = 32
GRADIENT_TOLERANCE = 0.01


def choose(
    context: RunContext, store: TokenStore, teacher: weights.Start, student: weights.Start
) -> LabelConfig:
    """The settings of labelling; what they leave open is measured, once.

    Args:
      student: as distillation starts from it; the gradient that `top_k` is judged by is its own.

    Raises:
      ValueError: no batch fits the devices' memory.
    """
    label = context.config.label
    if label.top_k and label.batch_size:
        return label
    settings = {
        "label": label,
        "soft_loss": context.config.distill.soft_loss,
        "teacher": teacher.fingerprint,
        "student": student.fingerprint,
        "data": store.fingerprint,
    }
    with context.stage(STAGE, "distill", settings) as directory:
        outputs = manifest.begin(directory, settings)
        if outputs is None:
            with context.meter.phase("label"):
                found = _measured(context, store.examples("unlabeled"), teacher, student)
            outputs = manifest.finish(directory, found)
    return dataclasses.replace(label, **outputs["chosen"])


def _measured(
    context: RunContext, examples: Examples, teacher: weights.Start, student: weights.Start
) -> dict[str, Any]:
    """What the stage's manifest keeps: the choice, and the figures that led to it."""
    label, params = context.config.label, teacher.params()
    outputs: dict[str, Any] = {"chosen": {}}
    if not label.top_k:
        found = _probe(context, examples, teacher, params, student)
        outputs["chosen"]["top_k"] = top_k = _entries(found)
        outputs["entries"] = found
        _report_entries(context, found, top_k)
        label = dataclasses.replace(label, top_k=top_k)
    if not label.batch_size:
        data = context.config.data
        timer = LabelTimer(
            teacher.network,
            params,
            examples,
            label,
            source_length=data.source_length,
            target_length=data.target_length,
            mesh=context.mesh,
            check_stop=context.stop.check,
        )
        best, tried = cheapest(timer.measure, timer.spent)
        forward_seconds = _forward_seconds(context, teacher, params, examples, timer.answers)
        outputs["chosen"] |= {"batch_size": best.batch_size, "widths": best.widths}
        outputs |= {"costs": tried, "teacher_forward_seconds": forward_seconds}
        _report_costs(context, len(examples), best, tried, forward_seconds)
    return outputs


# --- How many entries


def _probe(
    context: RunContext,
    examples: Examples,
    teacher: weights.Start,
    params: Params,
    student: weights.Start,
) -> Probe:
    drawn = np.random.default_rng(0).permutation(len(examples))[:PROBED_TEXTS]
    data = context.config.data
    return probe(
        ProbedModel(teacher.network, params),
        ProbedModel(student.network, student.params()),
        examples,
        drawn.tolist(),
        context.config.distill.soft_loss,
        source_length=data.source_length,
        target_length=data.target_length,
        mesh=context.mesh,
        top_ks=TOP_KS,
        tails=[context.config.distill.soft_loss.tail],
        tolerance=GRADIENT_TOLERANCE,
        no_repeat_ngram_size=context.config.label.no_repeat_ngram_size,
        after_batch=lambda texts: context.stop.check(),
    )


def _entries(found: Probe) -> int:
    """The smallest k within the tolerance; where none is, the one nearest to it."""
    if found.proposed is not None:
        return found.proposed
    tail = found.soft_loss.tail
    return min(found.choices, key=lambda choice: choice.errors[tail].gradient).top_k


def _report_entries(context: RunContext, found: Probe, top_k: int) -> None:
    tail = found.soft_loss.tail
    context.report(f"{STAGE}: entries kept a token, on {found.texts} texts, TAIL = {tail!r}")
    for choice in found.choices:
        context.report(
            f"  TOP_K {choice.top_k:4}: gradient error {choice.errors[tail].gradient:.4f}, "
            f"{choice.bytes_per_token} bytes a token"
        )
    why = (
        f"the smallest within {found.tolerance:g}"
        if found.proposed is not None
        else f"none is within {found.tolerance:g}, this comes nearest"
    )
    context.report(f"  taken: TOP_K = {top_k}, {why}")


# --- How many texts at once, and whether labels are kept at all


def _report_costs(
    context: RunContext, texts: int, best: Cost, tried: Sequence[Cost], forward_seconds: float
) -> None:
    def dollars(seconds: float) -> str:
        return f"{seconds:,.1f} s = {context.holding.usd(seconds):,.4f} USD"

    report = context.report
    report(f"{STAGE}: what labelling {texts:,} texts would cost, from batches of them")
    for cost in tried:
        report(
            f"  LABEL_BATCH_SIZE {cost.batch_size:4}, LABEL_WIDTHS {cost.widths}: "
            f"{cost.batches:,} batches x {cost.batch_seconds:.3f} s + {cost.programs} programs x "
            f"{cost.program_seconds:.1f} s = {dollars(cost.seconds)}"
        )
    report(f"  taken: LABEL_BATCH_SIZE = {best.batch_size}, LABEL_WIDTHS = {best.widths}")
    train = context.config.distill
    report(
        "  without kept labels the teacher would run in every update besides: "
        f"{train.train_steps:,} updates x {forward_seconds:.3f} s = "
        f"{dollars(train.train_steps * forward_seconds)}; so labels are kept"
    )
    drawn = round(train.train_steps * train.batch_size * (1.0 - train.gold_share))
    if drawn < texts:
        report(
            f"  TRAIN_STEPS draws only {drawn:,} of the {texts:,} texts: with NUM_UNLABELED = "
            f"{drawn} labelling would cost about {dollars(best.seconds * drawn / texts)}"
        )


def _forward_seconds(
    context: RunContext,
    teacher: weights.Start,
    params: Params,
    examples: Examples,
    answers: Mapping[int, np.ndarray],
) -> float:
    """The teacher's forward pass over one update's examples, packed, compilation apart."""
    batch = _packed(context, examples, answers)

    @jax.jit
    def forward(params: Params, batch: Seq2SeqBatch) -> jax.Array:
        logits_BTV = T5(teacher.network).apply({"params": params}, batch)
        return jnp.max(cast(jax.Array, logits_BTV), axis=-1)

    jax.block_until_ready(forward(params, batch))
    began = time.perf_counter()
    jax.block_until_ready(forward(params, batch))
    return time.perf_counter() - began


def _packed(
    context: RunContext, examples: Examples, answers: Mapping[int, np.ndarray]
) -> Seq2SeqBatch:
    """One update's batch, as training packs it."""
    train, data = context.config.distill, context.config.data
    source = _Answered([Example(examples.source(i), tokens) for i, tokens in answers.items()])
    source_length, target_length = balanced_row_lengths(
        source,
        train.pack_source_length or data.source_length,
        train.pack_target_length or data.target_length,
    )
    loader = PackedLoader(
        source,
        batch_size=train.batch_size,
        source_length=source_length,
        target_length=target_length,
        seed=0,
        row_multiple=data_shards(context.mesh),
        max_row_buckets=1,
        share=Share(own_shards(context.mesh), data_shards(context.mesh)),
    )
    batch = loader.batch(0)
    return partitioning.place_rows(batch.batch, batch.num_rows, context.mesh)


class _Answered:
    """Texts with the teacher's answers, for the loader."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, index: int, epoch: int) -> Example:
        return self._examples[index]
