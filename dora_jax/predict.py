"""Batch inference over a split: decoding, labelling, and scoring given targets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np
from jax.sharding import Mesh, Sharding
from tqdm import tqdm

from dora_jax.config import LabelConfig, T5Config
from dora_jax.data.loader import EVALUATION_WIDTHS, EvaluationBatch, evaluation_batches
from dora_jax.data.soft_labels import SoftRow
from dora_jax.model.beam import BeamSearch, beam_decode
from dora_jax.model.decode import (
    SoftLabels,
    forced_label,
    greedy_decode,
    greedy_label,
    target_log_probabilities,
)
from dora_jax.model.decoder_step import Prepared, prepare
from dora_jax.model.drawn_labels import drawn_label
from dora_jax.model.sampling import Sampling, sample_decode
from dora_jax.model.t5 import Params
from dora_jax.parallel import hosts, partitioning
from dora_jax.parallel.mesh import whole_pieces
from dora_jax.refilled import Labelled, labelled_in_refilled_rows
from dora_jax.shapes import EOS_ID, PAD_ID, Examples

Decoding = Sampling | BeamSearch | None  # None: greedy


def _batches(
    examples: Examples,
    batch_size: int,
    source_length: int,
    mesh: Mesh,
    indices: Sequence[int] | None,
    widths: int = EVALUATION_WIDTHS,
) -> Iterator[tuple[EvaluationBatch, jax.Array]]:
    """Batches on the devices, each host's rows on its own.

    Their size is rounded up to a multiple of the data shards.
    """
    batch_size = whole_pieces(batch_size, mesh)
    sharding = partitioning.batch_sharding(mesh)
    for batch in evaluation_batches(examples, batch_size, source_length, indices, widths):
        yield batch, partitioning.place(batch.encoder_tokens_BS, sharding)


def decode(
    network: T5Config,
    params: Params,
    examples: Examples,
    *,
    batch_size: int,
    source_length: int,
    target_length: int,
    mesh: Mesh,
    decoding: Decoding = None,
    no_repeat_ngram_size: int = 0,
    seed: int = 0,
    first_row_id: int = 0,
    after_batch: Callable[[], None] = lambda: None,
    name: str = "",
    bar: tqdm | None = None,
) -> list[np.ndarray]:
    """Decodes every source.

    Args:
      batch_size: rows decoded together.
      source_length: the longest source, tokens; fixes the widths that are compiled.
      target_length: the most tokens decoded.
      decoding: how tokens are chosen.
      no_repeat_ngram_size: of greedy decoding; so many tokens never come twice in the same
        order; 0: they may.
      seed, first_row_id: of sampling. Example i draws by `first_row_id` + i, whatever its batch.
      after_batch: called after each batch; may raise to stop.
      name: of the progress bar; "" shows none.
      bar: the caller's progress bar, to be moved on instead.

    Returns:
      One int32 array of tokens per example, in the examples' order, up to EOS and without it.
    """
    outputs: list[np.ndarray] = [np.zeros(0, np.int32)] * len(examples)
    params = prepare(network, params)
    if bar is None:
        bar = tqdm(total=len(examples), desc=name, unit="example", disable=None if name else True)
        owned = bar
    else:
        owned = contextlib.nullcontext()
    with owned:
        for batch, tokens_BS in _batches(examples, batch_size, source_length, mesh, None):
            row_ids_B = (batch.indices_B + first_row_id).astype(np.int32)
            with partitioning.split_over(mesh):
                tokens_BT = _decode_batch(
                    network,
                    params,
                    tokens_BS,
                    target_length,
                    decoding,
                    no_repeat_ngram_size,
                    seed,
                    row_ids_B,
                )
            tokens_BT = hosts.fetch(tokens_BT)
            kept = batch.indices_B >= 0
            for index, row_T in zip(batch.indices_B[kept], tokens_BT[kept], strict=True):
                outputs[index] = row_T[: _length(row_T, with_eos=False)]
            bar.update(int(kept.sum()))
            after_batch()
    return outputs


def _decode_batch(
    network: T5Config,
    params: Params,
    tokens_BS: jax.Array,
    length: int,
    decoding: Decoding,
    no_repeat_ngram_size: int,
    seed: int,
    row_ids_B: np.ndarray,
) -> jax.Array:
    match decoding:
        case None:
            return greedy_decode(
                network, params, tokens_BS, length, no_repeat_ngram_size=no_repeat_ngram_size
            )
        case Sampling():
            return sample_decode(network, params, tokens_BS, length, decoding, seed, row_ids_B)
        case BeamSearch():
            return beam_decode(network, params, tokens_BS, length, decoding)[0][:, 0]


def label(
    network: T5Config,
    params: Params,
    examples: Examples,
    indices: Sequence[int],
    config: LabelConfig,
    *,
    source_length: int,
    target_length: int,
    mesh: Mesh,
    forced: bool = False,
    seed: int = 0,
    scoring: Callable[[], AbstractContextManager[None]] = nullcontext,
    after_batch: Callable[[int], None] = lambda examples: None,
) -> list[SoftRow]:
    """Soft labels of some examples: of the tokens decoded in the same pass, drawn, or given.

    Args:
      indices: which examples.
      forced: label the examples' own targets instead of decoding.
      seed: of drawn entries (`config.drawn_at`) and drawn tokens (`config.sampling_temperature`),
        either of which takes a second, teacher-forced pass.
      scoring: entered around that pass, to time it apart.
      after_batch: called with the number of examples just labelled; may raise to stop.

    Returns:
      One row per index, in their order. A text the teacher did not end within
      `target_length` has no EOS.
    """
    rows: dict[int, SoftRow] = {}
    params = params if forced else prepare(network, params)
    lengths = {"source_length": source_length, "target_length": target_length}
    drawn = config.drawn_at or config.sampling_temperature
    if config.refill_share and not forced and not drawn:
        given = network, params, examples, indices, config
        batches = labelled_in_refilled_rows(*given, **lengths, mesh=mesh)
    else:
        batches = _labelled(
            network, params, examples, indices, config, forced, seed, scoring, **lengths, mesh=mesh
        )
    for batch in batches:
        tokens_BT, soft = batch.tokens_BT, batch.soft
        for row, index in enumerate(batch.indices_B.tolist()):
            if index >= 0:
                length = _length(tokens_BT[row], with_eos=True)
                rows[index] = SoftRow(
                    tokens_BT[row, :length],
                    soft.topk_ids_BTK[row, :length],
                    soft.topk_logits_BTK[row, :length],
                    soft.logz_BTZ[row, :length],
                    soft.row_max_BT[row, :length],
                )
        after_batch(int((batch.indices_B >= 0).sum()))
    return [rows[index] for index in indices]


def _labelled(
    network: T5Config,
    params: Params | Prepared,
    examples: Examples,
    indices: Sequence[int],
    config: LabelConfig,
    forced: bool,
    seed: int,
    scoring: Callable[[], AbstractContextManager[None]],
    *,
    source_length: int,
    target_length: int,
    mesh: Mesh,
) -> Iterator[Labelled]:
    """Batch after batch, each of which ends as one."""
    chosen = config.batch_size, source_length, mesh, indices, config.widths
    for batch, tokens_BS in _batches(examples, *chosen):
        with partitioning.split_over(mesh):
            targets_BT = (
                _targets(examples, batch, target_length, tokens_BS.sharding) if forced else None
            )
            ids_B = batch.indices_B.astype(np.int32)
            labels = _label_batch(
                network, params, tokens_BS, targets_BT, target_length, config, seed, ids_B, scoring
            )
        yield Labelled(batch.indices_B, *hosts.fetch(labels))


def _label_batch(
    network: T5Config,
    params: Params | Prepared,
    tokens_BS: jax.Array,
    targets_BT: jax.Array | None,
    length: int,
    config: LabelConfig,
    seed: int,
    ids_B: np.ndarray,
    scoring: Callable[[], AbstractContextManager[None]],
) -> tuple[jax.Array, SoftLabels]:
    """Tokens and their labels; without targets the teacher decodes."""
    sampling = Sampling(config.sampling_temperature) if config.sampling_temperature else None
    if targets_BT is None and not config.drawn_at and not sampling:
        return greedy_label(
            network,
            params,
            tokens_BS,
            length,
            config.top_k,
            config.temperatures,
            config.no_repeat_ngram_size,
        )
    labelled_BT = targets_BT
    if labelled_BT is None:
        ngram = config.no_repeat_ngram_size
        labelled_BT = _decode_batch(
            network, params, tokens_BS, length, sampling, ngram, seed, ids_B
        )
    raw = params.params if isinstance(params, Prepared) else params
    given = (network, raw, tokens_BS, jax.block_until_ready(labelled_BT))
    with scoring():
        if not config.drawn_at:
            soft = forced_label(*given, config.top_k, config.temperatures)
        else:
            draw = (config.top_k, config.drawn_at, config.temperatures)
            soft = drawn_label(*given, np.uint32(seed), ids_B, *draw)
        return labelled_BT, jax.block_until_ready(soft)


def score(
    network: T5Config,
    params: Params,
    examples: Examples,
    *,
    batch_size: int,
    source_length: int,
    target_length: int,
    mesh: Mesh,
) -> list[np.ndarray]:
    """Log-probabilities of the examples' own targets, nats.

    Returns:
      One float32 array per example: each target token's, EOS included, given those before.
    """
    outputs: list[np.ndarray] = [np.zeros(0, np.float32)] * len(examples)
    for batch, tokens_BS in _batches(examples, batch_size, source_length, mesh, None):
        targets_BT = _targets(examples, batch, target_length, tokens_BS.sharding)
        with partitioning.split_over(mesh):
            scores_BT = target_log_probabilities(network, params, tokens_BS, targets_BT)
        scores_BT = hosts.fetch(scores_BT)
        for row, index in enumerate(batch.indices_B.tolist()):
            if index >= 0:
                outputs[index] = scores_BT[row, : len(examples.target(index))]
    return outputs


def _targets(
    examples: Examples, batch: EvaluationBatch, length: int, sharding: Sharding
) -> jax.Array:
    """The targets of a batch's examples, int32 [B, T], padded with 0; filler rows hold none."""
    targets_BT = np.full((len(batch.indices_B), length), PAD_ID, np.int32)
    for row, index in enumerate(batch.indices_B.tolist()):
        if index >= 0:
            target = examples.target(index)
            if not 0 < len(target) <= length:
                raise ValueError(
                    f"The target of example {index} has {len(target)} tokens; expected 1 to "
                    f"{length}. Raise target_length; unlabelled examples have no target to force."
                )
            targets_BT[row, : len(target)] = target
    return partitioning.place(targets_BT, sharding)


def _length(tokens_T: np.ndarray, with_eos: bool) -> int:
    ends = np.flatnonzero(tokens_T == EOS_ID)
    return int(ends[0]) + with_eos if len(ends) else len(tokens_T)
