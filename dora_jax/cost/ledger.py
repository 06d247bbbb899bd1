"""The receipt of a run: one line of JSON a stage, appended once and never edited.

A row is written in one piece under a lock and waited for on disk, so that two processes
never mix lines and a crash can tear only the last. A torn last line is moved to
`ledger.torn` beside the ledger and reported; the rows before it stand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import logging
import os
import subprocess
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from dora_jax.cost.flops import mfu
from dora_jax.cost.meter import Charge, Holding, Meter
from dora_jax.cost.prices import Price

SHARED = "shared"  # the strategy of a stage that several strategies use
LABELS = "labels"  # the stage of human labels bought
OUTSIDE = "outside"  # the stage of time rented while no process of the run was there
# What no clock inside the process can see. Rented time before and after it costs the same.
NOT_COUNTED = ("machine boot", "image", "weight download before the process", "disk")
# The phases in which the devices are meant to compute; MFU is over these.
BUSY_PHASES = ("step", "input wait", "label")

_logger = logging.getLogger(__name__)


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
    "step", "input wait" and "label" only, as published figures are. Either is None where it
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


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over rows of a ledger."""

    rows: int
    dollars: float
    device_hours: float
    seconds: float
    examples: int
    tokens: int
    padding_tokens: int
    flops: float

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None

    @property
    def tokens_per_dollar(self) -> float | None:
        return self.tokens / self.dollars if self.dollars else None


class Ledger:
    """The file `ledger.jsonl` of a run directory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a ledger, which need not exist yet, and sets a torn last line aside.

        Raises:
          ValueError: the path is not local, or a row in the middle cannot be read.
        """
        if str(path).startswith("gs:"):
            raise ValueError(
                f"ledger at {path}: expected a local path, since object stores cannot append; "
                "keep the run's meter and ledger on a local disk."
            )
        self.path = Path(path)
        if self.path.exists() and _torn_part(self.path.read_bytes()):
            with self._locked() as descriptor:
                self._mend(descriptor)
        self.rows()

    def rows(self) -> list[LedgerRow]:
        """All rows, oldest first.

        Raises:
          ValueError: a line is not a row.
        """
        try:
            with open(self.path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                return self._parse(file.read())
        except FileNotFoundError:
            return []

    def has(self, row_id: str) -> bool:
        """Whether a row of this id is there."""
        return any(row.row_id == row_id for row in self.rows())

    def append(self, row: LedgerRow) -> None:
        """Adds a row at the end, all of it or nothing, and waits for the disk.

        Raises:
          ValueError: a row of this id is there already.
          OSError: the folder cannot be written, or the disk is full; the rows there stand.
        """
        line = json.dumps(dataclasses.asdict(row), allow_nan=False).encode() + b"\n"
        with self._locked() as descriptor:
            content = self._mend(descriptor)
            if any(known.row_id == row.row_id for known in self._parse(content)):
                raise ValueError(
                    f"{self.path} already has a row {row.row_id!r}; rows are never edited. Give "
                    "a new purchase a new id."
                )
            try:
                _write_all(descriptor, line)
            except OSError as error:
                os.ftruncate(descriptor, len(content))
                raise self._cannot_write(error) from error

    def totals(
        self,
        *,
        stages: Collection[str] | None = None,
        strategies: Collection[str] | None = None,
    ) -> Totals:
        """Sums over the rows of these stages and strategies; None takes all.

        What a strategy costs by itself includes what it shares: name it beside `SHARED`.
        """
        rows = [
            row
            for row in self.rows()
            if (stages is None or row.stage in stages)
            and (strategies is None or row.strategy in strategies)
        ]
        return Totals(
            rows=len(rows),
            dollars=sum(row.dollars for row in rows),
            device_hours=sum(row.device_hours for row in rows),
            seconds=sum(sum(row.seconds.values()) for row in rows),
            examples=sum(row.examples for row in rows),
            tokens=sum(row.tokens for row in rows),
            padding_tokens=sum(row.padding_tokens for row in rows),
            flops=sum(row.flops for row in rows),
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The open file, for this process alone."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)  # and with it the lock

    def _mend(self, descriptor: int) -> bytes:
        """Makes the file end with a whole line, losing nothing; returns its content."""
        content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        torn = _torn_part(content)
        if not torn:
            return content
        try:
            json.loads(torn)
        except ValueError:
            aside = self.path.with_suffix(".torn")
            with open(aside, "ab", buffering=0) as file:
                _write_all(file.fileno(), torn + b"\n")
            content = content[: -len(torn)]
            os.ftruncate(descriptor, len(content))
            _logger.warning(
                "%s ended in a line torn by a crash; moved it to %s (%d bytes). The %d rows "
                "before it stand, and what the line was for is billed again.",
                self.path,
                aside,
                len(torn),
                content.count(b"\n"),
            )
            return content
        # Only the line's end is missing: a beginning of a JSON object is never valid JSON.
        _write_all(descriptor, b"\n")
        return content + b"\n"

    def _parse(self, content: bytes) -> list[LedgerRow]:
        lines = content.splitlines()
        return [_read_row(f"{self.path}, line {n}", line) for n, line in enumerate(lines, 1)]

    def _cannot_write(self, error: OSError) -> OSError:
        return OSError(
            error.errno,
            f"cannot write the ledger ({error.strerror}); the rows it has are untouched, and "
            "what is not in it yet is billed at the next start. Make the folder writable, or "
            "free some space, and run the same command again",
            str(self.path),
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
    return LedgerRow(**common, examples=count)


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
        "price_usd_per_unit": price.usd,
        "price_source": price.source,
        "price_date": price.date,
        "unit": price.unit,
        "dollars": dollars,
        "finished_at": now.isoformat(timespec="seconds"),
    }


def bill_stage(
    meter: Meter, ledger: Ledger, stage: str, strategy: str, facts: RunFacts
) -> tuple[LedgerRow, ...]:
    """Moves what a stage has cost from the meter to the ledger.

    Safe against a crash at any point, if the next start makes its meter with
    `is_billed=ledger.has`. Call it again for a stage found finished: it bills what is left.

    Returns:
      The rows appended: one for each holding, none where nothing was left to bill.
    """
    if not meter.starts_with_process:
        unseen = (*facts.not_counted, "process start, before the first import of dora_jax.cost")
        facts = dataclasses.replace(facts, not_counted=unseen)
    rows = tuple(stage_row(facts, strategy, charge) for charge in meter.close_stage(stage))
    for row in rows:
        ledger.append(row)
        meter.settle(row.row_id)
    return rows


def code_version() -> str:
    """`git describe` of the checkout this package lies in, else the installed version.

    The version ends in "+checkout" where there is a checkout but git does not tell its commit.
    """
    version, root = metadata.version("dora_jax"), Path(__file__).parents[2]
    if not (root / ".git").exists():
        return version
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{version}+checkout"
    return described.stdout.strip()


def _torn_part(content: bytes) -> bytes:
    return content[content.rfind(b"\n") + 1 :]


def _write_all(descriptor: int, content: bytes) -> None:
    # One write, as a rule. A disk that fills up takes the beginning and complains about the rest.
    while content:
        content = content[os.write(descriptor, content) :]
    os.fsync(descriptor)


def _read_row(where: str, line: bytes) -> LedgerRow:
    try:
        row = LedgerRow(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where}: not a row of a ledger: {error}. Rows are only appended, by dora_jax; "
            "restore the file from a copy, or read it with the version that wrote it."
        ) from error
    return dataclasses.replace(row, not_counted=tuple(row.not_counted))
