"""Carries out the run that a gin file describes, and prints what it came to."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import contextlib
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from dora_jax.launch import gin_config, hosts, scale
from dora_jax.launch.cluster import submit
from dora_jax.launch.command_line import (
    EXIT_BUDGET,
    EXIT_INTERRUPTED,
    command,
    default_compilation_cache,
    exit_status,
    gin_help,
    keep_freed_memory,
    parse,
    set_up_jax,
)
from dora_jax.launch.gin_config import Override
from dora_jax.launch.run_files import SCALES, run_files
from dora_jax.launch.scale import Choice
from dora_jax.tasks.own import task_of
from dora_jax.whole_files import write_whole

if TYPE_CHECKING:  # the engine takes seconds to import; bad settings are told before
    from dora_jax.config import DataConfig, RunConfig
    from dora_jax.data.token_store import TokenStore
    from dora_jax.stopping import StopRequest
    from dora_jax.tasks.task import TaskSpec

DESCRIPTION = """\
Carries out the run that a gin file describes: fine-tunes a teacher, lets it label the
unlabelled text, distills a student; fine-tunes a student on the labels alone; meters all of
it; prints quality and dollars. The same command again goes on where it stopped.

  python launch/run.py --gin_file=gin/wlp_distill.gin
  python launch/run.py --gin_file=gin/wlp_distill.gin --gin.SEED=1 --gin.MODEL_DIR="'runs/one'"
  python launch/run.py --gin_file=gin/wlp_distill.gin --cluster=slurm --hosts=4 --dry_run
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 2 after an error, 3 at the budget, 75 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    start = hosts.work if hosts.is_worker() else exit_status
    return start(lambda: _run(given), "--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--gin_file", metavar="FILE", help=f"{', '.join(run_files())}, or your own")
    parser.add_argument(
        "--scale",
        default="auto",
        choices=("auto", *SCALES),
        help="auto (the default) takes the paper's where the accelerators can hold it",
    )
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        default=str(default_compilation_cache()),
        help="where compiled programs are kept; empty for nowhere (default: %(default)s)",
    )
    hosts.add_flags(parser)
    submit.add_flags(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--help", action="store_true", help="show this and every gin name")
    return parser


def _run(arguments: list[str]) -> int:
    parser = _parser()
    flags, overrides = parse(parser, arguments)
    if flags.help:
        print(f"{parser.format_help()}\n{gin_help()}")
        return 0
    if flags.gin_file is None:
        raise ValueError(f"Which run? Add --gin_file=FILE: {', '.join(run_files())}, or your own.")
    as_script = sys.argv[0].endswith("run.py")
    this_program = [sys.executable, sys.argv[0], *([] if as_script else ["run"])]
    if flags.cluster:
        return _hand_over(flags, overrides, this_program, arguments)
    submit.require_cluster(flags)
    if hosts.wanted(flags) and not hosts.is_worker():
        return hosts.supervise([*this_program, *arguments])
    program = ["python", sys.argv[0]] if as_script else ["dora-jax", "run"]
    keep_freed_memory()
    if hosts.is_worker():
        set_up_jax(flags.compilation_cache)
        hosts.join(flags)
    choice = _choose_scale(flags, overrides, program, arguments)
    resolved = gin_config.build(flags.gin_file, choice.scale, overrides)
    report = _reporting()
    report(f"scale {choice.scale}: {choice.reason}")
    _require_data(resolved.config)
    task = task_of(resolved.config.data, resolved.config.cost.price_usd_per_label)
    set_up_jax(flags.compilation_cache)
    text = f"# Scale {choice.scale}: {choice.reason}\n{resolved.text}"
    return _carry_out(resolved.config, task, text, command(program, arguments), report)


def _hand_over(
    flags: argparse.Namespace,
    overrides: list[Override],
    this_program: list[str],
    arguments: list[str],
) -> int:
    """Lets a scheduler carry the run out, once its settings are known to be sound."""
    expected = gin_config.own_scale(flags.gin_file) or flags.scale.replace("auto", "paper")
    gin_config.build(flags.gin_file, expected, overrides, check_use=False)
    job = submit.job_of(flags, this_program, arguments)
    return submit.launch(flags.cluster, job, flags.dry_run)


def _choose_scale(
    flags: argparse.Namespace,
    overrides: list[Override],
    program: list[str],
    arguments: list[str],
) -> Choice:
    """The scale the run file sets, or was asked for, or the machine can hold."""
    fixed = gin_config.own_scale(flags.gin_file)
    if fixed and flags.scale in ("auto", fixed):
        return Choice(fixed, "set by the run file.")
    if flags.scale == "rehearsal":
        return Choice("rehearsal", "asked for with --scale=rehearsal.")
    paper = gin_config.build(flags.gin_file, "paper", overrides, check_use=False).config
    set_up_jax(flags.compilation_cache)
    same = command(program, [a for a in arguments if not a.startswith("--scale")])
    need, in_half = scale.largest_stage(paper), scale.largest_stage(scale.in_bfloat16(paper))
    return scale.choose(flags.scale, need, scale.attached_machine(), same, in_half)


def _require_data(config: RunConfig) -> None:
    data = config.data
    named = data.data_dir or data.token_store or data.own.train_file
    if config.scale == "paper" and not named:
        raise ValueError(
            "Paper scale needs the task's real data: set the environment variable "
            f"{gin_config.DATA_DIR_VARIABLE} to the folder of the authors' files (a clone of "
            "github.com/jm-kang/Distill-or-Annotate), or TOKEN_STORE to a prepared store. "
            "--scale=rehearsal runs on the bundled sample."
        )


def _reporting() -> Callable[[str], None]:
    """What tells the user how the run goes: of many hosts the first one."""
    if hosts.is_worker():
        import jax

        if jax.process_index() > 0:
            return lambda line: None
    return functools.partial(print, flush=True)


def _carry_out(
    config: RunConfig, task: TaskSpec, text: str, same_command: str, report: Callable[[str], None]
) -> int:
    """Opens the run directory, runs the strategies, prints what they came to."""
    import jax

    from dora_jax import strategies
    from dora_jax.launch.affordability import require_affordable
    from dora_jax.launch.report import report_of_run
    from dora_jax.launch.results import print_results
    from dora_jax.parallel.hosts import any_of, is_first
    from dora_jax.run_folders import read_folder
    from dora_jax.stages.context import Interrupted, RunContext, StopRequest

    require_affordable(config, jax.devices()[0].device_kind, jax.device_count())
    stop = StopRequest(any_of)
    try:
        with _stopped_by_signals(stop):
            context = RunContext.open(
                config, task, prepare=_preparing(task), report=report, stop=stop
            )
            with context:
                record = context.directory / "config.gin"
                if is_first() and not record.exists():  # what the first start wrote stays
                    write_whole(record, text)
                results = strategies.run(context)
    except Interrupted as interruption:
        report(f"Stopped by {interruption}; what was done is saved. To go on:\n  {same_command}")
        return EXIT_INTERRUPTED
    if is_first():
        print_results(results, config, read_folder(context.directory).rows, context.directory)
        report(report_of_run(context.directory))
    if context.stopped_by:
        report(f"Stopped by {context.stopped_by}; with a higher BUDGET_USD it goes on.")
        return EXIT_BUDGET
    return 0


def _preparing(
    task: TaskSpec,
) -> Callable[[DataConfig, Path, Callable[[str], None]], TokenStore]:
    """What makes the task's token store: the one step of a run that needs TensorFlow."""

    def prepare(data: DataConfig, directory: Path, report: Callable[[str], None]) -> TokenStore:
        from dora_jax.checkpoints import hub

        if data.vocabulary.startswith("hf:"):
            file = hub.resolve(data.vocabulary, weights=False) / "spiece.model"
            data = dataclasses.replace(data, vocabulary=str(file))
        try:
            from dora_jax.tasks import prepare as preparation
        except ModuleNotFoundError as error:
            raise ValueError(
                f"Preparing the task's tokens needs {error.name}, which is not installed here. "
                "Install the whole of dora_jax (`pip install -e .`), or prepare on another host "
                "and name the token store with --gin.TOKEN_STORE=\"'…'\"."
            ) from error
        return preparation.prepare(task, data, directory, report)

    return prepare


@contextlib.contextmanager
def _stopped_by_signals(stop: StopRequest) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks the run to save and end; the second ends it at once."""

    def ask(number: int, _: FrameType | None) -> None:
        stop.ask(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nsaving, then stopping; the same signal again stops at once\n")

    numbers = (hosts.STOP_SIGNAL,) if hosts.is_worker() else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
