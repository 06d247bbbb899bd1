"""The loader: position = step, nothing dropped, errors that name the example."""

from __future__ import annotations

import collections
import threading
import time
import traceback
from typing import Any

import numpy as np
import pytest

from dora_jax.config import PretrainConfig
from dora_jax.data import loader
from dora_jax.data.packing import Example
from dora_jax.shapes import EOS_ID, Examples

SENTINELS = range(1999, 1899, -1)


def make_split(count: int, seed: int = 0, longest: int = 20) -> Examples:
    """Sources whose first token is 100 + their index, so that batches can be read back."""
    rng = np.random.default_rng(seed)
    sources, targets = rng.integers(2, longest + 1, (2, count))
    source_offsets, target_offsets = (np.append(0, np.cumsum(n)) for n in (sources, targets))
    source = rng.integers(10, 90, source_offsets[-1]).astype(np.int32)
    target = rng.integers(10, 90, target_offsets[-1]).astype(np.int32)
    source[source_offsets[:-1]] = 100 + np.arange(count)
    source[source_offsets[1:] - 1] = target[target_offsets[1:] - 1] = EOS_ID
    return Examples(source, source_offsets, target, target_offsets)


def make_loader(source: loader.ExampleSource, **changes: Any) -> loader.PackedLoader:
    settings: dict[str, Any] = dict(batch_size=8, source_length=40, target_length=40, seed=0)
    return loader.PackedLoader(source, **settings | changes)


def indices_in(packed: loader.PackedBatch) -> list[int]:
    tokens = packed.batch.encoder_tokens_BS
    return (tokens[tokens >= 100] - 100).tolist()


def assert_same(a: loader.PackedBatch, b: loader.PackedBatch) -> None:
    for x, y in zip(a.batch, b.batch, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(a[1:], b[1:], strict=True):
        np.testing.assert_array_equal(x, y)


def test_every_epoch_holds_every_example_once_across_batch_borders() -> None:
    made = make_loader(loader.LabelledSource(make_split(21)))
    seen = collections.Counter(i for step in range(21) for i in indices_in(made.batch(step)))
    assert seen == {i: 8 for i in range(21)}  # 21 updates of 8 are 8 epochs of 21
    first_two = indices_in(made.batch(0)) + indices_in(made.batch(1))
    assert len(set(first_two)) == 16  # within an epoch none comes twice


def test_batch_larger_than_the_split_wraps_around() -> None:
    made = make_loader(loader.LabelledSource(make_split(3)), batch_size=7)
    assert set(collections.Counter(indices_in(made.batch(0))).values()) == {2, 3}


def test_a_batch_depends_on_the_step_alone() -> None:
    source = loader.DenoisingSource(make_split(30), PretrainConfig(), SENTINELS, seed=1)
    forwards = [make_loader(source).batch(step) for step in range(6)]
    made = make_loader(source)
    for step in reversed(range(6)):
        assert_same(made.batch(step), forwards[step])
    for packed, expected in zip(made.iterate(2, 6), forwards[2:], strict=True):
        assert_same(packed, expected)


def test_epochs_and_seeds_shuffle_differently() -> None:
    source = loader.LabelledSource(make_split(40))
    orders = [
        tuple(indices_in(make_loader(source, batch_size=40, seed=seed).batch(epoch)))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_counts_are_exact() -> None:
    made = make_loader(loader.LabelledSource(make_split(30)), row_multiple=2)
    for step in range(10):
        packed = made.batch(step)
        batch = packed.batch
        filled = (batch.encoder_segments_BS > 0).sum() + (batch.decoder_segments_BT > 0).sum()
        assert packed.examples == len(indices_in(packed)) == 8
        assert packed.tokens == filled
        assert packed.padding_tokens == batch.targets_BT.size * 2 - filled
        assert len(batch.targets_BT) in made.row_buckets
        assert len(batch.targets_BT) % 2 == 0


def test_rows_beyond_the_largest_bucket_keep_every_example() -> None:
    made = make_loader(loader.LabelledSource(make_split(30)), row_multiple=2)
    whole = made.batch(0)
    made.row_buckets = (2,)
    assert sorted(indices_in(made.batch(0))) == sorted(indices_in(whole))
    assert len(made.batch(0).batch.targets_BT) % 2 == 0


@pytest.mark.parametrize("share", [0.25, 0.1])
def test_gold_share_is_met_over_the_run(share: float) -> None:
    made = make_loader(
        loader.LabelledSource(make_split(50)),
        gold=ShiftedSource(make_split(20), shift=1000),
        gold_share=share,
    )
    batches = [indices_in(made.batch(step)) for step in range(100)]
    gold = [sum(i >= 1000 for i in batch) for batch in batches]
    assert all(len(batch) == 8 for batch in batches)
    assert sum(gold) == round(800 * share)
    assert max(gold) - min(gold) <= 1
    assert set(collections.Counter(i for batch in batches for i in batch if i >= 1000)) == {
        1000 + i for i in range(20)
    }


class ShiftedSource:
    """A labelled source whose marks are moved up, to tell it from another one."""

    def __init__(self, examples: Examples, shift: int) -> None:
        self._source, self._shift = loader.LabelledSource(examples), shift

    def __len__(self) -> int:
        return len(self._source)

    def example(self, index: int, epoch: int) -> Example:
        example = self._source.example(index, epoch)
        source = example.source.copy()
        source[0] += self._shift
        return example._replace(source=source)


def test_gold_share_and_gold_source_go_together() -> None:
    source = loader.LabelledSource(make_split(5))
    with pytest.raises(ValueError, match="no gold source"):
        make_loader(source, gold_share=0.5)
    with pytest.raises(ValueError, match="a gold source"):
        make_loader(source, gold=source)


def test_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="without examples"):
        make_loader(loader.LabelledSource(make_split(0)))


def test_too_long_or_empty_examples_are_named() -> None:
    split = make_split(30)
    longest = int(np.diff(split.source_offsets).argmax())
    with pytest.raises(ValueError, match=rf"source of example {longest} has \d+ tokens.*1 to 19"):
        make_loader(loader.LabelledSource(split), source_length=19, batch_size=30)
    no_targets = np.zeros_like(split.target_offsets)
    unlabelled = Examples(*split[:2], split.target_tokens, no_targets)
    with pytest.raises(ValueError, match=r"target of example \d+ has 0 tokens.*unlabelled"):
        make_loader(loader.LabelledSource(unlabelled))


def test_denoising_is_new_in_every_epoch_and_without_prompt_or_inner_eos() -> None:
    split = make_split(10)
    source = loader.DenoisingSource(split, PretrainConfig(), SENTINELS, seed=1, skip_tokens=1)
    first, again, later = (source.example(4, epoch) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first.source, again.source)
    np.testing.assert_array_equal(first.target, again.target)
    assert first.source.tolist() != later.source.tolist()
    for index in range(10):
        example = source.example(index, 0)
        assert 100 + index not in example.source  # the prompt's place
        assert (example.source == EOS_ID).sum() == (example.target == EOS_ID).sum() == 1


def denoised(epoch: int, **shares: Any) -> list[str]:
    """Which task each of some 170 examples became."""
    config = PretrainConfig(**shares)
    split = make_split(200)
    source = loader.DenoisingSource(split, config, SENTINELS, seed=1)
    kinds = []
    # In texts of a token or two there is nothing to hide, so the tasks look alike.
    for index in np.flatnonzero(np.diff(split.source_offsets) > 3).tolist():
        example = source.example(index, epoch)
        hidden = np.isin(example.source, SENTINELS).any()
        copied = example.source.tolist() == example.target.tolist()
        kinds.append("corruption" if hidden else "copying" if copied else "extraction")
    return kinds


def test_shares_set_how_many_examples_each_task_gets() -> None:
    assert set(denoised(0)) == {"corruption"}
    assert set(denoised(0, copying_share=1.0)) == {"copying"}
    mixed = denoised(0, copying_share=0.25, extraction_share=0.25)
    assert 30 < mixed.count("copying") < 70
    assert 30 < mixed.count("extraction") < 70
    assert 65 < mixed.count("corruption") < 110


def test_the_first_epochs_only_copy() -> None:
    assert set(denoised(1, copying_epochs=2)) == {"copying"}
    assert set(denoised(2, copying_epochs=2)) == {"corruption"}


def test_an_error_in_the_thread_surfaces_at_its_step_with_its_traceback() -> None:
    class Broken(loader.LabelledSource):
        def example(self, index: int, epoch: int) -> Example:
            if epoch == 2:
                raise OSError("disk gone")
            return super().example(index, epoch)

    # Batches of 8 out of 16: epoch 2 starts at step 4; the sample at start sees epoch 0.
    batches = make_loader(Broken(make_split(16))).iterate(0, 10)
    for _ in range(4):
        next(batches)
    with pytest.raises(OSError, match="disk gone") as caught:
        next(batches)
    assert "in example" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert list(batches) == []


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_the_thread_works_ahead_by_the_prefetch_and_ends_with_the_iterator() -> None:
    drawn = threading.Semaphore(0)

    class Counted(loader.LabelledSource):
        def example(self, index: int, epoch: int) -> Example:
            drawn.release()
            return super().example(index, epoch)

    made = make_loader(Counted(make_split(16)), batch_size=4)
    while drawn.acquire(blocking=False):  # the sample at start
        pass
    batches = made.iterate(0, 10_000, prefetch=2)
    next(batches)
    assert all(drawn.acquire(timeout=10) for _ in range(3 * 4))  # one yielded, two ahead
    assert not drawn.acquire(timeout=0.05)  # and no more
    assert len(loader_threads()) == 1
    batches.close()
    assert not loader_threads()


def test_empty_range_of_steps() -> None:
    assert list(make_loader(loader.LabelledSource(make_split(5))).iterate(3, 3)) == []


def test_a_batch_is_made_fast_enough_to_keep_a_trainer_busy() -> None:
    source = loader.DenoisingSource(make_split(200, longest=40), PretrainConfig(), SENTINELS, 0)
    made = make_loader(source, batch_size=64, source_length=128, target_length=128)
    seconds = []
    for step in range(10):
        start = time.perf_counter()
        made.batch(step)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02  # measured: 0.0025; the bound only catches a lost vectorisation


def test_balanced_rows_waste_less_and_never_shrink() -> None:
    split = make_split(300)
    doubled = Doubled(split)
    lengths = loader.balanced_row_lengths(doubled, 48, 48)
    assert lengths == (48, 96)
    assert loader.balanced_row_lengths(loader.LabelledSource(split), 48, 48) == (48, 48)

    def padding(source_length: int, target_length: int) -> float:
        made = make_loader(
            doubled, batch_size=64, source_length=source_length, target_length=target_length
        )
        batches = [made.batch(step) for step in range(20)]
        cells = sum(packed.tokens + packed.padding_tokens for packed in batches)
        return sum(packed.padding_tokens for packed in batches) / cells

    assert padding(*lengths) < 0.17 < padding(48, 48)


class Doubled(loader.LabelledSource):
    """Targets twice as long as their sources."""

    def example(self, index: int, epoch: int) -> Example:
        source = super().example(index, epoch).source
        return Example(source, np.concatenate((source, source)))


def test_evaluation_batches_hold_every_source_once_longest_first() -> None:
    split = make_split(45, longest=60)
    lengths = np.diff(split.source_offsets)
    batches = list(loader.evaluation_batches(split, 8, 128))
    order = np.concatenate([batch.indices_B for batch in batches])
    assert sorted(order[order >= 0].tolist()) == list(range(45))
    assert (order == -1).sum() == 3 and (order[-3:] == -1).all()
    assert (np.diff(lengths[order[:-3]]) <= 0).all()
    for batch in batches:
        assert len(batch.encoder_tokens_BS) == 8
        for index, row in zip(batch.indices_B, batch.encoder_tokens_BS, strict=True):
            expected = split.source(index).tolist() if index >= 0 else [EOS_ID]
            assert row.tolist() == expected + [0] * (len(row) - len(expected))


@pytest.mark.parametrize("length", [20, 128, 200, 512])
def test_evaluation_widths_are_few_and_fixed_by_the_length(length: int) -> None:
    split = make_split(400, longest=length)
    widths = {
        batch.encoder_tokens_BS.shape[1] for batch in loader.evaluation_batches(split, 4, length)
    }
    assert len(widths) <= 5 and max(widths) <= length
    assert all(width % 16 == 0 or width == length for width in widths)


def test_evaluation_of_a_part_uses_the_splits_own_indices() -> None:
    batches = list(loader.evaluation_batches(make_split(45), 8, 128, indices=range(20, 30)))
    order = np.concatenate([batch.indices_B for batch in batches])
    assert sorted(order[order >= 0].tolist()) == list(range(20, 30))


def test_evaluation_refuses_a_source_longer_than_its_length() -> None:
    with pytest.raises(ValueError, match=r"source of example \d+ has \d+ tokens"):
        list(loader.evaluation_batches(make_split(45, longest=60), 8, 32))
