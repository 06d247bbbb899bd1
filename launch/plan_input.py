"""From run directories to what planning takes: which results belong together, and their prices."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.cost.charging import BY_PRODUCTS, LLM_LABELS
from dora_jax.cost.prices import INPUT_TOKENS, LABEL_UNITS, TOKEN_UNITS
from dora_jax.fingerprints import agreed, fingerprint
from dora_jax.planning.annotators import Annotator, audit_of
from dora_jax.planning.arms import Market, Measured
from dora_jax.run_folders import (
    FINISHED,
    RunFolder,
    dig,
    find_runs,
    read_folder,
    read_or_empty,
    search_of,
)
from dora_jax.run_records import RunRecord, records_of, settings_of_result

# What students of one teacher can share: making it, and its pass over the unlabelled text.
TEACHER_STAGES = ("pretrain-teacher", "teach", "choose-labels", "label")
GIVEN = "given on the command line"


class Prices(NamedTuple):
    """Prices in place of those that the receipts have; None leaves them."""

    label_usd: float | None = None
    llm_label_usd: float | None = None
    device_hour_usd: float | None = None


AS_PAID = Prices()


class Chosen(NamedTuple):
    """Results that may be compared.

    Attributes:
      task, scale, metric: which they have in common.
      records: all results of the task and scale, finished or not, teachers too.
      results: the finished ones of compact models, as planning takes them.
      market: today's prices.
      annotators: the language models whose labels the results use.
      remarks: what a reader must know of them, in sentences.
    """

    task: str
    scale: str
    metric: str
    records: list[RunRecord]
    results: list[Measured]
    market: Market
    annotators: list[Annotator]
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
    measured = [_measured(record, _tried(record, kept)) for record in students]
    results = _once_each(measured)
    remarks = _remarks(records, same, students)
    if again := len(measured) - len(results):
        remarks.append(
            f"{again} results repeat another one (equal settings, seed and value) and count once."
        )
    market, annotators = _market(results), _annotators(students)
    return Chosen(task_, scale_, metric, same, results, market, annotators, remarks)


def _priced(folder: RunFolder, prices: Prices) -> RunFolder:
    changed = []
    for row in folder.rows:
        price, amount = None, 0.0
        if row.unit in LABEL_UNITS:
            price, amount = prices.label_usd, float(row.examples)
        elif row.unit in TOKEN_UNITS:  # the row of the input has the number of labels
            price = prices.llm_label_usd
            amount = float(row.examples) if row.unit == INPUT_TOKENS else 0.0
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


def _tried(record: RunRecord, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The record, and what the search tried that chose it."""
    search = search_of(record.directory)
    same = [r for r in records if r.strategy == record.strategy] if search else []
    return [r for r in same if search_of(r.directory) == search] or [record]


def _measured(record: RunRecord, tried: Sequence[RunRecord]) -> Measured:
    assert record.value is not None
    size = record.student_parameters
    return Measured(
        name=record.name,
        strategy=record.strategy,
        recipe=_recipe(record.strategy, agreed([each.settings for each in tried])),
        student=f"{size / 1e6:.3g} M" if size else "size unknown",
        seed=record.seed,
        labels=record.labels,
        label_usd=record.label_dollars,
        device_usd=record.compute_dollars + record.search_dollars,
        teacher_usd=sum(record.dollars_by_stage.get(stage, 0.0) for stage in TEACHER_STAGES),
        value=record.value,
        interval=record.interval,
        confidence=_confidence(record.settings),
        annotator=str(_labelled(record).get("model") or "") if record.llm_labels else "",
        llm_labels=record.llm_labels,
        llm_usd=record.llm_dollars,
    )


def _confidence(settings: dict[str, Any]) -> float:
    evaluate = settings.get("evaluate")
    return float(evaluate.get("confidence", 0.95)) if isinstance(evaluate, dict) else 0.95


def _recipe(strategy: str, settings: dict[str, Any]) -> str:
    """A fingerprint of the settings that decide a result, but for numbers of labels and seeds."""
    kept = settings_of_result(settings, strategy)
    kept.pop("evaluate", None)
    for part, names in (("data", ("num_labels", "token_store")), ("llm", ("num_labels",))):
        if isinstance(kept.get(part), dict):
            kept[part] = {n: v for n, v in kept[part].items() if n not in names}
    return fingerprint([strategy, kept])[:6]


def _once_each(results: Sequence[Measured]) -> list[Measured]:
    """Without repetitions, as a sweep makes of a strategy by an axis that does not touch it.

    Taken for seeds they would say that nothing scatters.
    """
    first: dict[Hashable, Measured] = {}
    for r in results:
        key = (r.strategy, r.recipe, r.seed, r.labels, r.llm_labels, r.value)
        first.setdefault(key, r)
    return list(first.values())


def _labelled(record: RunRecord) -> dict[str, Any]:
    """What the run recorded of the language model that labelled for it."""
    outputs = read_or_empty(record.directory / LLM_LABELS / "manifest.json").get("outputs")
    return outputs if isinstance(outputs, dict) else {}


def _annotators(records: Sequence[RunRecord]) -> list[Annotator]:
    """One for each file of labels and model, in the order of the runs."""
    found: dict[tuple[str, str], Annotator] = {}
    for record in records:
        outputs = _labelled(record) if record.llm_labels else {}
        model = str(outputs.get("model") or "")
        key = (str(dig(record.settings, "llm", "labels")), model)
        if record.llm_labels > (found[key].labels if key in found else 0):
            usd = record.llm_dollars / record.llm_labels
            found[key] = Annotator(model, record.llm_labels, usd, audit_of(outputs.get("audit")))
    return list(found.values())


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
    if free := sum(r.llm_labels > 0 and not r.llm_dollars for r in used):
        remarks.append(
            f"Labels of a language model cost $0 in {free} results, as on a server of one's own "
            "whose devices are not counted; --price_usd_per_llm_label=X prices them."
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
