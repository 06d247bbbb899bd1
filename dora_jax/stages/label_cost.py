"""What labelling a job costs at each batch size and number of widths, by timing batches of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from dora_jax import predict
from dora_jax.config import FIRST_LABEL_BATCH, LabelConfig, T5Config
from dora_jax.data.loader import evaluation_batches
from dora_jax.model.t5 import Params
from dora_jax.parallel import hosts
from dora_jax.parallel.mesh import whole_pieces
from dora_jax.shapes import Examples

BATCH_SIZES = (16, 32, 64, 128, 256)
WIDTHS = (5, 2, 1)
SAMPLED_BATCHES = 3
# Measuring ends when it has taken this share of the cheapest job found, so that it cannot cost
# more than it saves: a job of seconds takes the first choice, one of hours tries them all.
MEASURING_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Cost:
    """One choice for a whole job: so many programs to compile, so many batches to decode."""

    batch_size: int
    widths: int
    programs: int
    program_seconds: float
    batches: int
    batch_seconds: float

    @property
    def seconds(self) -> float:
        return self.programs * self.program_seconds + self.batches * self.batch_seconds


def cheapest(
    measure: Callable[[int, int], Cost | None], spent: Callable[[], float]
) -> tuple[Cost, list[Cost]]:
    """Searches batch sizes, then widths, while measuring is worth it.

    From `FIRST_LABEL_BATCH` the batch is doubled as long as that is cheaper; where it never was,
    halved. Then fewer widths are tried, which compile less and pad more.

    Args:
      measure: from batch size and widths to the job's cost; None where memory does not suffice.
      spent: seconds that measuring has taken so far.

    Returns:
      The cheapest, and all that were measured, in their order.

    Raises:
      ValueError: no batch fits the devices' memory.
    """
    tried: list[Cost] = []

    def best() -> Cost:
        return min(tried, key=lambda cost: cost.seconds)

    def improves(batch_size: int, widths: int) -> bool:
        if tried and spent() > MEASURING_SHARE * best().seconds:
            return False
        cost = measure(batch_size, widths)
        if cost is not None:
            tried.append(cost)
        return cost is not None and cost is best()

    first = BATCH_SIZES.index(FIRST_LABEL_BATCH)
    larger, smaller = BATCH_SIZES[first + 1 :], BATCH_SIZES[:first][::-1]
    grown = improves(FIRST_LABEL_BATCH, WIDTHS[0]) and improves(larger[0], WIDTHS[0])
    for batch_size in larger[1:] if grown else smaller:
        if not improves(batch_size, WIDTHS[0]) and tried:
            break
    if not tried:
        raise ValueError(
            f"Not even {min(BATCH_SIZES)} texts at once fit the devices' memory beside the "
            "teacher. Share it over more devices (FSDP), or set LABEL_BATCH_SIZE to fewer."
        )
    for widths in WIDTHS[1:]:
        if not improves(best().batch_size, widths):
            break
    return best(), tried


class LabelTimer:
    """Times batches of one job as its pass will make them.

    Args:
      config: `batch_size` and `widths` are of no account; top_k is set.
      source_length, target_length: of the job.
      mesh: where `params` are.
      check_stop: called between batches; may raise to stop.
    """

    def __init__(
        self,
        network: T5Config,
        params: Params,
        examples: Examples,
        config: LabelConfig,
        *,
        source_length: int,
        target_length: int,
        mesh: Mesh,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._teacher = network, params
        self._examples = examples
        self._config = config
        self._source_length, self._target_length = source_length, target_length
        self._mesh = mesh
        self._check_stop = check_stop
        self._program_seconds: dict[int, float] = {}  # by batch size
        self._began = time.perf_counter()
        lengths_N = np.diff(examples.source_offsets)
        self._longest_first = np.argsort(-lengths_N, kind="stable")
        self.answers: dict[int, np.ndarray] = {}  # tokens of the texts met so far

    def spent(self) -> float:
        """Seconds since the first measurement began, by the first host's clock."""
        return hosts.from_first(lambda: time.perf_counter() - self._began)

    def measure(self, batch_size: int, widths: int) -> Cost | None:
        """The cost of the job at one choice; None where memory does not suffice."""
        batch_size = whole_pieces(batch_size, self._mesh)
        config = dataclasses.replace(self._config, batch_size=batch_size, widths=widths)
        indices = self._sample(batch_size)
        try:
            cold, warm = self._seconds(config, indices), self._seconds(config, indices)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None
        if batch_size not in self._program_seconds:
            sampled = len(set(self._widths(config, [indices])))
            self._program_seconds[batch_size] = max(cold - warm, 0.0) / sampled
        job = self._widths(config, self._shards())
        return Cost(
            batch_size,
            widths,
            len(set(job)),
            self._program_seconds[batch_size],
            len(job),
            warm / -(-len(indices) // batch_size),
        )

    def _seconds(self, config: LabelConfig, indices: Sequence[int]) -> float:
        began = time.perf_counter()
        rows = predict.label(
            *self._teacher,
            self._examples,
            indices,
            config,
            source_length=self._source_length,
            target_length=self._target_length,
            mesh=self._mesh,
            after_batch=lambda _: self._check_stop(),
        )
        # By one clock: hosts that chose differently would wait for each other for ever.
        seconds = hosts.from_first(lambda: time.perf_counter() - began)
        self.answers.update((i, row.tokens_T) for i, row in zip(indices, rows, strict=True))
        return seconds

    def _sample(self, batch_size: int) -> list[int]:
        """Batches out of the pool by length: one from each of equal parts, none twice."""
        total = len(self._longest_first)
        count = min(SAMPLED_BATCHES, -(-total // batch_size))
        if count * batch_size >= total:
            return self._longest_first.tolist()
        middles = (np.arange(count) + 0.5) * total / count
        starts = np.clip(middles - batch_size / 2, 0, total - batch_size).astype(int)
        return np.concatenate(
            [self._longest_first[start : start + batch_size] for start in starts]
        ).tolist()

    def _shards(self) -> Iterator[range]:
        size, total = self._config.shard_examples, len(self._examples)
        return (range(start, min(start + size, total)) for start in range(0, total, size))

    def _widths(self, config: LabelConfig, parts: Iterator[range] | list[list[int]]) -> list[int]:
        """The width of every batch of some parts, each of which is sorted by itself."""
        return [
            batch.encoder_tokens_BS.shape[1]
            for part in parts
            for batch in evaluation_batches(
                self._examples,
                config.batch_size,
                self._source_length,
                part,
                config.widths,
            )
        ]
