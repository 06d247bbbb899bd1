"""label: one pass of the teacher over the unlabelled text, into the soft-label store."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from tqdm import tqdm

from dora_jax.config import LabelConfig
from dora_jax.cost import flops
from dora_jax.data.soft_labels import SoftLabelHeader, SoftLabelReader, SoftLabelWriter, SoftRow
from dora_jax.data.token_store import TokenStore
from dora_jax.model.t5 import Params
from dora_jax.parallel import hosts
from dora_jax.predict import label as label_examples
from dora_jax.shapes import Examples
from dora_jax.stages import manifest, shared, weights
from dora_jax.stages.context import RunContext
from dora_jax.stages.train import Model

STAGE = "label"


def within(context: RunContext, teacher: Model, vocab_size: int) -> weights.Start:
    """The teacher, with the first `vocab_size` ids alone.

    Networks of one tokeniser may be padded to different sizes. What lies beyond the smaller one
    is no token: a student must not be asked for it, nor the teacher say it.
    """
    network, wide = teacher.network, teacher.network.vocab_size
    if wide <= vocab_size:
        return weights.Start(network, teacher.fingerprint, lambda: teacher.params(context))

    def params() -> Params:
        cut = dict(teacher.params(context))
        cut["token_embedder"] = {"embedding": cut["token_embedder"]["embedding"][:vocab_size]}
        if not network.logits_via_embedding:
            cut["logits_dense"] = {"kernel": cut["logits_dense"]["kernel"][:, :vocab_size]}
        return cut

    narrow = dataclasses.replace(network, vocab_size=vocab_size)
    return weights.Start(narrow, teacher.fingerprint, params)


def label(
    context: RunContext, store: TokenStore, teacher: weights.Start, config: LabelConfig
) -> Path:
    """Labels every unlabelled text that has no label yet. Returns the store's folder.

    `config` is the run's, with nothing left open (`label_choice.choose`). A crash loses the shard
    in flight and nothing else; a damaged shard is made again.

    Raises:
      ValueError: the teacher's logits are not finite.
    """
    data = context.config.data
    examples = store.examples("unlabeled")
    way = "greedy"
    if config.sampling_temperature:
        way = f"sampled at temperature {config.sampling_temperature:g}"
    decoding = f"{way}, at most {data.target_length} tokens"
    if config.no_repeat_ngram_size:
        decoding += f", no {config.no_repeat_ngram_size} tokens twice"
    header = SoftLabelHeader(
        teacher_fingerprint=teacher.fingerprint,
        data_fingerprint=store.fingerprint,
        vocabulary_fingerprint=store.vocabulary.fingerprint,
        vocabulary_size=teacher.network.vocab_size,
        top_k=min(config.top_k, teacher.network.vocab_size),
        temperatures=config.temperatures,
        decoding=decoding,
        drawn_at=config.drawn_at,
    )
    directory = context.directory / STAGE
    labels = directory / "soft_labels"
    settings = {"header": header, "examples": len(examples)}
    store_of_run = (labels, header, len(examples), config.shard_examples)
    shared.link(context.directory, context.config.shared_dir, STAGE, settings)
    if manifest.begin(directory, settings) and _pending(SoftLabelWriter(*store_of_run)):
        manifest.reopen(directory)  # damaged since: there is work again, and time to bill
    with context.stage(STAGE, "distill", settings):
        # Another run may have labelled them while this one waited.
        if manifest.begin(directory, settings) is None:
            hosts.on_first(lambda: SoftLabelWriter(*store_of_run))
            writer = SoftLabelWriter(*store_of_run)  # the others open what the first has made
            _label_shards(context, teacher, config, examples, _pending(writer), writer)
            hosts.on_first(writer.finish)
            tokens = SoftLabelReader.open(labels, {}).num_tokens
            manifest.finish(directory, {"tokens": tokens})
    return labels


def _pending(writer: SoftLabelWriter) -> dict[int, range]:
    """The shards to be made, as the first host finds them."""
    found = hosts.from_first(
        lambda: [(shard, part.start, part.stop) for shard, part in writer.pending().items()]
    )
    return {shard: range(start, stop) for shard, start, stop in found}


def _label_shards(
    context: RunContext,
    teacher: weights.Start,
    config: LabelConfig,
    examples: Examples,
    pending: dict[int, range],
    writer: SoftLabelWriter,
) -> None:
    if not pending:
        return
    params = teacher.params()
    done = len(examples) - sum(len(shard) for shard in pending.values())
    with tqdm(total=len(examples), initial=done, desc=STAGE, unit="text", disable=None) as bar:
        for shard, indices in pending.items():
            rows = _label_shard(context, params, teacher, config, examples, indices, bar)
            hosts.on_first(functools.partial(writer.write_shard, shard, rows))


def _label_shard(
    context: RunContext,
    params: Params,
    teacher: weights.Start,
    config: LabelConfig,
    examples: Examples,
    indices: range,
    bar: tqdm,
) -> list[SoftRow]:
    def after_batch(count: int) -> None:
        bar.set_postfix_str(f"${context.spent_usd():.4f}", refresh=False)
        bar.update(count)
        context.check()

    data = context.config.data
    with context.meter.phase("label"):
        rows = label_examples(
            teacher.network,
            params,
            examples,
            indices,
            config,
            source_length=data.source_length,
            target_length=data.target_length,
            mesh=context.mesh,
            seed=context.seed(STAGE),
            scoring=lambda: context.meter.phase("score"),
            after_batch=after_batch,
        )
    source_lengths = [len(examples.source(i)) for i in indices]
    target_lengths = [len(row.tokens_T) for row in rows]
    counts = flops.TokenCounts.from_lengths(source_lengths, target_lengths)
    context.meter.count(
        examples=len(rows),
        tokens=counts.encoder_tokens + counts.decoder_tokens,
        flops=flops.decoding_flops(teacher.network, counts),
    )
    return rows
