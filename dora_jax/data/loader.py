"""The loader: which examples an update sees, as packed batches of numpy arrays.

Position is step: what `PackedLoader.batch(step)` returns depends on the step, the source and
the seed only, so a run resumed at a step goes on exactly as an undisturbed one. Randomness
comes from Philox, a counter-based generator: any (seed, epoch, index) can be addressed
directly, without drawing what stands before it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dora_jax.config import PretrainConfig
from dora_jax.data import denoising, packing
from dora_jax.data.packing import Example, PackedBatch, Share
from dora_jax.data.soft_labels import SoftLabelReader
from dora_jax.shapes import EOS_ID, PAD_ID, Examples

_SHUFFLE_STREAM, _GOLD_SHUFFLE_STREAM, _DENOISING_STREAM = range(3)
_SAMPLED_UPDATES = 16
_SAMPLED_EXAMPLES = 1024
EVALUATION_WIDTHS = 5
_LENGTH_MULTIPLE = 16


class ExampleSource(Protocol):
    """Anything with a length and examples; `epoch` counts the passes over it, from 0."""

    def __len__(self) -> int: ...

    def example(self, index: int, epoch: int) -> Example: ...


class LabelledSource:
    """Human labels: the split as it is, the same in every epoch."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, index: int, epoch: int) -> Example:
        return Example(self._examples.source(index), self._examples.target(index))


class DenoisingSource:
    """Denoising tasks made from the sources of a split, other ones in every epoch.

    Args:
      examples: only the sources are used.
      config: the share of each task, and the damage.
      sentinel_ids: the vocabulary's sentinels, in the order of use.
      seed: of the tasks.
      skip_tokens: leading tokens to leave out, those of the task's prompt.
    """

    def __init__(
        self,
        examples: Examples,
        config: PretrainConfig,
        sentinel_ids: Sequence[int],
        seed: int,
        skip_tokens: int = 0,
    ) -> None:
        self._config = config
        self._sentinel_ids = np.asarray(sentinel_ids, np.int32)
        self._seed = seed
        self._texts = [
            tokens[:-1] if len(tokens) and tokens[-1] == EOS_ID else tokens
            for tokens in (examples.source(i)[skip_tokens:] for i in range(len(examples)))
        ]
        text = np.concatenate(self._texts)
        self._pieces = np.unique(text)
        self._frequent = denoising.frequent_pieces(text, config.frequent_share)

    def __len__(self) -> int:
        return len(self._texts)

    def example(self, index: int, epoch: int) -> Example:
        config, tokens = self._config, self._texts[index]
        rng = _generator(self._seed, epoch, index, _DENOISING_STREAM)
        choice = rng.random()
        if epoch < config.copying_epochs or choice < config.copying_share:
            return Example(*denoising.copying(len(tokens), self._pieces, rng))
        if choice < config.copying_share + config.extraction_share:
            separator = int(self._sentinel_ids[0])
            return Example(*denoising.extraction(tokens, self._frequent, separator))
        return Example(
            *denoising.span_corruption(
                tokens, rng, config.noise_density, config.mean_span_length, self._sentinel_ids
            )
        )


class SoftLabelledSource:
    """The sources of a split with the teacher's tokens as targets and its soft labels.

    Args:
      examples: of the split.
      labels: theirs.
      drop_unended: leaves out what the teacher did not end within the target length; where it
        ended nothing at all, all is kept, since there is nothing else to learn from.
    Raises:
      ValueError: the store labels another number of examples than the split has.
    """

    def __init__(
        self, examples: Examples, labels: SoftLabelReader, drop_unended: bool = False
    ) -> None:
        if len(examples) != len(labels):
            raise ValueError(
                f"The split has {len(examples)} examples, the soft-label store "
                f"{len(labels)}; label this very split again."
            )
        self._examples = examples
        self._labels = labels
        ended = [i for i in range(len(labels)) if labels.row(i).has_ended]
        self.unended = len(labels) - len(ended)
        self._kept = ended if drop_unended and ended else range(len(labels))

    def __len__(self) -> int:
        return len(self._kept)

    def example(self, index: int, epoch: int) -> Example:
        place = self._kept[index]
        row = self._labels.row(place)
        return Example(self._examples.source(place), row.tokens_T, row)


class PackedLoader:
    """Batches of exactly `batch_size` examples, packed, each a pure function of the step.

    Update `step` holds positions [step × batch_size, (step + 1) × batch_size) of the endless
    concatenation of one random permutation of the source per epoch: nothing is dropped where
    epochs meet. The number of rows is one of `row_buckets`, chosen up front from a sample of
    updates, because every distinct shape costs a compilation.

    Args:
      source: where examples come from.
      batch_size: examples per update.
      source_length, target_length: the rows' lengths, tokens.
      seed: of the permutations.
      row_multiple: every batch's number of rows is a multiple of this (devices × microbatches).
      max_row_buckets: how many numbers of rows to choose from; fewer compile less, pad more.
      gold: a second source, for `gold_share`.
      gold_share: share of the examples drawn from `gold`; exact over the run, in one update
        rounded up or down.
      share: the rows of each batch to fill. Every host draws all examples of an update, since
        where one goes depends on the lengths of the others.
    Raises:
      ValueError: an empty source; a share without a gold source, or a gold source without a
        share. From any batch: an example without source or target tokens, or longer than a row.
    """

    def __init__(
        self,
        source: ExampleSource,
        *,
        batch_size: int,
        source_length: int,
        target_length: int,
        seed: int,
        row_multiple: int = 1,
        max_row_buckets: int = 3,
        gold: ExampleSource | None = None,
        gold_share: float = 0.0,
        share: Share = Share(),  # noqa: B008 -- immutable
    ) -> None:
        if len(source) == 0 or (gold is not None and len(gold) == 0):
            raise ValueError(
                "PackedLoader got a source without examples; there is nothing to draw."
            )
        if row_multiple % share.of:
            raise ValueError(
                f"PackedLoader: batches of a multiple of {row_multiple} rows cannot be divided "
                f"into {share.of} equal pieces."
            )
        if (gold is None) != (gold_share == 0.0):
            raise ValueError(
                f"PackedLoader: gold_share = {gold_share} with "
                f"{'no' if gold is None else 'a'} gold source; give both or neither."
            )
        self._source = source
        self._gold = gold
        self._gold_share = gold_share
        self._batch_size = batch_size
        self._source_length = source_length
        self._target_length = target_length
        self._seed = seed
        self._row_multiple = row_multiple
        self._share = share
        rows_needed = [self._draw(step)[1].num_rows for step in range(self._sample_steps())]
        self.row_buckets = packing.choose_row_buckets(rows_needed, row_multiple, max_row_buckets)

    def batch(self, step: int) -> PackedBatch:
        """The batch of update `step`, from 0."""
        examples, placement = self._draw(step)
        num_rows = next(
            (rows for rows in self.row_buckets if rows >= placement.num_rows),
            # Beyond the largest bucket: one more compilation, but no example is left out.
            -(-placement.num_rows // self._row_multiple) * self._row_multiple,
        )
        pieces, piece = self._share.pieces, num_rows // self._share.of
        rows = range(pieces.start * piece, pieces.stop * piece)
        row_lengths = self._source_length, self._target_length
        batch = packing.fill(examples, placement, num_rows, *row_lengths, rows)
        source_lengths_N = np.array([len(example.source) for example in examples])
        target_lengths_N = np.array([len(example.target) for example in examples])
        tokens = int(source_lengths_N.sum() + target_lengths_N.sum())
        return PackedBatch(
            batch=batch,
            num_rows=num_rows,
            examples=len(examples),
            tokens=tokens,
            padding_tokens=num_rows * sum(row_lengths) - tokens,
            source_lengths_N=source_lengths_N,
            target_lengths_N=target_lengths_N,
        )

    def iterate(
        self, start_step: int, stop_step: int, prefetch: int = 4
    ) -> Generator[PackedBatch, None, None]:
        """Batches of the steps [start_step, stop_step), made ahead on one background thread.

        An error in the thread is raised here, at its step. Closing or dropping the iterator
        ends the thread.
        """
        steps = iter(range(start_step, stop_step))
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
            ahead = collections.deque(
                thread.submit(self.batch, step) for step in itertools.islice(steps, prefetch)
            )
            try:
                while ahead:
                    batch = ahead.popleft().result()
                    ahead.extend(
                        thread.submit(self.batch, step) for step in itertools.islice(steps, 1)
                    )
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()

    def examples(self, step: int) -> list[Example]:
        """What update `step` is made of, before packing."""
        return self._draw(step)[0]

    def _sample_steps(self) -> int:
        """Updates to look at for `row_buckets`: one epoch's at most, since epochs are alike."""
        return min(_SAMPLED_UPDATES, -(-len(self._source) // self._batch_size))

    def _draw(self, step: int) -> tuple[list[Example], packing.Placement]:
        # The gold examples before a step are the share of all examples before it, rounded
        # down, so that small shares are met over the run even where they round to 0 here.
        start, stop = step * self._batch_size, (step + 1) * self._batch_size
        gold_start, gold_stop = int(start * self._gold_share), int(stop * self._gold_share)
        examples = self._take(
            self._source, start - gold_start, stop - gold_stop, "example", _SHUFFLE_STREAM
        )
        if self._gold is not None:
            examples += self._take(
                self._gold, gold_start, gold_stop, "gold example", _GOLD_SHUFFLE_STREAM
            )
        placement = packing.place(
            np.array([len(example.source) for example in examples]),
            np.array([len(example.target) for example in examples]),
            self._source_length,
            self._target_length,
        )
        return examples, placement

    def _take(
        self, source: ExampleSource, start: int, stop: int, name: str, stream: int
    ) -> list[Example]:
        examples = []
        for position in range(start, stop):
            epoch, place_in_epoch = divmod(position, len(source))
            index = int(_permutation(len(source), self._seed, epoch, stream)[place_in_epoch])
            example = source.example(index, epoch)
            self._check(example, f"{name} {index}")
            examples.append(example)
        return examples

    def _check(self, example: Example, name: str) -> None:
        for side, tokens, row_length in (
            ("source", example.source, self._source_length),
            ("target", example.target, self._target_length),
        ):
            if not 0 < len(tokens) <= row_length:
                raise ValueError(
                    f"The {side} of {name} has {len(tokens)} tokens; a row of this loader holds "
                    f"1 to {row_length}. Raise pack_{side}_length, or prepare the data with a "
                    f"shorter {side}_length; unlabelled examples cannot be trained on."
                )


def balanced_row_lengths(
    source: ExampleSource, source_length: int, target_length: int
) -> tuple[int, int]:
    """Row lengths in the proportion of the data, so that both sides of a row fill up together.

    Rows are full when one side is: at equal lengths, WLP's shorter side would be a third
    padding. The side that fills first is made longer, to a multiple of 16; neither becomes
    shorter than given, so every example that fitted still fits.

    Args:
      source: a sample of it is looked at.
      source_length, target_length: the shortest allowed rows, tokens.
    Returns:
      (source length, target length), tokens.
    """
    sample = [source.example(index, 0) for index in _spread(len(source), _SAMPLED_EXAMPLES)]
    source_tokens = sum(len(example.source) for example in sample)
    target_tokens = sum(len(example.target) for example in sample)
    wanted_source = target_length * source_tokens / max(target_tokens, 1)
    wanted_target = source_length * target_tokens / max(source_tokens, 1)
    return (
        max(source_length, round(wanted_source / _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE),
        max(target_length, round(wanted_target / _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE),
    )


def _spread(length: int, count: int) -> range:
    return range(0, length, max(1, length // count))


class EvaluationBatch(NamedTuple):
    """Unpacked rows to decode."""

    indices_B: np.ndarray  # int64, the examples' places in the split; -1 marks a filler row
    encoder_tokens_BS: np.ndarray  # int32


def evaluation_batches(
    examples: Examples,
    batch_size: int,
    length: int,
    indices: Sequence[int] | None = None,
    widths: int = EVALUATION_WIDTHS,
) -> Iterator[EvaluationBatch]:
    """Every source once, longest first, in full batches of few widths.

    Widths are chosen from `length` alone, so that every split and every shard of one is decoded
    with the same compiled programs. Longest first shows at once whether
    memory suffices. Filler rows hold a lone EOS, not nothing: attention over no key at all
    is undefined.

    Args:
      examples: only the sources are used.
      batch_size: rows per batch.
      length: the longest source that may occur, tokens.
      indices: which examples; all where not given.
      widths: the most there may be.
    Yields:
      Batches of `batch_size` rows.
    Raises:
      ValueError: a source is longer than `length`.
    """
    all_lengths = np.diff(examples.source_offsets)
    chosen = np.arange(len(examples)) if indices is None else np.asarray(indices, np.int64)
    order = chosen[np.argsort(-all_lengths[chosen], kind="stable")]
    if len(order) and all_lengths[order[0]] > length:
        raise ValueError(
            f"The source of example {order[0]} has {all_lengths[order[0]]} tokens, above the "
            f"{length} that are decoded; raise the length, or prepare the data with it."
        )
    smallest = widths * _LENGTH_MULTIPLE
    width_step = -(-length // smallest) * _LENGTH_MULTIPLE
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        width = min(-(-all_lengths[members[0]] // width_step) * width_step, length)
        indices_B = np.full(batch_size, -1, np.int64)
        indices_B[: len(members)] = members
        tokens_BS = np.full((batch_size, width), PAD_ID, np.int32)
        for row, index in enumerate(members):
            tokens_BS[row, : all_lengths[index]] = examples.source(index)
        tokens_BS[len(members) :, 0] = EOS_ID
        yield EvaluationBatch(indices_B, tokens_BS)


@functools.lru_cache(maxsize=4)  # an update touches two epochs at most unless epochs are tiny
def _permutation(length: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    return _generator(seed, epoch, 0, stream).permutation(length)


def _generator(seed: int, epoch: int, index: int, stream: int) -> np.random.Generator:
    # The low counter words count the draws themselves; the high ones tell streams apart.
    key = np.array((seed, epoch), np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=(0, 0, index, stream)))
