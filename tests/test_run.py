"""A whole run in this process: what it leaves, what it costs, what a second start does."""

from __future__ import annotations

import dataclasses
import errno
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_run import (
    EVALUATED,
    NETWORK,
    ROWS,
    TRAIN,
    TRAINED,
    assert_same_bits,
    final_params,
    manifest_of,
    open_run,
    read_rows,
    snapshot,
    tiny_config,
    write_tiny_store,
)

from dora_jax import strategies
from dora_jax.cost.ledger import Ledger, LedgerRow
from dora_jax.cost.meter import Meter
from dora_jax.cost.prices import user_price
from dora_jax.data.loader import LabelledSource, PackedLoader
from dora_jax.data.token_store import TokenStore
from dora_jax.parallel.mesh import make_mesh
from dora_jax.stages.prepare import prepare
from dora_jax.stopping import Interrupted, StopRequest
from dora_jax.strategies import Result
from dora_jax.train.loop import Progress, Training
from dora_jax.train.step import init_params

ALL_STAGES = ("prepare", *TRAINED, *EVALUATED, "label")
CHANGED_BY_EVERY_START = ("ledger.jsonl", "meter.json", ".lock")


@pytest.fixture(scope="module", autouse=True)
def _compile_cheaply(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing here measures speed, and most stages compile the same step."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


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
        assert record["made_by"]["devices"] == record["finished_by"]["devices"] == 8
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
        assert row.dollars == pytest.approx(sum(row.seconds.values()) * 8 * 36 / 3600)
    assert by_stage["label"].examples == ROWS["unlabeled"]


def test_a_strategy_is_billed_for_all_it_needs(finished: Finished) -> None:
    dollars = {row.stage: row.dollars for row in finished.rows}
    for result in finished.results:
        needed = [stage for stage in strategies.STAGES[result.name] if stage != "labels"]
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
    def killed(*arguments: object) -> TokenStore:
        write_tiny_store(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tiny_config(tmp_path), killed) as context:
        prepare(context)
    with open_run(tiny_config(tmp_path), must_not_prepare) as context:
        store = prepare(context)
    assert manifest_of(tmp_path, "prepare")["outputs"]["fingerprint"] == store.fingerprint


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


# --- The training loop


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_tiny_store(tiny_config(Path()).data, tmp_path_factory.mktemp("store") / "tokens")


class Script:
    """A validation that returns given values, one after another."""

    def __init__(self, *values: float, stop: StopRequest | None = None, ask_at: int = -1) -> None:
        self.values, self.calls, self.stop, self.ask_at = values, 0, stop, ask_at

    def __call__(self, params: object) -> dict[str, float]:
        value = self.values[self.calls]
        if self.stop and self.calls == self.ask_at:
            self.stop.ask("SIGTERM")
        self.calls += 1
        return {"value": value}


def train(
    store: TokenStore,
    directory: Path,
    validate: Script,
    *,
    stop: StopRequest | None = None,
    **changes: object,
) -> Progress:
    """Trains 8 updates on the labels, validating and saving every second."""
    settings = {"train_steps": 8, "eval_every_steps": 2, "checkpoint_every_steps": 2, **changes}
    config = dataclasses.replace(TRAIN, **settings)  # type: ignore[arg-type]
    mesh = make_mesh(devices=jax.devices()[:1])
    directory.mkdir(exist_ok=True)
    with Meter(directory / "meter.json", persist_every_seconds=0) as meter:
        meter.hold("cpu", 1, user_price(0.0))
        with meter.stage("teach"):
            training = Training(
                name="teach",
                directory=directory / "teach",
                network=NETWORK,
                config=config,
                loader=PackedLoader(
                    LabelledSource(store.examples("train")),
                    batch_size=8,
                    source_length=24,
                    target_length=24,
                    seed=0,
                    max_row_buckets=1,
                ),
                mesh=mesh,
                seed=0,
                meter=meter,
                stop=stop or StopRequest(),
                spent_usd=lambda: 0.0,
                validate=validate,
            )
            return training.run(lambda: init_params(NETWORK, 0, mesh))


def steps(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_best_checkpoint_on_validation_is_kept(store: TokenStore, tmp_path: Path) -> None:
    progress = train(store, tmp_path, Script(1.0, 5.0, 4.0, 5.0))
    assert (progress.best_step, progress.best_value) == (4, 5.0)
    assert steps(tmp_path / "teach" / "best") == ["4"]
    assert steps(tmp_path / "teach" / "checkpoints") == ["6", "8"]
    rows = read_rows(tmp_path / "teach" / "metrics.jsonl")
    values = {row["step"]: row["validation/value"] for row in rows if "validation/value" in row}
    assert values == {2: 1.0, 4: 5.0, 6: 4.0, 8: 5.0}


def test_training_stops_early_without_a_new_best(store: TokenStore, tmp_path: Path) -> None:
    script = Script(3.0, 2.0, 1.0)
    progress = train(store, tmp_path, script, early_stop_evals=2, train_steps=100)
    assert script.calls == 3
    assert (progress.best_step, progress.evals_since_best) == (2, 2)
    assert steps(tmp_path / "teach" / "best") == ["2"]


def test_a_stop_saves_and_the_next_start_ends_with_the_same_bits(
    store: TokenStore, tmp_path: Path
) -> None:
    train(store, tmp_path / "whole", Script(1.0, 3.0, 2.0, 4.0))
    stop = StopRequest()
    with pytest.raises(Interrupted, match="SIGTERM, after update 4 of teach"):
        script = Script(1.0, 3.0, stop=stop, ask_at=1)
        train(store, tmp_path / "stopped", script, stop=stop, checkpoint_every_steps=3)
    assert steps(tmp_path / "stopped" / "teach" / "checkpoints") == ["3", "4"]
    train(store, tmp_path / "stopped", Script(2.0, 4.0))
    for directory in (tmp_path / "whole", tmp_path / "stopped"):
        rows = read_rows(directory / "teach" / "metrics.jsonl")
        assert [row["step"] for row in rows if "validation/value" in row] == [2, 4, 6, 8]
        (directory / "teach" / "manifest.json").write_text('{"outputs": {"best_step": 8}}')
    one, other = (final_params(tmp_path / name, "teach") for name in ("whole", "stopped"))
    assert_same_bits(one, other)


def test_a_best_that_a_crash_undid_is_no_best(store: TokenStore, tmp_path: Path) -> None:
    """Done again on other devices the updates may score otherwise; the best must still be there."""

    class Killed(BaseException):
        pass

    def killed_at_the_third(params: object) -> dict[str, float]:
        if script.calls == 2:
            raise Killed
        return script(params)

    script = Script(1.0, 9.0)
    with pytest.raises(Killed):
        train(store, tmp_path, killed_at_the_third, checkpoint_every_steps=3)  # type: ignore[arg-type]
    assert steps(tmp_path / "teach" / "checkpoints") == ["3"]
    assert steps(tmp_path / "teach" / "best") == ["4"]
    progress = train(store, tmp_path, Script(0.5, 0.7, 0.6), checkpoint_every_steps=3)
    assert (progress.best_step, progress.best_value) == (6, 0.7)
    assert steps(tmp_path / "teach" / "best") == ["6"]


@pytest.mark.parametrize("log_every_steps", [1, 100])
def test_a_loss_that_is_no_number_stops_the_run_and_spoils_no_checkpoint(
    store: TokenStore, tmp_path: Path, log_every_steps: int
) -> None:
    train(store, tmp_path, Script(1.0), train_steps=2)
    kept = snapshot(tmp_path / "teach" / "checkpoints")
    broken = dataclasses.replace(TRAIN.optimizer, learning_rate=math.inf)
    with pytest.raises(ValueError, match=r"of teach is (nan|inf) at update \d.*Lower the learning"):
        train(
            store,
            tmp_path,
            Script(1.0, 1.0, 1.0),
            optimizer=broken,
            log_every_steps=log_every_steps,
        )
    after = snapshot(tmp_path / "teach" / "checkpoints")
    assert {name: after[name] for name in kept} == kept
    assert steps(tmp_path / "teach" / "checkpoints") == ["2"]
