"""Lists runs: what each is worth, what it cost, and how it ended."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dora_jax.cost.prices import LABEL_UNITS, TOKEN_UNITS, PriceBook
from dora_jax.launch.command_line import exit_status, parse, require_place
from dora_jax.run_folders import RunFolder, find_runs, paid_rows, read_folder
from dora_jax.run_records import RunRecord, records_of, seeds_together
from dora_jax.whole_files import write_whole

DESCRIPTION = """\
Lists the runs below a folder: strategy, scale, metric, dollars, device-hours, tokens per dollar,
status. Runs that differ in their seeds alone are one line, metric and dollars as mean ± standard
deviation. Each result is charged all it needs by itself; what several share is paid once, and the
column "$ divided" is its compute with every shared stage divided by its users. What a search for
settings chose on validation also pays for what was tried beside it, "$ search".

  python launch/ledger.py --runs=runs
  python launch/ledger.py --runs=runs/wlp_pareto --each
  python launch/ledger.py --runs=runs --csv=runs.csv
  python launch/ledger.py --runs=runs --json=- | jq '.totals'
  python launch/ledger.py --runs=runs --reprice=my_prices.json

--reprice prices all receipts anew by another price book (docs/dollars.md), without running and
without changing them; what that book has no price for keeps the packaged one's.
"""
WIDTH_OF_FILES = 200  # where the output is no terminal


class Total(NamedTuple):
    """What has been paid for all runs together: every row of every receipt, once.

    Attributes:
      compute_dollars: of rented devices, between the stages too.
      llm_dollars: to language models.
      label_dollars: for human labels, as each run or search bought its own.
      device_hours: rented.
      runs, results: how many.
    """

    compute_dollars: float
    llm_dollars: float
    label_dollars: float
    device_hours: float
    runs: int
    results: int


class Column(NamedTuple):
    """One of the table, of a group of seeds."""

    heading: str
    cell: Callable[[Sequence[RunRecord]], str]
    optional: Callable[[RunRecord], bool] | None = None  # shown where this holds for any record


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _list(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/ledger.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--runs", metavar="DIR", default="runs", help="(default: %(default)s)")
    parser.add_argument("--each", action="store_true", help="a line for each seed")
    parser.add_argument("--csv", metavar="FILE", help="one row a result, all fields; - prints it")
    parser.add_argument("--json", metavar="FILE", help="results, groups, totals; - prints them")
    parser.add_argument("--reprice", metavar="BOOK", help="prices of another book")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _list(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    if overrides:
        raise ValueError(f"--gin.{overrides[0].name}: runs are only listed here; leave it away.")
    if flags.csv == flags.json == "-":
        raise ValueError("--csv=- and --json=- both print; name a file for one of them.")
    for flag, file in (("--csv", flags.csv), ("--json", flags.json)):
        if file not in (None, "-"):
            require_place(flag, file)
    root = Path(flags.runs)
    if not root.is_dir():
        raise ValueError(f"There is no folder {root}. Name one with runs in it: --runs=DIR.")
    book = None if flags.reprice is None else PriceBook.of_user(flags.reprice)
    folders = [read_folder(path, book) for path in find_runs(root)]
    if not folders:
        raise ValueError(f"There is no run in or below {root}; `launch/run.py` makes them.")
    records = records_of(root, folders)
    for file, content in (
        (flags.csv, as_csv(records)),
        (flags.json, as_json(records, total(folders, records))),
    ):
        if file == "-":
            print(content, end="")
        elif file is not None:
            write_whole(file, content)
    if "-" not in (flags.csv, flags.json):
        print_table(records, total(folders, records), flags.each)
    return 0


def total(folders: Sequence[RunFolder], records: Sequence[RunRecord]) -> Total:
    """Sums every row once, however many runs share its stage."""
    rows = [row for _, row in paid_rows(folders)]
    devices = [row for row in rows if row.device_kind]
    labels = [row for row in rows if row.unit in LABEL_UNITS]
    tokens = [row for row in rows if row.unit in TOKEN_UNITS]
    return Total(
        compute_dollars=sum(row.dollars for row in devices),
        llm_dollars=sum(row.dollars for row in tokens),
        label_dollars=sum(row.dollars for row in labels),
        device_hours=sum(row.device_hours for row in devices),
        runs=len(folders),
        results=len(records),
    )


# --- Files for other programs


def as_csv(records: Sequence[RunRecord]) -> str:
    """A table of all fields, one row a result; nested fields as JSON, units in the names."""
    rows = [_plain(record) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        nested = {k: json.dumps(v) for k, v in row.items() if isinstance(v, dict | list)}
        writer.writerow(row | nested)
    return text.getvalue()


def as_json(records: Sequence[RunRecord], paid: Total) -> str:
    """{"results": every record, "groups": means over seeds, "totals": what was paid}."""
    groups = [_summary(group) for group in seeds_together(records)]
    plain = {"results": [_plain(r) for r in records], "groups": groups, "totals": paid._asdict()}
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def _plain(record: RunRecord) -> dict[str, Any]:
    """The record as plain JSON, without its settings, which stand in its config_path."""
    fields = dataclasses.asdict(record)
    del fields["settings"]
    for name in ("directory", "config_path", "predictions_path"):
        fields[name] = None if fields[name] is None else str(fields[name])
    fields["interval"] = None if record.interval is None else list(record.interval)
    more = {"dollars": record.dollars, "tokens_per_dollar": record.tokens_per_dollar}
    return fields | more


def _summary(group: list[RunRecord]) -> dict[str, Any]:
    first = group[0]
    means = {
        name: statistics.fmean(getattr(record, name) for record in group)
        for name in (
            "dollars",
            "label_dollars",
            "llm_dollars",
            "compute_dollars",
            "search_dollars",
            "amortised_dollars",
        )
    }
    values = [record.value for record in group if record.value is not None]
    return {
        "strategy": first.strategy,
        "scale": first.scale,
        "task": first.task,
        "labels": first.labels,
        "llm_labels": first.llm_labels,
        "metric": next((record.metric for record in group if record.metric), ""),
        "value": statistics.fmean(values) if values else None,
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
        **means,
        "seeds": [record.seed for record in group],
        "statuses": sorted({record.status for record in group}),
        "chosen": all(record.chosen for record in group),
        "names": [record.name for record in group],
    }


# --- The table for people


def print_table(records: Sequence[RunRecord], paid: Total, each: bool) -> None:
    """One line a group of seeds, or a result, and what all of them have cost together."""
    from rich import box  # a tenth of a second that --help need not wait for
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_FILES)
    table = Table(box=box.SIMPLE)
    table.add_column("run", overflow="fold", min_width=20)
    for heading in ("strategy", "scale"):
        table.add_column(heading, overflow="fold")
    columns = [c for c in COLUMNS if not c.optional or any(c.optional(r) for r in records)]
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    for group in [[r] for r in records] if each else seeds_together(records):
        table.add_row(*_cells(group, columns))
    console.print(table)
    console.print(_paid_line(paid), highlight=False)
    for record in records:
        if record.reason and record.status != "finished":
            told = f"{record.name}, {record.strategy}: {record.status}: {record.reason}"
            console.print(told, highlight=False, markup=False, soft_wrap=True)


def _paid_line(paid: Total) -> str:
    parts = [f"${paid.compute_dollars:,.4f} compute"]
    if paid.llm_dollars:
        parts.append(f"${paid.llm_dollars:,.4f} language models")
    parts.append(f"${paid.label_dollars:,.2f} labels, bought by each run or search for itself")
    return (
        f"Paid for {paid.runs} runs, shared stages once: {', '.join(parts)}; "
        f"{paid.device_hours:,.3f} device-hours."
    )


def _cells(group: Sequence[RunRecord], columns: Sequence[Column]) -> list[str]:
    from rich.markup import escape

    first = group[0]
    name = first.name if len(group) == 1 else f"{first.name} and {len(group) - 1} more"
    statuses = sorted({r.status if r.chosen else "not chosen" for r in group})
    return [
        escape(name),
        first.strategy or "–",
        first.scale or "–",
        *(column.cell(group) for column in columns),
        ", ".join(statuses) + ("" if all(r.priced for r in group) else "; compute not priced"),
    ]


def _value(group: Sequence[RunRecord]) -> str:
    values = [record.value for record in group if record.value is not None]
    if not values:
        return "–"
    metric = next(record.metric for record in group if record.metric)
    if len(values) > 1:
        return f"{metric} {statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
    return f"{metric} {values[0]:.1f}"


def _spread(group: Sequence[RunRecord], of: Callable[[RunRecord], float]) -> str:
    values = [of(record) for record in group]
    mean = statistics.fmean(values)
    form = ",.2f" if mean >= 1 else ",.4f"  # a rehearsal's compute is cents
    return f"{mean:{form}}" + (f" ± {statistics.stdev(values):{form}}" if values[1:] else "")


def _mean(group: Sequence[RunRecord], of: Callable[[RunRecord], float | None], form: str) -> str:
    values = [value for record in group if (value := of(record)) is not None]
    return format(statistics.fmean(values), form) if values else "–"


# Functions above, so the columns come last. Optional ones stand where a record has something there.
COLUMNS = (
    Column("metric", _value),
    Column("labels", lambda group: f"{group[0].labels:,}"),
    Column("LLM labels", lambda group: f"{group[0].llm_labels:,}", lambda r: bool(r.llm_labels)),
    Column("$ total", lambda group: _spread(group, lambda r: r.dollars)),
    Column("$ labels", lambda group: _mean(group, lambda r: r.label_dollars, ",.2f")),
    Column(
        "$ LLM",
        lambda group: _mean(group, lambda r: r.llm_dollars, ",.4f"),
        lambda r: bool(r.llm_dollars),
    ),
    Column("$ compute", lambda group: _spread(group, lambda r: r.compute_dollars)),
    Column(
        "$ search",
        lambda group: _mean(group, lambda r: r.search_dollars, ",.4f"),
        lambda r: bool(r.searched),
    ),
    Column("$ divided", lambda group: _mean(group, lambda r: r.amortised_dollars, ",.4f")),
    Column("device-h", lambda group: _mean(group, lambda r: r.device_hours, ",.3f")),
    Column("tokens/$", lambda group: _mean(group, lambda r: r.tokens_per_dollar, ",.0f")),
)


if __name__ == "__main__":
    sys.exit(main())
