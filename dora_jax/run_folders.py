"""Run directories as they are on disk: which there are, their rows, whether they are alive.

Reads and changes nothing. What is missing or broken is said in words, never raised: one bad
run must not hide the others.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dora_jax.cost.charging import STAGES
from dora_jax.cost.ledger import LedgerRow, RunFacts, read_ledger, stage_row
from dora_jax.cost.meter import unbilled
from dora_jax.cost.prices import LABEL_UNITS, PriceBook
from dora_jax.cost.repricing import reprice

FINISHED, RUNNING, STOPPED, FAILED, BUDGET = "finished", "running", "stopped", "failed", "budget"
STATUS_FILE = "status.json"
SWEEP_FILE = "sweep.json"
# A run writes its meter every other second; what is older is no sign of life.
ALIVE_SECONDS = 60.0
_NATIVE = "native:"
_PRETRAINED = {"pretrain-teacher": "teacher", "pretrain-student": "student"}


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run directory as it is on disk.

    Attributes:
      directory: of the run.
      settings: its config.json; empty where that cannot be read.
      rows: of its receipt and of the shared stages it uses, and what no receipt has yet.
      status: of the run as a whole, and `reason` why.
      broken: what cannot be read of it; "" where all can.
    """

    directory: Path
    settings: dict[str, Any]
    rows: tuple[LedgerRow, ...]
    status: str
    reason: str
    broken: str

    def place(self, stage: str) -> Path:
        """Where a stage lies: the same for all runs that share it."""
        return place_of(self.directory, self.settings, stage)


def find_runs(root: Path) -> list[Path]:
    """The run directories below a folder, or the folder itself if it is one, by path."""
    found = []
    for path, folders, files in os.walk(root):
        # Of a stage or a store only the run above it matters, and there may be many files below.
        if "manifest.json" in files:
            folders.clear()
        elif _is_run(Path(path), files):
            found.append(Path(path))
            folders.clear()
    return sorted(found)


def read_folder(directory: Path, book: PriceBook | None = None) -> RunFolder:
    """What is on disk of one run.

    Args:
      directory: of the run.
      book: prices its receipt anew; None leaves it as it was written.

    Raises:
      ValueError: the book has no price for something that the run bought.
    """
    broken = []
    try:
        settings = _read_object(directory / "config.json")
    except ValueError as error:
        settings = {}
        broken.append(str(error))
    try:
        rows = _rows(directory, settings)
    except ValueError as error:
        rows = ()
        broken.append(str(error))
    if book is not None:
        rows = tuple(reprice(rows, book))
    status, reason = _status(directory)
    return RunFolder(directory, settings, rows, status, reason, "; ".join(broken))


def _is_run(path: Path, files: list[str]) -> bool:
    if "meter.json" in files or "ledger.jsonl" in files:
        return True
    if "config.json" not in files:
        return False
    try:  # other folders have a config.json too, such as checkpoints of Hugging Face
        return {"strategies", "data", "teach"} <= set(_read_object(path / "config.json"))
    except ValueError:
        return "config.gin" in files


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content


def read_or_empty(path: Path) -> dict[str, Any]:
    """The object in a JSON file; nothing where it is missing or broken."""
    try:
        return _read_object(path)
    except ValueError:
        return {}


def _rows(directory: Path, settings: dict[str, Any]) -> tuple[LedgerRow, ...]:
    """Own rows, those of stages other runs share, and what no receipt has yet."""
    rows = read_ledger(directory / "ledger.jsonl")
    for stage in sorted({stage for of_result in STAGES.values() for stage in of_result}):
        place = place_of(directory, settings, stage)
        if (place / "ledger.jsonl").is_file():
            rows += read_ledger(place / "ledger.jsonl")
        elif place.parent != directory.resolve():  # a stage of another run, by its weights' name
            rows += [r for r in read_ledger(place.parent / "ledger.jsonl") if r.stage == stage]
    billed = {row.row_id for row in rows}
    facts = RunFacts(directory.name, str(settings.get("scale", "")), "")
    charges = unbilled(directory / "meter.json", lambda row_id: row_id in billed)
    rows += [stage_row(facts, "", charge) for charge in charges if charge.holding is not None]
    return tuple(rows)


def search_of(directory: Path) -> Path | None:
    """What candidates of one search for settings have in common; None for any other run."""
    told = read_or_empty(directory / SWEEP_FILE)
    return directory.parent / str(told.get("cell")) if told.get("searched") else None


def paid_rows(folders: Iterable[RunFolder]) -> list[tuple[Path, LedgerRow]]:
    """What all these runs have paid together, and where: every row of every receipt once.

    The candidates of a search need the same labels, which are bought once.
    """
    rows: dict[tuple[Path, str], LedgerRow] = {}
    for folder in folders:
        search = search_of(folder.directory) if folder.rows else None
        for i, row in enumerate(folder.rows):
            place = folder.place(row.stage)
            if search is not None and row.unit in LABEL_UNITS:
                place = search / row.stage
            rows[place, row.row_id or f"{folder.directory}:{i}"] = row
    return [(place, row) for (place, _), row in rows.items()]


def place_of(directory: Path, settings: dict[str, Any], stage: str) -> Path:
    """Where a stage of a run lies: the same place for all runs that share it.

    That is behind a link, or in the run whose pretrained network this one starts from.
    """
    side = _PRETRAINED.get(stage, "")
    weights = str(dig(settings, side, "weights") or "")
    if weights.startswith(_NATIVE) and weights.endswith(stage):
        given = Path(weights.removeprefix(_NATIVE))
        # The name is as seen from where the run was started; runs of a sweep lie side by side.
        for candidate in (given, directory.parent.joinpath(*given.parts[-2:])):
            if candidate.is_dir():
                return candidate.resolve()
    return (directory / stage).resolve()


def _status(directory: Path) -> tuple[str, str]:
    """Of the run as a whole, from what it wrote at its start and its end."""
    told = read_or_empty(directory / STATUS_FILE)
    status, reason = str(told.get("status", "")), str(told.get("reason", ""))
    if status in ("", RUNNING):
        if _is_alive(directory):
            return RUNNING, "its process is at work"
        return STOPPED, "its process ended without a word; the same command goes on"
    return status, reason


def _is_alive(directory: Path) -> bool:
    try:
        age = time.time() - (directory / "meter.json").stat().st_mtime
    except OSError:
        return False
    return age < ALIVE_SECONDS


def dig(content: Any, *names: str) -> Any:
    """A value inside nested JSON objects; None where any of them is not there."""
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content
