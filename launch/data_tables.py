"""The tables of `launch/data.py`."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH_OF_FILES = 110  # where the output is no terminal
JUDGING = ("validation", "test")


def print_overview(facts: dict[str, Any]) -> None:
    """Prints what `tasks.overview.describe_task` found.

    Args:
      facts: its result, with `length_unit` and `length_note`, and the price's `source`.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_FILES)
    console.print(_splits(facts))
    if facts["length_note"]:
        console.print(f"Lengths are in words: {facts['length_note']}.", highlight=False)
    console.print(_labels(facts))
    for line in _warnings(facts):
        console.print(Text(line, style="yellow"))
    console.print()
    for line in _plan(facts):
        console.print(line, highlight=False)
    console.print("\nAs the model will see it:", style="bold")
    for example in facts["examples"]:
        console.print(Text(f"  {example['input']}"))
        console.print(Text(f"    → {example['target'] or '(nothing)'}", style="cyan"))


def _splits(facts: dict[str, Any]) -> Table:
    unit = facts["length_unit"]
    table = Table(title=f"{facts['task']} ({facts['kind']}), {facts['origin']}", box=box.SIMPLE)
    table.add_column("split", no_wrap=True)
    headings = ("rows", "repeated", "contradicting", f"input {unit}", f"target {unit}", "truncated")
    for heading in headings:
        table.add_column(heading, justify="right")
    for split, of_split in facts["splits"].items():
        sides = facts["lengths"][split]
        table.add_row(
            split,
            f"{of_split['rows']:,}",
            f"{of_split['repeated_sources']:,}",
            f"{of_split['sources_with_different_targets']:,}",
            _percentiles(sides["input"]),
            _percentiles(sides.get("target")),
            _truncated(sides),
        )
    table.caption = "lengths: 50 % · 90 % · 99 % of the rows have at most so many · longest"
    return table


def _percentiles(side: dict[str, Any] | None) -> str:
    return " · ".join(str(side[key]) for key in ("p50", "p90", "p99", "max")) if side else "–"


def _truncated(sides: dict[str, dict[str, Any]]) -> str:
    shares = [side["truncated_share"] for side in sides.values() if "truncated_share" in side]
    return " / ".join(f"{share:.1%}" for share in shares) or "–"


def _labels(facts: dict[str, Any]) -> Table:
    names = {"classification": "classes", "spans": "entities", "text": "most frequent targets"}
    table = Table(title=names[facts["kind"]], box=box.SIMPLE)
    table.add_column("label", overflow="fold")
    by_split = {split: counts for split, counts in facts["labels"].items() if counts}
    if facts["kind"] == "text":  # each split has frequent texts of its own
        by_split = {"train": by_split.get("train", {})}
    elif sum(by_split["labelled"].values()) == sum(by_split["train"].values()):
        del by_split["labelled"]
    for split in by_split:
        table.add_column(split, justify="right")
    for label in dict.fromkeys(label for counts in by_split.values() for label in counts):
        cells = (_share(counts, label, facts["kind"]) for counts in by_split.values())
        table.add_row(Text(label or "(nothing)"), *cells)
    return table


def _share(counts: dict[str, int], label: str, kind: str) -> str:
    count, total = counts.get(label, 0), sum(counts.values())
    return f"{count:,}" if kind == "text" or not total else f"{count:,} ({count / total:.1%})"


def _warnings(facts: dict[str, Any]) -> list[str]:
    leaks, run = facts["leaks"], facts["run"]
    lines = []
    if seen := leaks["test_rows_also_in_train_or_unlabeled"]:
        lines.append(
            f"{seen:,} of the {run['test_rows']:,} test texts are also in the labelled "
            f"({leaks['test_rows_also_in_train']:,}) or unlabelled text: scores on them tell of "
            "memory."
        )
    if seen := leaks["validation_rows_also_in_train"]:
        lines.append(
            f"{seen:,} of the {run['validation_rows']:,} validation texts are also in train; the "
            "checkpoint is chosen by them."
        )
    for split, of_split in facts["splits"].items():
        if count := of_split["sources_with_different_targets"]:
            lines.append(f"Texts that stand in {split} with different labels: {count:,}.")
    lines += [f"There are no {split} rows." for split in JUDGING if not run[f"{split}_rows"]]
    if facts["kind"] == "classification":
        lines += _missing_classes(facts)
    if run["labels"] < run["labels_asked"]:
        lines.append(
            f"NUM_LABELS asks for {run['labels_asked']:,} labels; there are {run['labels']:,}."
        )
    if facts["skipped_rows"]:
        lines.append(f"{len(facts['skipped_rows']):,} bad rows are left out:")
        lines += [f"  {complaint}" for complaint in facts["skipped_summary"]]
    return lines


def _missing_classes(facts: dict[str, Any]) -> list[str]:
    lines = []
    for split, consequence in {
        "labelled": "nobody can learn it",
        **dict.fromkeys(JUDGING, "nothing tells how well it is found"),
    }.items():
        counts = facts["labels"][split]
        missing = [repr(label) for label, count in counts.items() if not count]
        if missing and any(counts.values()):
            lines.append(f"No {split} row is of class {', '.join(missing)}: {consequence}.")
    return lines


def _plan(facts: dict[str, Any]) -> list[str]:
    run, price = facts["run"], facts["price"]
    return [
        f"The run buys {run['labels']:,} labels for ${price['usd_for_the_run']:,.2f} "
        f"(${price['usd_per_label']:g} each: {price['source']}), and leaves "
        f"{run['unlabeled_texts']:,} texts to the teacher.",
        f"To label all {price['texts_in_all']:,} texts would cost "
        f"${price['usd_for_all_texts']:,.2f}.",
    ]
