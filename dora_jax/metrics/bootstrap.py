"""Bootstrap intervals and paired comparisons from per-example sufficient statistics.

A metric that is a function of sums over examples (counts for F1, hits for accuracy) needs no
re-scoring: a resample is a vector of counts, and all resamples of a block are one matrix
product of counts and statistics.

Letters beyond `shapes.py`: N examples, C statistics of an example, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

# totals_RC -> metric name -> values_R, in percent
Summarise = Callable[[np.ndarray], dict[str, np.ndarray]]

# Resamples drawn at a time: 128 keep the counts of 5,000 examples within the caches (5 MB).
_BLOCK = 128


class PairedDifference(NamedTuple):
    """Metric of A minus metric of B on the same examples, in points (percent)."""

    difference: float
    interval: tuple[float, float]
    p_value: float


def bootstrap_intervals(
    statistics_NC: np.ndarray,
    summarise: Summarise,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of every metric that `summarise` gives.

    Args:
        statistics_NC: float [examples, statistics]; their sums determine the metrics.
        summarise: sums, float [resamples, statistics], to metrics, float [resamples] each.
        resamples: how many samples of N examples are drawn with replacement.
        confidence: coverage of the interval, in (0, 1).
        seed: of the resampling; the same seed resamples the same examples.

    Returns:
        Metric name → (low, high), in the metric's unit.

    Raises:
        ValueError: no examples, or arguments out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    _check(statistics_NC, resamples, confidence)
    totals_RC = np.concatenate(
        [
            counts_RN @ statistics_NC
            for counts_RN in _resample_counts(len(statistics_NC), resamples, seed)
        ]
    )
    return {
        name: _percentile_interval(values_R, confidence)
        for name, values_R in summarise(totals_RC).items()
    }


def paired_bootstrap(
    statistics_a_NC: np.ndarray,
    statistics_b_NC: np.ndarray,
    summarise: Summarise,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """Compares two systems on the same examples, resampling the examples, not the systems.

    The p-value is two-sided, for the hypothesis of no difference: the share of resampled
    differences that lie at least as far from the observed one as it lies from 0, counting
    the observed one as a resample, so it is never 0.

    Args:
        statistics_a_NC: float [examples, statistics] of system A.
        statistics_b_NC: the same of system B; row i is the same example.
        summarise: as in `bootstrap_intervals`.
        resamples: how many samples of N examples are drawn with replacement.
        confidence: coverage of the interval, in (0, 1).
        seed: of the resampling.

    Returns:
        Metric name → the difference A - B, its percentile interval and the p-value.

    Raises:
        ValueError: different shapes, no examples, arguments out of range.

    Source: Koehn, EMNLP 2004 (paired bootstrap); Berg-Kirkpatrick et al., EMNLP 2012, section 2
    (the centred test).
    """
    _check(statistics_a_NC, resamples, confidence)
    if statistics_a_NC.shape != statistics_b_NC.shape:
        raise ValueError(
            f"A paired comparison needs the same examples on both sides; A has statistics of "
            f"shape {statistics_a_NC.shape}, B of {statistics_b_NC.shape}."
        )
    observed = _differences(
        statistics_a_NC.sum(axis=0, keepdims=True),
        statistics_b_NC.sum(axis=0, keepdims=True),
        summarise,
    )
    blocks = [
        _differences(counts_RN @ statistics_a_NC, counts_RN @ statistics_b_NC, summarise)
        for counts_RN in _resample_counts(len(statistics_a_NC), resamples, seed)
    ]
    return {
        name: _paired(
            float(value[0]), np.concatenate([block[name] for block in blocks]), confidence
        )
        for name, value in observed.items()
    }


def _differences(
    totals_a_RC: np.ndarray, totals_b_RC: np.ndarray, summarise: Summarise
) -> dict[str, np.ndarray]:
    b = summarise(totals_b_RC)
    return {name: values_R - b[name] for name, values_R in summarise(totals_a_RC).items()}


def _paired(observed: float, differences_R: np.ndarray, confidence: float) -> PairedDifference:
    # Sums of floats depend on their order by about 1e-13: what lies as far in exact arithmetic
    # shall count as such.
    as_far = np.count_nonzero(np.abs(differences_R - observed) >= abs(observed) - 1e-9)
    return PairedDifference(
        difference=observed,
        interval=_percentile_interval(differences_R, confidence),
        p_value=float((1 + as_far) / (1 + len(differences_R))),
    )


def _check(statistics_NC: np.ndarray, resamples: int, confidence: float) -> None:
    if statistics_NC.ndim != 2 or len(statistics_NC) == 0:
        raise ValueError(
            f"The bootstrap needs statistics of shape [examples, statistics] with at least one "
            f"example; got {statistics_NC.shape}."
        )
    if resamples < 1:
        raise ValueError(f"resamples = {resamples}; it must be at least 1.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence}; it must lie in (0, 1).")


def _resample_counts(examples: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of float [<= _BLOCK, examples]: how often each example is in each resample."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        # Drawing indices and counting them is multinomial sampling, and several times faster
        # than Generator.multinomial, which draws one binomial for every example.
        drawn_RN = rng.integers(examples, size=(rows, examples))
        drawn_RN += np.arange(rows)[:, None] * examples
        counts = np.bincount(drawn_RN.ravel(), minlength=rows * examples)
        yield counts.reshape(rows, examples).astype(np.float64)


def _percentile_interval(values_R: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values_R, [tail, 100.0 - tail])
    return float(low), float(high)
