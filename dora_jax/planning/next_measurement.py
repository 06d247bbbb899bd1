"""Which run to make next: the one that says most about the decision for a dollar."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from dora_jax.planning.arms import COMPUTE, DOLLARS, Market
from dora_jax.planning.curves import MIN_PLACES, MIN_RUNS, Steps
from dora_jax.planning.decision import DECIDED, Fitted, at, count, plans

SPREAD = 2.0  # the ratio between neighbouring places that a new curve begins with


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A run worth making.

    Attributes:
      arm: on which it lies.
      place: on the arm's axis; `labels` and `llm_labels` are those it needs in all.
      usd: what it costs by the arm's own runs, its labels included.
      why: in words.
      doubt: standard deviation, in points, of the lead of the best plan over the second best:
        (now, after this run); None where that is not why.
    """

    arm: str
    place: float
    labels: int
    llm_labels: int
    usd: float
    why: str
    doubt: tuple[float, float] | None = None


def measure_next(
    fitted: Fitted, budget_usd: float, market: Market, most: int = 3
) -> list[Measurement]:
    """The runs to make next, the most worthwhile first; none where the winner is decided.

    First come runs without which an arm has no curve. Then those that reduce the doubt about
    the lead most for a dollar. With lead d, candidate's value f and scatter s of a run, all
    over the replicates, one more run leaves var(d) - cov(d, f)² / (var(f) + s²): exact where
    they are normal.
    """
    lacking = [list(_for_curve(fitted, i, market)) for i in range(len(fitted.arms))]
    if any(lacking):  # every arm's most needed run first
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*lacking))
        return [measurement for measurement in in_turn if measurement is not None]
    best = plans(fitted, budget_usd, market)
    if len(best) < 2 or best[0].chance >= DECIDED:
        return []
    names = [arm.name for arm in fitted.arms]
    first, second = (names.index(plan.arm) for plan in best[:2])
    lead_R = fitted.replicates(first, budget_usd, market) - fitted.replicates(
        second, budget_usd, market
    )
    now, candidates = float(np.std(lead_R)), []
    for i in (first, second):
        end = fitted.place(i, budget_usd, market)
        assert end is not None
        places = sorted({*fitted.arms[i].places, end})
        values_RX = fitted.bands[i].replicates.values(np.array(places))
        for x, value_R in zip(places, values_RX.T, strict=True):
            shared = float(np.mean((lead_R - lead_R.mean()) * (value_R - value_R.mean())))
            told = shared**2 / (float(np.var(value_R)) + fitted.scatter.sd**2)
            after = float(np.sqrt(max(now**2 - told, 0.0)))
            why = "reduces the doubt about who wins"
            measurement = _measurement(fitted, i, x, market, why, (now, after))
            candidates.append((told / max(measurement.usd, 1e-9), measurement))
    candidates.sort(key=lambda each: -each[0])
    return [measurement for _, measurement in candidates[:most]]


def _for_curve(fitted: Fitted, i: int, market: Market) -> Iterator[Measurement]:
    """Runs that an arm without a curve lacks; other places before other seeds."""
    arm = fitted.arms[i]
    if not isinstance(fitted.bands[i].central, Steps):
        return
    there = sorted(set(arm.places))
    wanted, low = list[float](), there[0]
    while len(there) + len(wanted) < MIN_PLACES:
        # Down from the smallest: each run costs half as much as the one before.
        low /= SPREAD
        wanted.append(float(round(low)) if arm.axis not in (COMPUTE, DOLLARS) and low >= 2 else low)
    wanted += there[: max(MIN_RUNS - len(arm.places) - len(wanted), 0)]
    for x in wanted:
        again = " with another seed" if x in there else ""
        axis = "compute dollars" if arm.axis == COMPUTE else arm.axis
        why = (
            f"a curve needs {MIN_RUNS} runs at {MIN_PLACES} places; {arm.name} has "
            f"{len(arm.places)} at {len(there)}: one more at {x:,.4g} {axis}{again}"
        )
        yield _measurement(fitted, i, x, market, why, None)


def _measurement(
    fitted: Fitted, i: int, x: float, market: Market, why: str, doubt: tuple[float, float] | None
) -> Measurement:
    arm, costs = fitted.arms[i], fitted.arms[i].costs
    labels, llm_labels = count(costs.labels, x), count(costs.llm_labels, x)
    return Measurement(arm.name, x, labels, llm_labels, at(costs.at(market), x), why, doubt)
