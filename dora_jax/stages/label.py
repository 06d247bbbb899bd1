"""label: one pass of the teacher over the unlabelled text, into the soft-label store."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

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


class SoftLabelled(NamedTuple):
    """Where the soft labels of a run lie."""

    unlabeled: Path  # of the tokens that the teacher decoded
    human: Path | None  # of the human labels' own tokens, where they were asked for


class _Pass(NamedTuple):
    """One pass of the teacher over a split."""

    folder: Path
    header: SoftLabelHeader
    examples: Examples
    forced: bool  # whether it labels the split's own targets

    def writer(self, config: LabelConfig) -> SoftLabelWriter:
        return SoftLabelWriter(self.folder, self.header, len(self.examples), config.shard_examples)


def label(
    context: RunContext, store: TokenStore, teacher: weights.Start, config: LabelConfig
) -> SoftLabelled:
    """Labels every unlabelled text that has no label yet; the human targets too if asked for.

    `config` is the run's, with nothing left open (`label_choice.choose`). A crash loses the shard
    in flight and nothing else; a damaged shard is made again.

    Raises:
      ValueError: the teacher's logits are not finite.
    """
    directory = context.directory / STAGE
    passes = _passes(context, store, teacher, config)
    settings: dict[str, Any] = {"header": passes[0].header, "examples": len(passes[0].examples)}
    if config.human_targets:
        settings["human"] = {"header": passes[1].header, "examples": len(passes[1].examples)}
    shared.link(context.directory, context.config.shared_dir, STAGE, settings)
    if manifest.begin(directory, settings) and any(_pending(p.writer(config)) for p in passes):
        manifest.reopen(directory)  # damaged since: there is work again, and time to bill
    with context.stage(STAGE, "distill", settings):
        # Another run may have labelled them while this one waited.
        if manifest.begin(directory, settings) is None:
            tokens = [_label_split(context, teacher, config, one) for one in passes]
            manifest.finish(directory, {"tokens": sum(tokens)})
    return SoftLabelled(passes[0].folder, passes[1].folder if config.human_targets else None)


def _passes(
    context: RunContext, store: TokenStore, teacher: weights.Start, config: LabelConfig
) -> list[_Pass]:
    length = context.config.data.target_length
    way = "greedy"
    if config.sampling_temperature:
        way = f"sampled at temperature {config.sampling_temperature:g}"
    decoding = f"{way}, at most {length} tokens"
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
    passes = [_Pass(directory / "soft_labels", header, store.examples("unlabeled"), forced=False)]
    if config.human_targets:
        given = dataclasses.replace(header, decoding="human targets")
        passes.append(
            _Pass(directory / "human_labels", given, store.examples("train"), forced=True)
        )
    return passes


def _label_split(
    context: RunContext, teacher: weights.Start, config: LabelConfig, one: _Pass
) -> int:
    """Labels what of a split is not labelled yet. Returns the number of all its target tokens."""
    hosts.on_first(lambda: one.writer(config))
    writer = one.writer(config)  # the others open what the first has made
    _label_shards(context, teacher, config, one, _pending(writer), writer)
    hosts.on_first(writer.finish)
    return SoftLabelReader.open(one.folder, {}).num_tokens


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
    one: _Pass,
    pending: dict[int, range],
    writer: SoftLabelWriter,
) -> None:
    if not pending:
        return
    params, examples = teacher.params(), one.examples
    done = len(examples) - sum(len(shard) for shard in pending.values())
    with tqdm(total=len(examples), initial=done, desc=STAGE, unit="text", disable=None) as bar:
        for shard, indices in pending.items():
            rows = _label_shard(context, params, teacher, config, one, indices, bar)
            hosts.on_first(functools.partial(writer.write_shard, shard, rows))


def _label_shard(
    context: RunContext,
    params: Params,
    teacher: weights.Start,
    config: LabelConfig,
    one: _Pass,
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
            one.examples,
            indices,
            config,
            forced=one.forced,
            source_length=data.source_length,
            target_length=data.target_length,
            mesh=context.mesh,
            seed=context.seed(STAGE),
            scoring=lambda: context.meter.phase("score"),
            after_batch=after_batch,
        )
    source_lengths = [len(one.examples.source(i)) for i in indices]
    target_lengths = [len(row.tokens_T) for row in rows]
    counts = flops.TokenCounts.from_lengths(source_lengths, target_lengths)
    context.meter.count(
        examples=len(rows),
        tokens=counts.encoder_tokens + counts.decoder_tokens,
        flops=flops.decoding_flops(teacher.network, counts),
    )
    return rows
