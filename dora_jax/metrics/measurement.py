"""What is counted of each example, from which every metric and every interval follows.

A metric family turns targets, predictions and sources into a `Measurement`; scores, bootstrap
intervals and paired comparisons are the same for all of them. Letters as in `bootstrap.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dora_jax.metrics.bootstrap import (
    PairedDifference,
    Summarise,
    bootstrap_intervals,
    paired_bootstrap,
)
from dora_jax.metrics.scores import Scores

# Before the names of the metrics that are counted as the authors' script counts them.
PAPER = "paper/"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Statistics of a set of predictions, example by example.

    Attributes:
        statistics_NC: float64 [examples, statistics].
        summarise: sums of statistics → metric name → values in percent; the names of the
            authors' way of counting begin with `PAPER`.
        primary: the strict metric a run reports by.
        notes: counts that explain the metrics.
        confusion: gold class → predicted class → examples; empty where there are no classes.
        remarks: sentences for the user.
    """

    statistics_NC: np.ndarray
    summarise: Summarise
    primary: str
    notes: dict[str, int | float] = dataclasses.field(default_factory=dict)
    confusion: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Every metric of all examples, in percent, under the names of `summarise`."""
        totals_1C = self.statistics_NC.sum(axis=0, keepdims=True)
        return {name: float(value[0]) for name, value in self.summarise(totals_1C).items()}

    def scores(self, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Scores:
        """The metrics with their bootstrap intervals.

        Args:
            resamples: of the bootstrap; 0 leaves the intervals out.
            confidence: coverage of the intervals.
            seed: of the bootstrap.

        Raises:
            ValueError: arguments out of range.
        """
        metrics = self.metrics()
        intervals: dict[str, tuple[float, float]] = {}
        if resamples:
            intervals = bootstrap_intervals(
                self.statistics_NC,
                self.summarise,
                resamples=resamples,
                confidence=confidence,
                seed=seed,
            )
        return Scores(
            examples=len(self.statistics_NC),
            primary=self.primary,
            strict={name: v for name, v in metrics.items() if not name.startswith(PAPER)},
            paper={
                name.removeprefix(PAPER): v for name, v in metrics.items() if name.startswith(PAPER)
            },
            intervals=intervals,
            notes=self.notes,
            confusion=self.confusion,
            remarks=self.remarks,
        )


def compare(
    a: Measurement,
    b: Measurement,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """A minus B on the same examples, for every metric that both have.

    Args:
        a: of one system.
        b: of another one, measured by the same function on the same examples in the same order.
        resamples: of the paired bootstrap.
        confidence: coverage of the intervals.
        seed: of the bootstrap.

    Returns:
        metric → difference in points, its interval and p-value.

    Raises:
        ValueError: different numbers of examples or statistics, or arguments out of range.
    """
    both = set(a.metrics()) & set(b.metrics())

    def summarise(totals_RC: np.ndarray) -> dict[str, np.ndarray]:
        return {name: v for name, v in a.summarise(totals_RC).items() if name in both}

    return paired_bootstrap(
        a.statistics_NC,
        b.statistics_NC,
        summarise,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def percent_means(names: Sequence[str]) -> Summarise:
    """What summarises means of per-example values: columns `names` of 0 to 1, then one of ones."""

    def summarise(totals_RC: np.ndarray) -> dict[str, np.ndarray]:
        means_RC = 100.0 * totals_RC[:, :-1] / totals_RC[:, -1:]
        return dict(zip(names, means_RC.T, strict=True))

    return summarise
