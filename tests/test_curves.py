"""Learning curves: the fit, and what runs leave open about it, against known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from dora_jax.planning import curves
from dora_jax.planning.curves import PowerLaw, Series, Squares, Steps, bootstrap, draw_scatter, fit


@pytest.mark.parametrize("top", [70.0, 99.0])
def test_a_fit_is_that_of_scipy(top: float) -> None:
    x = np.array([100.0, 200.0, 400.0, 800.0, 1600.0])
    values = top - 300.0 * x**-0.5 + np.random.default_rng(0).normal(0, 0.3, 5)

    def curve(x: np.ndarray, top: float, drop: float, exponent: float) -> np.ndarray:
        return top - drop * (x / 400.0) ** -exponent

    bounds = ([0.0, 0.0, 0.05], [100.0, 200.0, 3.0])
    found, _ = optimize.curve_fit(curve, x, values, p0=(80, 20, 0.5), bounds=bounds)
    ours = fit(x, values[None])
    squares = np.sum((ours.values(x)[0] - values) ** 2)
    assert squares <= 1.02 * np.sum((curve(x, *found) - values) ** 2) + 1e-6
    np.testing.assert_allclose(ours.values(x)[0], curve(x, *found), atol=0.1)


def test_exact_data_come_back_and_bounds_hold() -> None:
    x = np.array([1.0, 4.0, 16.0, 64.0])
    exponent = curves.EXPONENTS[20]
    ours = fit(x, (90.0 - 30.0 * x**-exponent)[None])
    np.testing.assert_allclose([ours.top_R[0], ours.exponent_R[0]], [90.0, exponent], rtol=1e-6)
    falling = fit(x, np.array([[50.0, 40.0, 30.0, 20.0]]))
    assert falling.drop_R[0] == 0.0 and falling.top_R[0] == pytest.approx(35.0)
    steep = fit(x, np.array([[10.0, 40.0, 70.0, 99.9]]))
    assert steep.top_R[0] <= 100.0
    assert np.all(np.diff(steep.values(np.geomspace(1, 1e6, 50))[0]) >= -1e-9)
    with pytest.raises(ValueError, match="3 different positive places"):
        fit(np.array([1.0, 1.0, 2.0]), np.ones((1, 3)))


def test_too_few_runs_have_no_curve_but_steps() -> None:
    series = Series(np.array([10.0, 10.0, 20.0]), np.array([50.0, 52.0, 60.0]), np.full(3, 1.0))
    (bands,), scatter = bootstrap([series], replicates=2000)
    assert isinstance(bands.central, Steps) and isinstance(bands.replicates, Steps)
    np.testing.assert_allclose(
        bands.central.values(np.array([9.0, 10.0, 15.0, 20.0, 90.0]))[0], [np.nan, 51, 51, 60, 60]
    )
    assert scatter.freedom == 1 and scatter.sd == pytest.approx(np.sqrt(2))
    # The test set shifts both places together.
    lead_R = bands.replicates.values_RP[:, 1] - bands.replicates.values_RP[:, 0]
    alone = Series(np.array([10.0, 20.0]), np.array([51.0, 60.0]), np.full(2, 1.0))
    (without,), unknown = bootstrap([alone], replicates=2000)
    assert np.isnan(unknown.sd) and unknown.freedom == 0
    spread = without.replicates.values(np.array([10.0, 20.0]))
    np.testing.assert_allclose(spread[:, 1] - spread[:, 0], 9.0)
    assert 0.9 < spread[:, 0].std() < 1.1 and lead_R.std() > 1.0


def test_coverage_of_the_bands_is_honest() -> None:
    """Between 85 and 99 % at nominal 95 %, inside and beyond what was measured."""
    rng = np.random.default_rng(5)
    laws = [(85.0, 300.0, 0.5), (95.0, 150.0, 0.25), (70.0, 2000.0, 1.0), (60.0, 0.0, 1.0)]
    x_N, asked = np.repeat([100.0, 250.0, 630.0, 1580.0], 2), np.array([130.0, 800.0, 3160.0])
    covered, widths = [], []
    for trial in range(240):
        top, drop, exponent = laws[trial % len(laws)]
        right = top - drop * asked**-exponent
        values_N = top - drop * x_N**-exponent + 1.5 * rng.standard_normal(8)
        values_N += 1.0 * rng.standard_normal()  # the test set's, the same for all runs
        (bands,), _ = bootstrap([Series(x_N, values_N, np.ones(8))], replicates=200, seed=trial)
        low, high = np.percentile(bands.replicates.values(asked), [2.5, 97.5], axis=0)
        covered.append((low <= right) & (right <= high))
        widths.append(high - low)
    coverage = np.mean(covered, axis=0)
    assert np.all((coverage >= 0.85) & (coverage <= 0.99)), coverage
    assert np.all(np.median(widths, axis=0) < 12.0)  # and says something


def test_scatter_is_drawn_as_few_residuals_allow() -> None:
    """Without a curve it is the textbook's: squares / chi², within a step of the grid."""
    drawn, misfit = draw_scatter([Squares(12.0, 6, 0.0, 0, 2.0)], 20_000, np.random.default_rng(0))
    expected = np.sqrt(12.0 / stats.chi2.ppf([0.9, 0.5, 0.1], 6))
    np.testing.assert_allclose(np.percentile(drawn, [10, 50, 90]), expected, rtol=0.07)
    # Nothing was said of a misfit: what was believed before stands.
    assert np.median(misfit) == pytest.approx(curves.MISFIT_PRIOR * stats.norm.ppf(0.75), rel=0.1)
    silent = draw_scatter([Squares(0.0, 0, 0.0, 0, 1.0)], 3, np.random.default_rng(0))
    assert not np.any(silent)


def test_runs_off_their_curve_widen_the_band_although_seeds_agree() -> None:
    x_N = np.repeat([125.0, 250.0, 500.0, 1000.0], 4)
    seeds_N = np.tile([-0.3, -0.1, 0.1, 0.3], 4)

    def of(true_P: list[float]) -> tuple[float, float, float]:
        values_N = np.repeat(true_P, 4) + seeds_N
        (bands,), scatter = bootstrap([Series(x_N, values_N, np.zeros(16))], replicates=2000)
        low, high = np.percentile(bands.replicates.values(np.array([1500.0])), [2.5, 97.5])
        inside = bands.replicates.values(np.array([500.0]))
        return scatter.misfit, float(high - low), float(np.std(inside))

    on_curve, off_curve = of([40.0, 50.0, 57.07, 62.07]), of([20.0, 23.0, 47.0, 72.0])
    assert on_curve[0] < 0.6 and off_curve[0] > 1.0
    assert off_curve[1] > 2.5 * on_curve[1]
    # The place that is asked about lies off the curve itself, not only those that were measured.
    assert off_curve[2] > off_curve[0]


def test_coverage_where_the_form_is_wrong() -> None:
    """S-shaped truths with four seeds, where seeds alone would make narrow bands: 85 to 99 %."""
    rng = np.random.default_rng(2)
    x_N, asked = np.repeat([125.0, 250.0, 500.0, 1000.0], 4), np.array([200.0, 700.0, 1500.0])
    covered = []
    for trial in range(150):
        top, middle, width = (
            rng.uniform(60, 95),
            np.log(rng.uniform(60, 400)),
            rng.uniform(0.6, 1.2),
        )

        def true(
            n: np.ndarray, top: float = top, m: float = middle, w: float = width
        ) -> np.ndarray:
            return top / (1 + np.exp(-(np.log(n) - m) / w))

        values_N = true(x_N) + rng.standard_normal(16) + rng.standard_normal()
        (bands,), _ = bootstrap([Series(x_N, values_N, np.ones(16))], replicates=200, seed=trial)
        low, high = np.percentile(bands.replicates.values(asked), [2.5, 97.5], axis=0)
        covered.append((low <= true(asked)) & (true(asked) <= high))
    assert 0.85 <= np.mean(covered) <= 0.99, np.mean(covered, axis=0)


def test_a_power_law_in_numbers() -> None:
    law = PowerLaw(np.array([80.0]), np.array([20.0]), np.array([0.5]), unit=100.0)
    np.testing.assert_allclose(
        law.values(np.array([25.0, 100.0, 400.0, 1.0])), [[40.0, 60.0, 70.0, 0.0]]
    )
