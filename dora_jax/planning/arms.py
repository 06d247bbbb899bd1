"""Ways to spend money that were measured: each a learning curve and what a place on it costs.

On a *labels* arm all runs share a recipe and differ in human labels; compute follows from them. On
an *LLM labels* arm they differ in a language model's labels. On a *compute* arm labels and student
are fixed and the recipe varies. What is left varies in several, as mixtures do, and lies on a
*dollars* arm, whose scatter then includes that of the recipes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from dora_jax.planning.curves import MIN_PLACES, Series

LABELS, LLM_LABELS, COMPUTE, DOLLARS = "labels", "LLM labels", "compute", "dollars"
# Compute dollars nearer to each other than this are one place: the same work costs a little
# more or less by the hour.
SAME_DOLLARS = 1.15
# Shares of one purchase differ by rounded tokens; labels that differ by more have other prices.
SAME_PRICE = 1.05


@dataclasses.dataclass(frozen=True)
class Measured:
    """One finished result, as planning sees it.

    Attributes:
      name: of its run.
      strategy: "annotate", "distill", …
      recipe: equal for results that differ in numbers of labels and in seeds alone.
      student: equal for results whose students have the same size.
      seed: of the run.
      annotator: the language model whose labels it uses; "" without.
      labels, llm_labels: of people, and of a language model.
      label_usd, llm_usd: paid for them.
      device_usd: compute, all stages it needs in full; `teacher_usd` is the part of it that every
        student of the same teacher could share.
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
    value: float
    interval: tuple[float, float] | None
    confidence: float = 0.95
    annotator: str = ""
    llm_labels: int = 0
    llm_usd: float = 0.0

    @property
    def usd(self) -> float:
        """What it costs alone."""
        return self.label_usd + self.llm_usd + self.device_usd

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
      label_usd: price of a human label.
      device_factor: device price as a multiple of what the runs paid.
      students: how many students share one teacher, and so its dollars.
      llm_label_usd: price of any language model's label; None leaves what each run paid.
    """

    label_usd: float
    device_factor: float = 1.0
    students: float = 1.0
    llm_label_usd: float | None = None

    def __post_init__(self) -> None:
        prices = (self.label_usd, self.device_factor, self.llm_label_usd or 0.0)
        if min(prices) < 0 or self.students < 1:
            raise ValueError(
                f"{self}: expected prices of at least 0 and at least one student a teacher."
            )


class CostLine(NamedTuple):
    """A place on an arm's axis: fixed + slope · x, part by part; dollars where not counted."""

    labels: tuple[float, float]  # counted
    llm_labels: tuple[float, float]  # counted
    llm: tuple[float, float]  # paid for these
    device: tuple[float, float]
    teacher: tuple[float, float]  # the part of `device` that students share

    def parts(self, market: Market) -> list[tuple[float, float]]:
        """(fixed, slope) in USD under these prices: of human labels, LLM labels, devices."""
        saved, price = 1.0 - 1.0 / market.students, market.llm_label_usd
        return [
            _times(self.labels, market.label_usd),
            self.llm if price is None else _times(self.llm_labels, price),
            _times(
                (
                    self.device[0] - saved * self.teacher[0],
                    self.device[1] - saved * self.teacher[1],
                ),
                market.device_factor,
            ),
        ]

    def at(self, market: Market) -> tuple[float, float]:
        """(fixed, slope) in USD of all parts under these prices."""
        fixed, slope = zip(*self.parts(market), strict=True)
        return sum(fixed), sum(slope)


def _times(line: tuple[float, float], factor: float) -> tuple[float, float]:
    return line[0] * factor, line[1] * factor


@dataclasses.dataclass(frozen=True)
class Arm:
    """Results that lie on one curve."""

    name: str
    strategy: str
    axis: str  # LABELS, LLM_LABELS, COMPUTE or DOLLARS
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
    """The arms that these results lie on. A result may lie on several."""
    results = list(results)
    arms = [*_counted_arms(results, LABELS), *_counted_arms(results, LLM_LABELS)]
    for group in _groups(results, lambda r: (r.strategy, r.student, r.labels, r.llm_labels)):
        places = _joined([r.device_usd for r in group])
        if len(set(places) - {0.0}) >= MIN_PLACES and min(places) > 0:
            arms.append(_arm(group[0].strategy, COMPUTE, group, places))
    covered = {id(result) for arm in arms for result in arm.results}
    left = [result for result in results if id(result) not in covered]
    for group in _groups(left, lambda r: (r.strategy, r.student, r.annotator)):
        arms.append(_small_arm(group))
    return _told_apart(arms)


def llm_label_price(arms: Iterable[Arm]) -> float | None:
    """USD that a language model's label cost; None where none was bought, or at several prices."""
    prices = [r.llm_usd / r.llm_labels for arm in arms for r in arm.results if r.llm_labels]
    if not prices or max(prices) > SAME_PRICE * min(prices):
        return None
    return float(np.mean(prices))


_COUNT: dict[str, Callable[[Measured], int]] = {
    LABELS: lambda r: r.labels,
    LLM_LABELS: lambda r: r.llm_labels,
}


def _counted_arms(results: Sequence[Measured], axis: str) -> list[Arm]:
    """Arms of one recipe over one kind of labels, the other kind fixed."""
    count, fixed = _COUNT[axis], _COUNT[LLM_LABELS if axis == LABELS else LABELS]
    return [
        _arm(group[0].strategy, axis, group, [float(count(r)) for r in group])
        for group in _groups(results, lambda r: (r.strategy, r.recipe, fixed(r)))
        if len({count(r) for r in group} - {0}) >= MIN_PLACES
    ]


def _small_arm(group: Sequence[Measured]) -> Arm:
    """Results that are too few for a curve, over what they differ in, or could."""
    strategy = group[0].strategy
    if len({r.recipe for r in group}) == 1:
        for axis, other in ((LLM_LABELS, LABELS), (LABELS, LLM_LABELS)):
            counts = [float(_COUNT[axis](r)) for r in group]
            if min(counts) > 0 and len({_COUNT[other](r) for r in group}) == 1:
                return _arm(strategy, axis, group, counts)
    places = _joined([r.usd for r in group])
    if min(places) <= 0:
        free = next(r.name for r in group if r.usd <= 0)
        raise ValueError(
            f"{free} cost nothing by its receipt, so it says nothing about dollars. Give the "
            "price of what it used, of a label or of a device-hour."
        )
    name = f"{strategy}, mixed recipes" if len(set(places)) > 1 else strategy
    return _arm(name, DOLLARS, group, places)


def _groups(
    results: Sequence[Measured], key: Callable[[Measured], Hashable]
) -> list[list[Measured]]:
    groups: dict[Hashable, list[Measured]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return list(groups.values())


def _arm(name: str, axis: str, group: Sequence[Measured], places: Sequence[float]) -> Arm:
    if axis == COMPUTE:
        name = f"{name}, {labels_text(group[0].labels, group[0].llm_labels)}"
    device = _line(places, [r.device_usd for r in group])
    total = sum(r.device_usd for r in group)
    shared = sum(r.teacher_usd for r in group) / total if total else 0.0
    by_x = (0.0, 1.0)  # the arm's own axis
    paid_by_x = (0.0, sum(r.llm_usd for r in group) / sum(places))
    costs = CostLine(
        labels=by_x if axis == LABELS else _line(places, [float(r.labels) for r in group]),
        llm_labels=(
            by_x if axis == LLM_LABELS else _line(places, [float(r.llm_labels) for r in group])
        ),
        llm=paid_by_x if axis == LLM_LABELS else _line(places, [r.llm_usd for r in group]),
        device=device,
        teacher=_times(device, shared),
    )
    return Arm(name, group[0].strategy, axis, tuple(group), tuple(places), costs)


def labels_text(labels: int, llm_labels: int) -> str:
    """Both kinds of labels in words, those that there are."""
    return (f"{labels:,} labels" * (labels > 0 or not llm_labels)) + (
        f"{' and ' * (labels > 0)}{llm_labels:,} LLM labels" * (llm_labels > 0)
    )


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


def _line(places: Sequence[float], amounts: Sequence[float]) -> tuple[float, float]:
    """Least squares of fixed + slope · place, neither negative."""
    if len(set(places)) == 1:
        return float(np.mean(amounts)), 0.0
    unit = max(places)
    design = np.stack([np.ones(len(places)), np.array(places) / unit], axis=1)
    (fixed, slope), _ = optimize.nnls(design, np.array(amounts))
    return float(fixed), float(slope / unit)


def _told_apart(arms: list[Arm]) -> list[Arm]:
    """Arms with names of their own: those of one name get what they differ in, size or recipe."""
    for detail in _DETAILS:
        details_of: dict[str, set[str]] = {}
        for arm in arms:
            details_of.setdefault(arm.name, set()).add(detail(arm))
        arms = [
            dataclasses.replace(arm, name=f"{arm.name} [{detail(arm)}]")
            if len(details_of[arm.name]) > 1
            else arm
            for arm in arms
        ]
    return sorted(arms, key=lambda arm: arm.name)


def _fixed_labels(arm: Arm) -> str:
    """The kind of labels that all of an arm share while it varies the other."""
    first = arm.results[0]
    return {
        LABELS: f"{first.llm_labels:,} LLM labels",
        LLM_LABELS: f"{first.labels:,} human labels",
    }.get(arm.axis, "")


_DETAILS: tuple[Callable[[Arm], str], ...] = (
    _fixed_labels,
    lambda arm: arm.results[0].student,
    lambda arm: arm.results[0].annotator,
    lambda arm: arm.results[0].recipe,
)
