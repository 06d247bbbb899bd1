"""The receipt of a run: one line of JSON a stage, appended once and never edited.

A row is written in one piece under a lock and waited for on disk, so that two processes
never mix lines and a crash can tear only the last. A torn last line is moved to
`ledger.torn` beside the ledger and reported; the rows before it stand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import subprocess
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path

from dora_jax.cost.ledger_rows import BUSY_PHASES as BUSY_PHASES
from dora_jax.cost.ledger_rows import LABELS as LABELS
from dora_jax.cost.ledger_rows import NOT_COUNTED as NOT_COUNTED
from dora_jax.cost.ledger_rows import OUTSIDE as OUTSIDE
from dora_jax.cost.ledger_rows import SHARED as SHARED
from dora_jax.cost.ledger_rows import LedgerRow as LedgerRow
from dora_jax.cost.ledger_rows import RunFacts as RunFacts
from dora_jax.cost.ledger_rows import labels_row as labels_row
from dora_jax.cost.ledger_rows import outside_row as outside_row
from dora_jax.cost.ledger_rows import stage_row as stage_row
from dora_jax.cost.ledger_rows import tokens_row as tokens_row
from dora_jax.cost.meter import Meter

_logger = logging.getLogger(__name__)


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


def read_ledger(path: str | os.PathLike[str]) -> list[LedgerRow]:
    """The rows of a ledger that a run may be writing; a torn last line is left where it is.

    Args:
      path: the file; one that is not there has no rows.

    Raises:
      ValueError: a line in the middle is not a row.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: len(content) - len(_torn_part(content))]
    return [_read_row(f"{path}, line {n}", line) for n, line in enumerate(whole.splitlines(), 1)]


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
