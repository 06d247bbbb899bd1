"""Planning on runs that are made up, so that the right answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import optimize

from dora_jax.planning import curves
from dora_jax.planning.arms import COMPUTE, DOLLARS, LABELS, Market, Measured, arms_of
from dora_jax.planning.curves import PowerLaw, Series, Steps, bootstrap, fit
from dora_jax.planning.decision import Fitted, break_evens, fit_arms, near_optimal, plans
from dora_jax.planning.front import budget_grid, fitted_front, measured_points
from dora_jax.planning.next_measurement import measure_next

LABEL_USD = 0.26
PLACES = (125, 250, 500, 1000)
MARKET = Market(LABEL_USD)


def truth(strategy: str, labels: np.ndarray | float) -> np.ndarray:
    """Distilling starts higher and ends lower: for little money it is better."""
    top, drop, exponent = {"annotate": (88.0, 400.0, 0.45), "distill": (76.0, 120.0, 0.4)}[strategy]
    return top - drop * np.asarray(labels, float) ** -exponent


def result(strategy: str, labels: int, value: float, **changed: object) -> Measured:
    device = 5.0 + 0.01 * labels if strategy == "annotate" else 40.0 + 0.02 * labels
    made = Measured(
        name=f"{strategy}-{labels}",
        strategy=strategy,
        recipe=f"recipe of {strategy}",
        student="small",
        seed=0,
        labels=labels,
        label_usd=LABEL_USD * labels,
        device_usd=device,
        teacher_usd=0.75 * device if strategy == "distill" else 0.0,
        other_usd=0.0,
        value=value,
        interval=(value - 2.0, value + 2.0),
    )
    return dataclasses.replace(made, **changed)  # type: ignore[arg-type]


def runs(rng: np.random.Generator | None = None, sd: float = 1.0) -> list[Measured]:
    """Two seeds a place; without scatter where there is no generator."""
    noise = (lambda: 0.0) if rng is None else (lambda: sd * rng.standard_normal())
    return [
        result(strategy, labels, float(truth(strategy, labels)) + noise(), seed=seed)
        for strategy in ("annotate", "distill")
        for labels in PLACES
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit_arms(arms_of(runs(np.random.default_rng(7))), replicates=500)


# --- curves


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


# --- arms


def test_runs_of_one_recipe_lie_on_a_labels_arm_with_its_costs() -> None:
    annotate, distill = arms_of(runs())
    assert (annotate.name, annotate.axis) == ("annotate", LABELS)
    np.testing.assert_allclose(distill.costs.device, [40.0, 0.02])
    np.testing.assert_allclose(distill.costs.teacher, [30.0, 0.015])
    fixed, slope = distill.costs.at(Market(0.5, device_factor=2.0, students=3))
    # Device dollars double, then two thirds of the teacher's three quarters are saved.
    np.testing.assert_allclose([fixed, slope], [80 * 0.5, 0.5 + 0.04 * 0.5])


def test_other_recipes_at_the_same_labels_lie_on_a_compute_arm() -> None:
    made = [
        result("distill", 1000, 60.0 + i, recipe=f"{i}", device_usd=usd, teacher_usd=0.5 * usd)
        for i, usd in enumerate([10.0, 10.5, 20.0, 40.0])
    ]
    (arm,) = arms_of(made)
    assert (arm.name, arm.axis) == ("distill, 1,000 labels", COMPUTE)
    assert arm.places == pytest.approx([10.25, 10.25, 20.0, 40.0])
    assert arm.costs.at(MARKET) == pytest.approx((260.0, 1.0))


def test_mixtures_lie_on_a_dollars_arm() -> None:
    made = [result("distill", n, 60.0, recipe=str(n), device_usd=0.26 * n) for n in (100, 200, 400)]
    (arm,) = arms_of(made)
    assert arm.axis == DOLLARS
    fixed, slope = arm.costs.at(MARKET)
    np.testing.assert_allclose([fixed, slope], [0.0, 1.0], atol=1e-6)
    assert arm.costs.labels == pytest.approx((0.0, 1 / 0.52), abs=1e-6)
    with pytest.raises(ValueError, match="cost nothing"):
        arms_of([result("llm", 0, 50.0, device_usd=0.0, label_usd=0.0)])


def test_arms_of_one_strategy_are_told_apart() -> None:
    made = [*runs(), *(dataclasses.replace(r, recipe="b", student="base") for r in runs())]
    names = [arm.name for arm in arms_of(made)]
    assert names == ["annotate [base]", "annotate [small]", "distill [base]", "distill [small]"]


# --- decisions


def test_the_best_plan_changes_with_the_budget(fitted: Fitted) -> None:
    small, large = plans(fitted, 120.0, MARKET), plans(fitted, 580.0, MARKET)
    assert (small[0].strategy, large[0].strategy) == ("distill", "annotate")
    for plan in (*small, *large):
        assert plan.usd <= 580.0 * (1 + 1e-9)
        assert plan.interval[0] <= float(truth(plan.strategy, plan.labels)) <= plan.interval[1]
    assert large[0].measured == "beyond" and small[0].measured == "curve"
    assert sum(plan.chance for plan in small) == pytest.approx(1.0)
    assert small[0].usd == pytest.approx(120.0)
    assert plans(fitted, 1.0, MARKET) == []


def test_no_plan_reaches_further_than_a_curve_is_believed(fitted: Fitted) -> None:
    assert [plan.labels for plan in plans(fitted, 1e6, MARKET)] == [2000, 2000]


def test_the_near_optimal_region_is_what_the_curve_says() -> None:
    exact = fit_arms(arms_of(runs()), replicates=50)
    region = next(r for r in near_optimal(exact, 400.0, MARKET) if r.arm == "annotate")
    best = plans(exact, 400.0, MARKET)[0]
    curve = exact.bands[0].central
    at_the_end = curve.values(np.array([float(region.labels[0])]))[0, 0]
    assert best.value - at_the_end == pytest.approx(1.0, abs=0.1)
    assert region.usd[1] == pytest.approx(400.0) and region.usd[0] < 390.0


def known_break_even(budget: float) -> float:
    """Label price at which the true curves give equal values, by an independent search."""

    def lead(price: float) -> float:
        annotate = (budget - 5.0) / (price + 0.01)
        distill = (budget - 40.0) / (price + 0.02)
        return float(
            truth("annotate", min(annotate, 2000.0)) - truth("distill", min(distill, 2000.0))
        )

    return optimize.root_scalar(lead, bracket=(0.2, 5.0), method="brentq").root


def test_the_break_even_label_price_is_the_known_one() -> None:
    exact = fit_arms(arms_of(runs()), replicates=200)
    found = [b for b in break_evens(exact, 500.0, MARKET) if b.at is not None]
    label = next(b for b in found if b.of == "label price")
    assert label.winner == "distill"
    assert label.at == pytest.approx(known_break_even(500.0), rel=0.03)
    assert label.at is not None and label.interval is not None
    assert label.interval[0] <= label.at <= label.interval[1]


def test_dearer_devices_and_shared_teachers_change_the_winner_where_they_should() -> None:
    exact = fit_arms(arms_of(runs()), replicates=200)
    by_name = {(b.of, b.searched[0] < b.now): b for b in break_evens(exact, 130.0, MARKET)}
    dearer = by_name["device price", False]
    assert dearer.winner == "annotate" and dearer.at is not None
    factor = dearer.at
    at = {p.strategy: p.value for p in plans(exact, 130.0, Market(LABEL_USD, factor))}
    assert at["annotate"] == pytest.approx(at["distill"], abs=0.05)
    # Who wins already wins all the more where the teacher is shared.
    assert by_name["students a teacher", False].at is None


def test_a_wide_doubt_is_told_as_such() -> None:
    scattered = fit_arms(arms_of(runs(np.random.default_rng(3), sd=6.0)), replicates=300)
    best = plans(scattered, 300.0, MARKET)
    assert best[0].chance < 0.95
    wanted = measure_next(scattered, 300.0, MARKET)
    assert wanted and all(w.doubt is not None and w.doubt[1] < w.doubt[0] for w in wanted)
    assert all(w.usd > 0 for w in wanted)


def test_what_is_decided_needs_no_more_runs() -> None:
    assert measure_next(fit_arms(arms_of(runs()), replicates=100), 110.0, MARKET) == []


def test_a_single_run_names_the_runs_that_are_missing() -> None:
    made = [result("annotate", 300, 40.0), result("distill", 300, 60.0)]
    few = fit_arms(arms_of(made), replicates=100)
    (best, second) = plans(few, 200.0, MARKET)
    assert (best.strategy, best.measured, best.value) == ("distill", "points", 60.0)
    assert best.usd <= 200.0 and second.value == 40.0
    assert break_evens(few, 200.0, MARKET) == []
    wanted = measure_next(few, 200.0, MARKET)
    names = ("annotate", "distill")
    assert [(w.arm, w.labels) for w in wanted] == [(a, n) for n in (150, 75, 300) for a in names]
    assert [w.usd for w in wanted[:2]] == [150 * LABEL_USD + 8.0, 150 * LABEL_USD + 46.0]
    assert all("a curve needs 4 runs at 3 places" in w.why for w in wanted)


# --- the front


def test_the_measured_front_is_what_nothing_beats() -> None:
    made = [
        result("annotate", 100, 50.0),
        result("annotate", 200, 45.0),
        result("distill", 100, 70.0, interval=None),
        result("distill", 100, 72.0, seed=1),
    ]
    points = measured_points(made)
    assert [(p.strategy, p.labels, p.on_front) for p in points] == [
        ("annotate", 100, True),
        ("annotate", 200, False),
        ("distill", 100, True),
    ]
    assert points[2].value == 71.0 and points[2].interval == (70.0, 74.0)


def test_the_fitted_front_rises_with_the_budget(fitted: Fitted) -> None:
    budgets = budget_grid(fitted, MARKET)
    front = fitted_front(fitted, budgets, MARKET)
    values = [of_budget[0].value for of_budget in front]
    assert np.all(np.diff(values) >= -1e-9)
    assert front[0] and budgets[0] < 50 < 500 < budgets[-1]


# --- honesty of the whole


def test_interval_and_regret_of_the_recommendation() -> None:
    """Made-up worlds with known answers: what a recommended plan is worth, and what it loses."""
    rng, regrets, covered = np.random.default_rng(11), [], []
    for trial in range(60):
        made = [dataclasses.replace(run, interval=None) for run in runs(rng, sd=1.5)]
        fitted = fit_arms(arms_of(made), replicates=200, seed=trial)
        for budget in (120.0, 250.0, 450.0):
            found = plans(fitted, budget, MARKET)
            worth = [float(truth(plan.strategy, plan.place)) for plan in found]
            regrets.append(max(worth) - worth[0])
            low, high = found[0].interval
            covered.append(low <= worth[0] <= high)
    assert 0.85 <= np.mean(covered) <= 0.99
    assert np.mean(regrets) < 0.35 and np.max(regrets) < 5.0


def test_a_power_law_in_numbers() -> None:
    law = PowerLaw(np.array([80.0]), np.array([20.0]), np.array([0.5]), unit=100.0)
    np.testing.assert_allclose(
        law.values(np.array([25.0, 100.0, 400.0, 1.0])), [[40.0, 60.0, 70.0, 0.0]]
    )
