"""Optimizers and schedules by name, applied layer by layer to scanned parameters."""

from __future__ import annotations

from typing import Any

import jax
import optax

from dora_jax.config import OptimizerConfig

# In the parameter tree, everything under this key has a leading layer axis.
STACKED = "layers"


def make_schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the named decay.

    `linear` and `cosine` reach 0 at `train_steps`; `rsqrt` falls as 1/sqrt(step) after the
    warm-up (T5's pretraining schedule).
    """
    rate, warmup = config.learning_rate, config.warmup_steps
    decay_steps = max(train_steps - warmup, 1)
    if config.schedule == "constant":
        after = optax.constant_schedule(rate)
    elif config.schedule == "linear":
        after = optax.linear_schedule(rate, 0.0, decay_steps)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, decay_steps)
    else:
        shift = max(warmup, 1)
        after = lambda step: rate * (shift / (step + shift)) ** 0.5  # noqa: E731
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Maps a transformation over the leading layer axis of stacked parameters.

    Adafactor clips each matrix's update by its RMS and scales it by the matrix's own size.
    On a stacked [L, ...] parameter, plain optax.adafactor would do so across layers, which
    is another optimizer than T5's.
    """

    def init(params: optax.Params) -> optax.OptState:
        return jax.vmap(inner.init)(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return jax.vmap(inner.update)(updates, state, params)

    return optax.GradientTransformation(init, update)


def _stacks(params: Any) -> Any:
    """Each parameter's stack ("encoder" or "decoder"), or "single" where it is in none."""

    def label(path: tuple, _: Any) -> str:
        return path[0].key if any(entry.key == STACKED for entry in path) else "single"

    return jax.tree_util.tree_map_with_path(label, params)


def make_optimizer(config: OptimizerConfig, train_steps: int) -> optax.GradientTransformation:
    """The configured optimizer for a T5 parameter tree with scanned layers.

    Adafactor follows T5X's defaults: second moments factored for matrices of at least
    128 x 128, decay 1 - (step + 1)^-0.8, update clipped at RMS 1, step scaled by the
    parameter's RMS (at least 1e-3), no momentum. Source: arXiv 1804.04235; t5x/adafactor.py.
    """
    schedule = make_schedule(config, train_steps)
    if config.name == "adafactor":
        single = optax.adafactor(schedule, weight_decay_rate=config.weight_decay or None)
        # A stack each: they may differ in their number of layers.
        optimizer = optax.multi_transform(
            {"single": single, "encoder": per_layer(single), "decoder": per_layer(single)}, _stacks
        )
    else:
        # Element by element, so stacking changes nothing.
        optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    if config.gradient_clip_norm > 0.0:
        optimizer = optax.chain(optax.clip_by_global_norm(config.gradient_clip_norm), optimizer)
    return optimizer
