"""The clock of a run: seconds by stage and phase, from the start of the process to its end.

Rented devices cost while nothing happens too, so every second belongs to some phase. What the
ledger does not have yet is kept in `meter.json`, written anew every other second: `kill -9`
loses at most that much, a restart adds to it. A stage is billed in three steps, so that a crash
between any two neither loses nor doubles a second: `close_stage` writes the charge under a row
id, the row is appended, `settle` forgets the charge (`ledger.bill_stage` does all three).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dora_jax.cost.prices import Price
from dora_jax.whole_files import write_whole

METER_VERSION = 1
LAUNCH = "launch"  # the stage of all time outside the others
PHASES = (
    "startup",
    "prepare",
    "compile",
    "step",
    "input wait",
    "checkpoint",
    "evaluate",
    "label",
    "score",
    "idle",
)

_IMPORTED_AT = time.monotonic()
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Holding:
    """What is rented: so many devices of a kind, at a price per device-hour."""

    device_kind: str
    devices: int
    price: Price

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"Holding.devices = {self.devices}; a run holds at least one device.")

    def usd(self, seconds: float) -> float:
        """Dollars for holding all the devices so long."""
        return seconds / 3600 * self.devices * self.price.usd


@dataclasses.dataclass
class Charge:
    """Time and work of one stage on one holding that the ledger does not have yet.

    Tokens are those processed: what a restart does again counts again, as it costs again.
    """

    stage: str
    holding: Holding | None  # None until the run knows its devices
    row_id: str = ""  # of the ledger row that is to take it; "" while the stage is open
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    examples: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    flops: float = 0.0
    restarts: int = 0

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def add(self, other: Charge) -> None:
        """Takes over the time and work of another charge."""
        for phase, seconds in other.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.examples += other.examples
        self.tokens += other.tokens
        self.padding_tokens += other.padding_tokens
        self.flops += other.flops
        self.restarts += other.restarts


def process_age_seconds() -> float | None:
    """Seconds since the operating system started this process; None where it does not say."""
    try:
        # Field 22, counted behind the command's name, which may itself hold spaces and brackets.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
    except (OSError, AttributeError, IndexError, ValueError):
        return None
    return age if age >= 0 else None


class Meter:
    """Counts the seconds and the work of a run until the ledger has them.

    Use it from one thread, as a context manager; a second thread only writes the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        is_billed: Callable[[str], bool] = lambda row_id: False,
        clock: Callable[[], float] = time.monotonic,
        process_started: float | None = None,
        persist_every_seconds: float = 2.0,
    ) -> None:
        """Starts counting, from the start of the process, on top of what the file holds.

        Args:
          path: the file, `meter.json` of the run directory; it need not exist.
          is_billed: whether the ledger holds a row id (`Ledger.has`): decides, after a crash
            in the middle of billing, whether a charge is dropped or billed again.
          clock: seconds from any origin. Not the time of day, which may be set meanwhile.
          process_started: when the process started, by that clock; None asks the system.
          persist_every_seconds: how often the file is written; 0 only on `persist()`.

        Raises:
          ValueError: the file is not one that a meter wrote.
        """
        if str(path).startswith("gs:"):
            raise ValueError(
                f"meter at {path}: expected a local path, since it is rewritten every other "
                "second; keep the run's meter and ledger on a local disk."
            )
        self._path = Path(path)
        self._clock = clock
        self.starts_with_process = True
        if process_started is None:
            age = process_age_seconds()
            self.starts_with_process = age is not None
            process_started = clock() - (
                age if age is not None else time.monotonic() - _IMPORTED_AT
            )
        self._counted_until = process_started
        self._holding: Holding | None = None
        self._frames: list[tuple[str, str]] = [(LAUNCH, "startup")]
        self._entered: set[str] = set()
        self._lock = threading.RLock()  # guards everything above, and the charges
        self._file_lock = threading.Lock()  # always taken before the other, never after
        self._charges: list[Charge] = []
        for charge in unbilled(self._path, is_billed):
            self._add(charge)
        # Unbilled start-up seconds are those of a process that did not live to bill them.
        unfinished = any(c.stage == LAUNCH and "startup" in c.seconds for c in self._charges)
        self._add(Charge(LAUNCH, None, restarts=int(unfinished)))
        self._stopped = threading.Event()
        self._writer: threading.Thread | None = None
        self.persist()
        if persist_every_seconds > 0:
            target, period = self._persist_until_stopped, (persist_every_seconds,)
            self._writer = threading.Thread(target=target, args=period, name="meter", daemon=True)
            self._writer.start()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the writing thread and writes the file a last time."""
        self._stopped.set()
        if self._writer is not None:
            self._writer.join()
        self.persist()

    def hold(self, device_kind: str, devices: int, price: Price) -> Holding:
        """Says what is rented, as soon as the run knows its devices.

        All this process has counted is charged to it, the time before this call included, and
        so is time left by a process that ended before it knew. Time spent on another holding,
        before a restart, keeps its own price.

        Args:
          device_kind: JAX's `device.device_kind`.
          devices: how many the run holds on all hosts, busy or not.
          price: of one device-hour.

        Returns:
          What is held from now on.

        Raises:
          ValueError: this process already holds something else.
        """
        holding = Holding(device_kind, devices, price)
        with self._lock:
            if self._holding not in (None, holding):
                raise ValueError(
                    f"the meter was told of {self._holding}, now of {holding}; a process holds "
                    "one set of devices from its start to its end."
                )
            self._holding = holding
            earlier, self._charges = self._charges, []
            for charge in earlier:
                if charge.holding is None:
                    charge.holding = holding
                self._add(charge)
        return holding

    @property
    def holding(self) -> Holding | None:
        """What is rented; None before the run knows."""
        return self._holding

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charges the time inside to a stage; outside any phase it is "idle"."""
        with self._lock:
            inside = self._frames[-1][0]
            if inside != LAUNCH or name == LAUNCH:
                raise ValueError(
                    f"stage {name!r} begins inside stage {inside!r}; stages follow each other. "
                    f"For a part of a stage use a phase: {', '.join(PHASES)}."
                )
            self._count_time()
            if self._frames[0] == (LAUNCH, "startup"):
                self._frames[0] = (LAUNCH, "idle")
            if name not in self._entered:
                self._entered.add(name)
                begun_before = any(c.stage == name and c.seconds for c in self._charges)
                self._add(Charge(name, self._holding, restarts=int(begun_before)))
        with self._frame(name, "idle"):
            yield

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charges the time inside to a phase; the inner of two nested ones takes it."""
        if name not in PHASES:
            raise ValueError(f"phase {name!r} is not known; choose one of {', '.join(PHASES)}.")
        with self._frame(self._frames[-1][0], name):
            yield

    @contextlib.contextmanager
    def _frame(self, stage: str, phase: str) -> Iterator[None]:
        with self._lock:
            self._count_time()
            self._frames.append((stage, phase))
        try:
            yield
        finally:
            with self._lock:
                self._count_time()
                self._frames.pop()

    def count(
        self, *, examples: int = 0, tokens: int = 0, padding_tokens: int = 0, flops: float = 0.0
    ) -> None:
        """Adds work done to the current stage."""
        with self._lock:
            work = Charge(
                stage=self._frames[-1][0],
                holding=self._holding,
                examples=int(examples),
                tokens=int(tokens),
                padding_tokens=int(padding_tokens),
                flops=float(flops),
            )
            self._add(work)

    def charges(self) -> tuple[Charge, ...]:
        """A copy of all that the ledger does not have yet, counted up to now."""
        with self._lock:
            self._count_time()
            return tuple(
                dataclasses.replace(charge, seconds=dict(charge.seconds))
                for charge in self._charges
            )

    def spent_usd(self, billed_usd: float = 0.0) -> float:
        """Dollars so far: those of the ledger, given, and those not billed yet.

        Raises:
          ValueError: `hold` has not been called, so there is no price.
        """
        charges = self.charges()
        if any(charge.holding is None for charge in charges):
            raise ValueError("the meter knows no price yet; call hold() first.")
        return billed_usd + sum(c.holding.usd(c.total_seconds) for c in charges if c.holding)

    def close_stage(self, stage: str) -> tuple[Charge, ...]:
        """Takes what is to be billed for a stage and gives it row ids, on disk too.

        Args:
          stage: a stage that is not running, or "launch" for the time outside the others.

        Returns:
          One charge for each holding the stage was worked on, so one, unless a restart changed
          the devices or the price; none where nothing is unbilled.

        Raises:
          ValueError: the stage is running, or `hold` has not been called.
        """
        with self._lock:
            if stage != LAUNCH and self._frames[-1][0] == stage:
                raise ValueError(f"stage {stage!r} is still running; leave it before billing it.")
            if self._holding is None:
                raise ValueError("the meter knows no price yet; call hold() first.")
            self._count_time()
            taken = [c for c in self._charges if c.stage == stage and not c.row_id and c.seconds]
            for charge in taken:
                charge.row_id = f"{stage}-{uuid.uuid4().hex[:12]}"
        if taken:
            self.persist(durable=True)
        return tuple(taken)

    def settle(self, row_id: str) -> None:
        """Forgets a charge that the ledger now holds."""
        with self._lock:
            self._charges = [c for c in self._charges if c.row_id != row_id]
        self.persist()

    def persist(self, durable: bool = False) -> None:
        """Writes the file as of now.

        Args:
          durable: also wait for the disk, against a crash of the machine.
        """
        # One writer at a time, and the snapshot inside, so that no older one comes last.
        with self._file_lock:
            rows = [dataclasses.asdict(charge) for charge in self.charges()]
            content = json.dumps({"version": METER_VERSION, "charges": rows}, indent=1)
            write_whole(self._path, content, durable=durable)

    def _persist_until_stopped(self, period_seconds: float) -> None:
        complaint = ""
        while not self._stopped.wait(period_seconds):
            try:
                self.persist()
            except OSError as error:
                # A full disk must not end a run that may soon be able to write again; billing
                # and the last write of all raise in the run's own thread.
                if str(error) != complaint:
                    _logger.warning("cannot write the meter to %s: %s", self._path, error)
                complaint = str(error)

    def _count_time(self) -> None:
        now = self._clock()
        elapsed, self._counted_until = now - self._counted_until, now
        if elapsed > 0:
            stage, phase = self._frames[-1]
            self._add(Charge(stage, self._holding, seconds={phase: elapsed}))

    def _add(self, charge: Charge) -> None:
        """Merges into the charge of this stage and holding; one being billed stays apart."""
        for other in self._charges:
            same_place = other.stage == charge.stage and other.holding == charge.holding
            if same_place and other.row_id == charge.row_id:
                other.add(charge)
                return
        self._charges.append(charge)


def unbilled(path: Path, is_billed: Callable[[str], bool]) -> list[Charge]:
    """The charges of a meter's file, all open; those the ledger has are left out.

    Raises:
      ValueError: the file is not one that a meter wrote.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise _not_a_meter(path, f"not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("version") != METER_VERSION:
        raise _not_a_meter(path, f'expected "version": {METER_VERSION}')
    try:
        charges = [_read_charge(row) for row in content["charges"]]
    except (KeyError, TypeError) as error:
        raise _not_a_meter(path, f"a charge cannot be read: {error!r}") from error
    charges = [c for c in charges if not (c.row_id and is_billed(c.row_id))]
    return [dataclasses.replace(charge, row_id="") for charge in charges]


def _read_charge(row: dict[str, Any]) -> Charge:
    holding = row.pop("holding")
    if holding is not None:
        holding = Holding(**{**holding, "price": Price(**holding["price"])})
    return Charge(holding=holding, **row)


def _not_a_meter(path: Path, reason: str) -> ValueError:
    lost = "if it cannot be restored, move it away; seconds not yet in the ledger are lost."
    return ValueError(f"{path}: {reason}. Only a meter writes this file; {lost}")
