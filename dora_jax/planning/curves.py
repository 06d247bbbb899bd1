"""Learning curves: a bounded power law with offset, and what the runs leave open about it.

    value(x) = top - drop · (x / unit)^-exponent,  drop >= 0,  top <= bound

Letters beyond `shapes.py`: N runs, R replicates of the bootstrap, X places on the axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Exponents of published learning curves lie between 0.05 and 2 (Hestness et al. 2017; Rosenfeld
# et al. 2020). A grid makes the fit a global one, and thousands of replicates one matrix product.
EXPONENTS = np.geomspace(0.05, 3.0, 48)
PARAMETERS = 3
MIN_RUNS, MIN_PLACES = 4, 3  # below these a curve of three parameters is no measurement


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """Curves, one a replicate.

    Attributes:
      top_R: the value that is never reached, in percent.
      drop_R: how far below it the curve is at `unit`.
      exponent_R: how fast the drop shrinks.
      unit: of the axis.
    """

    top_R: np.ndarray
    drop_R: np.ndarray
    exponent_R: np.ndarray
    unit: float

    def values(self, x_X: np.ndarray) -> np.ndarray:
        """Float [replicates, places], at least 0."""
        powers_RX = (np.asarray(x_X) / self.unit) ** -self.exponent_R[:, None]
        return np.maximum(self.top_R[:, None] - self.drop_R[:, None] * powers_RX, 0.0)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What was measured and nothing more: the value of the largest measured place not above x.

    Attributes:
      places: float, ascending.
      values_RP: float [replicates, places].
    """

    places: np.ndarray
    values_RP: np.ndarray

    def values(self, x_X: np.ndarray) -> np.ndarray:
        """Float [replicates, places asked for]; nan below the first place."""
        index_X = np.searchsorted(self.places, np.asarray(x_X) * (1 + 1e-9), side="right") - 1
        return np.where(index_X >= 0, self.values_RP[:, np.maximum(index_X, 0)], np.nan)


Curve = PowerLaw | Steps


class Series(NamedTuple):
    """The runs of one curve.

    Attributes:
      x_N: float [runs], positive: labels, or dollars.
      values_N: float [runs], in percent.
      errors_N: float [runs]: standard error of each value from its test set alone, in percent.
    """

    x_N: np.ndarray
    values_N: np.ndarray
    errors_N: np.ndarray

    @property
    def has_curve(self) -> bool:
        """Whether there are runs enough for a curve."""
        return len(self.x_N) >= MIN_RUNS and len(np.unique(self.x_N)) >= MIN_PLACES


class Bands(NamedTuple):
    """A curve and its replicates: the central one, and those of the bootstrap."""

    central: Curve
    replicates: Curve


class Scatter(NamedTuple):
    """How runs that differ in the seed alone scatter.

    Attributes:
      sd: standard deviation, in percent; nan where nothing says.
      freedom: degrees of freedom behind it.
    """

    sd: float
    freedom: int


def fit(x_N: np.ndarray, values_RN: np.ndarray, bound: float = 100.0) -> PowerLaw:
    """Least squares for each row of values.

    For a given exponent top and drop are linear, so their bounded optimum is exact; the
    exponent is the best one of `EXPONENTS`.

    Args:
      x_N: float [runs], positive.
      values_RN: float [replicates, runs], in percent.
      bound: the metric's largest value.

    Raises:
      ValueError: a place that is not positive, or fewer than three different ones.
    """
    if np.min(x_N) <= 0 or len(np.unique(x_N)) < MIN_PLACES:
        raise ValueError(
            f"A learning curve needs {MIN_PLACES} different positive places; got "
            f"{sorted(set(map(float, x_N)))}."
        )
    unit = float(np.exp(np.mean(np.log(x_N))))
    powers_GN = (x_N / unit) ** -EXPONENTS[:, None]
    centred_GN = powers_GN - powers_GN.mean(axis=1, keepdims=True)
    slopes_RG = values_RN @ (centred_GN / np.sum(centred_GN**2, axis=1, keepdims=True)).T
    drop_RG = np.maximum(-slopes_RG, 0.0)
    top_RG = values_RN.mean(axis=1, keepdims=True) + drop_RG * powers_GN.mean(axis=1)
    # The problem is convex: where the free optimum breaks the bound, the bounded one lies on it.
    bounded_RG = np.maximum((bound - values_RN) @ powers_GN.T / np.sum(powers_GN**2, axis=1), 0.0)
    over_RG = top_RG > bound
    drop_RG, top_RG = np.where(over_RG, bounded_RG, drop_RG), np.minimum(top_RG, bound)
    fitted_RGN = top_RG[:, :, None] - drop_RG[:, :, None] * powers_GN
    errors_RG = np.sum((values_RN[:, None, :] - fitted_RGN) ** 2, axis=2)
    best_R = np.argmin(errors_RG, axis=1)
    rows_R = np.arange(len(values_RN))
    return PowerLaw(top_RG[rows_R, best_R], drop_RG[rows_R, best_R], EXPONENTS[best_R], unit)


def pooled_scatter(series: Sequence[Series]) -> Scatter:
    """The scatter of runs about their curves, or about the mean of their place, over all series."""
    squares, freedom = 0.0, 0
    for each in series:
        if each.has_curve:
            expected_N = fit(each.x_N, each.values_N[None]).values(each.x_N)[0]
            lost = PARAMETERS
        else:
            places = np.unique(each.x_N, return_inverse=True)[1]
            means = np.bincount(places, each.values_N) / np.bincount(places)
            expected_N, lost = means[places], len(means)
        squares += float(np.sum((each.values_N - expected_N) ** 2))
        freedom += len(each.x_N) - lost
    return Scatter(float(np.sqrt(squares / freedom)) if freedom else float("nan"), freedom)


def bootstrap(
    series: Sequence[Series], *, replicates: int = 1000, seed: int = 0
) -> tuple[list[Bands], Scatter]:
    """Bands of all curves together, so that replicates of two curves may be compared.

    A replicate draws every run afresh about its curve, with a scatter that is itself drawn from
    what so few residuals say of it (as Student's t does), and moves all runs together by their
    test set's standard error: they were scored on the same examples, so a hard test set
    is hard for all of them. The shift widens the interval of a value and cancels between curves.

    Args:
      series: those that share a test set.
      replicates: of the bootstrap.
      seed: of the draws.

    Returns:
      The bands, one a series, and the scatter they were drawn with. A series without a curve
      yields `Steps`.
    """
    rng = np.random.default_rng(seed)
    scatter = pooled_scatter(series)
    sd_R = np.zeros(replicates)
    if scatter.freedom:
        sd_R = scatter.sd * np.sqrt(scatter.freedom / rng.chisquare(scatter.freedom, replicates))
    shift_R = rng.standard_normal(replicates)
    return [_bands(each, sd_R, shift_R, rng) for each in series], scatter


def _bands(
    series: Series, sd_R: np.ndarray, shift_R: np.ndarray, rng: np.random.Generator
) -> Bands:
    x_N = series.x_N
    noise_RN = sd_R[:, None] * rng.standard_normal((len(sd_R), len(x_N)))
    noise_RN += shift_R[:, None] * series.errors_N
    if series.has_curve:
        central = fit(x_N, series.values_N[None])
        return Bands(central, fit(x_N, central.values(x_N) + noise_RN))
    places, index_N = np.unique(x_N, return_inverse=True)
    mean_NP = np.eye(len(places))[index_N] / np.bincount(index_N)
    central_RP = series.values_N[None] @ mean_NP
    replicates_RP = np.clip(central_RP + noise_RN @ mean_NP, 0.0, 100.0)
    return Bands(Steps(places, central_RP), Steps(places, replicates_RP))
