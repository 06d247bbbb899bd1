"""A run's quote beside its bill: what was expected of each stage, and what the ledger has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.config import RunConfig
from dora_jax.cost.ledger import LABELS, Ledger
from dora_jax.cost.ledger import LedgerRow as LedgerRow
from dora_jax.cost.quote import quote_run
from dora_jax.launch import gin_config
from dora_jax.launch.quote_facts import data_facts
from dora_jax.launch.quote_tables import aligned


class StageAudit(NamedTuple):
    """One stage; nothing quoted for what the quote does not know of, nothing billed for skipped."""

    stage: str
    quoted_seconds_low: float
    quoted_seconds: float
    billed_seconds: float
    quoted_dollars: float
    billed_dollars: float


class Audit(NamedTuple):
    """All stages of a run's ledger that took time, on the devices it held."""

    hardware: str
    devices: int
    data: str  # where the quote's sizes are from
    stages: tuple[StageAudit, ...]

    @property
    def billed_here(self) -> list[StageAudit]:
        """Without stages that another run paid for, or that are still to come."""
        return [stage for stage in self.stages if stage.billed_seconds]

    @property
    def quoted_seconds(self) -> float:
        """Of the stages billed here."""
        return sum(stage.quoted_seconds for stage in self.billed_here)

    @property
    def billed_seconds(self) -> float:
        return sum(stage.billed_seconds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **self._asdict(),
            "stages": [stage._asdict() for stage in self.stages],
            "quoted_seconds": self.quoted_seconds,
            "billed_seconds": self.billed_seconds,
            "billed_over_quoted": self.billed_seconds / self.quoted_seconds,
        }


def audit_of_run(directory: Path) -> Audit:
    """The audit of a run directory.

    Raises:
      ValueError: no run is there, or its ledger has nothing yet.
    """
    record = directory / "config.gin"
    if not record.exists():
        raise ValueError(
            f"--run={directory}: no run is there; expected a run directory with {record}."
        )
    config = gin_config.build(record, gin_config.own_scale(record) or "paper").config
    return audit_of(config, Ledger(directory / "ledger.jsonl").rows(), directory)


def audit_of(config: RunConfig, rows: Sequence[LedgerRow], directory: Path) -> Audit:
    """Quotes the stages of a ledger on the devices that they were billed on.

    Raises:
      ValueError: the ledger holds no time, or the devices are in no table.
    """
    timed = [row for row in rows if row.stage != LABELS and row.devices_held]
    if not timed:
        raise ValueError(f"{directory}: its ledger has no stage that took time; run it first.")
    kind, devices = timed[-1].device_kind, timed[-1].devices_held
    facts = data_facts(config, directory)
    own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    quote = quote_run(config, kind, devices, facts=facts, memory_bytes=own / devices)
    names = dict.fromkeys([*(stage.stage for stage in quote.stages), *(row.stage for row in timed)])
    stages = []
    for name in names:
        billed = [row for row in timed if row.stage == name]
        quoted = quote.stage(name)
        stages.append(
            StageAudit(
                name,
                3600 * quoted.hours_low if quoted else 0.0,
                3600 * quoted.hours_high if quoted else 0.0,
                sum(sum(row.seconds.values()) for row in billed),
                quoted.dollars if quoted else 0.0,
                sum(row.dollars for row in billed),
            )
        )
    return Audit(quote.hardware, devices, facts.origin, tuple(stages))


def audit(found: Audit) -> str:
    """The audit as a table, in seconds and dollars of compute."""
    rows: list[tuple[str, ...]] = [
        ("stage", "quoted, s", "billed, s", "billed/quoted", "quoted, $", "billed, $")
    ]
    for stage in found.stages:
        rows.append(
            _cells(
                stage.stage,
                stage.quoted_seconds,
                stage.billed_seconds,
                stage.quoted_dollars,
                stage.billed_dollars,
            )
        )
    dollars = [(stage.quoted_dollars, stage.billed_dollars) for stage in found.billed_here]
    quoted, billed = (sum(column) for column in zip(*dollars, strict=True))
    name = "all" if len(found.billed_here) == len(found.stages) else "all billed here"
    rows.append(_cells(name, found.quoted_seconds, found.billed_seconds, quoted, billed))
    head = f"Quote and bill on {found.hardware}:{found.devices} (data {found.data})"
    return f"{head}\n{aligned(rows)}"


def _cells(
    name: str, quoted: float, billed: float, quoted_usd: float, billed_usd: float
) -> tuple[str, ...]:
    return (
        name,
        f"{quoted:,.1f}",
        f"{billed:,.1f}",
        f"{billed / quoted:.2f}" if quoted and billed else "–",
        f"{quoted_usd:,.4f}",
        f"{billed_usd:,.4f}",
    )
