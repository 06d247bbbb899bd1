"""Writes one page about finished runs, with every figure beside it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from dora_jax.launch.command_line import exit_status, parse, require_place
from dora_jax.launch.plan import add_choice, read_choice
from dora_jax.whole_files import write_whole

DESCRIPTION = """\
Writes one HTML page about the finished runs below a folder, without anything it would fetch from
a network: quality over dollars with intervals and a budget to move, learning curves, costs by
stage and phase, classes, paired comparisons, sample predictions, provenance. Every figure is also
written as SVG, PNG and CSV into figures/ beside the page.

  python launch/report.py --runs=runs/wlp_pareto --output=report.html
  python launch/report.py --runs=runs/one --budget_usd=200
"""
FIGURES = "figures"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _report(given), debug="--debug" in given)


def write_report(flags: argparse.Namespace, output: Path) -> None:
    """Writes the page and its figures.

    Raises:
      ValueError: no runs, runs that cannot be compared, or no library to draw with.
    """
    from dora_jax.launch.report_content import page_of
    from dora_jax.report.exports import export
    from dora_jax.report.page import html_of

    chosen, fitted = read_choice(flags)
    page = page_of(chosen, fitted, flags.budget_usd, flags.figures)
    html = html_of(page)
    if flags.figures:
        for figure in tqdm(page.figures, desc="figures", unit="figure", disable=None, leave=False):
            export(figure, output.parent / FIGURES)
    write_whole(output, html)


def report_of_run(directory: Path) -> str:
    """Writes the report of a run into its folder; says where it is, or why there is none."""
    output = directory / "report.html"
    try:
        write_report(_parser().parse_args([f"--runs={directory}"]), output)
    except ValueError as error:  # the run's results stand without it
        return f"No report: {error}"
    return f"Report: {output}"


def _parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="python launch/report.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument(
        "--output", metavar="FILE", help="the page (default: report.html in the folder of runs)"
    )
    flags.add_argument("--budget_usd", type=float, metavar="USD", help="the page begins with it")
    flags.add_argument(
        "--figures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the figures beside the page",
    )
    add_choice(flags)
    return flags


def _report(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    if overrides:
        raise ValueError(f"--gin.{overrides[0].name}: a report reads runs and takes no gin names.")
    if flags.budget_usd is not None and not 0 < flags.budget_usd < float("inf"):
        raise ValueError(f"--budget_usd={flags.budget_usd}; expected an amount above 0.")
    if flags.runs is None:
        raise ValueError("Which runs? Add --runs=DIR, a folder below which launch/run.py wrote.")
    output = Path(flags.output or Path(flags.runs) / "report.html")
    if flags.output or output.parent.is_dir():
        require_place("--output", str(output))
    write_report(flags, output)
    print(f"Report: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
