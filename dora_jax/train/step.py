"""One update, as a pure function of (state, batch), and the state it needs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from dora_jax.config import T5Config, TrainConfig
from dora_jax.model import t5
from dora_jax.model.logit_summary import BlockedLogits
from dora_jax.model.losses import batch_loss, online_loss
from dora_jax.model.t5 import T5, Params
from dora_jax.parallel import partitioning
from dora_jax.shapes import Seq2SeqBatch
from dora_jax.train.optim import Optimizer, gradient_norm, make_optimizer

_ROUNDING = 1  # tells the key of rounding from that of dropout


class TrainState(NamedTuple):
    """Everything an update reads and writes. `seed` feeds dropout and is never changed."""

    step: jax.Array  # int32 scalar: updates done
    params: Params
    opt_state: Any
    seed: jax.Array  # uint32 scalar


class StepMetrics(NamedTuple):
    """Scalars of one update, still on the device."""

    loss: jax.Array  # nats per target token
    gradient_norm: jax.Array


LossFn = Callable[[Params, Seq2SeqBatch, jax.Array], tuple[jax.Array, jax.Array]]


def make_loss_fn(network: T5Config, train: TrainConfig, temperature_index: int = 0) -> LossFn:
    """(params, batch, dropout key) -> (loss sum, weight sum)."""
    model = T5(dataclasses.replace(network, dropout_rate=train.dropout_rate), train.microbatches)

    def loss_fn(params: Params, batch: Seq2SeqBatch, key: jax.Array):
        apply = functools.partial(model.apply, {"params": params}, batch, rngs={"dropout": key})
        if train.vocabulary_block:
            states_BTE = cast(jax.Array, apply(method="states"))
            logits = _blocked(network, params, states_BTE, train.vocabulary_block)
        else:
            logits = cast(jax.Array, apply())
        return batch_loss(logits, batch, train, temperature_index)

    return loss_fn


def _blocked(network: T5Config, params: Params, states_BTE: jax.Array, block: int) -> BlockedLogits:
    """The logits that `T5.logits` makes of these states, block by block."""
    if network.logits_via_embedding:
        embedding_VE = params["token_embedder"]["embedding"]
        return BlockedLogits(states_BTE * network.emb_dim**-0.5, embedding_VE.T, block)
    return BlockedLogits(states_BTE, params["logits_dense"]["kernel"], block)


def make_online_loss_fn(
    network: T5Config, train: TrainConfig, teacher: T5Config
) -> Callable[[Params, Params, Seq2SeqBatch, jax.Array], tuple[jax.Array, jax.Array]]:
    """(params, teacher's params, batch, dropout key) -> (loss sum, weight sum).

    The teacher runs in every update, on the batch's own tokens; both hold logits over the whole
    vocabulary. The reference that cached soft labels stand in for.
    """
    model = T5(dataclasses.replace(network, dropout_rate=train.dropout_rate))
    teacher_model = T5(dataclasses.replace(teacher, dropout_rate=0.0))

    def loss_fn(params: Params, teacher_params: Params, batch: Seq2SeqBatch, key: jax.Array):
        logits_BTV = model.apply({"params": params}, batch, rngs={"dropout": key})
        teacher_BTV = teacher_model.apply({"params": teacher_params}, batch)
        return online_loss(cast(jax.Array, logits_BTV), cast(jax.Array, teacher_BTV), batch, train)

    return loss_fn


def make_train_step(
    loss_fn: LossFn, optimizer: Optimizer
) -> Callable[[TrainState, Seq2SeqBatch], tuple[TrainState, StepMetrics]]:
    """The update: gradient of the mean loss per target token, then the optimizer.

    Two trees of the size of the parameters exist at once, they and their gradients; the mean is
    taken where the optimizer reads the gradients. The dropout key is folded from seed and step,
    so that a resumed run draws the same masks, and rounds bfloat16 parameters alike.
    """

    def train_step(state: TrainState, batch: Seq2SeqBatch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        (loss, weight), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
        scale = 1.0 / jnp.maximum(weight, 1.0)
        metrics = StepMetrics(loss * scale, scale * gradient_norm(grads))
        rounding = jax.random.fold_in(key, _ROUNDING)
        params, opt_state = optimizer.apply(grads, state.opt_state, state.params, scale, rounding)
        return TrainState(state.step + 1, params, opt_state, state.seed), metrics

    return train_step


def param_shardings(network: T5Config, mesh: Mesh) -> Params:
    """A sharding for every parameter, from the rule table."""
    return partitioning.tree_shardings(t5.abstract_params(network), mesh)


def abstract_params(network: T5Config, mesh: Mesh) -> Params:
    """Shape, dtype and sharding of every parameter; no memory is taken."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(t5.abstract_params(network)),
        param_shardings(network, mesh),
    )


def init_params(network: T5Config, seed: int, mesh: Mesh, copying_start: bool = False) -> Params:
    """Random parameters, made straight in their shardings: never whole in one place."""
    return _initialiser(network, mesh, copying_start)(jnp.uint32(seed))


@functools.cache  # teacher and student, and students of other seeds, may be alike
def _initialiser(
    network: T5Config, mesh: Mesh, copying_start: bool
) -> Callable[[jax.Array], Params]:
    def make(seed: jax.Array) -> Params:
        params = nn.unbox(t5.random_params(network, seed))
        if copying_start:
            params = t5.copying_start(params, network)
        return params

    return jax.jit(make, out_shardings=param_shardings(network, mesh))


def state_shardings(network: T5Config, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Shardings of a whole training state.

    A slot that mirrors a parameter (same place in its tree, same shape) is sharded like it;
    Adafactor's factored vectors and counters are small and replicated.
    """
    params = abstract_params(network, mesh)
    replicated = partitioning.replicated(mesh)
    by_place = {_place(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}

    def slot_sharding(path: tuple, slot: jax.ShapeDtypeStruct) -> NamedSharding:
        param = by_place.get(_place(path))
        return param.sharding if param is not None and param.shape == slot.shape else replicated

    slots = jax.tree.map_with_path(slot_sharding, jax.eval_shape(optimizer.init, params))
    param_shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    return TrainState._make((replicated, param_shardings, slots, replicated))


def _place(path: tuple) -> tuple[str, ...]:
    """The trailing dict keys of a tree path: a slot's ends like its parameter's."""
    keys: list[str] = []
    for entry in reversed(path):
        if not isinstance(entry, jax.tree_util.DictKey):
            break
        keys.append(entry.key)
    return tuple(reversed(keys))


def init_state(
    network: T5Config, train: TrainConfig, params: Params, seed: int, mesh: Mesh
) -> tuple[TrainState, Optimizer, TrainState]:
    """A fresh state around given parameters: (state, its optimizer, its shardings)."""
    optimizer = make_optimizer(train.optimizer, train.train_steps)
    shardings = state_shardings(network, optimizer, mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    state = TrainState(jnp.int32(0), params, opt_state, jnp.uint32(seed))
    return state, optimizer, shardings
