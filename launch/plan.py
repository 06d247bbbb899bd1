"""The best way to spend a budget, from finished runs, with how sure that is."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dora_jax.launch.command_line import command, exit_status, parse, require_place
from dora_jax.launch.plan_input import Chosen, Prices, choose, read_records
from dora_jax.planning.annotators import annotator_text
from dora_jax.planning.arms import LABELS, LLM_LABELS, arms_of, labels_text
from dora_jax.planning.curves import PowerLaw
from dora_jax.planning.decision import (
    REACH,
    TOLERANCE,
    Fitted,
    Plan,
    break_evens,
    fit_arms,
    near_optimal,
    plans,
)
from dora_jax.planning.front import budget_grid, fitted_front, measured_points
from dora_jax.planning.next_measurement import Measurement, measure_next
from dora_jax.planning.words import (
    NO_TURNS,
    break_even_text,
    columns_of,
    decided,
    line_of,
    measurement_text,
    misfit_text,
    nothing_next_text,
    region_text,
    verdict,
)
from dora_jax.whole_files import write_json

DESCRIPTION = """\
Reads the finished runs below a folder and says how to spend a budget: the best strategy with its
interval, the plans that are nearly as good, the Pareto front, the prices at which another strategy
would win, and what to measure next where the runs do not decide it. docs/planning.md says how.

  python launch/plan.py --runs=runs/wlp_pareto --budget_usd=500
  python launch/plan.py --runs=runs --task=wlp --scale=rehearsal --budget_usd=80 --json=-
  python launch/plan.py --runs=runs --budget_usd=500 --price_usd_per_label=0.5 --students=4

Dollars count from nothing: labels, teacher and student of one finished model, or the model's share
of the teacher where --students share it.
"""
WIDTH_OF_FILES = 160  # where the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _plan(given), debug="--debug" in given)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The flags that say which runs are read, and at which prices."""
    parser.add_argument("--runs", metavar="DIR", help="a folder of runs, or one run")
    parser.add_argument("--task", help="where the folder holds runs of several tasks")
    parser.add_argument("--scale", help="paper or rehearsal, where it holds both")
    parser.add_argument(
        "--price_usd_per_label",
        type=float,
        metavar="USD",
        help="of a person's label, in place of the price paid",
    )
    parser.add_argument(
        "--price_usd_per_llm_label",
        type=float,
        metavar="USD",
        help="of a language model's label, in place of the price paid",
    )
    parser.add_argument(
        "--price_usd_per_device_hour", type=float, metavar="USD", help="in place of the price paid"
    )
    parser.add_argument(
        "--students", type=int, default=1, help="that share one teacher (default: %(default)s)"
    )
    parser.add_argument(
        "--reach",
        type=float,
        default=REACH,
        help="how far a curve is believed, as a multiple of what was measured "
        "(default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--replicates", type=int, default=1000, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def read_choice(flags: argparse.Namespace) -> tuple[Chosen, Fitted]:
    """The runs that the flags choose, and their curves.

    Raises:
      ValueError: flags out of range, no runs, or runs that cannot be compared.
    """
    if flags.runs is None:
        raise ValueError("Which runs? Add --runs=DIR, a folder below which launch/run.py wrote.")
    prices = Prices(
        flags.price_usd_per_label, flags.price_usd_per_llm_label, flags.price_usd_per_device_hour
    )
    for name, price in prices._asdict().items():
        if price is not None and not 0 <= price < float("inf"):
            flag = f"price_usd_per_{name.removesuffix('_usd')}"
            raise ValueError(f"--{flag}={price}; a price is a number of at least 0.")
    in_range = flags.students >= 1 and 1 <= flags.reach < float("inf") and flags.replicates >= 100
    if not in_range:
        raise ValueError(
            f"--students={flags.students} --reach={flags.reach} --replicates={flags.replicates}; "
            "expected at least 1, 1 and 100."
        )
    chosen = choose(read_records(flags.runs, prices), flags.task, flags.scale)
    chosen = chosen._replace(market=dataclasses.replace(chosen.market, students=flags.students))
    fitted = fit_arms(arms_of(chosen.results), replicates=flags.replicates, seed=flags.seed)
    return chosen, dataclasses.replace(fitted, reach=flags.reach)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/plan.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--budget_usd", type=float, metavar="USD", help="labels and compute")
    add_choice(parser)
    parser.add_argument("--json", metavar="FILE|-", help="also as JSON; - prints it alone")
    return parser


def _plan(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    if overrides:
        raise ValueError(f"--gin.{overrides[0].name}: a plan reads runs and takes no gin settings.")
    if flags.budget_usd is None:
        raise ValueError("How much may be spent? Add --budget_usd=USD, labels and compute in all.")
    if not 0 < flags.budget_usd < float("inf"):
        raise ValueError(
            f"--budget_usd={flags.budget_usd}; expected what may be spent in all, above 0."
        )
    if flags.json not in (None, "-"):
        require_place("--json", flags.json)
    chosen, fitted = read_choice(flags)
    found = plan_json(chosen, fitted, flags.budget_usd)
    if flags.json == "-":
        print(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
        return 0
    if flags.json:
        write_json(flags.json, found)
    _print(chosen, fitted, flags.budget_usd)
    return 0


def plan_json(chosen: Chosen, fitted: Fitted, budget_usd: float) -> dict[str, Any]:
    """The whole answer as plain JSON; docs/planning.md names the fields."""
    market, scatter = chosen.market, fitted.scatter
    best = plans(fitted, budget_usd, market)
    budgets = [float(budget) for budget in budget_grid(fitted, market)]
    return {
        "task": chosen.task,
        "scale": chosen.scale,
        "metric": chosen.metric,
        "budget_usd": budget_usd,
        "market": dataclasses.asdict(market),
        "results": len(chosen.results),
        "scatter_of_a_run": {
            "sd": scatter.sd if scatter.freedom else None,
            "freedom": scatter.freedom,
            "misfit": scatter.misfit,
        },
        "decided": decided(best),
        "plans": [dataclasses.asdict(plan) | {"usd": plan.usd} for plan in best],
        "near_optimal": {
            "points": TOLERANCE,
            "regions": [r._asdict() for r in near_optimal(fitted, budget_usd, market)]
            if best
            else [],
        },
        "annotators": [
            dataclasses.asdict(each) | {"error_rate": each.audit and each.audit.error_rate}
            for each in chosen.annotators
        ],
        "measured": [dataclasses.asdict(point) for point in measured_points(chosen.results)],
        "front": [
            {"budget_usd": budget, "best": dataclasses.asdict(found[0]) if found else None}
            for budget, found in zip(budgets, fitted_front(fitted, budgets, market), strict=True)
        ],
        "curves": [_curve_json(fitted, i) for i in range(len(fitted.arms))],
        "break_even": [b._asdict() for b in break_evens(fitted, budget_usd, market)]
        if best
        else [],
        "measure_next": [dataclasses.asdict(m) for m in measure_next(fitted, budget_usd, market)],
        "remarks": chosen.remarks,
    }


def _curve_json(fitted: Fitted, i: int) -> dict[str, Any]:
    arm, curve = fitted.arms[i], fitted.bands[i].central
    found = {
        "arm": arm.name,
        "axis": arm.axis,
        "results": [result.name for result in arm.results],
        "cost": arm.costs._asdict(),
        "law": None,
    }
    if isinstance(curve, PowerLaw):
        found["law"] = {
            "top": float(curve.top_R[0]),
            "drop": float(curve.drop_R[0]),
            "exponent": float(curve.exponent_R[0]),
            "unit": curve.unit,
        }
    return found


def _print(chosen: Chosen, fitted: Fitted, budget_usd: float) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_FILES)
    market, best = chosen.market, plans(fitted, budget_usd, chosen.market)

    def say(text: str) -> None:
        console.print(_shown(text), highlight=False, soft_wrap=True)

    mark = " REHEARSAL: small networks, no result of the paper's." * (chosen.scale == "rehearsal")
    say(f"{chosen.task}, {chosen.scale} scale, {len(chosen.results)} results.{mark}")
    for annotator in chosen.annotators:
        say(f"labelled by {annotator_text(annotator)}")
    for remark in [*chosen.remarks, *misfit_text(fitted.scatter)]:
        say(f"note: {remark}")
    say(f"\n{verdict(best, chosen.metric, budget_usd)}")
    if best:
        console.print(_plans_table(best, chosen.metric, bool(chosen.annotators)))
        say(f"Within {TOLERANCE:g} point of the best:")
        for region in near_optimal(fitted, budget_usd, market):
            say(f"  {region_text(region)}")
        turns = break_evens(fitted, budget_usd, market)
        say(f"\nWhere the winner changes:{'' if turns else f' {NO_TURNS}'}")
        for found in turns:
            say(f"  {break_even_text(found)}")
    wanted = measure_next(fitted, budget_usd, market)
    say(f"\nMeasure next:{'' if wanted else f' {nothing_next_text(best)}'}")
    told = set[str]()
    for number, measurement in enumerate(wanted, 1):
        line = run_command(chosen, fitted, measurement)
        say(f"  {number}. {measurement_text(measurement)}")
        if line:
            say("     measured by the run above too" if line in told else f"     {line}")
            told.add(line)


def _shown(text: str) -> Text:
    """Text as it is: names of runs and models are no markup and move no cursor."""
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def _plans_table(best: Sequence[Plan], metric: str, llm: bool) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in columns_of(metric, llm):
        justify = "left" if heading == "plan" else "right"
        table.add_column(_shown(heading), justify=justify, overflow="fold")
    for plan in best:
        table.add_row(*map(_shown, line_of(plan, llm)))
    return table


def run_command(chosen: Chosen, fitted: Fitted, measurement: Measurement) -> str:
    """The command of a run on an arm over labels; what else varies is the user's to say."""
    arm = next(arm for arm in fitted.arms if arm.name == measurement.arm)
    record = next(r for r in chosen.records if r.name == arm.results[0].name)
    if arm.axis not in (LABELS, LLM_LABELS) or record.config_path is None:
        return ""
    seeds = (r.seed for r, x in zip(arm.results, arm.places, strict=True) if x == measurement.place)
    seed = 1 + max(seeds, default=-1)
    number, setting = (
        (measurement.llm_labels, "NUM_LLM_LABELS")
        if arm.axis == LLM_LABELS
        else (measurement.labels, "NUM_LABELS")
    )
    strategies = "-".join(map(str, record.settings.get("strategies", ())))
    counts = labels_text(measurement.labels, measurement.llm_labels)
    name = f"{strategies} {counts.replace(',', '').replace(' and', '')} seed {seed}"
    place = record.directory.with_name(name.replace(" ", "-"))
    return command(
        ("python", "launch/run.py"),
        (
            f"--gin_file={record.config_path}",
            f"--gin.{setting}={number}",
            f"--gin.SEED={seed}",
            f"--gin.MODEL_DIR={str(place)!r}",
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
