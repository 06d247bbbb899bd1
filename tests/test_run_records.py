"""Records of runs: what they cost alone and shared, and that nothing broken hides the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import CENT_A_SECOND, DISTILL_SECONDS, edit_json, write_run

from dora_jax.config import ModelSource, OptimizerConfig, T5Config, TrainConfig, to_dict
from dora_jax.cost.flops import parameter_count
from dora_jax.cost.ledger import Ledger, RunFacts, read_ledger
from dora_jax.cost.ledger_rows import tokens_row
from dora_jax.cost.meter import Charge, Meter
from dora_jax.cost.prices import Price, PriceBook
from dora_jax.run_folders import find_runs, paid_rows, read_folder
from dora_jax.run_records import RunRecord, read_runs, seeds_together

SHARED = ("prepare", "pretrain-teacher", "teach", "label")


def by_strategy(records: list[RunRecord]) -> dict[str, RunRecord]:
    assert len({record.strategy for record in records}) == len(records)
    return {record.strategy: record for record in records}


def test_a_run_of_both_strategies_has_three_records(tmp_path: Path) -> None:
    values = {"teacher": 40.0, "annotate": 25.0, "distill": 35.0}
    run = write_run(tmp_path / "one", ("annotate", "distill"), values=values, seed=3)
    records = by_strategy(read_runs(tmp_path))
    assert list(records) == ["teacher", "annotate", "distill"]
    for strategy, record in records.items():
        assert record.value == values[strategy]
        assert record.interval == (values[strategy] - 2, values[strategy] + 2)
        assert record.per_class == {"Action": values[strategy] + 1}
        assert (record.status, record.reason) == ("finished", "")
        assert (record.directory, record.name, record.seed) == (run, "one", 3)
        assert (record.task, record.scale, record.metric) == ("wlp", "rehearsal", "micro_f1")
        assert (record.labels, record.label_dollars) == (100, 25.0)
        assert record.config_path == run / "config.gin"
        assert record.predictions_path == run / f"evaluate-{strategy}" / "predictions.jsonl"
        assert (record.device_kind, record.devices) == ("cpu", 2)
    # Alone, each pays for preparing; a cent a second.
    assert records["teacher"].compute_dollars == pytest.approx(7.10)
    assert records["annotate"].compute_dollars == pytest.approx(3.20)
    assert records["distill"].compute_dollars == pytest.approx(14.20)
    assert records["distill"].dollars == pytest.approx(39.20)
    assert records["distill"].dollars_by_stage["label"] == pytest.approx(3.0)
    assert records["distill"].dollars_by_phase == pytest.approx({"step": 10.65, "idle": 3.55})
    # Three quarters of pretraining, teaching and labelling; a quarter of them idle.
    split = {"tune": 4.50, "generate": 2.25, "score": 0.0, "idle": 2.25}
    assert records["distill"].teacher_dollars == pytest.approx(split)
    assert records["distill"].device_hours == pytest.approx(1420 * 2 / 3600)
    assert records["distill"].tokens_per_dollar == pytest.approx(7000 / 14.2)


def test_sizes_steps_and_epochs(tmp_path: Path) -> None:
    network = T5Config(emb_dim=32)
    run = write_run(tmp_path / "one", ("annotate", "distill"), teacher=ModelSource(network))
    (run / "prepare" / "tokens").mkdir()
    manifest = {"rows": {"train": 100, "unlabeled": 3200}}
    (run / "prepare" / "tokens" / "manifest.json").write_text(json.dumps(manifest))
    records = by_strategy(read_runs(tmp_path))
    assert records["distill"].teacher_parameters == parameter_count(network)
    assert records["annotate"].teacher_parameters is None
    assert records["annotate"].student_parameters == parameter_count(T5Config())
    assert records["teacher"].student_parameters is None
    assert records["distill"].steps == 1000  # as configured, of 32 examples each
    assert records["distill"].epochs == pytest.approx(10.0)
    assert records["annotate"].epochs == pytest.approx(320.0)


def test_what_is_shared_is_paid_once_and_divided(tmp_path: Path) -> None:
    own = {"pretrain-student": 150, "distill": 250, "evaluate-distill": 20}
    shared = tmp_path / "shared"
    payer = {"shared": shared, "shared_stages": SHARED}
    write_run(tmp_path / "a", values={"distill": 30.0}, **payer)
    write_run(tmp_path / "b", values={"distill": 31.0}, seconds=own, **payer)
    records = [r for r in read_runs(tmp_path) if r.strategy == "distill"]
    assert [record.name for record in records] == ["a", "b"]
    for record in records:
        assert record.compute_dollars == pytest.approx(14.20)  # alone, in full
        assert record.shared_dollars == pytest.approx(10.0)
        assert record.amortised_dollars == pytest.approx(9.20)
    everything = read_runs(tmp_path)
    assert {record.name for record in everything} == {"a", "b"}  # a shared stage is no run
    paid = 14.20 + 0.10 + 4.20  # the teacher's score, a by-product of a
    assert sum(record.amortised_dollars for record in everything) == pytest.approx(paid)
    (alone,) = [r for r in read_runs(tmp_path / "b") if r.strategy == "distill"]
    assert (alone.name, alone.compute_dollars) == ("b", pytest.approx(14.20))


def test_the_divided_dollars_of_one_run_are_its_receipt(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", ("annotate", "distill"))
    paid = sum(row.dollars for row in read_ledger(run / "ledger.jsonl") if row.stage != "labels")
    assert sum(record.amortised_dollars for record in read_runs(run)) == pytest.approx(paid)


def test_a_pretrained_network_of_another_run_is_shared(tmp_path: Path) -> None:
    base = {"prepare": 100, "pretrain-teacher": 200, "pretrain-student": 150}
    write_run(tmp_path / "base", ("pretrain",), seconds=base)
    own = {"prepare": 100, "annotate": 50, "evaluate-annotate": 20}
    start = ModelSource(weights="native:elsewhere/base/pretrain-student")
    for name in ("a", "b"):
        values = {"annotate": 30.0}
        write_run(tmp_path / name, ("annotate",), seconds=own, values=values, student=start)
    *records, base_record = read_runs(tmp_path)
    assert (base_record.strategy, base_record.status) == ("pretrain", "finished")
    for record in records:
        assert record.compute_dollars == pytest.approx(3.20)
        assert record.shared_dollars == pytest.approx(1.50)
        assert record.amortised_dollars == pytest.approx(1.70 + 0.75)
    # What nobody used is left to the base.
    assert base_record.amortised_dollars == pytest.approx(3.0)


def test_another_book_prices_receipts_anew(tmp_path: Path) -> None:
    write_run(tmp_path / "one", ("annotate",))
    entries = [
        {"item": item, "unit": unit, "kind": "on-demand", "usd": usd, "source": "s", "date": "2026"}
        for item, unit, usd in (("cpu", "host", 36.0), ("wlp", "label", 1.0))
    ]
    file = tmp_path / "book.json"
    file.write_text(json.dumps({"version": 1, "date": "2026-11-21", "entries": entries}))
    (before,) = read_runs(tmp_path)
    (after,) = read_runs(tmp_path, PriceBook.load(file))
    assert after.compute_dollars == pytest.approx(2 * before.compute_dollars)  # 18 USD an hour
    assert (before.label_dollars, after.label_dollars) == (25.0, 100.0)
    file.write_text(json.dumps({"version": 1, "date": "2026-11-21", "entries": entries[1:]}))
    book = PriceBook.load(file)
    assert not read_runs(tmp_path, book)[0].priced
    file.write_text(json.dumps({"version": 1, "date": "2026-11-21", "entries": entries[:1]}))
    with pytest.raises(ValueError, match="no label price for task 'wlp'"):
        read_runs(tmp_path, PriceBook.load(file))


def test_a_language_models_tokens_are_dollars_of_their_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", ("annotate",))
    price = Price("model", "million input tokens", 2.0, "its maker", "2026")
    facts = RunFacts("one", "rehearsal", "v1")
    row = tokens_row(facts, "labels", "llm-1", 3_000_000, price)
    Ledger(run / "ledger.jsonl").append(row)
    (record,) = read_runs(tmp_path)
    assert (record.llm_dollars, record.label_dollars) == (6.0, 25.0)
    assert record.dollars == pytest.approx(25 + 6 + record.compute_dollars)


def test_seeds_are_one_group_and_settings_are_not(tmp_path: Path) -> None:
    for seed in (0, 1):
        for labels in (50, 100):
            write_run(tmp_path / f"{labels}-{seed}", ("annotate",), seed=seed, labels=labels)
    config = tmp_path / "50-1" / "config.json"
    data = json.loads(config.read_text())["data"] | {"labels_seed": 7}
    edit_json(config, data=data)  # which labels were drawn is a matter of seeds too
    # What the teacher is does not change what annotating comes to.
    other = ModelSource(T5Config(emb_dim=32))
    write_run(tmp_path / "100-0-other", ("annotate",), labels=100, teacher=other)
    groups = [[r.name for r in records] for records in seeds_together(read_runs(tmp_path))]
    assert groups == [["100-0", "100-0-other", "100-1"], ["50-0", "50-1"]]


# --- Runs that are not finished


@pytest.mark.parametrize("status", ["failed", "budget", "stopped"])
def test_a_run_says_how_it_ended(tmp_path: Path, status: str) -> None:
    write_run(tmp_path / "one", ("annotate",), status=status)
    (record,) = read_runs(tmp_path)
    assert (record.status, record.reason) == (status, "told so")
    assert record.value is None
    assert record.compute_dollars == pytest.approx(3.20)


def test_a_result_whose_training_the_budget_ended_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", ("annotate",), values={"annotate": 20.0})
    manifest = run / "evaluate-annotate" / "manifest.json"
    outputs = json.loads(manifest.read_text())["outputs"]
    outputs |= {"last_step": 7, "stopped_by": "the budget, after update 7"}
    edit_json(manifest, outputs=outputs)
    (record,) = read_runs(tmp_path)
    assert (record.status, record.value, record.steps) == ("budget", 20.0, 7)
    assert record.reason == "the budget, after update 7"


def test_a_run_is_running_while_it_writes_its_meter(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", ("annotate",), status="running")
    (killed,) = read_runs(tmp_path)
    assert killed.status == "stopped"
    os.utime(run / "meter.json")
    (running,) = read_runs(tmp_path)
    assert running.status == "running"
    (run / "status.json").unlink()  # a run of a version that wrote none
    (running,) = read_runs(tmp_path)
    assert running.status == "running"


def test_what_is_not_billed_yet_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", ("annotate",), status="running")
    charge = Charge("annotate", CENT_A_SECOND, seconds={"step": 100.0})
    with Meter(run / "meter.json", persist_every_seconds=0, clock=lambda: 0.0, process_started=0.0):
        pass
    edit_json(run / "meter.json", charges=[to_dict(charge)])
    (record,) = read_runs(tmp_path)
    assert record.compute_dollars == pytest.approx(4.20)


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "settings": lambda run: (run / "config.json").write_text('{"task": '),
    "other settings": lambda run: (run / "config.json").write_text("[1]"),
    "receipt": lambda run: (run / "ledger.jsonl").write_text('{"run": 1}\n{}\n'),
    "meter": lambda run: (run / "meter.json").write_text("{}"),
    "network": lambda run: edit_json(run / "config.json", teacher={"network": {"size": 1}}),
    "data": lambda run: edit_json(run / "config.json", data=None, seed="x", distill=3),
    "scores": lambda run: (run / "evaluate-distill" / "manifest.json").write_text("{"),
    "wrong scores": lambda run: edit_json(
        run / "evaluate-distill" / "manifest.json", outputs={"scores": {"primary": 1, "strict": 2}}
    ),
    "no strategy": lambda run: edit_json(run / "config.json", strategies=["sing"]),
    "status": lambda run: (run / "status.json").write_text("null"),
    "binary": lambda run: (run / "config.json").write_bytes(b"\xff\xfe\0"),
    "torn receipt": lambda run: (run / "ledger.jsonl").write_text(
        (run / "ledger.jsonl").read_text() + '{"run": "o'
    ),
    "stage": lambda run: (run / "distill" / "manifest.json").write_text("3"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_run_is_a_record_and_hides_no_other(tmp_path: Path, name: str) -> None:
    broken = write_run(tmp_path / "broken", values={"distill": 10.0})
    write_run(tmp_path / "whole", values={"distill": 20.0})
    BREAKAGES[name](broken)
    receipt = (broken / "ledger.jsonl").read_bytes()
    records = read_runs(tmp_path)
    (whole,) = [r for r in records if r.name == "whole" and r.strategy == "distill"]
    assert (whole.status, whole.value) == ("finished", 20.0)
    assert [r.status for r in records if r.name == "broken"]
    if name in ("settings", "other settings", "receipt", "meter", "scores", "wrong scores"):
        failed = [r for r in records if r.name == "broken" and r.status == "failed"]
        assert failed and all(record.reason and record.value is None for record in failed)
    if name == "torn receipt":  # the next start mends it; the rows before it stand
        (torn,) = [r for r in records if r.name == "broken" and r.strategy == "distill"]
        assert (torn.status, torn.compute_dollars) == ("finished", pytest.approx(14.20))
    assert (broken / "ledger.jsonl").read_bytes() == receipt  # reading mends nothing


def test_a_run_that_only_began_is_a_record(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    for path in ("ledger.jsonl", "meter.json", "status.json"):
        (run / path).unlink()
    distill = by_strategy(read_runs(tmp_path))["distill"]
    assert (distill.status, distill.dollars) == ("stopped", 0.0)


def test_only_runs_are_found(tmp_path: Path) -> None:
    write_run(tmp_path / "deep" / "er" / "one", ("annotate",))
    checkpoint = tmp_path / "exported"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "notes.txt").write_text("no run")
    assert [record.name for record in read_runs(tmp_path)] == ["deep/er/one"]
    assert read_runs(tmp_path / "nowhere") == []


# --- Searches for settings


def test_a_search_is_billed_to_what_it_chose_by_validation(tmp_path: Path) -> None:
    payer = {"shared": tmp_path / "shared", "shared_stages": SHARED}
    own = {"pretrain-student": 150, "distill": 250, "evaluate-distill": 20}
    for name, best_value, test_value in (("low", 50.0, 10.0), ("high", 40.0, 90.0)):
        seconds = DISTILL_SECONDS if name == "low" else own
        values = {"distill": test_value}
        run = write_run(
            tmp_path / name, values=values, best_value=best_value, seconds=seconds, **payer
        )
        searched = {"cell": "labels=1", "searched": {"LEARNING_RATE": name}}
        (run / "sweep.json").write_text(json.dumps(searched))
        # Stages of one run share a manifest's value here; validation is the training stage's.
    records = {r.name: r for r in read_runs(tmp_path) if r.strategy == "distill"}
    assert (records["low"].chosen, records["high"].chosen) == (True, False)
    assert records["low"].search_dollars == pytest.approx(4.20)
    assert records["high"].search_dollars == 0
    assert records["low"].dollars == pytest.approx(25 + 14.20 + 4.20)


def write_candidate(run: Path, cell: str, best_value: float, **written: Any) -> None:
    """One run of a search, as a sweep leaves it."""
    write_run(run, best_value=best_value, **written)
    searched = {"cell": cell, "searched": {"LEARNING_RATE": run.name}}
    (run / "sweep.json").write_text(json.dumps(searched))


def test_a_search_pays_for_each_stage_that_it_tried_once(tmp_path: Path) -> None:
    """Two teachers, each with two students: the teacher not chosen is part of the search."""
    own = {"distill": 250, "evaluate-distill": 20}
    shared_stages = ("teach", "evaluate-teacher", "label")
    paid = own | {"teach": 400, "evaluate-teacher": 10, "label": 300}
    best = {"a-low": 30.0, "a-high": 20.0, "b-low": 50.0, "b-high": 40.0}
    for name, value in best.items():
        write_candidate(
            tmp_path / name,
            "cell",
            value,
            seconds=paid if name.endswith("low") else own,
            shared=tmp_path / f"shared-{name[0]}",
            shared_stages=shared_stages,
            values={"distill": 10.0, "teacher": 20.0},
        )
    records = {(r.name, r.strategy): r for r in read_runs(tmp_path)}
    assert {key for key, r in records.items() if r.chosen and r.strategy == "distill"} == {
        ("b-low", "distill")
    }
    # Besides what b-low needs: the student of b-high, and of a two students, teacher and labels.
    assert records["b-low", "distill"].compute_dollars == pytest.approx(9.70)
    assert records["b-low", "distill"].search_dollars == pytest.approx(3 * 2.70 + 4.0 + 3.0)
    # Two teachers were trained and scored, one of which is chosen.
    (teacher,) = [r for r in records.values() if r.strategy == "teacher" and r.chosen]
    assert teacher.search_dollars == pytest.approx(4.10)
    assert {r.searched["LEARNING_RATE"] for r in records.values()} == {*best}


def test_what_each_seed_chose_is_one_group(tmp_path: Path) -> None:
    """The result of searching, over seeds, whichever rate each of them ended with."""
    for seed, chosen in ((0, 1e-3), (1, 3e-3)):
        for rate in (1e-3, 3e-3):
            train = TrainConfig(optimizer=OptimizerConfig(learning_rate=rate))
            write_candidate(
                tmp_path / f"{seed}-{rate}",
                f"seed-{seed}",
                50.0 if rate == chosen else 40.0,
                strategies=("annotate",),
                seed=seed,
                values={"annotate": 20.0},
                annotate=train,
            )
    groups = seeds_together(read_runs(tmp_path))
    assert sorted([record.name for record in group] for group in groups) == [
        ["0-0.001", "1-0.003"],
        ["0-0.003"],
        ["1-0.001"],
    ]
    (together,) = [group for group in groups if len(group) == 2]
    assert all(record.chosen for record in together)


def test_labels_of_a_search_are_bought_once(tmp_path: Path) -> None:
    for sweep in ("one", "two"):  # runs of equal names are not the same runs
        for name in ("low", "high"):
            write_candidate(tmp_path / sweep / name, "cell", 1.0, strategies=("annotate",))
        write_run(tmp_path / sweep / "other", ("annotate",))
    paid = [row for _, row in paid_rows(read_folder(path) for path in find_runs(tmp_path))]
    assert sum(row.dollars for row in paid if row.stage == "labels") == 4 * 25.0
