"""Works through the runs of a sweep, each in a process of its own, beside other workers.

A run is claimed by a lock that its process inherits: whoever is killed, its claim falls with the
last process that works on the run, and another worker goes on from there.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO

from dora_jax.launch import gin_config
from dora_jax.launch.command_line import EXIT_BUDGET, EXIT_INTERRUPTED
from dora_jax.launch.sweep_budget import grant, own_cap
from dora_jax.launch.sweep_plan import Plan, PlannedRun, differences
from dora_jax.run_folders import (
    FINISHED,
    SWEEP_FILE,
    read_folder,
    read_or_empty,
)
from dora_jax.run_records import read_runs
from dora_jax.whole_files import write_json, write_whole

_CLAIM = ".claim"
_LOG = "sweep.log"
_LOOK_EVERY_SECONDS = 1.0


class Outcome(enum.Enum):
    """How a run ended for this worker, in the words of the last line."""

    FINISHED = "finished"
    BUDGET = "ended by the budget"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Worker:
    """One process of a sweep.

    Args:
      plan: the sweep.
      compilation_cache: for every run.
      number: which worker this is; each begins elsewhere in the list.
      program: what carries out one run; `launch/run.py`.
      bills: by which several workers divide the sweep's budget; `sweep_budget.grant`.
    """

    def __init__(
        self,
        plan: Plan,
        compilation_cache: str,
        number: int = 0,
        program: Sequence[str] = (sys.executable, "-m", "dora_jax.launch.run"),
        bills: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.plan = plan
        self.outcomes: dict[str, Outcome] = {}
        self.stopped_by = ""
        self._cache = compilation_cache
        self._number = number
        self._program = program
        self._bills = bills
        self._process: subprocess.Popen[bytes] | None = None

    def stop(self, reason: str) -> None:
        """Lets the run at work save and end, and begins no other. For a signal handler."""
        self.stopped_by = reason
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def work(self) -> dict[str, Outcome]:
        """Carries out every run that is not finished; waits for those of other workers.

        Returns:
          The outcome of each run that has one; those not begun have none.

        Raises:
          ValueError: a run directory holds a run of other settings.
        """
        for run in self.plan.runs:
            _refuse_other_settings(run)
        first = self._number % len(self.plan.runs)
        waiting = [*self.plan.runs[first:], *self.plan.runs[:first]]
        while waiting and not self.stopped_by:
            before = len(waiting)
            waiting = [run for run in waiting if not self._take(run)]
            if len(waiting) == before and not self.stopped_by:
                time.sleep(_LOOK_EVERY_SECONDS)
        return self.outcomes

    def _take(self, run: PlannedRun) -> bool:
        """Whether the run is done with: it need not be looked at again."""
        if self.stopped_by:
            return False
        needed = [self.outcomes.get(name) for name in run.needs]
        if None in needed:
            return False
        if any(outcome != Outcome.FINISHED for outcome in needed):
            self._note(run, needed[0] or Outcome.FAILED, "what it starts from did not finish")
            return True
        run.directory.mkdir(parents=True, exist_ok=True)
        with _claimed(run.directory) as claim:
            if claim is None:
                return False
            if _is_finished(run):
                self.outcomes[run.name] = Outcome.FINISHED
                return True
            if self.plan.budget_usd is None:
                cap_usd = own_cap(self.plan, run)
            else:
                cap_usd = grant(self.plan, run, self._bills, self._is_open, _is_held)
                if cap_usd is None:
                    return False
            if cap_usd is not None and cap_usd <= 0:
                self._note(run, Outcome.BUDGET, "nothing of the budget is left")
                return True
            _write_down(run)
            self._carry_out(run, claim, cap_usd)
        return run.name in self.outcomes

    def _is_open(self, run: PlannedRun) -> bool:
        """Whether a run may still be begun: by this worker, as far as it knows."""
        return run.name not in self.outcomes and not _is_finished(run)

    def _carry_out(self, run: PlannedRun, claim: IO[str], cap_usd: float | None) -> None:
        arguments = [f"--gin_file={run.directory / 'config.gin'}"]
        arguments.append(f"--compilation_cache={self._cache}")
        if cap_usd is not None:
            arguments.append(f"--gin.BUDGET_USD={cap_usd!r}")
        capped = "" if cap_usd is None else f", with ${cap_usd:,.2f} to spend"
        print(f"{self._place(run)} {run.name}: begun{capped}", flush=True)
        began = time.monotonic()
        with open(run.directory / _LOG, "ab") as log:
            self._process = subprocess.Popen(
                [*self._program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(claim.fileno(),),
                start_new_session=True,  # Ctrl-C is this process's, which hands it on once
            )
            if self.stopped_by:  # while it was being started
                self.stop(self.stopped_by)
            status = self._process.wait()
            self._process = None
        self._judge(run, status, time.monotonic() - began)

    def _judge(self, run: PlannedRun, status: int, seconds: float) -> None:
        if status == EXIT_INTERRUPTED and self.stopped_by:
            self.outcomes[run.name] = Outcome.INTERRUPTED
        elif status == EXIT_BUDGET:
            self._note(run, Outcome.BUDGET, _came_to(run))
        elif status == 0 and _is_finished(run):
            self._note(run, Outcome.FINISHED, f"{_came_to(run)}, {seconds:.0f} s")
        else:
            lines = (run.directory / _LOG).read_text(errors="replace").strip().splitlines()
            self._note(run, Outcome.FAILED, f"status {status}: {lines[-1] if lines else ''}")

    def _note(self, run: PlannedRun, outcome: Outcome, told: str) -> None:
        self.outcomes[run.name] = outcome
        print(f"{self._place(run)} {run.name}: {outcome.value}: {told}", flush=True)

    def _place(self, run: PlannedRun) -> str:
        return f"[{self.plan.runs.index(run) + 1}/{len(self.plan.runs)}]"


def _refuse_other_settings(run: PlannedRun) -> None:
    file = run.directory / "config.gin"
    if not file.exists():
        return
    found = gin_config.build(file, run.config.scale, check_use=False).config
    if listed := "\n".join(f"  {line}" for line in differences(found, run.config)):
        raise ValueError(
            f"{run.directory} was made with other settings:\n{listed}\nNothing was changed or "
            "started. Choose another MODEL_DIR, take the settings back, or remove that folder."
        )


def _write_down(run: PlannedRun) -> None:
    """The run's settings, for itself and for whoever reads it; prices may have changed."""
    write_whole(run.directory / "config.gin", run.text)
    if run.searched:
        write_json(run.directory / SWEEP_FILE, {"cell": run.group, "searched": run.searched})


@contextlib.contextmanager
def _claimed(directory: Path) -> Iterator[IO[str] | None]:
    """The run for this worker alone; None where another one has it."""
    with open(directory / _CLAIM, "w") as claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield claim


def _is_held(run: PlannedRun) -> bool:
    """Whether another worker has the run."""
    if not run.directory.is_dir():
        return False
    with _claimed(run.directory) as claim:
        return claim is None


def _is_finished(run: PlannedRun) -> bool:
    told = read_or_empty(run.directory / "status.json")
    records = read_runs(run.directory)
    return (
        told.get("status") == FINISHED
        and bool(records)
        and all(record.status == FINISHED for record in records)
    )


def _came_to(run: PlannedRun) -> str:
    parts = [
        f"{record.strategy} {record.value:.1f}"
        for record in read_runs(run.directory)
        if record.value is not None
    ]
    own = sum(row.dollars for row in read_folder(run.directory).rows if row.run == run.name)
    return ", ".join([*parts, f"${own:,.4f}"])
