"""Packing: many short examples into few rows, kept apart by segment ids.

`place` decides where each example goes, `fill` writes the arrays. Both are pure; a row holds
whole examples only, and source and target of one example share a row and a segment id.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dora_jax.data.soft_labels import SoftRow
from dora_jax.shapes import PAD_ID, Seq2SeqBatch

_SAVING_PER_BUCKET = 0.02  # share of all rows a further bucket must save to be worth compiling


class Example(NamedTuple):
    """One training example; both sides end with EOS and carry no padding."""

    source: np.ndarray  # int32 [source length]
    target: np.ndarray  # int32 [target length]
    soft: SoftRow | None = None  # the teacher's soft labels of `target`


class Placement(NamedTuple):
    """Where each of N examples goes."""

    row_N: np.ndarray  # int64
    segment_N: np.ndarray  # int64, from 1 in each row
    source_start_N: np.ndarray  # int64, position in the row
    target_start_N: np.ndarray  # int64, position in the row
    num_rows: int


class Share(NamedTuple):
    """Which pieces of every batch this host makes, of so many equal ones on all hosts."""

    pieces: range = range(1)
    of: int = 1


class PackedBatch(NamedTuple):
    """One update's batch and what is in it; the counts are those of all hosts together."""

    batch: Seq2SeqBatch  # numpy arrays: this host's share of the rows
    num_rows: int  # of all hosts together
    examples: int
    tokens: int  # source and target, without padding
    padding_tokens: int  # of both sides
    source_lengths_N: np.ndarray  # tokens of each example
    target_lengths_N: np.ndarray


def place(
    source_lengths_N: np.ndarray,
    target_lengths_N: np.ndarray,
    source_length: int,
    target_length: int,
) -> Placement:
    """Packs first-fit-decreasing: the largest example first, into the first row with room.

    "Largest" is the larger of the two shares of a row that an example fills.

    Args:
      source_lengths_N, target_lengths_N: int [N], tokens; none above its row's length.
      source_length, target_length: the rows' lengths, tokens.
    Returns:
      The placement, the same for the same lengths.
    """
    num_examples = len(source_lengths_N)
    fill_N = np.maximum(source_lengths_N / source_length, target_lengths_N / target_length)
    order = np.argsort(-fill_N, kind="stable")
    source_room = np.full(num_examples, source_length, np.int64)
    target_room = np.full(num_examples, target_length, np.int64)
    held = np.zeros(num_examples, np.int64)
    row_N, segment_N, source_start_N, target_start_N = np.zeros((4, num_examples), np.int64)
    num_rows = 0
    for example in order.tolist():
        source, target = source_lengths_N[example], target_lengths_N[example]
        # One row past the used ones is empty and always has room, so argmax finds a row.
        used = slice(num_rows + 1)
        row = int(((source_room[used] >= source) & (target_room[used] >= target)).argmax())
        held[row] += 1
        row_N[example], segment_N[example] = row, held[row]
        source_start_N[example] = source_length - source_room[row]
        target_start_N[example] = target_length - target_room[row]
        source_room[row] -= source
        target_room[row] -= target
        num_rows = max(num_rows, row + 1)
    return Placement(row_N, segment_N, source_start_N, target_start_N, num_rows)


def choose_row_buckets(
    rows_needed: Sequence[int], row_multiple: int, max_buckets: int
) -> tuple[int, ...]:
    """The row counts that waste the fewest rows on a sample of updates.

    Args:
      rows_needed: packed rows of each sampled update.
      row_multiple: every bucket is a multiple of it.
      max_buckets: how many distinct shapes may be compiled.
    Returns:
      One to `max_buckets` row counts, ascending; the largest has a margin above the sample.
    """
    units = -(-np.asarray(rows_needed) // row_multiple)
    # Five standard deviations up, so that an update beyond every bucket is a rarity.
    ceiling = max(int(units.max()), math.ceil(units.mean() + 5 * units.std()))
    candidates = np.unique([*units, ceiling]).tolist()

    def cost(buckets: list[int]) -> float:
        rows = np.asarray(buckets)[np.searchsorted(buckets, units)].sum()
        return float(rows) * (1 + _SAVING_PER_BUCKET * len(buckets))

    choices = itertools.combinations_with_replacement(candidates, max_buckets - 1)
    buckets = min((sorted({*choice, ceiling}) for choice in choices), key=cost)
    return tuple(unit * row_multiple for unit in buckets)


def fill(
    examples: Sequence[Example],
    placement: Placement,
    num_rows: int,
    source_length: int,
    target_length: int,
    rows: range | None = None,
) -> Seq2SeqBatch:
    """Writes the examples into `num_rows` rows; rows beyond the placement's are all padding.

    Where some examples carry soft labels and others do not (human labels mixed in), the
    others' positions and padding have an infinite `logz_BTZ`, which tells the loss that no
    teacher speaks there.

    Args:
      examples: N examples with at least one token on each side.
      placement: from `place`, for the lengths of these examples.
      num_rows: at least `placement.num_rows`.
      source_length, target_length: the rows' lengths, tokens.
      rows: which of the rows to make; all where not given.
    Returns:
      A batch of numpy arrays of these rows; its soft fields are None where no example of the
      whole batch carries soft labels.
    """
    soft_example = next((example.soft for example in examples if example.soft is not None), None)
    if rows is not None:
        examples, placement = _of_rows(examples, placement, rows)
        num_rows = len(rows)
    source = _Side([e.source for e in examples], placement.source_start_N, placement, source_length)
    target = _Side([e.target for e in examples], placement.target_start_N, placement, target_length)
    shifted = np.empty_like(target.tokens)
    shifted[1:] = target.tokens[:-1]
    shifted[target.firsts] = PAD_ID  # T5 starts every decoder sequence with the padding id
    topk_ids, topk_logits, logz = _scatter_soft(examples, soft_example, target, num_rows)
    return Seq2SeqBatch(
        encoder_tokens_BS=source.scatter(source.tokens, num_rows),
        encoder_segments_BS=source.scatter(source.segments, num_rows),
        encoder_positions_BS=source.scatter(source.positions, num_rows),
        decoder_inputs_BT=target.scatter(shifted, num_rows),
        decoder_segments_BT=target.scatter(target.segments, num_rows),
        decoder_positions_BT=target.scatter(target.positions, num_rows),
        targets_BT=target.scatter(target.tokens, num_rows),
        weights_BT=target.scatter(np.ones(len(target.tokens), np.float32), num_rows),
        topk_ids_BTK=topk_ids,
        topk_logits_BTK=topk_logits,
        logz_BTZ=logz,
    )


def _of_rows(
    examples: Sequence[Example], placement: Placement, rows: range
) -> tuple[list[Example], Placement]:
    """The examples that lie in some rows, and their places counted from the first of these."""
    inside_N = (placement.row_N >= rows.start) & (placement.row_N < rows.stop)
    return [examples[i] for i in np.flatnonzero(inside_N).tolist()], Placement(
        placement.row_N[inside_N] - rows.start,
        placement.segment_N[inside_N],
        placement.source_start_N[inside_N],
        placement.target_start_N[inside_N],
        len(rows),
    )


class _Side:
    """The source or the target tokens of all examples end to end, and where each one goes."""

    def __init__(
        self,
        sequences: list[np.ndarray],
        start_N: np.ndarray,
        placement: Placement,
        row_length: int,
    ) -> None:
        lengths_N = np.array([len(sequence) for sequence in sequences], np.int64)
        self.row_length = row_length
        # A host's rows may be all padding.
        self.tokens = np.concatenate([np.zeros(0, np.int32), *sequences], dtype=np.int32)
        self.firsts = np.cumsum(lengths_N) - lengths_N
        self.segments = np.repeat(placement.segment_N.astype(np.int32), lengths_N)
        index = np.arange(len(self.tokens))
        self.positions = (index - np.repeat(self.firsts, lengths_N)).astype(np.int32)
        offset_N = placement.row_N * row_length + start_N - self.firsts
        self.places = index + np.repeat(offset_N, lengths_N)

    def scatter(self, values: np.ndarray, num_rows: int) -> np.ndarray:
        """One value a token into rows [num_rows, row_length]; 0 elsewhere."""
        rows = np.zeros(num_rows * self.row_length, values.dtype)
        rows[self.places] = values
        return rows.reshape(num_rows, self.row_length)


def _scatter_soft(
    examples: Sequence[Example], like: SoftRow | None, target: _Side, num_rows: int
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """The soft fields of the rows; `like` is any soft label of the whole batch."""
    if like is None:
        return None, None, None
    softs = [example.soft for example in examples if example.soft is not None]
    taught_N = np.array([example.soft is not None for example in examples], bool)
    places = target.places[np.repeat(taught_N, [len(example.target) for example in examples])]
    num_tokens = num_rows * target.row_length
    top_k, num_temperatures = like.topk_ids_TK.shape[1], like.logz_TZ.shape[1]
    # Where there is no teacher the loss still computes, then multiplies by 0: distinct ids,
    # as a teacher's are, keep that finite. The infinite normaliser says "no teacher here".
    ids = np.tile(np.arange(top_k, dtype=np.int32), (num_tokens, 1))
    logits = np.zeros((num_tokens, top_k), np.float16)
    logz = np.full((num_tokens, num_temperatures), np.inf, np.float32)
    if softs:
        ids[places] = np.concatenate([soft.topk_ids_TK for soft in softs])
        logits[places] = np.concatenate([soft.topk_logits_TK for soft in softs])
        logz[places] = np.concatenate([soft.logz_TZ for soft in softs])
    shape = (num_rows, target.row_length, -1)
    return ids.reshape(shape), logits.reshape(shape), logz.reshape(shape)
