"""Optimizers and schedules by name, applied layer by layer to scanned parameters.

They compute in float32 whatever the parameters are stored in. bfloat16 ones are rounded
stochastically (`_stored`): its steps are 1/128 to 1/256 of a value, and T5's Adafactor moves a
parameter by 1/1000 of the matrix's RMS. To the nearest, most updates would be lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dora_jax.config import OptimizerConfig

# In the parameter tree, everything under this key has a leading layer axis.
STACKED = "layers"
SINGLE = "single"  # the group of parameters that are in no stack


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


class Optimizer(NamedTuple):
    """An optimizer that writes into the parameters.

    Attributes:
      init: state from parameters.
      apply: (gradients, state, parameters, scale, key) -> (parameters, state), for gradients
        that are to be multiplied by the scalar `scale`; `key` decides how bfloat16 is rounded. A
        tree of updates, as large as the parameters, never exists.
    """

    init: Callable[[Any], Any]
    apply: Callable[[Any, Any, Any, jax.Array, jax.Array], tuple[Any, Any]]


def make_optimizer(config: OptimizerConfig, train_steps: int) -> Optimizer:
    """The configured optimizer for a T5 parameter tree with scanned layers.

    Adafactor follows T5X's defaults: second moments factored for matrices of at least
    128 x 128, decay 1 - (step + 1)^-0.8, update clipped at RMS 1, step scaled by the
    parameter's RMS (at least 1e-3), no momentum. Source: arXiv 1804.04235; t5x/adafactor.py.
    """
    schedule = make_schedule(config, train_steps)
    if config.name == "adafactor":
        optimizer = _layer_by_layer(
            optax.adafactor(schedule, weight_decay_rate=config.weight_decay or None)
        )
    else:
        # Element by element: XLA makes loops of it that read gradients and write parameters.
        inner = optax.adamw(schedule, weight_decay=config.weight_decay)
        optimizer = Optimizer(
            lambda params: inner.init(_float32(params)), functools.partial(_updated, inner)
        )
    if config.gradient_clip_norm > 0.0:
        return _clipped(optimizer, config.gradient_clip_norm)
    return optimizer


def _clipped(optimizer: Optimizer, limit: float) -> Optimizer:
    """Scales gradients down to a norm of at most `limit`, over the whole tree."""

    def apply(
        gradients: Any, state: Any, params: Any, scale: jax.Array, key: jax.Array
    ) -> tuple[Any, Any]:
        norm = scale * gradient_norm(gradients)
        clipped = scale * jnp.minimum(1.0, limit / norm)
        return optimizer.apply(gradients, state, params, clipped, key)

    return Optimizer(optimizer.init, apply)


def gradient_norm(gradients: Any) -> jax.Array:
    """Of the whole tree, float32."""
    return optax.tree.norm(_float32(gradients))


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def _updated(
    inner: optax.GradientTransformation,
    gradients: Any,
    state: Any,
    params: Any,
    scale: jax.Array,
    key: jax.Array,
) -> tuple[Any, Any]:
    gradients = jax.tree.map(lambda gradient: gradient * scale, _float32(gradients))
    exact = _float32(params)
    updates, state = inner.update(gradients, state, exact)
    leaves, structure = jax.tree.flatten(params)
    updated = structure.flatten_up_to(optax.apply_updates(exact, updates))
    stored = [
        _stored(new, old.dtype, jax.random.fold_in(key, i))
        for i, (old, new) in enumerate(zip(leaves, updated, strict=True))
    ]
    return structure.unflatten(stored), state


def _stored(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """float32 as it is; bfloat16 up or down by chance, so that its mean is x.

    bfloat16 is the upper half of a float32. A random lower half is added, whose carry is 1 with
    the probability that the lower half of x calls for, and what is left of it is cut off.
    """
    if dtype == jnp.float32:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    carried = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = jax.lax.bitcast_convert_type((carried >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), upper, x.astype(jnp.bfloat16))


def _layer_by_layer(inner: optax.GradientTransformation) -> Optimizer:
    """One optimizer for each layer of the stacked parameters, and one for the others.

    Adafactor clips each matrix's update by its RMS and scales it by the matrix's own size. On a
    stacked [L, ...] parameter it would do so across layers, which is another optimizer than
    T5's. These sums need the whole update before any of it can be applied, so that XLA keeps it
    in memory: here that of one layer at a time.
    """

    def init(params: Any) -> dict[str, Any]:
        return {
            group: inner.init(part) if group == SINGLE else jax.vmap(inner.init)(part)
            for group, part in _groups(_float32(params)).items()
        }

    def apply(
        gradients: Any, state: dict[str, Any], params: Any, scale: jax.Array, key: jax.Array
    ) -> tuple[Any, dict[str, Any]]:
        given = _groups(gradients)
        done = {}
        for i, (group, part) in enumerate(_groups(params).items()):
            update = _updated if group == SINGLE else _stack_updated
            own_key = jax.random.fold_in(key, i)
            done[group] = update(inner, given[group], state[group], part, scale, own_key)
        return _merged({group: part for group, (part, _) in done.items()}), {
            group: kept for group, (_, kept) in done.items()
        }

    return Optimizer(init, apply)


def _stack_updated(
    inner: optax.GradientTransformation,
    gradients: Any,
    state: Any,
    params: Any,
    scale: jax.Array,
    key: jax.Array,
) -> tuple[Any, Any]:
    """Layer after layer, written into the stack in place."""
    layers = jax.tree.leaves(params)[0].shape[0]

    def of_layer(stack: Any, i: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, 0, False), stack)

    def update(i: jax.Array, stacks: tuple[Any, Any]) -> tuple[Any, Any]:
        params, state = stacks
        layer = of_layer(gradients, i), of_layer(state, i), of_layer(params, i)
        return jax.tree.map(
            lambda stack, new: jax.lax.dynamic_update_index_in_dim(stack, new, i, 0),
            stacks,
            _updated(inner, *layer, scale, jax.random.fold_in(key, i)),
        )

    return jax.lax.fori_loop(0, layers, update, (params, state))


def _groups(tree: Any) -> dict[str, Any]:
    """The tree's stacks ("encoder", "decoder") and what is in none, each with its full paths."""
    parts: dict[str, Any] = {SINGLE: {}}
    for name, part in tree.items():
        if STACKED in part:  # a stack each: they may differ in their number of layers
            parts[name] = {name: {STACKED: part[STACKED]}}
            part = {key: value for key, value in part.items() if key != STACKED}
        parts[SINGLE][name] = part
    return parts


def _merged(parts: dict[str, Any]) -> Any:
    """What `_groups` took apart."""
    tree = dict(parts[SINGLE])
    for group, part in parts.items():
        if group != SINGLE:
            tree[group] = {**tree[group], **part[group]}
    return tree
