"""The best plan under a budget, how sure that is, and at which prices another one would win."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize

from dora_jax.planning.arms import Arm, Market, llm_label_price
from dora_jax.planning.curves import Bands, Scatter, Steps, bootstrap

REACH = 2.0  # a curve is believed up to this multiple of what was measured
DECIDED = 0.95  # the chance of being best from which a winner is called decided
TOLERANCE = 1.0  # points below the best that still count as nearly optimal
BREAK_EVEN_FACTORS = np.geomspace(0.01, 100.0, 41)
STUDENTS = np.unique(np.round(np.geomspace(1, 100, 25)))
_FAR_BELOW = -1000.0  # the value of a plan that cannot be paid


@dataclasses.dataclass(frozen=True)
class Plan:
    """Spending money on one arm, and what it would buy.

    Attributes:
      arm: its name; `strategy` is its strategy.
      place: on the arm's axis.
      labels, llm_labels: to buy in all, of people and of a language model.
      label_usd, llm_usd, work_usd: dollars of the plan: of both kinds of labels, and of compute.
      value, interval: expected over seeds, in percent; the interval includes the test set's.
      chance: that no other plan of the list is better.
      measured: "curve", "beyond": a curve beyond what was measured, or "points": runs too few for
        a curve, the best of them taken as it is.
    """

    arm: str
    strategy: str
    place: float
    labels: int
    llm_labels: int
    label_usd: float
    llm_usd: float
    work_usd: float
    value: float
    interval: tuple[float, float]
    chance: float
    measured: str

    @property
    def usd(self) -> float:
        return self.label_usd + self.llm_usd + self.work_usd


class Region(NamedTuple):
    """Plans of one arm that are within `TOLERANCE` points of the best."""

    arm: str
    usd: tuple[float, float]
    labels: tuple[int, int]
    llm_labels: tuple[int, int]


class BreakEven(NamedTuple):
    """Where the winner changes, as a price or a count.

    Attributes:
      of: "label price", "LLM label price", "device price" or "students a teacher".
      now: today's, in USD a label, as a multiple of the device price, or students.
      at: where another arm draws level; None where none does within what was searched.
      interval: of `at`, over the replicates in which there is one; None where there are too few.
      chance: share of the replicates in which there is one on this side.
      winner: the arm that wins beyond it; "" without one.
      searched: (low, high) of the search.
    """

    of: str
    now: float
    at: float | None
    interval: tuple[float, float] | None
    chance: float
    winner: str
    searched: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Arms with their bands: all that a decision needs of the runs."""

    arms: tuple[Arm, ...]
    bands: tuple[Bands, ...]
    scatter: Scatter
    reach: float = REACH

    def place(self, i: int, budget_usd: float, market: Market) -> float | None:
        """The furthest place of arm `i` that the budget pays; None where it pays none."""
        arm, curve = self.arms[i], self.bands[i].central
        low, high = min(arm.places), max(arm.places)
        if isinstance(curve, Steps):
            payable = [x for x in arm.places if _usd(arm, x, market) <= budget_usd * (1 + 1e-9)]
            values = curve.values(np.array(payable))[0] if payable else ()
            return payable[int(np.argmax(values))] if payable else None
        fixed, slope = arm.costs.at(market)
        if fixed + slope * low > budget_usd * (1 + 1e-9):
            return None
        furthest = (budget_usd - fixed) / slope if slope > 0 else np.inf
        return float(min(furthest, self.reach * high)) if furthest > low else low

    def expected(self, i: int, budget_usd: float, market: Market) -> float:
        """The value of arm `i` at that place; far below 0 where there is none."""
        x = self.place(i, budget_usd, market)
        return _FAR_BELOW if x is None else float(self.bands[i].central.values(np.array([x]))[0, 0])

    def replicates(self, i: int, budget_usd: float, market: Market) -> np.ndarray:
        """The same in every replicate: float [replicates]."""
        x, replicates = self.place(i, budget_usd, market), self.bands[i].replicates
        return replicates.values(np.array([x or self.arms[i].places[0]]))[:, 0] + (
            _FAR_BELOW if x is None else 0.0
        )


def fit_arms(arms: Sequence[Arm], *, replicates: int = 1000, seed: int = 0) -> Fitted:
    """Curves and bands of all arms, which must share a test set."""
    bands, scatter = bootstrap([arm.series for arm in arms], replicates=replicates, seed=seed)
    return Fitted(tuple(arms), tuple(bands), scatter)


def plans(fitted: Fitted, budget_usd: float, market: Market) -> list[Plan]:
    """What each arm would buy for the budget, the best first; arms it cannot pay are left out."""
    payable = [
        i for i in range(len(fitted.arms)) if fitted.place(i, budget_usd, market) is not None
    ]
    if not payable:
        return []
    values_AR = np.stack([fitted.replicates(i, budget_usd, market) for i in payable])
    chances = np.mean(values_AR == values_AR.max(axis=0), axis=1)
    found = [
        _plan(fitted, i, budget_usd, market, values_R, float(chance))
        for i, values_R, chance in zip(payable, values_AR, chances, strict=True)
    ]
    return sorted(found, key=lambda plan: -plan.value)


def _plan(
    fitted: Fitted, i: int, budget: float, market: Market, values_R: np.ndarray, chance: float
) -> Plan:
    arm, x = fitted.arms[i], fitted.place(i, budget, market)
    assert x is not None
    low, high = np.percentile(values_R, [2.5, 97.5])
    value = fitted.expected(i, budget, market)
    beyond = "beyond" if x > max(arm.places) * (1 + 1e-9) else "curve"
    label_usd, llm_usd, work_usd = (at(line, x) for line in arm.costs.parts(market))
    return Plan(
        arm=arm.name,
        strategy=arm.strategy,
        place=x,
        labels=count(arm.costs.labels, x),
        llm_labels=count(arm.costs.llm_labels, x),
        label_usd=label_usd,
        llm_usd=llm_usd,
        work_usd=work_usd,
        value=value,
        # A bounded curve is biased at its bound; the interval never leaves out the value itself.
        interval=(min(float(low), value), max(float(high), value)),
        chance=chance,
        measured="points" if isinstance(fitted.bands[i].central, Steps) else beyond,
    )


def at(line: tuple[float, float], x: float) -> float:
    """fixed + slope · x."""
    return line[0] + line[1] * x


def count(line: tuple[float, float], x: float) -> int:
    """Whole labels that a place on an arm takes."""
    return int(at(line, x) + 1e-6)


def _usd(arm: Arm, x: float, market: Market) -> float:
    return at(arm.costs.at(market), x)


def near_optimal(
    fitted: Fitted, budget_usd: float, market: Market, tolerance: float = TOLERANCE
) -> list[Region]:
    """The plans that the budget pays and whose value is within `tolerance` points of the best."""
    best = max(fitted.expected(i, budget_usd, market) for i in range(len(fitted.arms)))
    regions = []
    for i, arm in enumerate(fitted.arms):
        end = fitted.place(i, budget_usd, market)
        if end is None:
            continue
        curve = fitted.bands[i].central
        if isinstance(curve, Steps):
            x_X = np.array([x for x in curve.places if _usd(arm, x, market) <= budget_usd + 1e-9])
        else:
            x_X = np.geomspace(min(arm.places), end, 200)
        good_X = x_X[curve.values(x_X)[0] >= best - tolerance]
        if len(good_X):
            ends = good_X[0], good_X[-1]
            usd = tuple(_usd(arm, x, market) for x in ends)
            labels, llm_labels = (
                (count(line, ends[0]), count(line, ends[1]))
                for line in (arm.costs.labels, arm.costs.llm_labels)
            )
            regions.append(Region(arm.name, (usd[0], usd[1]), labels, llm_labels))
    return sorted(regions, key=lambda region: region.usd[0])


def break_evens(fitted: Fitted, budget_usd: float, market: Market) -> list[BreakEven]:
    """The label prices, device price and students a teacher at which the winner changes.

    Each is searched upwards and downwards from today's; what does not change the winner is told
    as such, with the range that was searched. Single runs alone are no curve to search along,
    and one arm has no other to lose against.
    """
    if len(fitted.arms) < 2 or all(isinstance(each.central, Steps) for each in fitted.bands):
        return []
    found = []
    for move in _moves(fitted.arms, market):
        for side in (move.grid[move.grid < move.now][::-1], move.grid[move.grid > move.now]):
            if len(side):
                walk = np.concatenate([[move.now], side])
                found.append(_break_even(fitted, budget_usd, move.of, walk, move.market))
    return found


class _Move(NamedTuple):
    """A price that is moved: where it is searched, its value now, and the market at a value."""

    of: str
    grid: np.ndarray
    now: float
    market: Callable[[float], Market]


def _moves(arms: Sequence[Arm], market: Market) -> list[_Move]:
    def replaced(field: str) -> Callable[[float], Market]:
        return lambda value: dataclasses.replace(market, **{field: value})

    cents = (market.label_usd or 0.01) * BREAK_EVEN_FACTORS
    moves = [_Move("label price", cents, market.label_usd, replaced("label_usd"))]
    paid = market.llm_label_usd
    paid = llm_label_price(arms) if paid is None else paid
    if paid is not None:
        # A language model's label costs a small part of a person's: up to that price at least.
        unit = paid or 0.001
        grid = np.geomspace(unit / 100, max(100 * unit, market.label_usd), 41)
        moves.append(_Move("LLM label price", grid, paid, replaced("llm_label_usd")))
    device = _Move(
        "device price", BREAK_EVEN_FACTORS, market.device_factor, replaced("device_factor")
    )
    if any(arm.costs.teacher != (0.0, 0.0) for arm in arms):
        students = _Move("students a teacher", STUDENTS, market.students, replaced("students"))
        return [*moves, device, students]
    return [*moves, device]


def _break_even(
    fitted: Fitted,
    budget_usd: float,
    of: str,
    walk: np.ndarray,
    market_at: Callable[[float], Market],
) -> BreakEven:
    now, many = float(walk[0]), range(len(fitted.arms))
    winner = max(many, key=lambda i: fitted.expected(i, budget_usd, market_at(now)))
    others = [i for i in many if i != winner]

    def lead(x: float) -> float:
        market = market_at(x)
        best = max((fitted.expected(i, budget_usd, market) for i in others), default=_FAR_BELOW)
        return fitted.expected(winner, budget_usd, market) - best

    leads = [lead(x) for x in walk]
    searched = (float(min(walk)), float(max(walk)))
    crossing = next((j for j in range(1, len(walk)) if leads[j] < 0), None)
    crossings_R = _crossings(fitted, budget_usd, winner, others, walk, market_at)
    there_R = crossings_R[np.isfinite(crossings_R)]
    chance = len(there_R) / len(crossings_R)
    if crossing is None:
        return BreakEven(of, now, None, None, chance, "", searched)
    ends = walk[crossing - 1], walk[crossing]
    place = optimize.root_scalar(lead, bracket=ends, method="brentq", xtol=1e-6 * max(ends)).root
    taker = max(others, key=lambda i: fitted.expected(i, budget_usd, market_at(walk[crossing])))
    interval = None
    if chance >= 0.5:
        low, high = np.percentile(there_R, [2.5, 97.5])
        interval = (min(float(low), place), max(float(high), place))
    return BreakEven(of, now, place, interval, chance, fitted.arms[taker].name, searched)


def _crossings(
    fitted: Fitted,
    budget_usd: float,
    winner: int,
    others: Sequence[int],
    walk: np.ndarray,
    market_at: Callable[[float], Market],
) -> np.ndarray:
    """Where each replicate's lead first turns, by interpolation; inf where it does not."""
    leads = []
    for x in walk:
        market = market_at(x)
        rivals_OR = np.stack(
            [fitted.replicates(i, budget_usd, market) for i in others]
            or [np.full_like(fitted.replicates(winner, budget_usd, market), _FAR_BELOW)]
        )
        leads.append(fitted.replicates(winner, budget_usd, market) - rivals_OR.max(axis=0))
    leads_RW = np.stack(leads, axis=1)
    behind_RW = leads_RW < 0
    first_R = np.argmax(behind_RW, axis=1)
    before_R, rows_R = np.maximum(first_R - 1, 0), np.arange(len(leads_RW))
    a_R, b_R = leads_RW[rows_R, before_R], leads_RW[rows_R, first_R]
    share_R = np.where(first_R > 0, a_R / np.where(a_R > b_R, a_R - b_R, 1.0), 0.0)
    crossing_R = walk[before_R] + share_R * (walk[first_R] - walk[before_R])
    return np.where(behind_RW.any(axis=1), crossing_R, np.inf)
