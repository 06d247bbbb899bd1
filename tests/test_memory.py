"""What an update holds in memory, and that saving memory changes no result."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.config import OptimizerConfig, T5Config, TrainConfig
from dora_jax.cost.flops import parameter_count
from dora_jax.cost.memory import decoder_parameters, training_memory
from dora_jax.model.sizes import NETWORKS
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import Seq2SeqBatch
from dora_jax.train import step
from dora_jax.train.optim import make_optimizer

# Many layers, few tokens: what is of the parameters' size decides, as at T5-XXL.
DEEP = T5Config(
    vocab_size=128,
    emb_dim=128,
    num_heads=2,
    head_dim=64,
    mlp_dim=256,
    num_encoder_layers=24,
    num_decoder_layers=24,
    remat_policy="full",
)
SMALL = dataclasses.replace(
    DEEP, num_encoder_layers=1, num_decoder_layers=2, emb_dim=16, mlp_dim=32
)
ONE_DEVICE = make_mesh(devices=jax.devices()[:1])


def make_batch(rows: int, source: int, target: int) -> Seq2SeqBatch:
    rng = np.random.default_rng(0)

    def side(length: int) -> tuple[Any, Any, Any]:
        tokens = rng.integers(2, 128, (rows, length), dtype=np.int32)
        segments = np.repeat([[1, 2]], length // 2, axis=1).astype(np.int32)
        return tokens, np.tile(segments, (rows, 1)), np.zeros_like(tokens)

    targets = rng.integers(2, 128, (rows, target), dtype=np.int32)
    weights = rng.integers(0, 2, (rows, target)).astype(np.float32)
    return Seq2SeqBatch(*side(source), *side(target), targets, weights)


@functools.cache
def temporary_bytes(network: T5Config, train: TrainConfig, rows: int, tokens: int) -> int:
    """Of a compiled update, with its state donated."""
    optimizer = make_optimizer(train.optimizer, 10)
    params = step.abstract_params(network, ONE_DEVICE)
    counter: Any = jax.ShapeDtypeStruct((), jnp.int32)
    seed: Any = jax.ShapeDtypeStruct((), jnp.uint32)
    state = step.TrainState(counter, params, jax.eval_shape(optimizer.init, params), seed)
    update = step.make_train_step(step.make_loss_fn(network, train), optimizer)
    batch = make_batch(rows, tokens, tokens)
    compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes  # nothing is doubled
    return memory.temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_an_update_makes_one_tree_more_than_its_state(name: str) -> None:
    """The gradients. A tree of updates, or the sum of microbatches, would be another one."""
    train = TrainConfig(optimizer=OptimizerConfig(name), dropout_rate=0.0, microbatches=2)
    tree = 4 * parameter_count(DEEP)
    assert tree < temporary_bytes(DEEP, train, rows=2, tokens=2) < 1.3 * tree


@pytest.mark.slow
def test_microbatches_save_what_a_layer_holds() -> None:
    network = dataclasses.replace(DEEP, num_encoder_layers=2, num_decoder_layers=2)
    train = TrainConfig(dropout_rate=0.0)
    whole = temporary_bytes(network, train, rows=16, tokens=64)
    turns = temporary_bytes(network, dataclasses.replace(train, microbatches=8), 16, 64)
    assert turns < 0.6 * whole


@functools.cache
def loss_and_gradients(policy: str, microbatches: int, dropout: float = 0.0) -> Any:
    network = dataclasses.replace(SMALL, remat_policy=policy)
    train = TrainConfig(dropout_rate=dropout, microbatches=microbatches)
    params = jax.device_put(step.init_params(SMALL, 0, ONE_DEVICE))
    loss_fn = step.make_loss_fn(network, train)
    grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    return jax.device_get(grad(params, make_batch(4, 6, 4), jax.random.key(1)))


@pytest.mark.usefixtures("compiled_cheaply")
@pytest.mark.parametrize(("policy", "microbatches"), [("minimal", 1), ("full", 1), ("full", 2)])
def test_saving_memory_changes_no_result(policy: str, microbatches: int) -> None:
    want, got = loss_and_gradients("none", 1), loss_and_gradients(policy, microbatches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want[1])) > 0.1


@pytest.mark.usefixtures("compiled_cheaply")
def test_every_turn_has_dropout_of_its_own() -> None:
    """Recomputation draws the same masks; turns draw different ones, and rows keep theirs."""
    (loss, _), _ = loss_and_gradients("full", 2, 0.5)
    (plain, _), _ = loss_and_gradients("full", 2)
    assert abs(loss - plain) > 1e-3


def test_the_largest_model_is_counted_as_published() -> None:
    xxl = NETWORKS["t5_1_1_xxl"]
    train = TrainConfig(optimizer=OptimizerConfig("adafactor"), batch_size=1)
    counted = training_memory("teach", dataclasses.replace(xxl, remat_policy="full"), train, 1, 1)
    assert counted.parameters * 4 == pytest.approx(44.5e9, rel=1e-2)
    assert counted.state_bytes_per_parameter == 8
    # 24 layers of 6 matrices of 4,096 x 4,096 and 3 of 4,096 x 10,240, and the head.
    by_hand = 24 * (6 * 4096**2 + 3 * 4096 * 10240) + 32128 * 4096
    assert decoder_parameters(xxl) == by_hand
