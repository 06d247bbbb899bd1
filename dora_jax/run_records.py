"""What finished, running and broken runs came to: one record for each result of each run.

Reads what runs leave on disk (docs/formats.md) and changes nothing. Whatever is missing or
broken is a record with a status and a reason, never an exception: one bad run must not hide
the others.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dora_jax.config import T5Config
from dora_jax.cost.charging import (
    BY_PRODUCTS,
    LLM_LABELS,
    STAGES,
    TEACHER,
    TRAINED_AS,
    Users,
    results_of,
    teacher_split,
)
from dora_jax.cost.flops import parameter_count
from dora_jax.cost.prices import INPUT_TOKENS, LABEL_UNITS, NOT_PRICED, TOKEN_UNITS, PriceBook
from dora_jax.fingerprints import agreed, fingerprint
from dora_jax.metrics.scores import Scores
from dora_jax.run_folders import (
    BUDGET,
    FAILED,
    FINISHED,
    SWEEP_FILE,
    RunFolder,
    dig,
    find_runs,
    place_of,
    read_folder,
    read_or_empty,
    search_of,
)

# The training stage whose student (or teacher) a result is.
_TRAINED_BY = {TEACHER: "teach"}
# Settings that matter only to results with this stage.
_OF_STAGES = {
    "teach": ("teacher", "teach", "distill", "label"),
    "annotate": ("annotate",),
    LLM_LABELS: ("llm",),
}
_NO_MATTER = ("model_dir", "shared_dir", "seed", "strategies", "mesh", "cost", "scale")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One result of a run. Money is in USD, metrics are in percent.

    Attributes:
      directory: of the run.
      name: of the run, its path below the folder that was read.
      task, scale, seed: as the run was told.
      strategy: the result: "annotate", "distill", "teacher", …
      status: "finished"; "budget": stopped training at its cap, or before it got so far;
        "running"; "stopped": interrupted or killed, the same command goes on; "failed".
      reason: why it is not finished, in words; "" where it is.
      labels: human labels bought.
      llm_labels: labels of language models.
      label_dollars, llm_dollars: paid for human labels, and to language models.
      compute_dollars: of all stages the result needs, alone: those it shares with others in full.
      shared_dollars: the part of `compute_dollars` that other results read use too.
      amortised_dollars: `compute_dollars` with each stage divided by the results that use it,
        among those read. Summed over records, nothing is counted twice.
      search_dollars: compute of what a search for settings tried beside the chosen result: every
        stage of its candidates once, but for those the chosen one needs itself.
      searched: what the search tried here, setting → gin text; empty where there was none.
      chosen: False for what a search tried and did not choose.
      dollars_by_stage, dollars_by_phase: how `compute_dollars` divides.
      teacher_dollars: how the teacher's share of them does: "tune", "generate", "score", "idle".
      priced: False where some device-hours had no price and count as 0.
      device_kind, devices, device_hours: what was rented; kinds joined by ", " where several.
      seconds: of program time that is paid.
      tokens: trained on, labelled and decoded, without padding.
      metric, value, interval: the primary metric; None where it is not scored yet.
      per_class: class or type → F1, where there are classes.
      teacher_parameters, student_parameters: sizes; no teacher where none is used.
      steps, epochs: updates of the training stage, and passes over its examples.
      code_version: that wrote the run's first receipt.
      config_path, predictions_path: None where the file is not there.
      group: equal for results that differ in seeds alone, or in what searches chose for them.
      settings: the run's configuration as JSON.
    """

    directory: Path
    name: str
    task: str
    scale: str
    seed: int
    strategy: str
    status: str
    reason: str = ""
    labels: int = 0
    llm_labels: int = 0
    label_dollars: float = 0.0
    llm_dollars: float = 0.0
    compute_dollars: float = 0.0
    shared_dollars: float = 0.0
    amortised_dollars: float = 0.0
    search_dollars: float = 0.0
    searched: dict[str, str] = dataclasses.field(default_factory=dict)
    chosen: bool = True
    dollars_by_stage: dict[str, float] = dataclasses.field(default_factory=dict)
    dollars_by_phase: dict[str, float] = dataclasses.field(default_factory=dict)
    teacher_dollars: dict[str, float] = dataclasses.field(default_factory=dict)
    priced: bool = True
    device_kind: str = ""
    devices: int = 0
    device_hours: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    metric: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    per_class: dict[str, float] = dataclasses.field(default_factory=dict)
    teacher_parameters: int | None = None
    student_parameters: int | None = None
    steps: int = 0
    epochs: float | None = None
    code_version: str = ""
    config_path: Path | None = None
    predictions_path: Path | None = None
    group: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def dollars(self) -> float:
        """All that the result costs alone: labels, language models, compute and search."""
        return self.label_dollars + self.llm_dollars + self.compute_dollars + self.search_dollars

    @property
    def tokens_per_dollar(self) -> float | None:
        """Of compute dollars; None where nothing was paid."""
        return self.tokens / self.compute_dollars if self.compute_dollars else None


def read_runs(directory: str | os.PathLike[str], book: PriceBook | None = None) -> list[RunRecord]:
    """The records of all runs below a folder, or of the one run that it is.

    Args:
      directory: a folder of runs, at any depth, or a run directory.
      book: prices all receipts anew; None leaves them as they were written.

    Returns:
      One record for each result that each run was asked for, by path and strategy.

    Raises:
      ValueError: the book has no price for something that was bought.
    """
    root = Path(directory)
    return records_of(root, [read_folder(path, book) for path in find_runs(root)])


def records_of(root: Path, folders: Iterable[RunFolder]) -> list[RunRecord]:
    """The records of these run directories, named by their path below `root`."""
    folders = list(folders)
    users = _users(folders)
    records = [
        _record(root, folder, strategy, users)
        for folder in folders
        for strategy in _strategies(folder)
    ]
    return _with_searches(records)


def _strategies(folder: RunFolder) -> tuple[str, ...]:
    wanted = folder.settings.get("strategies")
    wanted = tuple(map(str, wanted)) if isinstance(wanted, list) else ()
    return results_of(wanted) or ("",)


def _users(folders: Iterable[RunFolder]) -> Users:
    users = Users(Counter(), Counter())
    for folder in folders:
        for strategy in _strategies(folder):
            counted = users.by_products if strategy in BY_PRODUCTS else users.results
            counted.update({folder.place(stage) for stage in STAGES.get(strategy, ())})
    return users


def _record(root: Path, folder: RunFolder, strategy: str, users: Users) -> RunRecord:
    settings, directory = folder.settings, folder.directory
    relative = directory.relative_to(root).as_posix()
    status, reason, scores = _outcome(folder, strategy)
    base = RunRecord(
        directory=directory,
        name=directory.name if relative == "." else relative,
        task=str(dig(settings, "data", "task") or ""),
        scale=str(settings.get("scale", "")),
        seed=_count(settings.get("seed")),
        strategy=strategy,
        status=status,
        reason=reason,
        code_version=folder.rows[0].code_version if folder.rows else "",
        config_path=_if_there(directory / "config.gin"),
        predictions_path=_if_there(directory / f"evaluate-{strategy}" / "predictions.jsonl"),
        group=_group(settings, strategy),
        settings=settings,
    )
    return dataclasses.replace(
        base,
        **_quality(scores),
        **_costs(folder, strategy, users),
        **_sizes(settings, strategy),
        **_training(folder, strategy),
    )


def _outcome(folder: RunFolder, strategy: str) -> tuple[str, str, Scores | None]:
    """Status, reason and scores of one result."""
    if folder.broken:
        return FAILED, folder.broken, None
    evaluated = f"evaluate-{strategy}"
    manifest = read_or_empty(folder.directory / evaluated / "manifest.json")
    plain = dig(manifest, "outputs", "scores")
    if plain is None and evaluated not in STAGES.get(strategy, ()):
        return folder.status, "" if folder.status == FINISHED else folder.reason, None
    if plain is None:
        # The run may have ended well with this result broken since.
        if folder.status == FINISHED:
            return FAILED, f"{evaluated} has no scores", None
        return folder.status, folder.reason, None
    try:
        scores = Scores.from_json(plain)
        value, interval = scores.value, scores.intervals.get(scores.primary, (0.0, 0.0))
        _ = float(value), float(interval[0]), float(interval[1])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return FAILED, f"the scores of {evaluated} cannot be read: {error!r}", None
    cut = dig(manifest, "outputs", "stopped_by")
    return (BUDGET, str(cut), scores) if cut else (FINISHED, "", scores)


def _quality(scores: Scores | None) -> dict[str, Any]:
    if scores is None:
        return {}
    return {
        "metric": scores.primary,
        "value": scores.value,
        "interval": scores.intervals.get(scores.primary),
        "per_class": {n[3:]: v for n, v in scores.strict.items() if n.startswith("f1/")},
    }


def _costs(folder: RunFolder, strategy: str, users: Users) -> dict[str, Any]:
    needed = [row for row in folder.rows if row.stage in STAGES.get(strategy, ())]
    work = [row for row in needed if row.device_kind]
    by_stage: defaultdict[str, float] = defaultdict(float)
    by_phase: defaultdict[str, float] = defaultdict(float)
    for row in work:
        by_stage[row.stage] += row.dollars
        seconds = sum(row.seconds.values())
        for phase, of_phase in row.seconds.items():
            by_phase[phase] += row.dollars * of_phase / seconds if seconds else 0.0
    places = {stage: folder.place(stage) for stage in by_stage}
    return {
        "labels": sum(row.examples for row in needed if row.unit in LABEL_UNITS),
        "llm_labels": sum(row.examples for row in needed if row.unit == INPUT_TOKENS),
        "label_dollars": sum(row.dollars for row in needed if row.unit in LABEL_UNITS),
        "llm_dollars": sum(row.dollars for row in needed if row.unit in TOKEN_UNITS),
        "compute_dollars": sum(by_stage.values()),
        "shared_dollars": sum(
            usd for stage, usd in by_stage.items() if users.results[places[stage]] > 1
        ),
        "amortised_dollars": sum(
            usd * users.share(places[stage], strategy) for stage, usd in by_stage.items()
        ),
        "dollars_by_stage": dict(by_stage),
        "dollars_by_phase": dict(by_phase),
        "teacher_dollars": teacher_split(work),
        "priced": all(row.price_source != NOT_PRICED for row in work),
        "device_kind": ", ".join(sorted({row.device_kind for row in work})),
        "devices": max((row.devices_held for row in work), default=0),
        "device_hours": sum(row.device_hours for row in work),
        "seconds": sum(sum(row.seconds.values()) for row in work),
        "tokens": sum(row.tokens for row in work),
    }


def _sizes(settings: dict[str, Any], strategy: str) -> dict[str, Any]:
    teacher = _parameters(settings, "teacher")
    return {
        "teacher_parameters": teacher if "teach" in STAGES.get(strategy, ()) else None,
        "student_parameters": None if strategy == TEACHER else _parameters(settings, "student"),
    }


def _parameters(settings: dict[str, Any], side: str) -> int | None:
    network = dig(settings, side, "network")
    try:
        return parameter_count(T5Config(**network)) if isinstance(network, dict) else None
    except (TypeError, ValueError):  # written by another version
        return None


def _training(folder: RunFolder, strategy: str) -> dict[str, Any]:
    """Updates, and epochs by the examples they see."""
    stage = _TRAINED_BY.get(strategy, strategy)
    scored = read_or_empty(folder.directory / f"evaluate-{strategy}" / "manifest.json")
    cut_after = dig(scored, "outputs", "last_step")  # where the budget ended the training
    settings = dig(folder.settings, *TRAINED_AS.get(stage, (stage,)))
    steps = _count(cut_after or dig(settings, "train_steps"))
    tokens = dig(folder.settings, "data", "token_store") or folder.place("prepare") / "tokens"
    rows = dig(read_or_empty(Path(tokens) / "manifest.json"), "rows")
    split = "unlabeled" if "label" in STAGES.get(strategy, ()) else "train"
    examples = _count(dig(rows, split))
    if strategy in ("llm", "llm_human"):
        bought = read_or_empty(folder.directory / LLM_LABELS / "manifest.json")
        examples = _count(dig(bought, "outputs", "rows"))
    batch_size = _count(dig(settings, "batch_size"))
    return {"steps": steps, "epochs": steps * batch_size / examples if examples else None}


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def settings_of_result(settings: dict[str, Any], strategy: str) -> dict[str, Any]:
    """The settings that a result depends on: no seeds, no places, no other strategies' own."""
    own = STAGES.get(strategy, ())
    others = (names for stage, names in _OF_STAGES.items() if stage not in own)
    left_out = {*_NO_MATTER, *itertools.chain(*others)}
    kept = {name: value for name, value in settings.items() if name not in left_out}
    if isinstance(kept.get("data"), dict):
        kept["data"] = {n: v for n, v in kept["data"].items() if n != "labels_seed"}
    return kept


def _group(settings: dict[str, Any], strategy: str) -> str:
    return fingerprint([strategy, settings_of_result(settings, strategy)])


def _with_searches(records: list[RunRecord]) -> list[RunRecord]:
    """Marks what searches did not choose, and charges what they did choose for them."""
    searches: defaultdict[tuple[Path, str], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        if search := search_of(record.directory):
            searches[search, record.strategy].append(i)
    judged: dict[int, RunRecord] = {}
    for places in searches.values():
        judged |= zip(places, _searched([records[i] for i in places]), strict=True)
    return [judged.get(i, record) for i, record in enumerate(records)]


def _searched(candidates: list[RunRecord]) -> list[RunRecord]:
    """The results of one search, the best on validation charged for all of it."""
    bills = [
        {place_of(r.directory, r.settings, stage): usd for stage, usd in r.dollars_by_stage.items()}
        for r in candidates
    ]
    validations = [_validation(candidate) for candidate in candidates]
    best = validations.index(max(validations))
    tried = {place: usd for bill in bills for place, usd in bill.items()}
    search_usd = sum(usd for place, usd in tried.items() if place not in bills[best])
    fixed = agreed([candidate.settings for candidate in candidates])
    group = f"search-{_group(fixed, candidates[best].strategy)}"
    told = [read_or_empty(r.directory / SWEEP_FILE)["searched"] for r in candidates]
    judged = [
        dataclasses.replace(candidate, searched=told[i], chosen=i == best)
        for i, candidate in enumerate(candidates)
    ]
    judged[best] = dataclasses.replace(judged[best], search_dollars=search_usd, group=group)
    return judged


def _validation(record: RunRecord) -> float:
    """The best value on validation; never the test score, which must not choose anything."""
    stage = record.directory / _TRAINED_BY.get(record.strategy, record.strategy)
    value = dig(read_or_empty(stage / "manifest.json"), "outputs", "best_value")
    return float(value) if isinstance(value, int | float) else float("-inf")


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def seeds_together(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Records of equal `group`, group by group, in the order of their first one."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return list(groups.values())
