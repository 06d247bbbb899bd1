"""A whole run in this process: what it leaves, what it costs, what a second start does."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_run import (
    EVALUATED,
    NETWORK,
    ROWS,
    TRAIN,
    TRAINED,
    manifest_of,
    open_run,
    read_rows,
    snapshot,
    tiny_config,
    write_tiny_store,
)

from dora_jax import strategies
from dora_jax.config import ModelSource
from dora_jax.cost.ledger import Ledger, LedgerRow
from dora_jax.data.token_store import VOCABULARY, TokenStore
from dora_jax.data.vocab import train_sentencepiece
from dora_jax.stages.prepare import prepare
from dora_jax.strategies import Result

pytestmark = pytest.mark.usefixtures("compiled_cheaply", "two_devices")
ALL_STAGES = ("prepare", *TRAINED, *EVALUATED, "label")
CHANGED_BY_EVERY_START = ("ledger.jsonl", "meter.json", "status.json", ".lock")


class Finished(NamedTuple):
    directory: Path
    results: list[Result]
    rows: list[LedgerRow]
    lines: list[str]
    wall_seconds: float


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("run") / "tiny"
    lines: list[str] = []
    with open_run(tiny_config(directory.with_name("earlier"))):
        pass  # takes the time of this process so far
    began = time.monotonic()
    with open_run(tiny_config(directory), report=lines.append) as context:
        results = strategies.run(context)
    wall_seconds = time.monotonic() - began
    return Finished(directory, results, context.ledger.rows(), lines, wall_seconds)


# --- One start


def test_every_stage_leaves_its_record(finished: Finished) -> None:
    assert (finished.directory / "config.json").exists()
    assert finished.lines == ["24 labels"]
    for stage in ALL_STAGES:
        record = manifest_of(finished.directory, stage)
        assert record["outputs"]
        assert record["fingerprint"]
        assert record["made_by"]["devices"] == record["finished_by"]["devices"] == 2
    assert not list(finished.directory.rglob("*tmp*"))


@pytest.mark.parametrize("stage", TRAINED)
def test_training_leaves_metrics_events_and_checkpoints(finished: Finished, stage: str) -> None:
    directory = finished.directory / stage
    rows = read_rows(directory / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert [row["dollars"] for row in rows] == sorted(row["dollars"] for row in rows)
    validated = [row["step"] for row in rows if "validation/value" in row]
    assert validated == ([] if stage.startswith("pretrain") else [3, 6])
    assert [path.stat().st_size > 100 for path in (directory / "tensorboard").iterdir()] == [True]
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["4", "6"]
    best = manifest_of(finished.directory, stage)["outputs"]["best_step"]
    assert [path.name for path in (directory / "best").iterdir()] == [str(best)]


def test_every_model_is_scored_on_the_test_split(finished: Finished) -> None:
    assert [result.name for result in finished.results] == ["teacher", "annotate", "distill"]
    sources = TokenStore.open(finished.directory / "prepare" / "tokens").sources("test")
    for result in finished.results:
        assert result.scores.examples == ROWS["test"]
        assert result.scores.primary in result.scores.intervals
        assert result.scores.paper
        predictions = read_rows(
            finished.directory / f"evaluate-{result.name}" / "predictions.jsonl"
        )
        assert [row["source"] for row in predictions] == sources
        assert all(row["target"] for row in predictions)


def test_the_receipt_has_a_row_a_stage_and_every_second(finished: Finished) -> None:
    stages = [row.stage for row in finished.rows]
    assert sorted(stages) == sorted([*ALL_STAGES, "labels", "launch"])
    billed_seconds = sum(sum(row.seconds.values()) for row in finished.rows)
    assert billed_seconds == pytest.approx(finished.wall_seconds, abs=0.25)
    by_stage = {row.stage: row for row in finished.rows}
    assert by_stage["labels"].dollars == pytest.approx(24 * 0.26)
    for stage in TRAINED:
        row = by_stage[stage]
        assert row.examples == TRAIN.train_steps * TRAIN.batch_size
        assert row.tokens > 0
        assert row.flops > 0
        assert {"compile", "step", "checkpoint", "input wait"} <= set(row.seconds)
        assert row.dollars == pytest.approx(sum(row.seconds.values()) * 2 * 36 / 3600)
    assert by_stage["label"].examples == ROWS["unlabeled"]


def test_a_strategy_is_billed_for_all_it_needs(finished: Finished) -> None:
    dollars = {row.stage: row.dollars for row in finished.rows}
    for result in finished.results:
        left = {"labels", "choose-labels"}  # bought, and nothing to be measured in this run
        needed = [stage for stage in strategies.STAGES[result.name] if stage not in left]
        assert set(needed) <= set(dollars)
        assert result.compute_dollars == pytest.approx(sum(dollars[stage] for stage in needed))
        assert result.label_dollars == dollars["labels"]


# --- Another start


def test_another_start_does_nothing_and_pays_for_nothing_but_itself(
    finished: Finished, tmp_path: Path
) -> None:
    directory = tmp_path / finished.directory.name
    shutil.copytree(finished.directory, directory)
    before = snapshot(directory)
    with open_run(tiny_config(directory)) as context:
        assert strategies.run(context) == finished.results
    after = snapshot(directory)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed <= set(CHANGED_BY_EVERY_START)
    new_rows = context.ledger.rows()[len(finished.rows) :]
    assert [row.stage for row in new_rows] == ["launch"]


def test_two_runs_of_one_process_share_its_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    billed_seconds = 0.0
    for name in ("a", "b", "c"):
        with open_run(tiny_config(tmp_path / name)) as context:
            pass
        if name != "a":  # the first takes what the process did before, too
            [row] = context.ledger.rows()
            billed_seconds += sum(row.seconds.values())
    assert 0 < billed_seconds <= time.monotonic() - began


def test_other_settings_are_refused_in_words(finished: Finished) -> None:
    before = snapshot(finished.directory)
    config = tiny_config(
        finished.directory, seed=1, distill=dataclasses.replace(TRAIN, train_steps=7)
    )
    with pytest.raises(ValueError) as refusal:
        open_run(config)
    message = str(refusal.value)
    assert "made with other settings" in message
    assert "  distill.train_steps: 6 there, 7 now\n" in message
    assert "  seed: 0 there, 1 now\n" in message
    assert message.count(" there, ") == 2
    assert "another MODEL_DIR" in message
    assert snapshot(finished.directory) == before


def test_another_price_is_no_other_run(finished: Finished, tmp_path: Path) -> None:
    directory = tmp_path / finished.directory.name
    shutil.copytree(finished.directory, directory)
    config = tiny_config(directory)
    cheaper = dataclasses.replace(config.cost, price_usd_per_device_hour=1.0)
    with open_run(dataclasses.replace(config, cost=cheaper)) as context:
        assert strategies.run(context) == finished.results
    assert context.ledger.rows()[-1].price_usd_per_unit == 1.0


def test_a_stage_that_ended_without_its_bill_is_billed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Ledger.append

    def full(ledger: Ledger, row: LedgerRow) -> None:
        if row.stage == "prepare":
            raise OSError(errno.ENOSPC, "No space left on device")
        append(ledger, row)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", full)
        with pytest.raises(OSError, match="No space"), open_run(tiny_config(tmp_path)) as context:
            prepare(context)
    assert manifest_of(tmp_path, "prepare")["outputs"]
    assert [row.stage for row in context.ledger.rows()] == ["launch"]
    with open_run(tiny_config(tmp_path), prepare=must_not_prepare) as context:
        prepare(context)
    launch, late, again = context.ledger.rows()
    assert (launch.stage, late.stage, again.stage) == ("launch", "prepare", "launch")
    assert late.seconds["prepare"] > 0


def must_not_prepare(*arguments: object) -> TokenStore:
    raise AssertionError("the token store is there and must not be prepared again")


def test_a_crash_between_the_token_store_and_its_manifest(tmp_path: Path) -> None:
    def killed(*arguments: Any) -> TokenStore:
        write_tiny_store(*arguments)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tiny_config(tmp_path), killed) as context:
        prepare(context)
    with open_run(tiny_config(tmp_path), must_not_prepare) as context:
        store = prepare(context)
    assert manifest_of(tmp_path, "prepare")["outputs"]["fingerprint"] == store.fingerprint


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_checkpoint_of_another_vocabulary_is_refused_at_the_start(
    finished: Finished, tmp_path: Path, side: str
) -> None:
    """Its embeddings would be as many, and every id would mean something else."""
    other = tmp_path / "other"
    shutil.copytree(finished.directory, other)
    source = ModelSource(NETWORK, f"native:{other / 'teach'}")
    with open_run(tiny_config(tmp_path / "same", **{side: source})) as context:
        prepare(context)
    file = other / "prepare" / "tokens" / VOCABULARY
    train_sentencepiece(["quite other words", "and letters: xyzzy"], file, 280)
    with (
        open_run(tiny_config(tmp_path / "now", **{side: source})) as context,
        pytest.raises(ValueError, match=r"other/teach was trained with .* Set VOCABULARY"),
    ):
        prepare(context)


def test_a_damaged_shard_of_soft_labels_alone_is_made_again(
    finished: Finished, tmp_path: Path
) -> None:
    directory = tmp_path / finished.directory.name
    shutil.copytree(finished.directory, directory)
    before = snapshot(directory)
    shards = directory / "label" / "soft_labels"
    damaged = shards / "shard-00001.records"
    content = bytearray(damaged.read_bytes())
    content[7] ^= 1
    damaged.write_bytes(content)
    times = {path.name: path.stat().st_mtime_ns for path in shards.glob("shard-*")}
    with open_run(tiny_config(directory)) as context:
        assert strategies.run(context) != []
    written = {p.name for p in shards.glob("shard-*") if p.stat().st_mtime_ns != times[p.name]}
    assert written == {"shard-00001.records", "shard-00001.json"}
    after = snapshot(directory)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed <= {*CHANGED_BY_EVERY_START, "label/manifest.json"}
    label_row, launch_row = context.ledger.rows()[len(finished.rows) :]
    assert (label_row.stage, launch_row.stage) == ("label", "launch")
    assert label_row.examples == 8
    assert label_row.seconds["label"] > 0
