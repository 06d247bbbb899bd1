"""Scores a file of predictions, and compares it with another one."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from dora_jax.launch import gin_config
from dora_jax.launch.command_line import exit_status, parse
from dora_jax.launch.gin_config import Override
from dora_jax.metrics.measurement import Measurement, compare
from dora_jax.tasks.own import task_of
from dora_jax.tasks.rows import Columns, list_complaints, read_rows
from dora_jax.tasks.task import TaskSpec, get_task

DESCRIPTION = """\
Scores a file of predictions and prints one JSON object: "strict" metrics, "paper" metrics as the
authors' script computes them, bootstrap "intervals" of both, all in percent; docs/metrics.md says
what each of them is. Rows are JSON lines (or a .csv or .tsv) with source, target and prediction,
as a run leaves them in predictions.jsonl.

  python launch/score.py --task=wlp --predictions=runs/one/evaluate-student/predictions.jsonl
  python launch/score.py --task=fever --predictions=a.jsonl --against=b.jsonl
  python launch/score.py --task=multipit_gen --predictions=a.jsonl --scorer_model=deberta/
  python launch/score.py --gin_file=runs/mine/config.gin --predictions=a.jsonl

--against adds the paired bootstrap of A minus B for every metric: difference, interval, p-value.
"""
GOLD, ANSWERS = Columns("source", "target"), Columns("source", "prediction")


class Predictions(NamedTuple):
    """A file of predictions, column by column."""

    sources: list[str]
    targets: list[str]
    predictions: list[str]
    locations: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _score(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/score.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", help="wlp, fever, stanceosaurus, multipit_id, multipit_gen or nq")
    parser.add_argument(
        "--gin_file",
        metavar="FILE",
        help="in place of --task: the run file of a task of your own, or a run's config.gin",
    )
    parser.add_argument("--predictions", metavar="FILE", help="what is scored (A)")
    parser.add_argument(
        "--against", metavar="FILE", help="predictions of the same examples to compare with (B)"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=10_000,
        help="of the bootstrap; 0 leaves the intervals out (default: %(default)s)",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of intervals (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--scorer_model",
        metavar="MODEL",
        help="BERTScore's encoder: a folder, or a name in the local Hugging Face cache",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _score(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    if flags.predictions is None or (flags.task is None) == (flags.gin_file is None):
        raise ValueError(
            "What shall be scored? Name --predictions=FILE and either --task=NAME or, for a task "
            "of your own, --gin_file=FILE."
        )
    task = _task(flags, overrides)
    rows = read_predictions(Path(flags.predictions), task)
    measured = task.measure(rows.targets, rows.predictions, rows.sources)
    bootstrap = {
        "resamples": flags.resamples,
        "confidence": flags.confidence,
        "seed": flags.seed,
    }
    result = {"task": task.name, **measured.scores(**bootstrap).to_json(), "bootstrap": bootstrap}
    if flags.against is not None:
        other = read_predictions(Path(flags.against), task)
        against = task.measure(rows.targets, in_order_of(rows, other), rows.sources)
        compared = _compared(measured, against, bootstrap)
        result["against"] = {"predictions": flags.against, **compared}
    print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))
    for remark in measured.remarks:
        print(f"note: {remark}", file=sys.stderr)
    return 0


def _task(flags: argparse.Namespace, overrides: list[Override]) -> TaskSpec:
    if flags.gin_file is not None:
        # The scale sets sizes and lengths; which task it is does not depend on it.
        config = gin_config.build(flags.gin_file, "rehearsal", overrides, check_use=False).config
        task = task_of(config.data, config.cost.price_usd_per_label)
    elif overrides:
        raise ValueError(f"--gin.{overrides[0].name} needs the run file it changes: --gin_file.")
    else:
        task = get_task(flags.task)
    if flags.scorer_model is None:
        return task
    if task.measure_with is None:
        raise ValueError(
            f"--scorer_model = {flags.scorer_model!r}, but {task.name} needs no encoder."
        )
    return task.with_scorer_model(flags.scorer_model)


def read_predictions(path: Path, task: TaskSpec) -> Predictions:
    """Reads rows with `source`, `target` and `prediction`, all of them text.

    Raises:
        ValueError: the file cannot be read, holds no rows, or has bad ones: which and why.
    """
    gold = read_rows(path, "skip", GOLD, task.check_target)
    answers = read_rows(path, "skip", ANSWERS)
    bad = list(dict.fromkeys([*gold.skipped, *answers.skipped]))
    if bad:
        listed = "\n".join(f"  {line}" for line in list_complaints(bad))
        raise ValueError(
            f"{path} has bad rows; {task.name} cannot be scored until they are mended:\n{listed}"
        )
    if not gold.rows:
        raise ValueError(
            f"{path} holds no rows; each must have 'source', 'target' and 'prediction'."
        )
    return Predictions(
        [row.source for row in gold.rows],
        [row.target for row in gold.rows],
        [row.target for row in answers.rows],  # `read_rows` calls the second column so
        [row.location for row in gold.rows],
    )


def in_order_of(rows: Predictions, other: Predictions) -> list[str]:
    """The predictions of `other` in the order of `rows`, matched by source and target.

    Raises:
        ValueError: one of them has an example that the other lacks; the message shows the first.
    """
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i in reversed(range(len(other.sources))):  # so that pop() takes repeated rows in order
        places[other.sources[i], other.targets[i]].append(i)
    order: list[int] = []
    for i, key in enumerate(zip(rows.sources, rows.targets, strict=True)):
        if not places[key]:
            raise _different(rows.locations[i], key, other.locations[-1])
        order.append(places[key].pop())
    left = sorted(i for remaining in places.values() for i in remaining)
    if left:
        key = other.sources[left[0]], other.targets[left[0]]
        raise _different(other.locations[left[0]], key, rows.locations[-1])
    return [other.predictions[i] for i in order]


def _different(location: str, key: tuple[str, str], elsewhere: str) -> ValueError:
    source, target = (text if len(text) <= 80 else f"{text[:79]}…" for text in key)
    file = elsewhere.rpartition(":")[0]
    return ValueError(
        f"--against compares predictions of the same examples, but the row {location} (source "
        f"{source!r}, target {target!r}) has no counterpart in {file}. Score both on one test file."
    )


def _compared(a: Measurement, b: Measurement, bootstrap: dict[str, Any]) -> dict[str, Any]:
    scores = b.scores(resamples=0).to_json()
    kept = {name: scores[name] for name in ("strict", "paper", "notes", "confusion", "remarks")}
    differences = compare(a, b, **bootstrap)
    return {
        **kept,
        "differences": {name: paired._asdict() for name, paired in differences.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
