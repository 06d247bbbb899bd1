"""Stages that runs share: one place, one bill, one at a time."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest
from tiny_run import ROWS, manifest_of, open_run, read_rows, tiny_config

from dora_jax import strategies
from dora_jax.cost.ledger import read_ledger
from dora_jax.cost.meter import Meter
from dora_jax.run_records import RunRecord, read_runs
from dora_jax.stages import shared
from dora_jax.stopping import Interrupted, StopRequest

SHARED = tuple(stage for stage in shared.SHAREABLE if stage != "choose-labels")


def test_a_place_is_named_by_the_settings_and_linked(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for run in (one, two, other):
        run.mkdir()
    folder = str(tmp_path / "shared")
    shared.link(one, folder, "teach", {"steps": 1})
    shared.link(two, folder, "teach", {"steps": 1})
    shared.link(other, folder, "teach", {"steps": 2})
    assert (one / "teach").resolve() == (two / "teach").resolve()
    assert (one / "teach").resolve() != (other / "teach").resolve()
    assert not (one / "teach").readlink().is_absolute()  # the folder of all runs may be moved
    shared.link(one, folder, "teach", {"steps": 1})
    with pytest.raises(ValueError, match="made with other settings"):
        shared.link(one, folder, "teach", {"steps": 2})


def test_a_students_own_stage_and_one_begun_alone_are_not_shared(tmp_path: Path) -> None:
    shared.link(tmp_path, str(tmp_path / "shared"), "distill", {})
    assert not (tmp_path / "distill").exists()
    (tmp_path / "teach").mkdir()
    shared.link(tmp_path, str(tmp_path / "shared"), "teach", {})
    shared.link(tmp_path, "", "label", {})
    assert not shared.is_shared(tmp_path, "teach") and not (tmp_path / "label").exists()
    assert shared.receipt(tmp_path, "teach") == tmp_path / "ledger.jsonl"


def test_who_needs_a_stage_at_work_waits_or_stops(tmp_path: Path) -> None:
    told: list[str] = []
    stop = StopRequest()
    with shared.held(tmp_path, StopRequest(), told.append):
        assert told == []
        stop.ask("SIGTERM")
        with pytest.raises(Interrupted), shared.held(tmp_path, stop, told.append):
            raise AssertionError
        assert "another run is at work on it" in told[0]
        entered = threading.Event()

        def wait() -> None:
            with shared.held(tmp_path, StopRequest(), told.append):
                entered.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.05)
        assert not entered.is_set()
    waiting.join(timeout=30)
    assert entered.is_set()


@pytest.mark.usefixtures("compiled_cheaply", "one_device")
def test_two_students_of_one_teacher_pay_for_it_once(tmp_path: Path) -> None:
    folder, results = str(tmp_path / "shared"), {}
    for name, seconds_of_training in (("short", 3), ("long", 6)):
        config = tiny_config(tmp_path / name, strategies=("distill",), shared_dir=folder)
        distill = dataclasses.replace(config.distill, train_steps=seconds_of_training)
        with open_run(dataclasses.replace(config, distill=distill)) as context:
            results[name] = {r.name: r for r in strategies.run(context)}
    short, long = (
        {r.strategy: r for r in read_runs(tmp_path) if r.name == name} for name in results
    )
    for stage in SHARED:
        place = (tmp_path / "short" / stage).resolve()
        assert place == (tmp_path / "long" / stage).resolve() != tmp_path / "short" / stage
        assert {row.run for row in read_ledger(place / "ledger.jsonl")} == {"short"}
        assert not [r for r in read_ledger(tmp_path / "short" / "ledger.jsonl") if r.stage == stage]
    assert manifest_of(tmp_path / "short", "distill")["outputs"]
    # Alone each would cost its teacher too; together it is paid once.
    for records in (short, long):
        distill = records["distill"]
        assert distill.status == "finished" and distill.value is not None
        assert 0 < distill.shared_dollars < distill.compute_dollars
        assert results[distill.name]["distill"].compute_dollars == pytest.approx(
            distill.compute_dollars
        )
        assert results[distill.name]["distill"].shared_dollars > 0
    assert short["distill"].shared_dollars == pytest.approx(long["distill"].shared_dollars)
    assert paid(tmp_path) == pytest.approx(
        sum(r.amortised_dollars for records in (short, long) for r in records.values())
    )
    rows = read_rows(tmp_path / "long" / "ledger.jsonl")
    assert {row["stage"] for row in rows} == {"labels", "distill", "evaluate-distill", "launch"}
    assert sum(r["examples"] for r in rows if r["stage"] == "labels") == ROWS["train"]
    assert_split(short["teacher"], long["teacher"])


def paid(root: Path) -> float:
    """Compute of all receipts, each once, without the time between stages."""
    receipts = [*root.glob("*/ledger.jsonl"), *root.glob("shared/*/ledger.jsonl")]
    rows = [row for path in receipts for row in read_ledger(path)]
    return sum(row.dollars for row in rows if row.device_kind and row.stage != "launch")


def assert_split(short: RunRecord, long: RunRecord) -> None:
    """The teacher's score is a by-product that both runs show and one of them has paid."""
    assert short.value == long.value
    assert short.amortised_dollars == pytest.approx(long.amortised_dollars)


def test_a_bill_cut_short_in_a_shared_stage_is_settled_there(tmp_path: Path) -> None:
    """Killed between the receipt and the meter: the next start must not bill it again."""
    folder = str(tmp_path / "shared")
    config = tiny_config(tmp_path / "run", strategies=("pretrain",), shared_dir=folder)

    def killed(meter: Meter, row_id: str) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Meter, "settle", killed)
        with open_run(config) as context, context.stage("prepare", "shared", {"data": 1}):
            time.sleep(0.01)
    with open_run(config) as context:
        context.bill("prepare", "shared")
    rows = read_ledger(tmp_path / "run" / "prepare" / "ledger.jsonl")
    assert [row.stage for row in rows] == ["prepare"]
