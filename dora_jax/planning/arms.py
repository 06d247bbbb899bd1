"""Ways to spend money that were measured: each a learning curve and what a place on it costs.

On a *labels* arm all runs share a recipe and differ in labels; compute follows from them. On a
*compute* arm labels and student are fixed and the recipe varies. What is left varies in both, as
mixtures do, and lies on a *dollars* arm, whose scatter then includes that of the recipes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from dora_jax.planning.curves import MIN_PLACES, Series

LABELS, COMPUTE, DOLLARS = "labels", "compute", "dollars"
# Compute dollars nearer to each other than this are one place: the same work costs a little
# more or less by the hour.
SAME_DOLLARS = 1.15


@dataclasses.dataclass(frozen=True)
class Measured:
    """One finished result, as planning sees it.

    Attributes:
      name: of its run.
      strategy: "annotate", "distill", …
      recipe: equal for results that differ in labels and seeds alone.
      student: equal for results whose students have the same size.
      seed: of the run.
      labels: human labels.
      label_usd: paid for them.
      device_usd: compute, all stages it needs in full; `teacher_usd` is the part of it that every
        student of the same teacher could share.
      other_usd: what no device price changes, such as a language model's tokens.
      value: in percent.
      interval: of the value, at `confidence`, from the test set alone; None where unknown.
    """

    name: str
    strategy: str
    recipe: str
    student: str
    seed: int
    labels: int
    label_usd: float
    device_usd: float
    teacher_usd: float
    other_usd: float
    value: float
    interval: tuple[float, float] | None
    confidence: float = 0.95

    @property
    def work_usd(self) -> float:
        """All but the human labels."""
        return self.device_usd + self.other_usd

    @property
    def usd(self) -> float:
        """What it costs alone."""
        return self.label_usd + self.work_usd

    @property
    def error(self) -> float:
        """Standard error from the test set, in percent; 0 where no interval says."""
        if self.interval is None:
            return 0.0
        width = self.interval[1] - self.interval[0]
        return float(width / (2 * stats.norm.ppf(0.5 + self.confidence / 2)))


@dataclasses.dataclass(frozen=True)
class Market:
    """Prices a plan is made for.

    Attributes:
      label_usd: price of a label.
      device_factor: device price as a multiple of what the runs paid.
      students: how many students share one teacher, and so its dollars.
    """

    label_usd: float
    device_factor: float = 1.0
    students: float = 1.0

    def __post_init__(self) -> None:
        if self.label_usd < 0 or self.device_factor < 0 or self.students < 1:
            raise ValueError(
                f"{self}: expected prices of at least 0 and at least one student a teacher."
            )


class CostLine(NamedTuple):
    """Dollars of a place on an arm's axis: fixed + slope · x, part by part."""

    labels: tuple[float, float]  # counted, not dollars
    device: tuple[float, float]
    teacher: tuple[float, float]  # the part of `device` that students share
    other: tuple[float, float]

    def at(self, market: Market) -> tuple[float, float]:
        """(fixed, slope) in USD under these prices."""
        saved = 1.0 - 1.0 / market.students
        fixed, slope = (
            labels * market.label_usd + (device - saved * teacher) * market.device_factor + other
            for labels, device, teacher, other in zip(*self, strict=True)
        )
        return fixed, slope


@dataclasses.dataclass(frozen=True)
class Arm:
    """Results that lie on one curve."""

    name: str
    strategy: str
    axis: str  # LABELS, COMPUTE or DOLLARS
    results: tuple[Measured, ...]
    places: tuple[float, ...]  # of the results on the axis
    costs: CostLine

    @property
    def series(self) -> Series:
        """What the curve is fitted to."""
        return Series(
            np.array(self.places),
            np.array([result.value for result in self.results]),
            np.array([result.error for result in self.results]),
        )


def arms_of(results: Iterable[Measured]) -> list[Arm]:
    """The arms that these results lie on. A result may lie on a labels and a compute arm."""
    results = list(results)
    arms: list[Arm] = []
    for group in _groups(results, lambda r: (r.strategy, r.recipe)):
        if len({r.labels for r in group} - {0}) >= MIN_PLACES:
            arms.append(_labels_arm(group))
    for group in _groups(results, lambda r: (r.strategy, r.student, r.labels)):
        places = _joined([r.work_usd for r in group])
        if len(set(places) - {0.0}) >= MIN_PLACES and min(places) > 0:
            arms.append(_compute_arm(group, places))
    covered = {id(result) for arm in arms for result in arm.results}
    left = [result for result in results if id(result) not in covered]
    for group in _groups(left, lambda r: (r.strategy, r.student)):
        if len({r.recipe for r in group}) == 1 and min(r.labels for r in group) > 0:
            arms.append(_labels_arm(group))
        else:
            arms.append(_dollars_arm(group))
    return _told_apart(arms)


def _groups(
    results: Sequence[Measured], key: Callable[[Measured], Hashable]
) -> list[list[Measured]]:
    groups: dict[Hashable, list[Measured]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return list(groups.values())


def _labels_arm(group: Sequence[Measured]) -> Arm:
    places = tuple(float(r.labels) for r in group)
    costs = _cost_line(places, group, labels=(0.0, 1.0))
    return Arm(group[0].strategy, group[0].strategy, LABELS, tuple(group), places, costs)


def _compute_arm(group: Sequence[Measured], places: tuple[float, ...]) -> Arm:
    labels = group[0].labels
    costs = _cost_line(places, group, labels=(float(labels), 0.0))
    name = f"{group[0].strategy}, {labels:,} labels"
    return Arm(name, group[0].strategy, COMPUTE, tuple(group), places, costs)


def _dollars_arm(group: Sequence[Measured]) -> Arm:
    places = _joined([r.usd for r in group])
    if min(places) <= 0:
        free = next(r.name for r in group if r.usd <= 0)
        raise ValueError(
            f"{free} cost nothing by its receipt, so it says nothing about dollars. Give the "
            "price of what it used, of a label or of a device-hour."
        )
    costs = _cost_line(places, group, labels=_line(places, [float(r.labels) for r in group]))
    name = f"{group[0].strategy}, mixed recipes" if len(set(places)) > 1 else group[0].strategy
    return Arm(name, group[0].strategy, DOLLARS, tuple(group), places, costs)


def _joined(dollars: Sequence[float]) -> tuple[float, ...]:
    """Each amount replaced by the mean of its neighbours, within `SAME_DOLLARS` of the smallest."""
    order, places = np.argsort(dollars), np.zeros(len(dollars))
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or dollars[order[end]] > SAME_DOLLARS * dollars[order[start]]:
            members = order[start:end]
            places[members] = np.mean([dollars[i] for i in members])
            start = end
    return tuple(map(float, places))


def _cost_line(
    places: Sequence[float], group: Sequence[Measured], labels: tuple[float, float]
) -> CostLine:
    device = _line(places, [r.device_usd for r in group])
    total = sum(r.device_usd for r in group)
    shared = sum(r.teacher_usd for r in group) / total if total else 0.0
    other = _line(places, [r.other_usd for r in group])
    return CostLine(labels, device, (shared * device[0], shared * device[1]), other)


def _line(places: Sequence[float], amounts: Sequence[float]) -> tuple[float, float]:
    """Least squares of fixed + slope · place, neither negative."""
    if len(set(places)) == 1:
        return float(np.mean(amounts)), 0.0
    unit = max(places)
    design = np.stack([np.ones(len(places)), np.array(places) / unit], axis=1)
    (fixed, slope), _ = optimize.nnls(design, np.array(amounts))
    return float(fixed), float(slope / unit)


def _told_apart(arms: list[Arm]) -> list[Arm]:
    """Arms with names of their own: equal ones get the student's size, or else the recipe."""
    for detail in ("student", "recipe"):
        names = [arm.name for arm in arms]
        arms = [
            dataclasses.replace(arm, name=f"{arm.name} [{getattr(arm.results[0], detail)}]")
            if names.count(arm.name) > 1
            else arm
            for arm in arms
        ]
    return sorted(arms, key=lambda arm: arm.name)
