"""One line of a receipt, and how each kind is made: time of a stage, labels, tokens, hours."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from dora_jax.cost.flops import mfu
from dora_jax.cost.meter import Charge, Holding
from dora_jax.cost.prices import Price

SHARED = "shared"  # the strategy of a stage that several strategies use
LABELS = "labels"  # the stage of human labels bought
OUTSIDE = "outside"  # the stage of time rented while no process of the run was there
# What no clock inside the process can see. Rented time before and after it costs the same.
NOT_COUNTED = ("machine boot", "image", "weight download before the process", "disk")
# The phases in which the devices are meant to compute; MFU is over these.
BUSY_PHASES = ("step", "input wait", "label", "score")


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What all rows of a run have in common."""

    run: str
    scale: str
    code_version: str
    not_counted: tuple[str, ...] = NOT_COUNTED


@dataclasses.dataclass(frozen=True)
class LedgerRow:
    """One line of the receipt.

    `tokens` are the non-padding ones, both sides. `tokens_per_second` is over all the row's
    seconds, compilation and idling included, since all are billed; `mfu` over the phases
    that compute only (`BUSY_PHASES`), as published figures are. Either is None where it
    would mean nothing.
    """

    run: str
    row_id: str
    stage: str
    strategy: str
    scale: str
    code_version: str
    price_usd_per_unit: float
    price_source: str
    price_date: str
    unit: str
    dollars: float
    finished_at: str  # UTC, ISO 8601
    device_kind: str = ""
    devices_held: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    device_hours: float = 0.0
    examples: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    tokens_per_second: float | None = None
    tokens_per_dollar: float | None = None  # None where nothing was paid
    flops: float = 0.0
    mfu: float | None = None
    restarts: int = 0
    not_counted: tuple[str, ...] = ()
    item: str = (
        ""  # what the price is of: a device, a task's label, a model's tokens; to price anew
    )


def stage_row(facts: RunFacts, strategy: str, charge: Charge) -> LedgerRow:
    """The row of a stage's time and work on one holding.

    Args:
      facts: what the run's rows have in common.
      strategy: whose cost it is; `SHARED` where several strategies use the stage.
      charge: what `Meter.close_stage` returned.
    """
    holding = charge.holding
    if holding is None:
        raise ValueError(f"the charge of stage {charge.stage!r} has no price; call Meter.hold().")
    seconds, dollars = charge.total_seconds, holding.usd(charge.total_seconds)
    busy_seconds = sum(charge.seconds.get(phase, 0.0) for phase in BUSY_PHASES)
    return LedgerRow(
        **_common(facts, strategy, charge.stage, charge.row_id, holding.price, dollars),
        device_kind=holding.device_kind,
        devices_held=holding.devices,
        seconds=dict(charge.seconds),
        device_hours=seconds / 3600 * holding.devices,
        examples=charge.examples,
        tokens=charge.tokens,
        padding_tokens=charge.padding_tokens,
        tokens_per_second=charge.tokens / seconds if charge.tokens and seconds else None,
        tokens_per_dollar=charge.tokens / dollars if charge.tokens and dollars else None,
        flops=charge.flops,
        mfu=(
            mfu(charge.flops, busy_seconds, holding.device_kind, holding.devices)
            if charge.flops
            else None
        ),
        restarts=charge.restarts,
        not_counted=facts.not_counted,
    )


def labels_row(
    facts: RunFacts, task: str, count: int, price: Price, strategy: str = SHARED
) -> LedgerRow:
    """The row of human labels bought; its id is fixed, so that they are paid once.

    Args:
      facts: what the run's rows have in common.
      task: the task's name.
      count: labels bought, 0 or more.
      price: of one label.
      strategy: whose cost they are.
    """
    if count < 0:
        raise ValueError(f"labels bought for {task!r} = {count}; expected 0 or more.")
    row_id = f"{LABELS}-{task}-{count}"
    common = _common(facts, strategy, LABELS, row_id, price, count * price.usd)
    return LedgerRow(**{**common, "item": task}, examples=count)


def tokens_row(
    facts: RunFacts, stage: str, row_id: str, tokens: int, price: Price, strategy: str = SHARED
) -> LedgerRow:
    """The row of tokens bought from a language model's server.

    Args:
      facts: what the run's rows have in common.
      stage: what they were bought for.
      row_id: names the purchase once and for all.
      tokens: as the server counted them, answers of no use included.
      price: of a million of them; its item is the model.
      strategy: whose cost they are.
    """
    if tokens < 0:
        raise ValueError(f"tokens bought of {price.item!r} = {tokens}; expected 0 or more.")
    dollars = tokens / 1e6 * price.usd
    common = _common(facts, strategy, stage, row_id, price, dollars)
    return LedgerRow(**common, tokens=tokens)


def outside_row(facts: RunFacts, holding: Holding, hours: float) -> LedgerRow:
    """The row of rented hours outside the process, as the user states them.

    Args:
      facts: what the run's rows have in common.
      holding: what was rented meanwhile.
      hours: of boot, image, download: wall-clock, not times devices.
    """
    if hours < 0:
        raise ValueError(f"hours outside the process = {hours}; expected 0 or more.")
    seconds = 3600 * hours
    return LedgerRow(
        **_common(facts, SHARED, OUTSIDE, OUTSIDE, holding.price, holding.usd(seconds)),
        device_kind=holding.device_kind,
        devices_held=holding.devices,
        seconds={OUTSIDE: seconds},
        device_hours=hours * holding.devices,
    )


def _common(
    facts: RunFacts, strategy: str, stage: str, row_id: str, price: Price, dollars: float
) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "run": facts.run,
        "scale": facts.scale,
        "code_version": facts.code_version,
        "strategy": strategy,
        "stage": stage,
        "row_id": row_id,
        "item": price.item,
        "price_usd_per_unit": price.usd,
        "price_source": price.source,
        "price_date": price.date,
        "unit": price.unit,
        "dollars": dollars,
        "finished_at": now.isoformat(timespec="seconds"),
    }
