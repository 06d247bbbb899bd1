"""Measures how many entries of the teacher's distribution a run's soft labels need."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dora_jax.fingerprints import to_dict
from dora_jax.launch.command_line import exit_status, parse, require_place, set_up_jax
from dora_jax.whole_files import write_json

if TYPE_CHECKING:  # JAX takes seconds to import; wrong flags are told before
    from dora_jax.stages.probe import Probe

STUDENTS = ("start", "distill", "annotate", "pretrain-student")
DESCRIPTION = """\
Measures how many entries of the teacher's distribution (TOP_K) soft labels need. On a sample of a
run's unlabelled texts, the loss and the gradient that k entries yield are compared with those of
the teacher's whole distribution, under every estimator (TAIL) that the run's divergence allows;
the smallest k within the tolerance is proposed. The run's teacher must have been trained; nothing
in the run directory is changed.

  python launch/probe.py --run=runs/wlp_distill-rehearsal
  python launch/probe.py --run=runs/wlp_distill-rehearsal --student=distill --k=16,64,256
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _probe(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/probe.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", metavar="DIR", help="the run directory")
    parser.add_argument(
        "--student",
        default="start",
        choices=STUDENTS,
        help="whose gradient: as distillation gets it, or of a stage (default: %(default)s)",
    )
    parser.add_argument(
        "--texts", type=int, default=64, help="unlabelled texts to take (default: %(default)s)"
    )
    parser.add_argument(
        "--k",
        default="4,8,16,32,64,128,256",
        metavar="K,K,…",
        help="numbers of entries to compare (default: %(default)s)",
    )
    parser.add_argument("--temperature", type=float, help="of the loss (default: the run's)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="largest relative gradient error of the proposed k (default: %(default)s)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=8, help="texts at once (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _probe(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    if overrides:
        raise ValueError("--gin settings are for runs; this program has flags only, see --help.")
    if flags.run is None:
        raise ValueError("Which run? Add --run=DIR, a run directory with a trained teacher.")
    top_ks = _numbers(flags.k)
    for name in ("texts", "batch_size", "tolerance"):
        if getattr(flags, name) <= 0:
            raise ValueError(f"--{name} = {getattr(flags, name)}; it must be greater than 0.")
    if flags.json:
        require_place("--json", flags.json)
    set_up_jax(compilation_cache="")
    from tqdm import tqdm

    from dora_jax.stages import probe

    with tqdm(total=flags.texts, desc="probe", unit="text", disable=None) as bar:
        found = probe.probe_run(
            Path(flags.run),
            student=flags.student,
            temperature=flags.temperature,
            texts=flags.texts,
            top_ks=top_ks,
            tolerance=flags.tolerance,
            batch_size=flags.batch_size,
            after_batch=bar.update,
        )
    _print(found)
    if flags.json:
        write_json(flags.json, to_dict(found))
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--k = {text!r}; expected whole numbers, such as --k=16,64.") from None


def _print(probe: Probe) -> None:
    loss = probe.soft_loss
    print(
        f"{probe.texts} texts, {probe.tokens:,} target tokens; {loss.divergence} at temperature "
        f"{loss.temperature:g}; errors relative to the teacher's whole distribution"
    )
    tails = list(probe.choices[0].errors)
    print(f"{'':29}probability held " + "".join(f"{tail:>22}" for tail in tails))
    print(
        f"{'k':>6} {'bytes/token':>12} {'mean':>12} {'worst 1 %':>12}" + "   loss    gradient" * 3
    )
    for choice in probe.choices:
        errors = "".join(
            f"{choice.errors[tail].loss:>11.4f}{choice.errors[tail].gradient:>11.4f}"
            for tail in tails
        )
        print(
            f"{choice.top_k:>6} {choice.bytes_per_token:>12} {choice.mass:>12.5f} "
            f"{choice.mass_of_worst_percent:>12.5f}{errors}"
        )
    print(_proposal(probe))


def _proposal(probe: Probe) -> str:
    tail, limit = probe.soft_loss.tail, f"{probe.tolerance:g}"
    if probe.proposed is not None:
        return (
            f"proposed: TOP_K = {probe.proposed}, the smallest here with a gradient error of at "
            f"most {limit} under TAIL = {tail!r}"
        )
    best = min(probe.choices, key=lambda choice: choice.errors[tail].gradient)
    return (
        f"no k here keeps the gradient error of TAIL = {tail!r} within {limit}; the best, "
        f"{best.top_k}, has {best.errors[tail].gradient:.4f}. Try larger ones with --k."
    )


if __name__ == "__main__":
    sys.exit(main())
