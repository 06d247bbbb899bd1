"""What a report shows of single models: comparisons, training, quotes and sample predictions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dora_jax.cost.charging import TEACHER
from dora_jax.launch.score import Predictions, in_order_of, read_predictions
from dora_jax.metrics.measurement import compare
from dora_jax.planning.dollars import usd_text
from dora_jax.report.content import Sample, Table
from dora_jax.run_folders import FINISHED
from dora_jax.run_records import RunRecord
from dora_jax.tasks.task import TaskSpec, get_task

MAX_SAMPLES = 12
RESAMPLES = 2000
_TRAINED_BY = {TEACHER: "teach"}


def exemplars(records: Sequence[RunRecord]) -> list[RunRecord]:
    """One finished model of each strategy, chosen without a look at its score.

    At the number of human labels that most strategies share, the larger of two such, or else at
    the strategy's own largest; there with the most labels of a language model, the lowest seed.
    """
    finished = [r for r in records if r.status == FINISHED and r.value is not None and r.chosen]
    by_labels: dict[int, set[str]] = {}
    for record in finished:
        by_labels.setdefault(record.labels, set()).add(record.strategy)
    if not by_labels:
        return []
    shared = max(by_labels, key=lambda n: (len(by_labels[n]), n))
    chosen: dict[str, RunRecord] = {}
    for record in sorted(
        finished, key=lambda r: (r.labels != shared, -r.labels, -r.llm_labels, r.seed)
    ):
        chosen.setdefault(record.strategy, record)
    return [chosen[name] for name in sorted(chosen)]


class Read(NamedTuple):
    """Models whose predictions can be read and are of the same examples.

    Attributes:
      task: of all of them; None where it cannot be built here.
      models, predictions: in the same order; predictions in the order of the first model's rows.
      rows: of the first model.
      remarks: which models are left out, and why.
    """

    task: TaskSpec | None
    models: list[RunRecord]
    predictions: list[list[str]]
    rows: Predictions
    remarks: list[str]


def read_models(models: Sequence[RunRecord]) -> Read:
    """The predictions of these models on the examples that the first readable one was scored on."""
    read = Read(None, [], [], Predictions([], [], [], []), [])
    for model in models:
        try:
            task = read.task or _task(model)
            if model.predictions_path is None:
                raise ValueError("its predictions are not there.")
            rows = read_predictions(model.predictions_path, task)
            if not read.models:
                read = read._replace(task=task, rows=rows)
            predictions = in_order_of(read.rows, rows)
        except (ValueError, OSError) as error:
            read.remarks.append(f"{model.strategy} of {model.name} is left out: {error}")
            continue
        read.models.append(model)
        read.predictions.append(predictions)
    return read


def comparisons(read: Read, metric: str) -> tuple[list[str], list[Table]]:
    """Every pair of models on the same test examples: texts, and a table."""
    if read.task is None or len(read.models) < 2:
        return read.remarks, []
    try:
        measured = [
            read.task.measure(read.rows.targets, predictions, read.rows.sources)
            for predictions in read.predictions
        ]
    except (ValueError, ModuleNotFoundError) as error:
        return [*read.remarks, f"Not made: {error}"], []
    rows = []
    pairs = itertools.combinations(zip(read.models, measured, strict=True), 2)
    for (a, of_a), (b, of_b) in pairs:
        found = compare(of_a, of_b, resamples=RESAMPLES)[of_a.primary]
        low, high = found.interval
        ends = f"{low:+.1f} to {high:+.1f}"
        pair = f"{a.strategy} − {b.strategy}"
        rows.append((pair, f"{found.difference:+.1f}", ends, f"{found.p_value:.4f}"))
    text = (
        f"Differences in {metric} on the same test examples, by paired bootstrap: "
        + ", ".join(f"{r.strategy} of {r.name}" for r in read.models)
        + ". One run each: another seed may change the sign of a small difference."
    )
    columns = ("comparison", "points", "95 %", "p")
    return [text, *read.remarks], [Table("", columns, rows, columns[1:])]


def samples(read: Read) -> tuple[list[str], list[Sample]]:
    """Test examples with every model's prediction, those the models disagree about first."""
    targets, sources = read.rows.targets, read.rows.sources
    right = [
        [_same(prediction, target) for prediction in row]
        for target, *row in zip(targets, *read.predictions, strict=True)
    ]
    if not right or not read.models:
        return [], []
    order = sorted(range(len(right)), key=lambda i: (len(set(right[i])) == 1, i))
    found = []
    for i in order[:MAX_SAMPLES]:
        each = zip(read.models, read.predictions, right[i], strict=True)
        of_models = [(model.strategy, column[i], same) for model, column, same in each]
        found.append(Sample(sources[i], targets[i], of_models))
    text = (
        f"{len(found)} of {len(right)} test examples, those first about which the models "
        "disagree. “as gold” compares texts."
    )
    return [text], found


def training(models: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Validation values over updates."""
    rows = []
    for model in models:
        stage = _TRAINED_BY.get(model.strategy, model.strategy)
        for row in _lines(model, stage):
            if isinstance(value := row.get("validation/value"), int | float):
                name = f"{model.strategy} of {model.name}"
                point = {"run": name, "step": row.get("step"), "value": value}
                rows.append({"strategy": model.strategy, **point})
    return rows


def quotes(models: Sequence[RunRecord]) -> list[Table]:
    """What each stage was quoted at, and what the ledger has; of one run."""
    from dora_jax.launch.quote_audit import audit_of_run

    for model in reversed(models):  # distill, where there is one, has the most stages
        try:
            audit = audit_of_run(model.directory)
        except (ValueError, OSError):
            continue  # other devices, or a run from before there were quotes
        rows = [
            (
                stage.stage,
                f"{stage.quoted_seconds_low:,.0f}–{stage.quoted_seconds:,.0f}",
                f"{stage.billed_seconds:,.0f}",
                usd_text(stage.quoted_dollars),
                usd_text(stage.billed_dollars),
            )
            for stage in audit.stages
        ]
        columns = ("stage", "quoted s", "billed s", "quoted $", "billed $")
        title = f"Quoted against billed: {model.name}, {audit.devices} × {audit.hardware}"
        return [Table(title, columns, rows, columns[1:])]
    return []


def _task(model: RunRecord) -> TaskSpec:
    try:
        return get_task(model.task)
    except ValueError:
        if model.config_path is None:
            raise
    from dora_jax.launch import gin_config
    from dora_jax.tasks.own import task_of

    config = gin_config.build(model.config_path, model.scale, [], check_use=False).config
    return task_of(config.data, config.cost.price_usd_per_label)


def _same(prediction: str, target: str) -> bool:
    return " ".join(prediction.split()) == " ".join(target.split())


def _lines(model: RunRecord, stage: str) -> Iterator[dict[str, Any]]:
    try:
        text = (model.directory / stage / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a run that is being written
        if isinstance(row, dict):
            yield row
