"""Denoising: what is hidden, and that input and target together hold the whole text."""

from __future__ import annotations

import numpy as np
import pytest

from dora_jax.data import denoising
from dora_jax.shapes import EOS_ID

SENTINELS = np.arange(1999, 1899, -1, dtype=np.int32)


def text(length: int) -> np.ndarray:
    return np.arange(10, 10 + length, dtype=np.int32)


def rebuild(inputs: np.ndarray, targets: np.ndarray) -> list[int]:
    """Puts the spans of the target back where their sentinels stand in the input."""
    spans: dict[int, list[int]] = {}
    sentinel = -1
    for token in targets[:-1].tolist():
        if token in SENTINELS:
            sentinel = token
            spans[sentinel] = []
        else:
            spans[sentinel].append(token)
    rebuilt = []
    for token in inputs[:-1].tolist():
        rebuilt += spans.pop(token) if token in SENTINELS else [token]
    assert not spans
    return rebuilt


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 28, 128, 500])
def test_input_and_target_together_are_the_text(length: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        inputs, targets = denoising.span_corruption(text(length), rng, 0.15, 3.0, SENTINELS)
        assert inputs[-1] == EOS_ID and targets[-1] == EOS_ID
        assert inputs.dtype == targets.dtype == np.int32
        assert rebuild(inputs, targets) == text(length).tolist()


def test_known_mask_gives_the_papers_example() -> None:
    # "Thank you <X> me to your party <Y> week", "<X> for inviting <Y> last": figure 2.
    tokens = text(10)
    mask = np.array([0, 0, 1, 1, 0, 0, 0, 0, 1, 0], bool)
    assert denoising.corrupt(tokens, mask, SENTINELS).tolist() == [
        *(10, 11, 1999, 14, 15, 16, 17, 1998, 19, EOS_ID)
    ]
    assert denoising.hidden_spans(tokens, mask, SENTINELS).tolist() == [
        *(1999, 12, 13, 1998, 18, EOS_ID)
    ]


@pytest.mark.parametrize(("length", "hidden"), [(2, 1), (3, 1), (20, 3), (100, 15), (7, 1)])
def test_noise_density_is_met_exactly(length: int, hidden: int) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert denoising.random_spans_noise_mask(length, rng, 0.15, 3.0).sum() == hidden


def test_every_position_is_hidden_equally_often() -> None:
    rng = np.random.default_rng(0)
    rate = np.mean(
        [denoising.random_spans_noise_mask(20, rng, 0.15, 3.0) for _ in range(4000)], axis=0
    )
    np.testing.assert_allclose(rate, 0.15, atol=0.03)


def test_spans_have_the_mean_length_asked_for() -> None:
    rng = np.random.default_rng(0)
    masks = [denoising.random_spans_noise_mask(200, rng, 0.15, 3.0) for _ in range(200)]
    spans = np.mean([np.maximum(np.diff(mask.astype(int)), 0).sum() + mask[0] for mask in masks])
    assert 10.0 <= spans <= 10.3  # 30 hidden tokens; the roll cuts a span in two at times


def test_span_lengths_differ() -> None:
    rng = np.random.default_rng(0)
    lengths = {tuple(denoising._segment_lengths(9, 3, rng)) for _ in range(500)}
    assert len(lengths) == 28  # all compositions of 9 into 3 positive parts
    assert all(sum(parts) == 9 and min(parts) > 0 for parts in lengths)


def test_more_noise_than_text_still_keeps_one_token() -> None:
    rng = np.random.default_rng(0)
    assert (~denoising.random_spans_noise_mask(5, rng, 0.99, 1.0)).sum() == 1


def test_copying_asks_for_random_pieces_back() -> None:
    pieces = np.array([5, 9, 300], np.int32)
    inputs, targets = denoising.copying(400, pieces, np.random.default_rng(3))
    assert targets.tolist() == inputs.tolist()
    assert inputs[-1] == EOS_ID
    counts = [int((inputs[:-1] == piece).sum()) for piece in pieces]
    assert sum(counts) == 400
    assert min(counts) > 100  # each as often as the others


def test_an_empty_text_is_copied_as_eos() -> None:
    inputs, _ = denoising.copying(0, np.array([5], np.int32), np.random.default_rng(0))
    assert inputs.tolist() == [EOS_ID]


def test_frequent_pieces_are_those_that_make_up_the_share() -> None:
    tokens = np.array([7] * 5 + [8] * 3 + [9] * 2, np.int32)
    assert denoising.frequent_pieces(tokens, 0.5).tolist() == [7]
    assert denoising.frequent_pieces(tokens, 0.51).tolist() == [7, 8]


def test_extraction_closes_each_stretch_between_frequent_pieces() -> None:
    tokens = np.array([4, 10, 11, 5, 4, 12, 4], np.int32)
    inputs, targets = denoising.extraction(tokens, np.array([4, 5], np.int32), 99)
    assert inputs.tolist() == [*tokens.tolist(), EOS_ID]
    assert targets.tolist() == [10, 11, 99, 12, 99, EOS_ID]


def test_extraction_of_nothing_and_of_everything() -> None:
    tokens = np.array([4, 5], np.int32)
    assert denoising.extraction(tokens, tokens, 99)[1].tolist() == [EOS_ID]
    nothing = np.zeros(0, np.int32)
    assert denoising.extraction(tokens, nothing, 99)[1].tolist() == [4, 5, 99, EOS_ID]


def test_too_few_sentinels_are_an_error_with_both_numbers() -> None:
    mask = np.array([1, 0, 1, 0, 1, 0], bool)
    with pytest.raises(ValueError, match="3 sentinels.*the vocabulary has 2"):
        denoising.corrupt(text(6), mask, SENTINELS[:2])
    with pytest.raises(ValueError, match="extra_ids"):
        denoising.hidden_spans(text(6), mask, SENTINELS[:2])
