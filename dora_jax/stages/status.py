"""How a run stands: `status.json`, written at its start and its end, read by lists of runs."""

from __future__ import annotations

import datetime
from pathlib import Path

from dora_jax.run_folders import (
    BUDGET,
    FAILED,
    FINISHED,
    RUNNING,
    STATUS_FILE,
    STOPPED,
    read_or_empty,
)
from dora_jax.stopping import Interrupted
from dora_jax.whole_files import write_json


def begun(directory: Path) -> None:
    """The run is at work; if it is killed, this stays, and its meter grows old."""
    _write(directory, RUNNING, "", -1.0)


def ended(directory: Path, error: BaseException | None, stopped_by: str, budget_usd: float) -> None:
    """The run is over.

    Args:
      directory: of the run.
      error: what ended it, if anything did.
      stopped_by: the budget, in words, where that is reached.
      budget_usd: its cap, or -1.
    """
    if isinstance(error, Interrupted):
        _write(directory, STOPPED, f"stopped by {error}; the same command goes on", budget_usd)
    elif error is not None:
        _write(directory, FAILED, f"{type(error).__name__}: {error}", budget_usd)
    else:
        _write(directory, BUDGET if stopped_by else FINISHED, stopped_by, budget_usd)


def out_of_money(directory: Path, budget_usd: float) -> str:
    """Why an earlier start ended at its budget, if there is no more money now; else ""."""
    told = read_or_empty(directory / STATUS_FILE)
    had_usd = told.get("budget_usd")
    is_same = isinstance(had_usd, float) and 0 <= budget_usd <= had_usd
    return str(told.get("reason")) if told.get("status") == BUDGET and is_same else ""


def _write(directory: Path, status: str, reason: str, budget_usd: float) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {"status": status, "reason": reason, "budget_usd": budget_usd, "at": now}
    write_json(directory / STATUS_FILE, content)
