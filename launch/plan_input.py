"""From run directories to what planning takes: which results belong together, and their prices."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.cost.charging import BY_PRODUCTS
from dora_jax.cost.ledger_rows import LABELS
from dora_jax.fingerprints import fingerprint
from dora_jax.planning.arms import Market, Measured
from dora_jax.run_folders import FINISHED, RunFolder, find_runs, read_folder
from dora_jax.run_records import RunRecord, records_of

# What students of one teacher can share: making it, and its pass over the unlabelled text.
TEACHER_STAGES = ("pretrain-teacher", "teach", "choose-labels", "label")
_NO_RECIPE = ("model_dir", "seed", "strategies", "mesh", "cost", "scale", "evaluate")
_OF_THE_TEACHER = ("teacher", "teach", "label", "distill")
GIVEN = "given on the command line"


class Prices(NamedTuple):
    """Prices in place of those that the receipts have; None leaves them."""

    label_usd: float | None = None
    device_hour_usd: float | None = None


AS_PAID = Prices()


class Chosen(NamedTuple):
    """Results that may be compared.

    Attributes:
      task, scale, metric: which they have in common.
      records: all results of the task and scale, finished or not, teachers too.
      results: the finished ones of compact models, as planning takes them.
      market: today's prices.
      remarks: what a reader must know of them, in sentences.
    """

    task: str
    scale: str
    metric: str
    records: list[RunRecord]
    results: list[Measured]
    market: Market
    remarks: list[str]


def read_records(directory: str, prices: Prices = AS_PAID) -> list[RunRecord]:
    """The records of all runs below a folder, priced anew where prices are given.

    Raises:
      ValueError: there is no such folder, or no run in it.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ValueError(f"--runs={directory}: there is no such folder.")
    folders = [_priced(read_folder(path), prices) for path in find_runs(root)]
    if not folders:
        raise ValueError(
            f"--runs={directory} holds no run. A run is a folder that launch/run.py wrote; "
            "`python launch/run.py --gin_file=gin/wlp_distill.gin` makes one."
        )
    return records_of(root, folders)


def choose(records: Sequence[RunRecord], task: str | None, scale: str | None) -> Chosen:
    """The results of one task, scale and metric, which alone may be compared.

    Raises:
      ValueError: several remain, or none.
    """
    kept = [r for r in records if task in (None, r.task) and scale in (None, r.scale)]
    finished = [r for r in kept if r.status == FINISHED and r.value is not None and r.chosen]
    students = [r for r in finished if r.strategy not in BY_PRODUCTS]
    kinds = Counter((r.task, r.scale, r.metric) for r in students)
    if not kinds:
        raise ValueError(_nothing(records, kept, task, scale))
    if len(kinds) > 1:
        listed = "; ".join(f"{t}, {s}, {m}: {n} results" for (t, s, m), n in kinds.items())
        raise ValueError(
            f"The runs are of several kinds, which cannot be compared: {listed}. Choose one with "
            "--task and --scale, or name a folder that holds one kind."
        )
    ((task_, scale_, metric),) = kinds
    same = [r for r in kept if (r.task, r.scale) == (task_, scale_)]
    results = [_measured(record) for record in students]
    return Chosen(
        task_, scale_, metric, same, results, _market(results), _remarks(records, same, students)
    )


def _priced(folder: RunFolder, prices: Prices) -> RunFolder:
    changed = []
    for row in folder.rows:
        price, amount = None, 0.0
        if row.stage == LABELS:
            price, amount = prices.label_usd, float(row.examples)
        elif row.device_kind:
            price, amount = prices.device_hour_usd, row.device_hours
        if price is not None:
            row = dataclasses.replace(
                row,
                price_usd_per_unit=price,
                dollars=amount * price,
                price_source=GIVEN,
                price_date="",
            )
        changed.append(row)
    return dataclasses.replace(folder, rows=tuple(changed))


def _measured(record: RunRecord) -> Measured:
    assert record.value is not None
    size = record.student_parameters
    return Measured(
        name=record.name,
        strategy=record.strategy,
        recipe=_recipe(record),
        student=f"{size / 1e6:.3g} M" if size else "size unknown",
        seed=record.seed,
        labels=record.labels,
        label_usd=record.label_dollars,
        device_usd=record.compute_dollars + record.search_dollars,
        teacher_usd=sum(record.dollars_by_stage.get(stage, 0.0) for stage in TEACHER_STAGES),
        other_usd=record.llm_dollars,
        value=record.value,
        interval=record.interval,
        confidence=_confidence(record.settings),
    )


def _confidence(settings: dict[str, Any]) -> float:
    evaluate = settings.get("evaluate")
    return float(evaluate.get("confidence", 0.95)) if isinstance(evaluate, dict) else 0.95


def _recipe(record: RunRecord) -> str:
    """A fingerprint of the settings that decide a result, but for labels and seeds."""
    kept = copy.deepcopy({k: v for k, v in record.settings.items() if k not in _NO_RECIPE})
    if record.teacher_parameters is None:
        kept = {k: v for k, v in kept.items() if k not in _OF_THE_TEACHER}
    data = kept.get("data")
    if isinstance(data, dict):
        for name in ("num_labels", "labels_seed", "token_store"):
            data.pop(name, None)
    return fingerprint([record.strategy, kept])[:6]


def _market(results: Sequence[Measured]) -> Market:
    """Dollars by label over all that was bought: the one price, where there is one."""
    bought = sum(result.labels for result in results)
    return Market(sum(result.label_usd for result in results) / bought if bought else 0.0)


def _remarks(
    records: Sequence[RunRecord], same: Sequence[RunRecord], used: Sequence[RunRecord]
) -> list[str]:
    remarks = []
    others = len(records) - len(same)
    if others:
        remarks.append(f"{others} results of another task or scale are left out.")
    for record in same:
        if record.status != FINISHED:
            remarks.append(f"{record.name} ({record.strategy}) is {record.status}: {record.reason}")
    if tried := sum(not record.chosen for record in same):
        remarks.append(
            f"{tried} runs of a search for settings are left out; the chosen one pays for them."
        )
    if free := sum(not record.priced for record in used):
        remarks.append(
            f"Compute of {free} of {len(used)} results has no price and counts as $0; "
            "--price_usd_per_device_hour=X prices it."
        )
    prices = {round(r.label_dollars / r.labels, 6) for r in used if r.labels}
    if len(prices) > 1:
        listed = ", ".join(f"${price:g}" for price in sorted(prices))
        remarks.append(
            f"Labels were bought at {listed}; plans count with their mean. "
            "--price_usd_per_label=X sets one."
        )
    return remarks


def _nothing(
    records: Sequence[RunRecord], kept: Sequence[RunRecord], task: str | None, scale: str | None
) -> str:
    asked = ", ".join(f"--{n}={v}" for n, v in (("task", task), ("scale", scale)) if v)
    if not kept:
        there = sorted({f"{r.task} ({r.scale})" for r in records})
        return f"No result fits {asked}. The runs are of: {', '.join(there)}."
    statuses = Counter(record.status for record in kept)
    listed = ", ".join(f"{n} {status}" for status, n in statuses.items())
    first = next((f" {r.name}: {r.reason}" for r in kept if r.reason), "")
    return f"No result of a compact model is finished yet; there are {listed}.{first}"
