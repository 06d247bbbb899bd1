"""Planning on runs that are made up, so that the right answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import optimize

from dora_jax.planning.arms import (
    COMPUTE,
    DOLLARS,
    LABELS,
    LLM_LABELS,
    Market,
    Measured,
    arms_of,
    llm_label_price,
)
from dora_jax.planning.decision import Fitted, break_evens, fit_arms, near_optimal, plans
from dora_jax.planning.dollars import price_text, usd_text
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


LLM_USD = 0.002


def of_llm(labels: int, human: int = 0, seed: int = 0, usd: float = LLM_USD) -> Measured:
    """A student of a language model's labels; beside human ones where there are any."""
    return result(
        "llm_human" if human else "llm",
        human,
        float(60.0 - 200.0 * labels**-0.5) + 0.01 * human,
        seed=seed,
        device_usd=4.0,
        teacher_usd=0.0,
        annotator="gpt-x",
        llm_labels=labels,
        llm_usd=usd * labels,
    )


def test_labels_of_a_language_model_are_an_axis_with_a_price() -> None:
    made = [of_llm(n, seed=seed) for n in PLACES for seed in (0, 1)]
    (arm,) = arms_of(made)
    assert (arm.name, arm.axis, arm.places) == (
        "llm",
        LLM_LABELS,
        (125, 125, 250, 250, 500, 500, 1000, 1000),
    )
    assert arm.costs.at(MARKET) == pytest.approx((4.0, LLM_USD))
    dear = Market(LABEL_USD, device_factor=2.0, llm_label_usd=0.01)
    assert arm.costs.at(dear) == pytest.approx((8.0, 0.01))
    assert llm_label_price([arm]) == pytest.approx(LLM_USD)
    assert llm_label_price(arms_of([*made, of_llm(300, usd=0.004)])) is None
    assert llm_label_price(arms_of(runs())) is None
    (plan,) = plans(fit_arms([arm], replicates=100), 5.0, MARKET)
    assert (plan.labels, plan.llm_labels) == (0, 500)
    assert (plan.label_usd, plan.llm_usd, plan.work_usd) == pytest.approx((0.0, 1.0, 4.0))
    assert plan.value == pytest.approx(60 - 200 * 500**-0.5, abs=0.1)
    (region,) = near_optimal(fit_arms([arm], replicates=100), 5.0, MARKET)
    assert region.llm_labels[1] == 500 and region.labels == (0, 0)


def test_both_kinds_of_labels_are_varied_with_the_other_fixed() -> None:
    grid = [of_llm(n, human) for n in PLACES for human in (50, 100, 200, 400)]
    arms = {arm.name: arm for arm in arms_of(grid)}
    assert len(arms) == 8
    assert arms["llm_human [100 human labels]"].axis == LLM_LABELS
    over_people = arms["llm_human [500 LLM labels]"]
    assert over_people.axis == LABELS and over_people.places == (50, 100, 200, 400)
    assert over_people.costs.at(MARKET) == pytest.approx((4.0 + 500 * LLM_USD, LABEL_USD))
    assert over_people.costs.at(Market(LABEL_USD, llm_label_usd=0.1))[0] == pytest.approx(54.0)


def test_two_language_models_are_two_arms() -> None:
    cheap = [of_llm(n) for n in PLACES]
    other = [dataclasses.replace(r, annotator="gpt-y", recipe="other") for r in cheap]
    assert [arm.name for arm in arms_of([*cheap, *other])] == ["llm [gpt-x]", "llm [gpt-y]"]
    few = arms_of([cheap[0], other[0]])
    assert [arm.axis for arm in few] == [LLM_LABELS, LLM_LABELS]


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


@pytest.mark.parametrize("paid", [LLM_USD, 0.0])
def test_the_break_even_price_of_a_language_models_label(paid: float) -> None:
    """For 50 dollars a student of people's labels is better once a model's labels are dear."""
    made = [r for r in runs() if r.strategy == "annotate"]
    made += [of_llm(n, seed=seed, usd=paid) for n in PLACES for seed in (0, 1)]
    exact, budget = fit_arms(arms_of(made), replicates=100), 50.0
    market = Market(LABEL_USD)
    assert plans(exact, budget, market)[0].strategy == "llm"

    def lead(price: float) -> float:
        people = float(truth("annotate", (budget - 5.0) / (LABEL_USD + 0.01)))
        return 60.0 - 200.0 * ((budget - 4.0) / price) ** -0.5 - people

    expected = optimize.root_scalar(lead, bracket=(0.05, 1.0), method="brentq").root
    above = [b for b in break_evens(exact, budget, market) if b.of == "LLM label price"][-1]
    assert above.now == paid and above.searched[1] >= LABEL_USD
    assert above.winner == "annotate" and above.at == pytest.approx(expected, rel=0.03)
    assert not any(b.of == "students a teacher" for b in break_evens(exact, budget, market))


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


def test_dollars_read_as_dollars() -> None:
    amounts = [0.0, 0.004, 0.00003, 0.1, 1234.5]
    assert [usd_text(usd) for usd in amounts] == ["0.00", "0.004", "0.00003", "0.10", "1,234.50"]
    prices = [0.0, 0.26, 0.000587, 2.5, 12.345]
    assert [price_text(usd) for usd in prices] == ["0.00", "0.26", "0.000587", "2.5", "12.35"]
