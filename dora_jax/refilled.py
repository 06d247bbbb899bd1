"""A labelling pass in which rows take new texts as others end, text by text in and out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dora_jax.config import LabelConfig, T5Config
from dora_jax.data.loader import EvaluationBatch, evaluation_batches
from dora_jax.model import refilling
from dora_jax.model.decoder_step import Prepared
from dora_jax.model.refilling import Labelling
from dora_jax.parallel import hosts, partitioning
from dora_jax.parallel.mesh import whole_pieces
from dora_jax.shapes import Examples


class Labelled(NamedTuple):
    """Some texts that the teacher has labelled."""

    indices_B: np.ndarray  # int64, the examples' places in the split; -1 marks a filler row
    tokens_BT: np.ndarray  # int32, zero after EOS
    soft: Any  # their `SoftLabels`, as numpy arrays


def labelled_in_refilled_rows(
    network: T5Config,
    prepared: Prepared,
    examples: Examples,
    indices: Sequence[int],
    config: LabelConfig,
    *,
    source_length: int,
    target_length: int,
    mesh: Mesh,
) -> Iterator[Labelled]:
    """Greedy labels of some texts, each once, as their rows end.

    Texts of one width share `config.batch_size` rows; `config.refill_share` of them are refilled
    at a time. Both are rounded up to what the mesh's data shards divide.

    Args:
      indices: which examples.
      source_length, target_length: the longest there may be, tokens.
    """
    part = whole_pieces(config.batch_size * config.refill_share, mesh)
    batches = evaluation_batches(examples, part, source_length, indices, config.widths)
    for width, same in itertools.groupby(batches, lambda batch: batch.encoder_tokens_BS.shape[1]):
        how = Labelling(
            network=network,
            batch=max(whole_pieces(config.batch_size, mesh), part),
            source_length=width,
            max_length=target_length,
            top_k=config.top_k,
            temperatures=config.temperatures,
            no_repeat_ngram_size=config.no_repeat_ngram_size,
        )
        yield from _of_one_width(how, prepared, same, part, mesh)


def _of_one_width(
    how: Labelling, prepared: Prepared, batches: Iterator[EvaluationBatch], part: int, mesh: Mesh
) -> Iterator[Labelled]:
    sharding = partitioning.batch_sharding(mesh)
    held_B = np.full(how.batch, -1)  # the example in each row
    waiting = next(batches, None)
    with partitioning.split_over(mesh):
        rows = refilling.no_rows(how)
    while True:
        free = np.flatnonzero(held_B < 0)
        while waiting is not None and len(free) >= part:
            texts_R = waiting.indices_B
            places_R = np.where(texts_R >= 0, free[:part], how.batch).astype(np.int32)
            held_B[places_R[texts_R >= 0]] = texts_R[texts_R >= 0]
            tokens_RS = partitioning.place(waiting.encoder_tokens_BS, sharding)
            with partitioning.split_over(mesh):
                rows = refilling.fill(how, prepared, rows, places_R, tokens_RS)
            free, waiting = np.flatnonzero(held_B < 0), next(batches, None)
        if len(free) == how.batch:
            return
        # Where nothing waits, all rows end together.
        enough = how.batch if waiting is None else len(free) + part
        with partitioning.split_over(mesh):
            rows = refilling.advance(how, prepared, rows, np.int32(enough))
        ended = np.flatnonzero(hosts.fetch(rows.ended_B) & (held_B >= 0))
        for start in range(0, len(ended), part):
            places = ended[start : start + part]
            padded_R = np.resize(places, part).astype(np.int32)
            with partitioning.split_over(mesh):
                taken = refilling.answers(rows, jax.numpy.asarray(padded_R))
            texts_R = np.where(np.arange(part) < len(places), held_B[padded_R], -1)
            yield Labelled(texts_R, *hosts.fetch(taken))
        held_B[ended] = -1
