"""From a sweep file to its runs: settings checked, pretraining and vocabulary shared."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dora_jax.config import LLM_STRATEGIES, ModelSource, RunConfig
from dora_jax.cost.affordable import (
    Bill,
    Unaffordable,
    longest_within,
    updates_of,
    with_steps,
)
from dora_jax.cost.budget import KEPT_BACK_SHARE
from dora_jax.cost.charging import PREPARE, PRETRAIN, SHAREABLE, buys_labels
from dora_jax.cost.hardware import parse_devices
from dora_jax.cost.ledger_rows import LABELS
from dora_jax.cost.quote import quote_run
from dora_jax.cost.run_prices import label_price
from dora_jax.cost.workload import DataFacts, assumed_facts
from dora_jax.fingerprints import fingerprint, to_dict
from dora_jax.launch import gin_config
from dora_jax.launch.gin_config import Override
from dora_jax.launch.quote_facts import data_facts
from dora_jax.launch.sweep_files import is_axis, read_axes
from dora_jax.sweeps import Cell, expand, labels_for

LABEL_SHARE = "LABEL_SHARE"
SHARED = "shared"


class PlannedRun(NamedTuple):
    """One run, ready to be written down.

    Attributes:
      name: of its directory, below the sweep's.
      directory: where it is.
      text: its resolved gin file.
      config: the same, made.
      shown: (name, gin text) of what sets it apart.
      group, searched: as in `sweeps.Cell`.
      needs: names of the runs that must be finished before.
    """

    name: str
    directory: Path
    text: str
    config: RunConfig
    shown: tuple[tuple[str, str], ...]
    group: str = ""
    searched: dict[str, str] = {}
    needs: tuple[str, ...] = ()


class Plan(NamedTuple):
    """A sweep.

    Attributes:
      directory: of all its runs.
      runs: those that pretrain first.
      budget_usd: for all of them together; None where each has its own, or none.
    """

    directory: Path
    runs: tuple[PlannedRun, ...]
    budget_usd: float | None


def make(path: Path, scale: str, overrides: Sequence[Override], hardware: str = "") -> Plan:
    """Expands a sweep file.

    Args:
      path: of the file.
      scale: "rehearsal" or "paper".
      overrides: of the command line, for all runs.
      hardware: "KIND:COUNT" that LABEL_SHARE quotes the compute on; "" where nothing asks for it.

    Raises:
      ValueError: an axis or any of the runs is wrong; nothing has been started then.
    """
    axes = read_axes(path, overrides)
    overrides = [override for override in overrides if not is_axis(override.name)]
    names = [axis.name for axis in axes]
    if LABEL_SHARE in names and "NUM_LABELS" in names:
        raise ValueError("LABEL_SHARE decides how many labels are bought; leave NUM_LABELS out.")
    base = _build(path, scale, overrides)
    directory = Path(base.config.model_dir)
    capped = base.config.cost.budget_usd >= 0
    each = LABEL_SHARE in names or "BUDGET_USD" in names
    cells = [_divided(path, scale, overrides, cell, hardware) for cell in expand(axes)]
    first = _distinct(
        (cell, _planned(path, scale, overrides, directory, cell, base.config)) for cell in cells
    )
    bases = _pretraining(path, scale, overrides, directory, [run for _, run in first])
    runs = [
        _planned(path, scale, overrides, directory, cell, base.config, bases.get(_networks(run)))
        for cell, run in first
    ]
    budget_usd = base.config.cost.budget_usd if capped and not each else None
    return Plan(directory, (*bases.values(), *runs), budget_usd)


def _distinct(planned: Iterable[tuple[Cell, PlannedRun]]) -> list[tuple[Cell, PlannedRun]]:
    """Without runs that differ from an earlier one only in labels that they do not learn from."""
    kept: dict[str, tuple[Cell, PlannedRun]] = {}
    for cell, run in planned:
        used = to_dict(dataclasses.replace(run.config, model_dir=""))
        if not {*run.config.strategies} & {*LLM_STRATEGIES}:
            del used["llm"]
        elif run.config.strategies == ("llm",):
            del used["data"]["num_labels"]
        kept.setdefault(fingerprint(used), (cell, run))
    return list(kept.values())


def _build(
    path: Path, scale: str, overrides: Sequence[Override], check_use: bool = True
) -> gin_config.Resolved:
    return gin_config.build(path, scale, overrides, check_use=check_use, is_sweep=True)


def _planned(
    path: Path,
    scale: str,
    overrides: Sequence[Override],
    directory: Path,
    cell: Cell,
    base: RunConfig,
    pretrained: PlannedRun | None = None,
) -> PlannedRun:
    own = [Override(name, value) for name, value in cell.overrides]
    place = directory / cell.name
    own += [Override("MODEL_DIR", repr(str(place))), _shared(directory)]
    if pretrained is not None:
        own += _start_from(pretrained, base)
    resolved = _build(path, scale, [*overrides, *own])
    needs = (pretrained.name,) if pretrained else ()
    shown = tuple(cell.overrides)
    return PlannedRun(
        cell.name, place, resolved.text, resolved.config, shown, cell.group, cell.searched, needs
    )


def _shared(directory: Path) -> Override:
    return Override("SHARED_DIR", repr(str(directory / SHARED)))


# --- Mixtures: a share of the budget for labels, the rest for compute


def _divided(
    path: Path, scale: str, overrides: Sequence[Override], cell: Cell, hardware: str
) -> Cell:
    """The cell with LABEL_SHARE made into labels bought and updates that the rest pays for."""
    shares = [value for name, value in cell.overrides if name == LABEL_SHARE]
    if not shares:
        return cell
    others = tuple(pair for pair in cell.overrides if pair[0] != LABEL_SHARE)
    given = [*overrides, *(Override(*pair) for pair in others)]
    config = _build(path, scale, given, check_use=False).config
    cost = config.cost
    price = label_price(cost, config.data.task).usd
    labels = labels_for(float(shares[0]), cost.budget_usd, price)
    if not hardware:
        raise ValueError("LABEL_SHARE needs --hardware=KIND:COUNT, to know what the rest buys.")
    devices = parse_devices(hardware)[0]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_labels=labels))
    facts = data_facts(config)

    def quote(run: RunConfig) -> float:
        return quote_run(run, *devices[:2], spot=cost.spot, facts=facts).dollars

    compute_usd = (1 - KEPT_BACK_SHARE) * cost.budget_usd - labels * price
    reduced = longest_within(config, compute_usd, quote)
    if reduced is None:
        least = quote(with_steps(config, 0.0))
        raise Unaffordable(
            f"{cell.name}: {labels:,} labels cost ${labels * price:,.2f} of a BUDGET_USD of "
            f"{cost.budget_usd:,.2f}, {KEPT_BACK_SHARE:.0%} of which are kept back to end well; "
            f"${max(compute_usd, 0):,.2f} are left for compute, but a run of a single update is "
            f"quoted at ${least:,.2f} on {hardware}. Raise BUDGET_USD, or lower that LABEL_SHARE."
        )
    divided = [("NUM_LABELS", str(labels))]
    divided += [(name, str(updates)) for name, updates in updates_of(reduced).items()]
    return cell._replace(overrides=(*others, *divided))


# --- What a sweep is expected to cost

# What the settings of a student, or of the order of runs, do not change.
_OF_STUDENTS = ("model_dir", "shared_dir", "strategies", "student", "annotate", "distill", "llm")


def quoted(plan: Plan, hardware: str) -> list[Bill]:
    """The quote of each run in turn, upper end, what is paid once counted where it is first needed.

    That is a shared stage, and the labels of a search.

    Args:
      plan: the sweep.
      hardware: "KIND:COUNT".
    """
    devices = parse_devices(hardware)[0]
    paid: set[str] = set()
    read: dict[str, DataFacts] = {}
    bills = []
    for run in plan.runs:
        cost = run.config.cost
        facts = _facts(run.config, read)
        quote = quote_run(run.config, *devices[:2], spot=cost.spot, facts=facts)
        compute = 0.0
        for stage in quote.stages:
            key = _place(run, stage.stage)
            if key not in paid:
                paid.add(key)
                compute += stage.dollars
        bought = facts.labels if buys_labels(run.config.strategies) else 0
        if run.searched and f"{LABELS} of {run.group}" in paid:
            bought = 0
        paid.add(f"{LABELS} of {run.group}")
        bills.append(Bill(bought * label_price(cost, run.config.data.task).usd, compute))
    return bills


def _facts(config: RunConfig, read: dict[str, DataFacts]) -> DataFacts:
    """The sizes of a run's data, each data's read once."""
    key = fingerprint([to_dict(config.data), assumed_facts(config)])
    if key not in read:
        read[key] = data_facts(config)
    return read[key]


def require_data(plan: Plan) -> None:
    """Reads the data of the run with the most labels: what it lacks is told before it is paid.

    Raises:
      ValueError: there are not so many labels, or files cannot be read.
    """
    data_facts(max(plan.runs, key=_label_count).config)


def require_affordable(plan: Plan, hardware: str) -> None:
    """Refuses a sweep above its budget, and says how many of its runs would fit.

    Raises:
      Unaffordable: the quote is above the budget.
      ValueError: there is a budget, but no hardware to quote on.
    """
    if plan.budget_usd is None:
        return
    if not hardware:
        raise ValueError(
            "A sweep with a BUDGET_USD is quoted before it begins; say on what: --hardware="
            "KIND:COUNT, such as a100:4 or cpu."
        )
    bills = quoted(plan, hardware)
    totals = list(itertools.accumulate(bill.total for bill in bills))
    if totals[-1] > plan.budget_usd:
        fits = sum(total <= plan.budget_usd for total in totals)
        labels = sum(bill.labels for bill in bills)
        raise Unaffordable(
            f"This sweep is quoted at ${totals[-1]:,.2f} (${labels:,.2f} for labels, up to "
            f"${totals[-1] - labels:,.2f} for compute), above its BUDGET_USD of "
            f"{plan.budget_usd:,.2f}. Nothing was spent. What would fit: BUDGET_USD of "
            f"{math.ceil(totals[-1] * 100) / 100:,.2f}; or the first {fits} of its "
            f"{len(totals)} runs (--dry_run lists them)."
        )


def _place(run: PlannedRun, stage: str) -> str:
    """Equal for the runs that share a stage."""
    if stage not in SHAREABLE:
        return f"{run.name}/{stage}"
    plain = to_dict(run.config)
    kept = (
        plain["data"]
        if stage == PREPARE
        else {name: value for name, value in plain.items() if name not in _OF_STUDENTS}
    )
    return f"{stage}-{fingerprint(kept)}"


# --- Pretraining, of networks without weights


def _networks(run: PlannedRun) -> str:
    """Runs of equal networks start from one pretraining; "" where all have weights."""
    sources = (run.config.teacher, run.config.student)
    if all(source.weights for source in sources):
        return ""
    return fingerprint([to_dict(source) for source in sources])


def _pretraining(
    path: Path,
    scale: str,
    overrides: Sequence[Override],
    directory: Path,
    runs: Sequence[PlannedRun],
) -> dict[str, PlannedRun]:
    """A run for each pair of networks, on the text of the run with the most labels.

    Pretrained weights stand for published ones here: every run of a sweep starts from the same,
    and in the same vocabulary.
    """
    largest: dict[str, PlannedRun] = {}
    for run in runs:
        found = largest.setdefault(key, run) if (key := _networks(run)) else None
        if found is not None and _label_count(run) > _label_count(found):
            largest[key] = run
    bases = {}
    for key, run in largest.items():
        name = PRETRAIN if len(largest) == 1 else f"{PRETRAIN}-{key[:6]}"
        own = [
            Override(axis, value)
            for axis, value in run.shown
            if axis not in ("STRATEGIES", "NUM_LABELS")
        ]
        own += [
            Override("STRATEGIES", repr((PRETRAIN,))),
            Override("NUM_LABELS", str(run.config.data.num_labels)),
            Override("MODEL_DIR", repr(str(directory / name))),
            _shared(directory),
        ]
        resolved = _build(path, scale, [*overrides, *own], check_use=False)
        # Its seed is the first run's, whatever seeds the others have.
        shown = (("STRATEGIES", repr((PRETRAIN,))),)
        bases[key] = PlannedRun(name, directory / name, resolved.text, resolved.config, shown)
    return bases


def _label_count(run: PlannedRun) -> float:
    count = run.config.data.num_labels
    return float("inf") if count == -1 else count


def _start_from(pretrained: PlannedRun, base: RunConfig) -> list[Override]:
    place = pretrained.directory
    overrides = [Override("VOCABULARY", repr(str(place / "prepare/tokens/vocabulary.model")))]
    for side in ("teacher", "student"):
        source: ModelSource = getattr(base, side)
        if not source.weights:
            weights = f"native:{place}/pretrain-{side}"
            overrides.append(Override(f"{side.upper()}_WEIGHTS", repr(weights)))
    return overrides


def differences(found: RunConfig, wanted: RunConfig) -> list[str]:
    """Settings in which two runs differ, prices and places aside."""
    plain = [
        _flat("", to_dict(dataclasses.replace(c, cost=wanted.cost, model_dir="", shared_dir="")))
        for c in (found, wanted)
    ]
    return [
        f"{name}: {plain[0].get(name)} there, {plain[1].get(name)} now"
        for name in sorted({*plain[0], *plain[1]})
        if plain[0].get(name) != plain[1].get(name)
    ]


def _flat(prefix: str, plain: object) -> dict[str, object]:
    if not isinstance(plain, dict):
        return {prefix: plain}
    flat: dict[str, object] = {}
    for name, value in plain.items():
        flat |= _flat(f"{prefix}.{name}" if prefix else name, value)
    return flat
