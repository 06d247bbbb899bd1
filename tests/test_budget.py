"""The cap: what it allows, what it keeps back, and a run that reaches it and goes on later."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import TRAIN, manifest_of, open_run, read_rows, tiny_config

from dora_jax import strategies
from dora_jax.config import CostConfig, DataConfig, LlmConfig, RunConfig, TrainConfig
from dora_jax.cost.affordable import fitting, longest_within, refusal
from dora_jax.cost.budget import SAVE, UNMEASURED_SHARE, UPDATE, VALIDATE, Budget
from dora_jax.cost.meter import Meter
from dora_jax.launch.affordability import require_affordable
from dora_jax.run_records import read_runs
from dora_jax.stages import context as contexts


class Purse:
    """Dollars spent, by a test."""

    usd = 0.0

    def __call__(self) -> float:
        return self.usd


def spend(purse: Purse, budget: Budget, part: str, usd: float) -> None:
    with budget.measured(part):
        purse.usd += usd


def test_an_update_is_allowed_while_the_ending_can_be_paid() -> None:
    purse = Purse()
    budget = Budget(100.0, purse)
    spend(purse, budget, UPDATE, 1.0)
    spend(purse, budget, VALIDATE, 4.0)
    spend(purse, budget, SAVE, 2.0)
    # 2 to save, 2 to read, 4 to validate, 12 to evaluate, 1 for the update, 2 between them
    purse.usd = 77.0
    assert budget.allows_update(evaluations=3.0)
    purse.usd = 77.01
    assert not budget.allows_update(evaluations=3.0)


def test_the_latest_update_counts_and_the_dearest_of_the_others() -> None:
    purse = Purse()
    budget = Budget(100.0, purse)
    for usd in (30.0, 1.0):  # the first one was compiled
        spend(purse, budget, UPDATE, usd)
    for usd in (5.0, 1.0):
        spend(purse, budget, VALIDATE, usd)
        spend(purse, budget, SAVE, usd)
    purse.usd = 100.0 - 1.0 - 5.0 - 2 * 5.0 - 2.0
    assert budget.allows_update(evaluations=0.0)
    purse.usd += 0.01
    assert not budget.allows_update(evaluations=0.0)


def test_what_was_not_measured_yet_is_a_share_of_the_cap() -> None:
    purse = Purse()
    budget = Budget(100.0, purse)
    purse.usd = 100.0 - 2 * 100.0 * UNMEASURED_SHARE - 2.0
    assert budget.allows_update(evaluations=50.0)
    purse.usd += 0.01
    assert not budget.allows_update(evaluations=50.0)


def test_batches_are_stopped_before_the_one_that_cannot_be_paid() -> None:
    purse = Purse()
    budget = Budget(10.0, purse)
    for spent in (0.0, 3.0, 6.0):
        purse.usd = spent
        assert budget.allows_batch()
    purse.usd = 9.0
    assert not budget.allows_batch()
    budget.begin_stage()
    assert budget.allows_batch()  # of another stage, none of whose batches was seen
    assert not budget.is_spent()
    purse.usd = 10.0
    assert budget.is_spent()


def test_without_a_cap_nothing_is_asked() -> None:
    def never() -> float:
        raise AssertionError

    budget = Budget(math.inf, never)
    with budget.measured(UPDATE):
        pass
    assert budget.allows_update(1.0) and budget.allows_batch() and not budget.is_spent()


# --- Before the run


def quoted(config: RunConfig) -> float:
    """A cent an update of any phase."""
    return 0.01 * (
        config.teach.train_steps + config.annotate.train_steps + config.distill.train_steps
    )


PHASE = TrainConfig(train_steps=1000)
PLANNED = RunConfig(
    "", "paper", data=DataConfig(num_labels=100), teach=PHASE, annotate=PHASE, distill=PHASE
)


def test_what_would_fit_is_told_to_the_label_and_the_update() -> None:
    found = fitting(PLANNED, 40.0, 0.25, quoted)
    assert found.bill == (25.0, 30.0)
    assert found.labels == 40  # 10 USD are left
    assert found.steps_share == 0.5  # 15 USD are left, of 30
    told = refusal(found, 40.0, PLANNED)
    assert "quoted at $55.00 ($25.00 for labels, up to $30.00 for compute)" in told
    assert "BUDGET_USD of 55.00; or NUM_LABELS = 40; or TEACHER_TRAIN_STEPS = 500 with" in told
    assert "ANNOTATE_TRAIN_STEPS = 500" in told and "Nothing was spent" in told


def test_labels_of_a_language_model_need_no_human_ones() -> None:
    llm = LlmConfig(labels="labels.jsonl", train=PHASE)
    config = dataclasses.replace(PLANNED, strategies=("llm",), llm=llm)
    found = fitting(config, 5.0, 0.25, lambda run: 0.01 * run.llm.train.train_steps)
    assert (found.bill, found.labels, found.steps_share) == ((0.0, 10.0), 0, 0.5)
    told = refusal(found, 5.0, config)
    assert told.endswith("What would fit: BUDGET_USD of 10.00; or LLM_TRAIN_STEPS = 500.")


@pytest.mark.parametrize(
    ("budget_usd", "labels", "steps_share"),
    [(25.3, 0, 0.0), (30.0, 0, 0.15), (30.3, 1, 0.15), (31.0, 4, 0.2), (1000.0, 100, 0.95)],
)
def test_each_change_is_told_if_it_suffices(
    budget_usd: float, labels: int, steps_share: float
) -> None:
    found = fitting(PLANNED, budget_usd, 0.25, quoted)
    assert (found.labels, found.steps_share) == (labels, steps_share)


@pytest.mark.parametrize(
    ("usd", "steps"), [(1000.0, 1000), (30.0, 1000), (29.99, 999), (15.0, 500), (0.03, 1)]
)
def test_a_mixture_trains_for_as_long_as_the_rest_pays(usd: float, steps: int) -> None:
    found = longest_within(PLANNED, usd, quoted)
    assert found is not None
    assert found.teach.train_steps == found.annotate.train_steps == steps
    assert found.distill.train_steps == steps
    assert longest_within(PLANNED, 0.02, quoted) is None


def test_a_run_beyond_its_budget_is_refused_before_it_begins(tmp_path: Path) -> None:
    cost = CostConfig(budget_usd=20.0)
    config = dataclasses.replace(PLANNED, model_dir=str(tmp_path / "run"), cost=cost)
    with pytest.raises(ValueError, match=r"above its BUDGET_USD of 20.00.*What would fit"):
        require_affordable(config, "NVIDIA A100-SXM4-80GB", 1)
    assert not (tmp_path / "run").exists()
    free = dataclasses.replace(config, cost=CostConfig(budget_usd=1e9))
    require_affordable(free, "NVIDIA A100-SXM4-80GB", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").touch()  # it has begun: its cap ends it in time
    require_affordable(config, "NVIDIA A100-SXM4-80GB", 1)


# --- A whole run, on a clock that ticks at every look


class TickingClock:
    """A hundredth of a second passes with every look: fast, and the same on every machine."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(path: Path, is_billed: Callable[[str], bool], **_: object) -> Meter:
        clock = TickingClock()
        return Meter(
            path, is_billed=is_billed, clock=clock, process_started=0.0, persist_every_seconds=0
        )

    monkeypatch.setattr(contexts, "Meter", make)


def run_with(directory: Path, budget_usd: float, usd_per_label: float = 0.5) -> str:
    """A run of one strategy at a dollar a tick; returns what stopped it."""
    cost = CostConfig(360_000.0, price_usd_per_label=usd_per_label, budget_usd=budget_usd)
    longer = dataclasses.replace(
        TRAIN, train_steps=60, eval_every_steps=10, checkpoint_every_steps=20
    )
    config = tiny_config(directory, strategies=("annotate",), cost=cost, annotate=longer)
    with open_run(config) as context:
        results = strategies.run(context)
    assert [result.name for result in results] == ["annotate"], context.stopped_by
    return context.stopped_by


def spent(directory: Path) -> float:
    return sum(row["dollars"] for row in read_rows(directory / "ledger.jsonl"))


@pytest.mark.usefixtures("compiled_cheaply", "one_device", "ticking")
def test_a_run_ends_at_its_cap_scored_and_goes_on_with_more(tmp_path: Path) -> None:
    # A cap too, since asking takes ticks; far beyond what the run needs.
    stopped_by = run_with(tmp_path / "free", 1e6)
    assert stopped_by == ""
    before_annotating = sum(
        row["dollars"]
        for row in read_rows(tmp_path / "free" / "ledger.jsonl")
        if row["stage"] in ("labels", "prepare", "pretrain-student")
    )
    capped, free = tmp_path / "capped", spent(tmp_path / "free")
    cap = (before_annotating + free) / 2
    stopped_by = run_with(capped, cap)
    assert "after update" in stopped_by and "of annotate" in stopped_by
    assert 0.8 * cap < spent(capped) <= 1.02 * cap
    (record,) = read_runs(capped)
    assert (record.status, record.reason) == ("budget", stopped_by)
    assert record.value is not None and 5 < record.steps < 60
    status = json.loads((capped / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("budget", stopped_by)

    before = spent(capped)
    for _ in range(3):  # the same money again buys nothing, and costs the start alone
        assert run_with(capped, cap) == stopped_by
    assert spent(capped) - before < 0.05 * cap

    stopped_by = run_with(capped, 10 * free)
    assert stopped_by == ""
    (record,) = read_runs(capped)
    assert (record.status, record.reason, record.steps) == ("finished", "", 60)
    scored = manifest_of(capped, "evaluate-annotate")["outputs"]
    assert "stopped_by" not in scored  # of the whole training now
    trained = [manifest_of(run, "annotate")["fingerprint"] for run in (capped, tmp_path / "free")]
    assert trained[0] == trained[1]


@pytest.mark.usefixtures("compiled_cheaply", "one_device", "ticking")
def test_labels_beyond_the_budget_are_not_bought(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"24 labels cost \$240.00.*Raise BUDGET_USD"):
        run_with(tmp_path / "poor", 200.0, usd_per_label=10.0)
    (record,) = read_runs(tmp_path / "poor")
    assert (record.status, record.label_dollars) == ("failed", 0.0)
    assert "24 labels cost" in record.reason
