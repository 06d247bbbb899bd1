"""What a budget allows of a run, by its quote: all of it, or what would fit instead."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from dora_jax.config import RunConfig, TrainConfig
from dora_jax.cost.charging import buys_labels

_SHARES = tuple(share / 100 for share in range(95, 0, -5))


class Unaffordable(ValueError):
    """A run or a sweep whose quote is above its budget; nothing of it was begun."""


class Bill(NamedTuple):
    """What a run is expected to cost, in USD."""

    labels: float
    compute: float

    @property
    def total(self) -> float:
        return self.labels + self.compute


class Fitting(NamedTuple):
    """What of a run fits a budget, each change by itself; 0 where that alone never fits.

    Attributes:
      bill: the run as it is.
      labels: how many human labels.
      steps_share: of the updates of teacher and student.
    """

    bill: Bill
    labels: int
    steps_share: float


def fitting(
    config: RunConfig, budget_usd: float, usd_per_label: float, quote: Callable[[RunConfig], float]
) -> Fitting:
    """What would fit a budget.

    Args:
      config: the run; its `num_labels` is a count.
      budget_usd: for labels and compute.
      usd_per_label: of a human label.
      quote: dollars of compute of a run.
    """
    labels = max(config.data.num_labels, 0) if buys_labels(config.strategies) else 0
    bill = Bill(labels * usd_per_label, quote(config))
    left = budget_usd - bill.compute
    if left < 0:
        affordable = 0
    else:
        affordable = labels if not usd_per_label else min(labels, math.floor(left / usd_per_label))
    fits = (s for s in _SHARES if bill.labels + quote(with_steps(config, s)) <= budget_usd)
    return Fitting(bill, affordable, next(fits, 0.0))


def with_steps(config: RunConfig, share: float) -> RunConfig:
    """The run with this share of its updates of teacher and student, at least one each."""

    def shortened(train: TrainConfig) -> TrainConfig:
        return dataclasses.replace(train, train_steps=max(1, round(train.train_steps * share)))

    return dataclasses.replace(
        config,
        teach=shortened(config.teach),
        annotate=shortened(config.annotate),
        distill=shortened(config.distill),
        llm=dataclasses.replace(config.llm, train=shortened(config.llm.train)),
    )


def longest_within(
    config: RunConfig, compute_usd: float, quote: Callable[[RunConfig], float]
) -> RunConfig | None:
    """The run with as many of its updates as some dollars of compute pay for, at most all.

    Teacher and student are shortened by the same share, to a thousandth.

    Args:
      config: the run.
      compute_usd: what may be spent.
      quote: dollars of compute of a run; of more updates, never fewer.

    Returns:
      The run; None where not even its shortest form is paid.
    """
    too_many, enough = 1001, 0
    while too_many - enough > 1:
        thousandths = (too_many + enough) // 2
        if quote(with_steps(config, thousandths / 1000)) <= compute_usd:
            enough = thousandths
        else:
            too_many = thousandths
    return with_steps(config, enough / 1000) if enough else None


def refusal(found: Fitting, budget_usd: float, config: RunConfig) -> str:
    """Why the run is not begun, and what would be affordable."""
    ways = [f"BUDGET_USD of {math.ceil(found.bill.total * 100) / 100:,.2f}"]
    if found.labels > 0:
        ways.append(f"NUM_LABELS = {found.labels}")
    if found.steps_share:
        updates = updates_of(with_steps(config, found.steps_share))
        ways.append(" with ".join(f"{name} = {steps}" for name, steps in updates.items()))
    return (
        f"This run is quoted at ${found.bill.total:,.2f} (${found.bill.labels:,.2f} for labels, up "
        f"to ${found.bill.compute:,.2f} for compute), above its BUDGET_USD of {budget_usd:,.2f}. "
        f"Nothing was spent. What would fit: {'; or '.join(ways)}."
    )


def updates_of(config: RunConfig) -> dict[str, int]:
    """Of the phases that the run's strategies train, by the names of gin/run.gin."""
    phases = {
        "TEACHER_TRAIN_STEPS": (config.teach, {"distill"}),
        "TRAIN_STEPS": (config.distill, {"distill"}),
        "ANNOTATE_TRAIN_STEPS": (config.annotate, {"annotate"}),
        "LLM_TRAIN_STEPS": (config.llm.train, {"llm", "llm_human"}),
    }
    return {
        name: train.train_steps for name, (train, of) in phases.items() if of & {*config.strategies}
    }
