"""Stages that several runs share: one place for each, named by all that decides its result.

A run directory holds a link to the place, so that whoever reads the run finds the stage where it
always is. The place keeps a receipt of its own, `ledger.jsonl`: whoever worked there has paid.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dora_jax.cost.charging import SHAREABLE as SHAREABLE
from dora_jax.cost.ledger import read_ledger
from dora_jax.fingerprints import fingerprint, to_dict
from dora_jax.parallel import hosts
from dora_jax.stopping import Interrupted, StopRequest

RECEIPT = "ledger.jsonl"
_LOCK = ".lock"
_LOOK_EVERY_SECONDS = 0.5


def link(run: Path, shared_dir: str, stage: str, settings: dict[str, Any]) -> None:
    """Makes a run's stage the shared one of these settings, if it is one that can be shared.

    A stage that the run has begun by itself stays where it is.

    Raises:
      ValueError: the run is linked to a stage of other settings.
    """
    if not shared_dir or stage not in SHAREABLE:
        return

    def make() -> None:
        own = run / stage
        if own.is_dir() and not own.is_symlink():
            return
        place = Path(shared_dir) / f"{stage}-{fingerprint(to_dict(settings))}"
        place.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(place.resolve(), run.resolve())
        if not own.is_symlink():
            own.symlink_to(target, target_is_directory=True)
        elif os.readlink(own) != target:
            raise ValueError(
                f"{own} is a link to {os.readlink(own)}, made with other settings; with these it "
                f"would be {target}. Choose another MODEL_DIR, or take the settings back."
            )

    hosts.on_first(make)


def is_shared(run: Path, stage: str) -> bool:
    """Whether a run's stage lies where other runs use it too."""
    return (run / stage).is_symlink()


def receipt(run: Path, stage: str) -> Path:
    """The ledger that a stage's rows are in."""
    return run / stage / RECEIPT if is_shared(run, stage) else run / RECEIPT


def paid_usd(run: Path, name: str) -> float:
    """What a run has paid in shared stages, in USD.

    Args:
      run: its directory.
      name: the run's, as in its rows.
    """
    receipts = [run / stage / RECEIPT for stage in SHAREABLE if is_shared(run, stage)]
    return sum(row.dollars for path in receipts for row in read_ledger(path) if row.run == name)


@contextlib.contextmanager
def held(place: Path, stop: StopRequest, report: Callable[[str], None]) -> Iterator[None]:
    """A shared stage for this run alone; while another one works there, this one waits.

    Of many hosts the first one holds it. Waiting costs, since the devices are held.

    Raises:
      Interrupted: a stop was asked for meanwhile.
    """
    with contextlib.ExitStack() as opened:
        hosts.on_first(lambda: _acquire(place, opened, stop, report))
        yield


def _acquire(
    place: Path, opened: contextlib.ExitStack, stop: StopRequest, report: Callable[[str], None]
) -> None:
    lock = opened.enter_context(open(place / _LOCK, "w"))
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                report(f"{place.name}: another run is at work on it; waiting")
                told = True
            if stop.reason and hosts.count() == 1:
                raise Interrupted(stop.reason) from None
            time.sleep(_LOOK_EVERY_SECONDS)
