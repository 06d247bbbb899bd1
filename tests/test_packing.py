"""Packing: nothing lost, nothing mixed, few rows, and soft labels beside their tokens."""

from __future__ import annotations

import numpy as np
import pytest

from dora_jax.data.packing import Example, Placement, choose_row_buckets, fill, place
from dora_jax.data.soft_labels import SoftRow
from dora_jax.shapes import EOS_ID, PAD_ID, Seq2SeqBatch

SOURCE_LENGTH, TARGET_LENGTH, TOP_K = 32, 24, 4


def make_examples(count: int, seed: int = 0, with_soft: bool = False) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        source = rng.integers(10, 100, rng.integers(1, 17)).astype(np.int32)
        target = rng.integers(10, 100, rng.integers(1, 13)).astype(np.int32)
        source[-1] = target[-1] = EOS_ID
        examples.append(Example(source, target, make_soft(target, rng) if with_soft else None))
    return examples


def make_soft(target: np.ndarray, rng: np.random.Generator) -> SoftRow:
    length = len(target)
    return SoftRow(
        tokens_T=target,
        topk_ids_TK=rng.integers(0, 100, (length, TOP_K)).astype(np.int32),
        topk_logits_TK=-rng.random((length, TOP_K)).astype(np.float16),
        logz_TZ=rng.random((length, 2)).astype(np.float32),
        row_max_T=rng.random(length).astype(np.float32),
    )


def placed(examples: list[Example]) -> Placement:
    return place(
        np.array([len(e.source) for e in examples]),
        np.array([len(e.target) for e in examples]),
        SOURCE_LENGTH,
        TARGET_LENGTH,
    )


def pack(examples: list[Example], extra_rows: int = 0) -> tuple[Placement, Seq2SeqBatch]:
    placement = placed(examples)
    num_rows = placement.num_rows + extra_rows
    return placement, fill(examples, placement, num_rows, SOURCE_LENGTH, TARGET_LENGTH)


def soft_fields(batch: Seq2SeqBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert batch.topk_ids_BTK is not None
    assert batch.topk_logits_BTK is not None
    assert batch.logz_BTZ is not None
    return (
        np.asarray(batch.topk_ids_BTK),
        np.asarray(batch.topk_logits_BTK),
        np.asarray(batch.logz_BTZ),
    )


def test_every_example_comes_back_from_its_segment() -> None:
    examples = make_examples(50)
    placement, batch = pack(examples)
    for n, example in enumerate(examples):
        row, segment = placement.row_N[n], placement.segment_N[n]
        in_source = batch.encoder_segments_BS[row] == segment
        in_target = batch.decoder_segments_BT[row] == segment
        target = example.target.tolist()
        assert batch.encoder_tokens_BS[row][in_source].tolist() == example.source.tolist()
        assert batch.targets_BT[row][in_target].tolist() == target
        assert batch.decoder_inputs_BT[row][in_target].tolist() == [PAD_ID, *target[:-1]]
        assert batch.encoder_positions_BS[row][in_source].tolist() == list(
            range(len(example.source))
        )
        assert batch.decoder_positions_BT[row][in_target].tolist() == list(range(len(target)))
        assert np.ptp(np.flatnonzero(in_target)) == len(target) - 1  # in one piece


def test_rows_hold_nothing_else() -> None:
    examples = make_examples(50)
    _, batch = pack(examples, extra_rows=2)
    padding = batch.decoder_segments_BT == 0
    assert (~padding).sum() == sum(len(e.target) for e in examples)
    assert (batch.encoder_segments_BS > 0).sum() == sum(len(e.source) for e in examples)
    for array in (batch.targets_BT, batch.decoder_inputs_BT, batch.decoder_positions_BT):
        assert not array[padding].any()
    assert not batch.encoder_tokens_BS[batch.encoder_segments_BS == 0].any()
    np.testing.assert_array_equal(batch.weights_BT, np.where(padding, 0.0, 1.0))
    assert not batch.encoder_segments_BS[-2:].any()


def test_segments_count_from_one_in_every_row() -> None:
    _, batch = pack(make_examples(50))
    for row in batch.encoder_segments_BS:
        segments = row[row > 0]
        assert set(segments.tolist()) == set(range(1, segments.max() + 1))
        assert (np.diff(segments) >= 0).all()


def test_dtypes() -> None:
    _, batch = pack(make_examples(5, with_soft=True))
    for name, array in batch._asdict().items():
        wanted = {"weights_BT": np.float32, "logz_BTZ": np.float32, "topk_logits_BTK": np.float16}
        assert array.dtype == wanted.get(name, np.int32), name


def test_first_fit_decreasing_fills_rows_exactly() -> None:
    lengths = np.array([4, 6, 5, 5, 3, 7])  # three pairs of 10
    placement = place(lengths, np.ones(6, int), 10, 10)
    assert placement.num_rows == 3
    assert placement.row_N.tolist() == [1, 1, 2, 2, 0, 0]


def test_either_side_can_be_the_one_that_is_full() -> None:
    sources, targets = np.array([1, 1, 9, 1]), np.array([9, 9, 1, 1])
    assert place(sources, targets, 10, 10).num_rows == 2
    assert place(np.array([6, 1]), np.array([1, 10]), 10, 10).num_rows == 2


def test_soft_labels_stand_beside_their_targets() -> None:
    examples = make_examples(20, with_soft=True)
    placement, batch = pack(examples)
    topk_ids_BTK, topk_logits_BTK, logz_BTZ = soft_fields(batch)
    for n, example in enumerate(examples):
        row, soft = placement.row_N[n], example.soft
        here = batch.decoder_segments_BT[row] == placement.segment_N[n]
        assert soft is not None
        np.testing.assert_array_equal(topk_ids_BTK[row][here], soft.topk_ids_TK)
        np.testing.assert_array_equal(topk_logits_BTK[row][here], soft.topk_logits_TK)
        np.testing.assert_array_equal(logz_BTZ[row][here], soft.logz_TZ)


def test_human_labels_and_padding_are_marked_as_untaught() -> None:
    examples = make_examples(6, seed=2) + make_examples(6, seed=1, with_soft=True)
    placement, batch = pack(examples)
    topk_ids_BTK, topk_logits_BTK, logz_BTZ = soft_fields(batch)
    taught = np.zeros_like(batch.targets_BT, bool)
    for n in range(6, 12):
        row, soft = placement.row_N[n], examples[n].soft
        here = batch.decoder_segments_BT[row] == placement.segment_N[n]
        taught[row] |= here
        assert soft is not None
        np.testing.assert_array_equal(topk_ids_BTK[row][here], soft.topk_ids_TK)
    np.testing.assert_array_equal(np.isfinite(logz_BTZ).all(-1), taught)
    assert np.isposinf(logz_BTZ[~taught]).all()
    # The loss computes there before it multiplies by 0: ids must be distinct, logits finite.
    assert (np.diff(np.sort(topk_ids_BTK[~taught])) > 0).all()
    assert np.isfinite(topk_logits_BTK).all()


def test_hard_labels_alone_carry_no_soft_fields() -> None:
    _, batch = pack(make_examples(6))
    assert batch.topk_ids_BTK is batch.topk_logits_BTK is batch.logz_BTZ is None


@pytest.mark.parametrize("multiple", [1, 4])
def test_row_buckets_cover_the_sample_in_few_shapes(multiple: int) -> None:
    rows = np.random.default_rng(0).normal(40, 3, 64).astype(int)
    buckets = choose_row_buckets(rows.tolist(), multiple, 3)
    assert 1 <= len(buckets) <= 3
    assert buckets == tuple(sorted(buckets)) and buckets[-1] >= rows.max()
    assert all(bucket % multiple == 0 for bucket in buckets)
    wasted = np.asarray(buckets)[np.searchsorted(buckets, rows)].sum() / rows.sum() - 1
    assert wasted < (0.06 if multiple == 1 else 0.09)


def test_one_bucket_where_every_update_needs_the_same() -> None:
    assert choose_row_buckets([7] * 20, 1, 3) == (7,)
    assert choose_row_buckets([7] * 20, 4, 3) == (8,)


def test_a_bucket_that_saves_too_little_is_not_compiled() -> None:
    assert choose_row_buckets([100] * 63 + [99], 1, 3) == (101,)
