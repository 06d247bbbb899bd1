"""The half of launch/annotate.py that asks people."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dora_jax.annotators import choosing
from dora_jax.annotators.agreement import Merged, agreement, merge
from dora_jax.annotators.llm import row_ids
from dora_jax.annotators.sheet_import import Imported
from dora_jax.annotators.sheet_import import import_sheets as read_sheets
from dora_jax.annotators.sheets import Item
from dora_jax.annotators.sheets import write_sheet as write_items
from dora_jax.config import DataConfig, RunConfig
from dora_jax.cost.ledger import LABELS, Ledger, RunFacts, code_version, labels_row
from dora_jax.cost.prices import Price
from dora_jax.cost.run_prices import label_price
from dora_jax.launch.annotate_settings import texts_of
from dora_jax.launch.command_line import require_place
from dora_jax.tasks.sources import load_splits
from dora_jax.tasks.task import TaskSpec
from dora_jax.whole_files import write_json, write_whole

WAYS = ("random", "uncertainty", "diversity")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of people."""
    group = parser.add_argument_group("people")
    add = group.add_argument
    add("--human", action="store_true", help="write a sheet: .csv, .tsv, .json, .jsonl")
    add("--count", type=int, default=100, help="texts of the sheet (default: %(default)s)")
    add("--choose", choices=WAYS, default="random", help="which texts (default: %(default)s)")
    add(
        "--checkpoint",
        metavar="NAME",
        help="of --choose=uncertainty: the student or teacher that is unsure, as RUN/distill",
    )
    add(
        "--import_file",
        metavar="FILE",
        action="append",
        help="a sheet that comes back; again for another person's",
    )
    add("--on_bad_row", choices=("error", "skip"), default="error", help="default: %(default)s")


def write_sheet(flags: argparse.Namespace, task: TaskSpec, data: DataConfig) -> int:
    """Chooses texts and writes them for people. Returns the exit status."""
    if flags.count < 1:
        raise ValueError(f"--count={flags.count}; it must be 1 or more.")
    if (flags.choose == "uncertainty") != bool(flags.checkpoint):
        raise ValueError("--choose=uncertainty and --checkpoint=NAME go together; give both.")
    require_place("--output", flags.output)
    rows = load_splits(task, data).rows
    labelled = [row.source for row in rows["train"]]
    pool = [s for s in dict.fromkeys(_pool(flags, task, data)) if s not in set(labelled)]
    if flags.count > len(pool):
        raise ValueError(f"--count={flags.count}, but the pool has {len(pool):,} texts.")
    places = _chosen(flags, task, pool, labelled)
    ids = row_ids(pool)
    items = [Item(ids[place], pool[place]) for place in places]
    files = write_items(Path(flags.output), task, items)
    print(f"{len(items):,} of {len(pool):,} texts, by {flags.choose}: {', '.join(map(str, files))}")
    return 0


def _pool(flags: argparse.Namespace, task: TaskSpec, data: DataConfig) -> list[str]:
    if flags.pool:
        return texts_of(flags.pool, data)
    return [row.source for row in load_splits(task, data).rows["unlabeled"]]


def _chosen(
    flags: argparse.Namespace, task: TaskSpec, pool: Sequence[str], labelled: Sequence[str]
) -> list[int]:
    if flags.choose == "random":
        return choosing.at_random(pool, flags.count, flags.seed)
    if flags.choose == "diversity":
        return choosing.most_diverse(pool, flags.count, labelled)
    # It imports JAX, which takes seconds that only this needs to pay.
    from dora_jax.launch.command_line import default_compilation_cache, set_up_jax

    set_up_jax(str(default_compilation_cache()))
    from dora_jax.stages.uncertainty import uncertainty_of

    prompts = [f"{task.prompt_prefix}{source}" for source in pool]
    values = uncertainty_of(flags.checkpoint, prompts)
    uncertainty = dict(zip(pool, values, strict=True))
    return choosing.most_uncertain(pool, flags.count, uncertainty)


def import_sheets(flags: argparse.Namespace, task: TaskSpec, config: RunConfig) -> int:
    """Takes sheets back: checks, agreement, majority, and the bill. Returns the exit status."""
    output = Path(flags.output)
    if output.suffix != ".jsonl":
        raise ValueError(f"--output={output}; expected a name that ends in .jsonl.")
    require_place("--output", flags.output)
    pool = list(dict.fromkeys(_pool(flags, task, config.data)))
    sources = dict(zip(row_ids(pool), pool, strict=True))
    found = read_sheets([Path(name) for name in flags.import_file], task, sources)
    if found.complaints:
        listed = "\n".join(f"  {line}" for line in found.complaints[:20])
        more = f"\n  … and {len(found.complaints) - 20:,} more" if found.complaints[20:] else ""
        message = f"{len(found.complaints):,} bad rows:\n{listed}{more}"
        if flags.on_bad_row == "error":
            raise ValueError(f"{message}\nMend them, or leave them out with --on_bad_row=skip.")
        print(f"left out, {message}", file=sys.stderr)
    if not found.labels:
        raise ValueError(f"There is no label in {', '.join(flags.import_file)}.")
    merged = merge(task, found.labels)
    price = label_price(config.cost, task.name)
    bought = sum(len(given) for given in found.labels.values())
    report = _report(task, found, merged, bought, price)
    rows = [
        {"id": row, "source": sources[row], "target": target, "annotator": "people"}
        for row, target in merged.targets.items()
    ]
    conflicts = [
        {"id": row, "source": sources[row], "labels": given}
        for row, given in merged.conflicts.items()
    ]
    write_whole(output, _lines(rows))
    write_whole(output.with_suffix(".conflicts.jsonl"), _lines(conflicts))
    _bill(output, task, bought, price)
    write_json(output.with_suffix(".receipt.json"), report)
    print(json.dumps(report, indent=1, ensure_ascii=False))
    return 0


def _report(
    task: TaskSpec, found: Imported, merged: Merged, bought: int, price: Price
) -> dict[str, Any]:
    usd = bought * price.usd
    return {
        "task": task.name,
        "rows": {
            "labelled": len(merged.targets),
            "conflicts": len(merged.conflicts),
            "not_filled_in": found.unlabelled,
            "bad": len(found.complaints),
        },
        "labels_bought": bought,  # each person's label of a text is one
        "usd": usd,
        "usd_per_label": usd / len(merged.targets) if merged.targets else None,
        "price": dataclasses.asdict(price),
        "agreement": agreement(task, found.labels),
    }


def _bill(output: Path, task: TaskSpec, bought: int, price: Price) -> None:
    """Enters the labels that no earlier import of this output has."""
    ledger = Ledger(output.with_suffix(".ledger.jsonl"))
    new = bought - ledger.totals(stages=[LABELS]).examples
    if new > 0:
        facts = RunFacts(output.name, "", code_version(), ())
        row = labels_row(facts, task.name, new, price)
        ledger.append(dataclasses.replace(row, row_id=f"{LABELS}-{task.name}-{bought}"))


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
