"""The training loop: which checkpoint is kept, how it ends, stops, and goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tiny_run import (
    DATA,
    NETWORK,
    TRAIN,
    read_rows,
    snapshot,
    write_tiny_store,
)

from dora_jax.config import TrainConfig
from dora_jax.cost.budget import Budget
from dora_jax.cost.meter import Holding, Meter
from dora_jax.cost.prices import user_price
from dora_jax.data.loader import LabelledSource, PackedLoader
from dora_jax.data.token_store import TokenStore
from dora_jax.model.t5 import Params
from dora_jax.parallel.mesh import make_mesh
from dora_jax.stopping import Interrupted, StopRequest
from dora_jax.train import loop
from dora_jax.train.loop import Progress, Training, Validate
from dora_jax.train.metrics_log import MetricsLog
from dora_jax.train.step import StepMetrics, init_params

pytestmark = pytest.mark.usefixtures("compiled_cheaply")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_tiny_store(DATA, tmp_path_factory.mktemp("store") / "tokens")


class Script:
    """A validation that returns given values one after another, and notes what it was shown."""

    def __init__(self, *values: float, stop: StopRequest | None = None) -> None:
        self.values = values
        self.stop = stop  # asked together with the last value
        self.seen: list[str] = []

    def __call__(self, params: Params) -> dict[str, float]:
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(params):
            digest.update(np.asarray(leaf).tobytes())
        self.seen.append(digest.hexdigest())
        if self.stop and len(self.seen) == len(self.values):
            self.stop.ask("SIGTERM")
        return {"value": self.values[len(self.seen) - 1]}


def train(
    store: TokenStore,
    directory: Path,
    validate: Validate,
    *,
    stop: StopRequest | None = None,
    **changes: Any,
) -> Progress:
    """Trains 8 updates on the labels, validating and saving every second."""
    settings = {"train_steps": 8, "eval_every_steps": 2, "checkpoint_every_steps": 2, **changes}
    config: TrainConfig = dataclasses.replace(TRAIN, **settings)
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
                budget=Budget(math.inf, lambda: 0.0),
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
    assert len(script.seen) == 3
    assert (progress.best_step, progress.evals_since_best) == (2, 2)
    assert steps(tmp_path / "teach" / "best") == ["2"]


def test_a_stop_saves_and_the_next_start_ends_with_the_same_bits(
    store: TokenStore, tmp_path: Path
) -> None:
    whole = Script(1.0, 3.0, 2.0, 2.5)
    undisturbed = train(store, tmp_path / "whole", whole)
    stop = StopRequest()
    first, second = Script(1.0, 3.0, stop=stop), Script(2.0, 2.5)
    with pytest.raises(Interrupted, match="SIGTERM, after update 4 of teach"):
        train(store, tmp_path / "stopped", first, stop=stop, checkpoint_every_steps=3)
    assert steps(tmp_path / "stopped" / "teach" / "checkpoints") == ["3", "4"]
    assert train(store, tmp_path / "stopped", second) == undisturbed == Progress(3.0, 4, 2)
    assert first.seen + second.seen == whole.seen
    assert len(set(whole.seen)) == 4
    rows = read_rows(tmp_path / "stopped" / "teach" / "metrics.jsonl")
    assert [row["step"] for row in rows if "validation/value" in row] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("checkpoint_every_steps", "values", "best_step"),
    [(3, (0.5, 0.7, 0.6), 6), (100, (0.9, 0.5, 0.6, 0.7), 2)],
)
def test_a_best_that_a_crash_undid_is_no_best(
    store: TokenStore,
    tmp_path: Path,
    checkpoint_every_steps: int,
    values: tuple[float, ...],
    best_step: int,
) -> None:
    """Done again on other devices the updates may score otherwise; the best must still be there."""

    class Killed(BaseException):
        pass

    def killed_at_the_third(params: Params) -> dict[str, float]:
        if len(script.seen) == 2:
            raise Killed
        return script(params)

    script = Script(1.0, 9.0)
    changes = {"checkpoint_every_steps": checkpoint_every_steps}
    with pytest.raises(Killed):
        train(store, tmp_path, killed_at_the_third, **changes)  # pyright: ignore[reportArgumentType]
    assert steps(tmp_path / "teach" / "best") == ["4"]
    progress = train(store, tmp_path, Script(*values), **changes)  # pyright: ignore[reportArgumentType]
    assert (progress.best_step, progress.best_value) == (best_step, max(values))
    assert steps(tmp_path / "teach" / "best") == [str(best_step)]


def test_a_damaged_checkpoint_says_how_to_go_on_from_the_one_before(
    store: TokenStore, tmp_path: Path
) -> None:
    train(store, tmp_path, Script(1.0, 2.0), train_steps=4)
    latest = tmp_path / "teach" / "checkpoints" / "4"
    for file in (latest / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1])
    damaged = snapshot(tmp_path / "teach" / "checkpoints")
    with pytest.raises(ValueError, match=r"checkpoints/4 cannot be restored.*Remove that folder"):
        train(store, tmp_path, Script())
    assert snapshot(tmp_path / "teach" / "checkpoints") == damaged
    shutil.rmtree(latest)
    assert train(store, tmp_path, Script(2.0, 4.0, 3.0)).best_step == 6


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


def scalars(directory: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, name → value) of each row of a folder of events."""
    (file,) = directory.iterdir()
    rows = []
    for event in LegacyEventFileLoader(str(file)).Load():
        values = {value.tag: value.simple_value for value in event.summary.value}
        if values:
            rows.append((event.step, values))
    return rows


def test_every_metric_stands_over_updates_and_over_money(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step, dollars in ((10, 0.0123), (20, 3.5)):
        log.write(step, {"loss": 1.0 / step, "dollars": dollars})
    log.close()
    assert [row["dollars"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0.0123, 3.5]
    over_updates = scalars(tmp_path / "tensorboard")
    over_money = scalars(tmp_path / "tensorboard_by_dollar")
    assert [step for step, _ in over_updates] == [10, 20]
    assert [step for step, _ in over_money] == [123, 35_000]  # hundredths of a cent
    assert [values for _, values in over_money] == [values for _, values in over_updates]
    assert over_money[1][1]["loss"] == pytest.approx(0.05)


class _Device:
    """Takes two seconds for an update, beside a host that takes none; its clock is `time`."""

    def __init__(self) -> None:
        self.now = self.busy_until = 0.0

    def monotonic(self) -> float:
        return self.now

    def update(self) -> StepMetrics:
        self.busy_until = max(self.now, self.busy_until) + 2.0
        loss: Any = _Loss(self, self.busy_until)
        return StepMetrics(loss, loss)


@dataclasses.dataclass
class _Loss:
    device: _Device
    done: float

    def block_until_ready(self) -> None:
        self.device.now = max(self.device.now, self.done)

    def __float__(self) -> float:
        return 1.0


def test_work_counts_with_the_seconds_that_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the first row, and where a validation waits for the update in flight."""
    device, window = _Device(), loop._Window()
    monkeypatch.setattr(loop, "time", device)
    for step in range(1, 31):
        window.add(step, device.update(), tokens=100, flops=7.0, dispatch_seconds=0.0)
        if step == 15:
            window.wait()
            device.now += 50.0  # the validation
        if step % 10 == 0:
            values = window.take()
            assert values is not None
            assert values["tokens_per_second"] == pytest.approx(50.0)
            assert window.taken.flops / window.taken.seconds == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("kind", "usd_per_hour", "rates"),
    [
        # 2 devices at 3.6 USD an hour for 10 s are 2 cents; of 2 x 312e12 x 10 operations a tenth
        ("NVIDIA A100-SXM4-40GB", 3.6, {"tokens_per_dollar": 50_000.0, "mfu": 0.1}),
        ("cpu", 3.6, {"tokens_per_dollar": 50_000.0}),
        ("cpu", 0.0, {}),
    ],
)
def test_rates_are_of_the_updates_just_reported(
    kind: str, usd_per_hour: float, rates: dict[str, float]
) -> None:
    taken = SimpleNamespace(tokens=1000, seconds=10.0, flops=0.1 * 2 * 312e12 * 10.0)
    holding = Holding(kind, 2, user_price(usd_per_hour))
    run = SimpleNamespace(
        t=SimpleNamespace(meter=SimpleNamespace(holding=holding)),
        window=SimpleNamespace(taken=taken),
    )
    assert loop._Run._rates(run) == pytest.approx(rates)  # pyright: ignore[reportArgumentType]
