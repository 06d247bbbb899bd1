"""The one training loop: pretraining, teaching, annotating and distilling all run it.

Metrics are fetched one step late, so that the device never waits for the host. Whatever the
loop must remember beside the state (the best value so far) is saved with the state, so that
a resumed run ends where an undisturbed one does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from dora_jax.checkpoints import native
from dora_jax.config import T5Config, TrainConfig
from dora_jax.cost import flops
from dora_jax.cost.budget import SAVE, UPDATE, VALIDATE, Budget, BudgetReached
from dora_jax.cost.meter import Meter
from dora_jax.data.loader import PackedLoader
from dora_jax.data.packing import PackedBatch
from dora_jax.model.t5 import Params
from dora_jax.parallel import hosts, partitioning
from dora_jax.shapes import Seq2SeqBatch
from dora_jax.stopping import ELSEWHERE, Interrupted, StopRequest
from dora_jax.train.metrics_log import MetricsLog
from dora_jax.train.step import StepMetrics, TrainState, init_state, make_loss_fn, make_train_step

# Returns metrics of the parameters on validation data; larger `value` is better.
Validate = Callable[[Params], Mapping[str, float]]
VALUE = "value"


@dataclasses.dataclass
class Progress:
    """What the loop knows besides the state; saved with every checkpoint."""

    best_value: float = -math.inf
    best_step: int = 0
    evals_since_best: int = 0

    def note(self, value: float, step: int) -> bool:
        """Takes one evaluation in. Returns whether it is the best so far."""
        is_best = value > self.best_value
        if is_best:
            self.best_value, self.best_step, self.evals_since_best = value, step, 0
        else:
            self.evals_since_best += 1
        return is_best


@dataclasses.dataclass(frozen=True)
class Training:
    """What one training phase works with."""

    name: str
    directory: Path
    network: T5Config
    config: TrainConfig
    loader: PackedLoader
    mesh: Mesh
    seed: int
    meter: Meter
    stop: StopRequest
    spent_usd: Callable[[], float]
    budget: Budget
    evaluations: float = 1.0  # how many validations the final evaluation is worth
    temperature_index: int = 0
    validate: Validate | None = None

    def run(self, initial_params: Callable[[], Params]) -> Progress:
        """Trains to the last step, from the latest checkpoint or from `initial_params()`.

        The best parameters on validation (the last ones without it) stand in `best/` at the
        end.

        Raises:
          Interrupted: a stop was asked for; the state is saved.
          BudgetReached: the money is spent but for the evaluation; the state is saved, and the
            parameters were validated.
          ValueError: the loss is not a number.
        """
        return _Run(self, initial_params).to_the_end()


class _Run:
    """One process's part of a training phase."""

    def __init__(self, training: Training, initial_params: Callable[[], Params]) -> None:
        self.t = training
        config = training.config
        self.checkpoints = native.Checkpoints(
            training.directory / "checkpoints", config.keep_checkpoints
        )
        self.best = native.Checkpoints(training.directory / "best", keep=1)
        self.progress = Progress()
        self.state, optimizer, self.shardings = init_state(
            training.network, config, initial_params(), training.seed, training.mesh
        )
        latest = self.checkpoints.latest_step()
        if latest is not None:
            with training.meter.phase("checkpoint"):
                target = native.abstract(_placed(self.state, self.shardings))
                self.state, record = self.checkpoints.restore(latest, target)
                self.progress = Progress(**record)
        self.start = latest or 0
        self._forget_what_a_crash_undid()
        self.log = MetricsLog(training.directory, self.start) if hosts.is_first() else None
        self.poll, self.cap_poll = hosts.Poll(training.mesh), hosts.Poll(training.mesh)
        loss_fn = make_loss_fn(training.network, config, training.temperature_index)
        self.step_fn = make_train_step(loss_fn, optimizer)
        self.compiled: dict[Any, Callable[..., tuple[TrainState, StepMetrics]]] = {}
        self.window = _Window()

    def _forget_what_a_crash_undid(self) -> None:
        """Later updates are done again, maybe on other devices and with other last bits."""
        self.best.forget_after(self.start)
        if self.progress.best_step not in self.best.steps():
            self.progress.best_value = -math.inf

    def to_the_end(self) -> Progress:
        t, config = self.t, self.t.config
        with contextlib.ExitStack() as opened:  # closes each, whatever the others raise
            opened.callback(self._close_checkpoints)
            if self.log:
                opened.callback(self.log.close)
            bar = opened.enter_context(
                tqdm(
                    total=config.train_steps,
                    initial=self.start,
                    desc=t.name,
                    unit="update",
                    disable=None,
                    dynamic_ncols=True,
                )
            )
            batches = t.loader.iterate(self.start, config.train_steps)
            opened.callback(batches.close)
            for step in range(self.start + 1, config.train_steps + 1):
                if self._early_stopped():
                    break
                with t.budget.measured(UPDATE):
                    self._update(step, batches)
                last = step == config.train_steps
                if last or step % config.log_every_steps == 0:
                    self._report(bar)
                bar.update()
                cut = not last and self._budget_is_reached()
                due = config.eval_every_steps and step % config.eval_every_steps == 0
                if last or due or cut:
                    with t.budget.measured(VALIDATE):
                        self._validate(step)
                # Asked once an update: the signal may come at any moment, and on any host.
                stopping = self.poll.any_of(bool(t.stop.reason))
                if last or step % config.checkpoint_every_steps == 0 or stopping or cut:
                    with t.budget.measured(SAVE):
                        self._save(step)
                if cut:
                    best = self.progress.best_step or None
                    raise BudgetReached(f"{t.budget}, after update {step} of {t.name}", step, best)
                if stopping and not last:
                    reason = t.stop.reason or ELSEWHERE
                    raise Interrupted(f"{reason}, after update {step} of {t.name}")
        return self.progress

    def _close_checkpoints(self) -> None:
        with self.t.meter.phase("checkpoint"), contextlib.ExitStack() as opened:
            opened.callback(self.best.close)
            opened.callback(self.checkpoints.close)

    def _budget_is_reached(self) -> bool:
        """Whether another update would take what the ending needs, by the first host's clock."""
        if not self.t.budget.is_capped:
            return False
        spent = hosts.is_first() and not self.t.budget.allows_update(self.t.evaluations)
        return self.cap_poll.any_of(spent)

    def _early_stopped(self) -> bool:
        patience = self.t.config.early_stop_evals
        return bool(patience) and self.progress.evals_since_best >= patience

    def _update(self, step: int, batches: Iterator[PackedBatch]) -> None:
        began = time.monotonic()
        with self.t.meter.phase("input wait"):
            packed = next(batches)
        batch = partitioning.place_rows(packed.batch, packed.num_rows, self.t.mesh)
        shape = batch.encoder_tokens_BS.shape
        if shape not in self.compiled:
            with self.t.meter.phase("compile"):
                self.compiled[shape] = self._compile(batch)
            began = time.monotonic()
        with self.t.meter.phase("step"):
            self.state, metrics = self.compiled[shape](self.state, batch)
            work = _flops(self.t.network, packed)
            self.window.add(step, metrics, packed.tokens, work, time.monotonic() - began)
        self.t.meter.count(
            examples=packed.examples,
            tokens=packed.tokens,
            padding_tokens=packed.padding_tokens,
            flops=work,
        )

    def _compile(self, batch: Seq2SeqBatch) -> Callable[..., tuple[TrainState, StepMetrics]]:
        self.state = _placed(self.state, self.shardings)
        jitted = jax.jit(
            self.step_fn,
            in_shardings=(self.shardings, jax.tree.map(lambda x: x.sharding, batch)),
            out_shardings=(self.shardings, partitioning.replicated(self.t.mesh)),
            donate_argnums=0,
        )
        with partitioning.split_over(self.t.mesh):
            return jitted.lower(self.state, batch).compile()

    def _report(self, bar: tqdm) -> None:
        values = self.window.take()
        if values is None:
            return
        step = self.window.last_step
        self._require_finite("loss", values["loss"], step)
        values |= self._rates()
        values["dollars"] = self.t.spent_usd()
        self._log(step, values)
        told = [f"loss {values['loss']:.3f}", f"{values['tokens_per_second']:,.0f} tok/s"]
        if "tokens_per_dollar" in values:
            told.append(f"{values['tokens_per_dollar']:,.0f} tok/$")
        if "mfu" in values:
            told.append(f"MFU {values['mfu']:.1%}")
        bar.set_postfix_str(", ".join([*told, f"${values['dollars']:.4f}"]), refresh=False)

    def _rates(self) -> dict[str, float]:
        """Of the updates just reported: what there is a price, or a known peak, for."""
        holding, taken = self.t.meter.holding, self.window.taken
        rates: dict[str, float] = {}
        if holding is None:
            return rates
        if paid := holding.usd(taken.seconds):
            rates["tokens_per_dollar"] = taken.tokens / paid
        share = flops.mfu(taken.flops, taken.seconds, holding.device_kind, holding.devices)
        return rates if share is None else rates | {"mfu": share}

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        if self.log:
            self.log.write(step, values)

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise ValueError(
                f"The {what} of {self.t.name} is {value} at update {step}. Lower the learning "
                "rate, raise the warm-up, or set a gradient_clip_norm, in another MODEL_DIR; the "
                "last checkpoint before it is kept."
            )

    def _require_sound_state(self, step: int) -> None:
        """What is kept must not be broken. Copying the state waits for the device anyway."""
        metrics = self.window.updates[-1][1]
        with self.t.meter.phase("step"):
            self.window.wait()
            loss, gradient_norm = float(metrics.loss), float(metrics.gradient_norm)
        self._require_finite("loss", loss, step)
        self._require_finite("gradient norm", gradient_norm, step)

    def _validate(self, step: int) -> None:
        t = self.t
        self._require_sound_state(step)
        if t.validate is None:
            value = float(step)  # without validation the last parameters are the best
        else:
            with t.meter.phase("evaluate"):
                values = t.validate(self.state.params)
            value = values[VALUE]
            named = {f"validation/{name}": number for name, number in values.items()}
            self._log(step, named | {"dollars": t.spent_usd()})
        if self.progress.note(value, step):
            with t.meter.phase("checkpoint"):
                self.best.save(step, self.state.params, {VALUE: value})

    def _save(self, step: int) -> None:
        self._require_sound_state(step)
        with self.t.meter.phase("checkpoint"):
            # The best parameters first: a checkpoint that names them must find them.
            self.best.wait()
            self.checkpoints.save(step, self.state, dataclasses.asdict(self.progress))


class _Work(NamedTuple):
    """Done in a window of updates."""

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0


@dataclasses.dataclass
class _Window:
    """The updates since the last log row; only those that have surely finished are fetched."""

    updates: list[tuple[int, StepMetrics]] = dataclasses.field(default_factory=list)
    in_flight: _Work = _Work()  # of the last update, until it was waited for
    work: _Work = _Work()  # of the others
    taken: _Work = _Work()  # of the row taken last
    last_step: int = 0  # likewise

    def add(
        self, step: int, metrics: StepMetrics, tokens: int, flops: float, dispatch_seconds: float
    ) -> None:
        self.wait()  # for the update before this one: one stays in flight, not a queue of them
        self.updates.append((step, metrics))
        self.in_flight = _Work(tokens, flops, dispatch_seconds)

    def wait(self) -> None:
        """Until the last update has finished: from then on its work counts."""
        if not self.updates:
            return
        began = time.monotonic()
        self.updates[-1][1].loss.block_until_ready()
        done, last = self.work, self.in_flight
        seconds = done.seconds + last.seconds + time.monotonic() - began
        self.work = _Work(done.tokens + last.tokens, done.flops + last.flops, seconds)
        self.in_flight = _Work()

    def take(self) -> dict[str, float] | None:
        """Means over the finished updates, which leave the window; None where there is none."""
        finished, self.updates = self.updates[:-1], self.updates[-1:]
        if not finished:
            return None
        values = {
            "loss": sum(float(metrics.loss) for _, metrics in finished) / len(finished),
            "tokens_per_second": self.work.tokens / max(self.work.seconds, 1e-9),
        }
        self.last_step, self.taken, self.work = finished[-1][0], self.work, _Work()
        return values


def _placed(state: TrainState, shardings: TrainState) -> TrainState:
    return jax.device_put(state, shardings)


def _flops(network: T5Config, packed: PackedBatch) -> float:
    lengths = packed.source_lengths_N, packed.target_lengths_N
    tokens = flops.TokenCounts.from_lengths(*lengths)
    return flops.training_flops(network, tokens)
