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
# How far true values may lie off a power law before any run is seen: the scale of a half-normal
# prior, in points. `benchmarks/planning.py` says what it does to coverage.
MISFIT_PRIOR = 0.7


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
    """How runs scatter, and how far they lie off their curves beyond that.

    Attributes:
      sd: standard deviation of runs about their curves or places, in percent; nan where nothing
        says.
      freedom: degrees of freedom behind it.
      misfit: standard deviation of true values about the curves, in percent: the median of
        what the runs leave open.
    """

    sd: float
    freedom: int
    misfit: float


class Squares(NamedTuple):
    """Sums of squared residuals with their degrees of freedom.

    Attributes:
      within, within_freedom: of runs about the mean of their place.
      about, about_freedom: of these means about the curve, each weighted by its runs.
      runs: a place, on average.
    """

    within: float
    within_freedom: int
    about: float
    about_freedom: int
    runs: float


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


def squares_of(series: Series) -> Squares:
    """What scatters within places, and what lies off the curve; nothing does without a curve."""
    places, index_N, runs_P = np.unique(series.x_N, return_inverse=True, return_counts=True)
    means_P = np.bincount(index_N, series.values_N) / runs_P
    within = float(np.sum((series.values_N - means_P[index_N]) ** 2))
    about, freedom = 0.0, 0
    if series.has_curve:
        expected_P = fit(series.x_N, series.values_N[None]).values(places)[0]
        about = float(np.sum(runs_P * (means_P - expected_P) ** 2))
        freedom = len(places) - PARAMETERS
    runs = len(index_N) / len(places)
    return Squares(within, len(index_N) - len(places), about, freedom, runs)


def draw_scatter(
    squares: Sequence[Squares], replicates: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of what the residuals leave open: scatter of runs, and misfit of the curves.

        p(s, m) ~ 1/s · exp(-m² / 2 MISFIT_PRIOR²) · s^-a · exp(-within / 2s²)
                  · prod over curves (s² + runs · m²)^(-b/2) · exp(-about / 2(s² + runs · m²))

    with a and b the degrees of freedom: places of several runs tell seeds from a wrong form of the
    curve. Drawn from a grid.

    Args:
      squares: one a series.
      replicates: how many draws.
      rng: of the draws.

    Returns:
      Scatter and misfit, in percent, float [replicates] each; zeros where nothing says.
    """
    freedom = sum(each.within_freedom + each.about_freedom for each in squares)
    if not freedom:
        return np.zeros(replicates), np.zeros(replicates)
    typical = np.sqrt(sum(each.within + each.about for each in squares) / freedom)
    scatter_G = max(float(typical), 1e-6) * np.geomspace(0.02, 50.0, 120)
    misfit_M = MISFIT_PRIOR * np.geomspace(0.02, 4.0, 40)
    # Steps of both grids are by ratio: a density over m itself gains a factor of m.
    log_GM = np.log(misfit_M) - 0.5 * (misfit_M / MISFIT_PRIOR) ** 2 + np.zeros((120, 1))
    for each in squares:
        variance_G1 = scatter_G[:, None] ** 2
        variance_GM = variance_G1 + each.runs * misfit_M**2
        log_GM -= 0.5 * (each.within_freedom * np.log(variance_G1) + each.within / variance_G1)
        log_GM -= 0.5 * (each.about_freedom * np.log(variance_GM) + each.about / variance_GM)
    weights = np.exp(log_GM - log_GM.max()).ravel()
    drawn = rng.choice(weights.size, replicates, p=weights / weights.sum())
    return scatter_G[drawn // len(misfit_M)], misfit_M[drawn % len(misfit_M)]


def bootstrap(
    series: Sequence[Series], *, replicates: int = 1000, seed: int = 0
) -> tuple[list[Bands], Scatter]:
    """Bands of all curves together, so that replicates of two curves may be compared.

    A replicate draws every run afresh about its curve, with a scatter of runs and a misfit of
    places that are themselves drawn from what so few residuals say of them, and moves all runs
    together by their test set's standard error: they were scored on the same examples, so a hard
    test set is hard for all of them. That shift widens the interval of a value and cancels between
    curves. The misfit moves each fitted curve once more: the place that is asked about lies off it
    too.

    Args:
      series: those that share a test set.
      replicates: of the bootstrap.
      seed: of the draws.

    Returns:
      The bands, one a series, and the scatter they were drawn with. A series without a curve
      yields `Steps`.
    """
    rng = np.random.default_rng(seed)
    squares = [squares_of(each) for each in series]
    sd_R, misfit_R = draw_scatter(squares, replicates, rng)
    shift_R = rng.standard_normal(replicates)
    bands = [_bands(each, sd_R, misfit_R, shift_R, rng) for each in series]
    freedom = sum(each.within_freedom + each.about_freedom for each in squares)
    total = sum(each.within + each.about for each in squares)
    sd = float(np.sqrt(total / freedom)) if freedom else float("nan")
    return bands, Scatter(sd, freedom, float(np.median(misfit_R)))


def _bands(
    series: Series,
    sd_R: np.ndarray,
    misfit_R: np.ndarray,
    shift_R: np.ndarray,
    rng: np.random.Generator,
) -> Bands:
    x_N = series.x_N
    places, index_N = np.unique(x_N, return_inverse=True)
    noise_RN = sd_R[:, None] * rng.standard_normal((len(sd_R), len(x_N)))
    noise_RN += shift_R[:, None] * series.errors_N
    if series.has_curve:
        central = fit(x_N, series.values_N[None])
        off_RP = misfit_R[:, None] * rng.standard_normal((len(misfit_R), len(places)))
        law = fit(x_N, central.values(x_N) + noise_RN + off_RP[:, index_N])
        off_R = misfit_R * rng.standard_normal(len(misfit_R))
        top_R = np.minimum(law.top_R + off_R, 100.0)
        return Bands(central, dataclasses.replace(law, top_R=top_R))
    mean_NP = np.eye(len(places))[index_N] / np.bincount(index_N)
    central_RP = series.values_N[None] @ mean_NP
    replicates_RP = np.clip(central_RP + noise_RN @ mean_NP, 0.0, 100.0)
    return Bands(Steps(places, central_RP), Steps(places, replicates_RP))
