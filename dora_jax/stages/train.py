"""pretrain, teach, annotate, distill: one loop over four kinds of examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dora_jax.checkpoints import native
from dora_jax.config import ModelSource, T5Config, TrainConfig, fingerprint, to_dict
from dora_jax.cost.budget import BudgetReached
from dora_jax.data.loader import (
    DenoisingSource,
    ExampleSource,
    LabelledSource,
    PackedLoader,
    SoftLabelledSource,
    balanced_row_lengths,
)
from dora_jax.data.packing import Share
from dora_jax.data.soft_labels import SoftLabelReader
from dora_jax.data.token_store import TokenStore, concatenate
from dora_jax.model.t5 import Params
from dora_jax.parallel import hosts
from dora_jax.parallel.mesh import data_shards, own_shards
from dora_jax.predict import decode
from dora_jax.shapes import Examples
from dora_jax.stages import manifest, weights
from dora_jax.stages.context import RunContext
from dora_jax.stages.llm_labels import LabelSet
from dora_jax.train.loop import VALUE, Training, Validate
from dora_jax.train.step import abstract_params, init_params


@dataclasses.dataclass(frozen=True)
class Model:
    """A network whose parameters some stage has made."""

    network: T5Config
    directory: Path  # of the stage
    fingerprint: str  # of all that decided the parameters
    step: int  # the chosen update
    stopped_by: str = ""  # the budget, where that cut the training short
    last_step: int | None = None  # then the update after which it did

    def params(self, context: RunContext) -> Params:
        """The parameters, read straight into their shardings."""
        abstract = abstract_params(self.network, context.mesh)
        return native.restore_best(self.directory / "best", self.step, abstract)


def pretrain(context: RunContext, store: TokenStore, source: ModelSource, name: str) -> Model:
    """Denoising on all text of the task but its validation and test, from random parameters."""
    text = _join(store.examples("train"), store.examples("unlabeled"))
    prompt = len(store.vocabulary.encode([store.manifest["prompt_prefix"]])[0])
    seed = context.seed(f"pretrain-{name}")
    examples = DenoisingSource(text, source.pretrain, store.vocabulary.sentinel_ids, seed, prompt)
    settings = {"network": source.network, "pretrain": source.pretrain, "seed": seed}
    return _train(
        context,
        store,
        f"pretrain-{name}",
        "shared",
        settings,
        source.network,
        source.pretrain.train,
        examples,
        lambda: init_params(source.network, seed, context.mesh, source.pretrain.copying_start),
        validated=False,
    )


def finetune(
    context: RunContext,
    store: TokenStore,
    name: str,
    strategy: str,
    start: weights.Start,
    config: TrainConfig,
    labels: LabelSet | None = None,
) -> Model:
    """Training on labels: a teacher, or a student without one.

    `labels` stand in for the human ones, which then make up the gold share of each batch.
    """
    settings = {"train": config, "start": start.fingerprint, "seed": context.seed(name)}
    human = LabelledSource(store.examples("train"))
    return _train(
        context,
        store,
        name,
        strategy,
        settings if labels is None else {**settings, "labels": labels.fingerprint},
        start.network,
        config,
        human if labels is None else LabelledSource(labels.examples),
        start.params,
        gold=human if labels is not None and config.gold_share else None,
    )


def distill(
    context: RunContext,
    store: TokenStore,
    start: weights.Start,
    labels: Path,
    config: TrainConfig,
    name: str = "distill",
    gold: LabelSet | None = None,
    human_labels: Path | None = None,
) -> Model:
    """Training the student on the teacher's soft labels, with a share of gold ones.

    Args:
      labels: the teacher's, of the unlabelled texts.
      gold: stands in for the human labels.
      human_labels: the teacher's, of the human labels' own tokens: the gold share learns these.
    """
    expected = {
        "data_fingerprint": store.fingerprint,
        "vocabulary_fingerprint": store.vocabulary.fingerprint,
    }
    reader = SoftLabelReader.open(labels, expected)
    unlabeled = store.examples("unlabeled")
    examples = SoftLabelledSource(unlabeled, reader, config.soft_loss.drop_unended)
    if examples.unended:
        left_out = "left out" if len(examples) < len(reader) else "kept all the same"
        context.report(
            f"{name}: the teacher did not end {examples.unended:,} of its {len(reader):,} labels "
            f"within {context.config.data.target_length} tokens; {left_out}"
        )
    settings = {
        "train": config,
        "start": start.fingerprint,
        "labels": reader.fingerprint,
        "seed": context.seed(name),
    }
    gold_examples: ExampleSource = LabelledSource(store.examples("train"))
    if gold is not None:
        settings["gold"] = gold.fingerprint
        gold_examples = LabelledSource(gold.examples)
    elif human_labels is not None and config.gold_share:
        human_reader = SoftLabelReader.open(human_labels, expected)
        settings["gold"] = human_reader.fingerprint
        gold_examples = SoftLabelledSource(store.examples("train"), human_reader)
    return _train(
        context,
        store,
        name,
        name,
        settings,
        start.network,
        config,
        examples,
        start.params,
        gold=gold_examples if config.gold_share else None,
        temperature_index=reader.temperature_index(config.soft_loss.temperature),
    )


def _train(
    context: RunContext,
    store: TokenStore,
    name: str,
    strategy: str,
    settings: dict,
    network: T5Config,
    config: TrainConfig,
    examples: ExampleSource,
    initial_params: Callable[[], Params],
    *,
    gold: ExampleSource | None = None,
    temperature_index: int = 0,
    validated: bool = True,
) -> Model:
    settings = {**to_dict(settings), "data": store.fingerprint}
    with context.stage(name, strategy, settings) as directory:
        outputs = manifest.begin(directory, settings)
        if outputs is None:
            training = Training(
                name=name,
                directory=directory,
                network=network,
                config=config,
                loader=_loader(context, examples, config, gold, name),
                mesh=context.mesh,
                seed=context.seed(f"{name} dropout"),
                meter=context.meter,
                stop=context.stop,
                spent_usd=context.spent_usd,
                budget=context.budget,
                evaluations=_evaluations(context, store) if validated else 0.0,
                temperature_index=temperature_index,
                validate=_validation(context, store, network) if validated else None,
            )
            try:
                progress = training.run(initial_params)
            except BudgetReached as cut:
                if not validated or cut.best_step is None:
                    raise
                return Model(
                    network,
                    directory,
                    fingerprint(settings),
                    cut.best_step,
                    str(cut),
                    cut.last_step,
                )
            outputs = manifest.finish(
                directory, {"best_step": progress.best_step, "best_value": progress.best_value}
            )
    return Model(network, directory, fingerprint(settings), outputs["best_step"])


def _evaluations(context: RunContext, store: TokenStore) -> float:
    """How many validations the final evaluation is, by examples."""
    validation = min(context.config.evaluate.validation_examples, len(store.examples("validation")))
    return len(store.examples("test")) / max(validation, 1)


def _loader(
    context: RunContext,
    examples: ExampleSource,
    config: TrainConfig,
    gold: ExampleSource | None,
    name: str,
) -> PackedLoader:
    data = context.config.data
    # Copying asks for as many tokens as the source has, so pretraining's rows must hold both.
    target_length = data.target_length
    if isinstance(examples, DenoisingSource):
        target_length = max(data.source_length, data.target_length)
    source_length, target_length = balanced_row_lengths(
        examples,
        config.pack_source_length or data.source_length,
        config.pack_target_length or target_length,
    )
    return PackedLoader(
        examples,
        batch_size=config.batch_size,
        source_length=source_length,
        target_length=target_length,
        seed=context.seed(f"{name} order"),
        row_multiple=data_shards(context.mesh) * config.microbatches,
        max_row_buckets=config.row_buckets,
        gold=gold,
        gold_share=config.gold_share,
        share=Share(own_shards(context.mesh), data_shards(context.mesh)),
    )


def _validation(context: RunContext, store: TokenStore, network: T5Config) -> Validate:
    """Decodes the first validation examples and scores them; the test split is never read."""
    config = context.config
    count = min(config.evaluate.validation_examples, len(store.sources("validation")))
    examples = _first(store.examples("validation"), count)
    sources, targets = store.sources("validation")[:count], store.targets("validation")[:count]

    def validate(params: Params) -> dict[str, float]:
        outputs = decode(
            network,
            params,
            examples,
            batch_size=config.evaluate.batch_size,
            source_length=config.data.source_length,
            target_length=config.data.target_length,
            mesh=context.mesh,
            no_repeat_ngram_size=config.evaluate.no_repeat_ngram_size,
        )

        def value() -> float:
            predictions = [store.vocabulary.decode(tokens.tolist()) for tokens in outputs]
            return context.task.score(targets, predictions, sources, resamples=0).value

        return {VALUE: hosts.from_first(value)}

    return validate


def _join(first: Examples, second: Examples) -> Examples:
    """All sources of two splits, without targets."""
    sources = [split.source(i) for split in (first, second) for i in range(len(split))]
    nothing = [np.zeros(0, np.int32)] * len(sources)
    return Examples(*concatenate(sources), *concatenate(nothing))


def _first(examples: Examples, count: int) -> Examples:
    source_end, target_end = examples.source_offsets[count], examples.target_offsets[count]
    return Examples(
        examples.source_tokens[:source_end],
        examples.source_offsets[: count + 1],
        examples.target_tokens[:target_end],
        examples.target_offsets[: count + 1],
    )
