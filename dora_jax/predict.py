"""Batch inference over a split: free decoding, and decoding that keeps soft labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from dora_jax.config import LabelConfig, T5Config
from dora_jax.data.loader import EvaluationBatch, evaluation_batches
from dora_jax.data.soft_labels import SoftRow
from dora_jax.model.decode import greedy_decode, greedy_label
from dora_jax.model.t5 import Params
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import data_shards
from dora_jax.shapes import EOS_ID, Examples


def _batches(
    examples: Examples,
    batch_size: int,
    source_length: int,
    mesh: Mesh,
    indices: Sequence[int] | None,
) -> Iterator[tuple[EvaluationBatch, jax.Array]]:
    """Batches on the devices; their size is rounded up to a multiple of the data shards."""
    shards = data_shards(mesh)
    batch_size = -(-batch_size // shards) * shards
    sharding = partitioning.batch_sharding(mesh)
    for batch in evaluation_batches(examples, batch_size, source_length, indices):
        yield batch, jax.device_put(batch.encoder_tokens_BS, sharding)


def decode(
    network: T5Config,
    params: Params,
    examples: Examples,
    *,
    batch_size: int,
    source_length: int,
    target_length: int,
    mesh: Mesh,
    after_batch: Callable[[], None] = lambda: None,
    name: str = "",
) -> list[np.ndarray]:
    """Greedy decoding of every source.

    Args:
      batch_size: rows decoded together.
      source_length: the longest source, tokens; fixes the widths that are compiled.
      target_length: the most tokens decoded.
      after_batch: called after each batch; may raise to stop.
      name: of the progress bar; "" shows none.

    Returns:
      One int32 array of tokens per example, in the examples' order, up to EOS and without it.
    """
    outputs: list[np.ndarray] = [np.zeros(0, np.int32)] * len(examples)
    with tqdm(
        total=len(examples), desc=name, unit="example", disable=None if name else True
    ) as bar:
        for batch, tokens_BS in _batches(examples, batch_size, source_length, mesh, None):
            tokens_BT = np.asarray(greedy_decode(network, params, tokens_BS, target_length))
            kept = batch.indices_B >= 0
            for index, row_T in zip(batch.indices_B[kept], tokens_BT[kept], strict=True):
                outputs[index] = row_T[: _length(row_T, with_eos=False)]
            bar.update(int(kept.sum()))
            after_batch()
    return outputs


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
    after_batch: Callable[[int], None] = lambda examples: None,
) -> list[SoftRow]:
    """Greedy decoding of some sources, with the soft labels of the same pass.

    Args:
      indices: which examples.
      after_batch: called with the number of examples just labelled; may raise to stop.

    Returns:
      One row per index, in their order. A text the teacher did not end within
      `target_length` has no EOS.
    """
    rows: dict[int, SoftRow] = {}
    for batch, tokens_BS in _batches(examples, config.batch_size, source_length, mesh, indices):
        tokens_BT, soft = jax.device_get(
            greedy_label(
                network, params, tokens_BS, target_length, config.top_k, config.temperatures
            )
        )
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


def _length(tokens_T: np.ndarray, with_eos: bool) -> int:
    ends = np.flatnonzero(tokens_T == EOS_ID)
    return int(ends[0]) + with_eos if len(ends) else len(tokens_T)
