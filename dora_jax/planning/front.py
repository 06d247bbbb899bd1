"""The Pareto front: what was measured and nothing beats, and the best plan for every budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable

import numpy as np

from dora_jax.planning.arms import Market, Measured
from dora_jax.planning.decision import Fitted, Plan, plans


@dataclasses.dataclass(frozen=True)
class Point:
    """Results that differ in seeds alone, as one.

    Attributes:
      strategy, labels, llm_labels: what they have in common.
      usd: mean of what they cost alone.
      value: mean, in percent.
      interval: lowest and highest end of their test-set intervals; the value where none is known.
      runs: their names.
      on_front: no other point is at least as good for less.
    """

    strategy: str
    labels: int
    llm_labels: int
    usd: float
    value: float
    interval: tuple[float, float]
    runs: tuple[str, ...]
    on_front: bool


def measured_points(results: Iterable[Measured]) -> list[Point]:
    """One point for each strategy, recipe and numbers of labels, the cheapest first."""
    groups: dict[Hashable, list[Measured]] = {}
    for result in results:
        key = (result.strategy, result.recipe, result.labels, result.llm_labels)
        groups.setdefault(key, []).append(result)
    points = sorted(map(_point, groups.values()), key=lambda point: (point.usd, -point.value))
    best = -np.inf
    for i, point in enumerate(points):
        points[i] = dataclasses.replace(point, on_front=point.value > best)
        best = max(best, point.value)
    return points


def _point(group: list[Measured]) -> Point:
    ends = [end for result in group for end in (result.interval or (result.value,))]
    return Point(
        strategy=group[0].strategy,
        labels=group[0].labels,
        llm_labels=group[0].llm_labels,
        usd=float(np.mean([result.usd for result in group])),
        value=float(np.mean([result.value for result in group])),
        interval=(min(ends), max(ends)),
        runs=tuple(result.name for result in group),
        on_front=False,
    )


def budget_grid(fitted: Fitted, market: Market, count: int = 60) -> np.ndarray:
    """Budgets from the cheapest plan to the dearest that is believed, evenly by ratio, in USD."""
    low, high = np.inf, 0.0
    for arm in fitted.arms:
        fixed, slope = arm.costs.at(market)
        low = min(low, fixed + slope * min(arm.places))
        high = max(high, fixed + slope * fitted.reach * max(arm.places))
    # Rounded up, so that the first budget pays for the cheapest plan.
    low = max(low, high / 1e4, 1e-6)
    return np.geomspace(low * 1.001, max(high, low * 1.01), count)


def fitted_front(fitted: Fitted, budgets_usd: Iterable[float], market: Market) -> list[list[Plan]]:
    """The plans of each budget, the best first; empty where it pays for none."""
    return [plans(fitted, float(budget), market) for budget in budgets_usd]
