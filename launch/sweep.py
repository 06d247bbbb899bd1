"""Carries out a sweep: many runs from one file, what they share paid once."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import itertools
import signal
from collections.abc import Sequence
from types import FrameType

from dora_jax.launch import gin_config, ledger, sweep_plan
from dora_jax.launch.cluster import submit
from dora_jax.launch.command_line import (
    EXIT_BUDGET,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    command,
    default_compilation_cache,
    exit_status,
    parse,
)
from dora_jax.launch.run_files import SCALES, find_run_file
from dora_jax.launch.sweep_plan import Plan, PlannedRun
from dora_jax.launch.sweep_worker import Outcome, Worker
from dora_jax.run_folders import find_runs, read_folder
from dora_jax.run_records import records_of

DESCRIPTION = """\
Carries out every run of a sweep file, each in its own process and directory; stages that runs
share (tokens, pretraining, a teacher and its labels) lie in shared/ and are paid once. The same
command again goes on: finished runs stay, failed ones are tried again. Several of these commands
at once, here or on other machines of one file system, divide the runs between them.

  python launch/sweep.py --gin_file=gin/sweeps/wlp_pareto.gin
  python launch/sweep.py --gin_file=gin/sweeps/wlp_pareto.gin --dry_run
  python launch/sweep.py --gin_file=my_sweep.gin --scale=paper --cluster=slurm --workers=8
  python launch/ledger.py --runs=runs/wlp_pareto-rehearsal

A sweep file is a run file with axes: sweep/NUM_LABELS = (100, 200, 400), sweep/SEED = (0, 1).
search/LEARNING_RATE = (1e-3, 3e-3) keeps the best on validation and bills it for both.
sweep/LABEL_SHARE = (0.25, 0.5) buys labels for a share of BUDGET_USD and trains for the rest.
docs/dollars.md says more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 2 if a run failed, 3 at the budget, 75 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _sweep(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/sweep.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--gin_file", metavar="FILE", help="gin/sweeps/wlp_pareto.gin, or your own")
    parser.add_argument("--scale", choices=SCALES, help="where the file does not set SCALE itself")
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        default=str(default_compilation_cache()),
        help="where compiled programs are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--hardware",
        metavar="KIND:COUNT",
        default="",
        help="what a budget is quoted on, such as a100:4 or cpu",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="that divide the runs and a budget: jobs of --cluster, or commands you start",
    )
    parser.add_argument("--worker", type=int, default=0, metavar="N", help="which of them this is")
    submit.add_flags(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _sweep(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    if flags.gin_file is None:
        raise ValueError("Which sweep? Add --gin_file=FILE: gin/sweeps/wlp_pareto.gin, or yours.")
    scale = gin_config.own_scale(flags.gin_file) or flags.scale
    if scale is None:
        raise ValueError("At which scale? Add --scale=rehearsal or --scale=paper.")
    plan = sweep_plan.make(find_run_file(flags.gin_file), scale, overrides, flags.hardware)
    sweep_plan.require_affordable(plan, flags.hardware)
    if flags.cluster:
        as_script = sys.argv[0].endswith("sweep.py")
        program = [sys.executable, sys.argv[0], *([] if as_script else ["sweep"])]
        job = submit.job_of(flags, program, [*arguments, "--worker={index}"], flags.workers)
        return submit.launch(flags.cluster, job, flags.dry_run)
    sweep_plan.require_data(plan)
    if flags.dry_run:
        _show(plan, flags.hardware)
        return 0
    submit.require_cluster(flags)
    worker = Worker(plan, flags.compilation_cache, flags.worker, bills=_bills(plan, flags))
    _stop_on_signals(worker)
    outcomes = worker.work()
    again = command(["python", "launch/sweep.py"], arguments)
    return _told(plan.runs, outcomes, worker.stopped_by, plan.directory, again)


def _bills(plan: Plan, flags: argparse.Namespace) -> dict[str, float]:
    """What each run is quoted at, where workers divide a budget."""
    if plan.budget_usd is None or flags.workers == 1:
        return {}
    bills = sweep_plan.quoted(plan, flags.hardware)
    return {run.name: bill.total for run, bill in zip(plan.runs, bills, strict=True)}


def _show(plan: Plan, hardware: str) -> None:
    """The runs, and on some hardware what each is expected to add to the bill."""
    bills = sweep_plan.quoted(plan, hardware) if hardware else []
    for run, bill in itertools.zip_longest(plan.runs, bills):
        told = ", ".join(f"{name} = {value}" for name, value in run.shown)
        quoted = f"; ${bill.labels:,.2f} labels, up to ${bill.compute:,.2f} compute" if bill else ""
        print(f"{run.directory}: {told}{quoted}")
    if bills:
        labels, compute = sum(b.labels for b in bills), sum(b.compute for b in bills)
        print(f"quoted on {hardware}: ${labels:,.2f} labels, up to ${compute:,.2f} compute")
    print(f"{len(plan.runs)} runs; shared stages in {plan.directory / sweep_plan.SHARED}")


def _told(
    runs: Sequence[PlannedRun],
    outcomes: dict[str, Outcome],
    stopped_by: str,
    directory: Path,
    again: str,
) -> int:
    """The last lines, and the exit status."""
    counts = {o: sum(outcomes.get(run.name) == o for run in runs) for o in Outcome}
    done = ", ".join(f"{n} {outcome.value}" for outcome, n in counts.items() if n)
    print(f"{len(runs)} runs: {done or 'none begun'}. To see this again:")
    print(f"  python launch/ledger.py --runs={directory}")
    folders = [read_folder(path) for path in find_runs(directory)]
    records = records_of(directory, folders)
    ledger.print_table(records, ledger.total(folders, records), each=False)
    if stopped_by:
        print(f"Stopped by {stopped_by}; what was done is saved. To go on:\n  {again}")
        return EXIT_INTERRUPTED
    if counts[Outcome.FAILED]:
        failed = [run for run in runs if outcomes.get(run.name) == Outcome.FAILED]
        logs = "\n".join(f"  {run.directory / 'sweep.log'}" for run in failed)
        print(f"Failed; the others are not harmed. Their logs:\n{logs}\nTo try again:\n  {again}")
        return EXIT_ERROR
    return EXIT_BUDGET if counts[Outcome.BUDGET] else 0


def _stop_on_signals(worker: Worker) -> None:
    """The first Ctrl-C or SIGTERM lets the run at work save and end, and begins no other."""

    def stop(number: int, _: FrameType | None) -> None:
        worker.stop(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(main())
