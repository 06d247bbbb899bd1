"""Parameters stored in bfloat16: rounding, learning, checkpoints, and what they take."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.checkpoints import native, native_folder
from dora_jax.config import ModelSource, OptimizerConfig, T5Config, TrainConfig
from dora_jax.cost.memory import training_memory
from dora_jax.model.sizes import NETWORKS
from dora_jax.model.t5 import plain_batch
from dora_jax.parallel.mesh import make_mesh
from dora_jax.train import optim, step

TINY = T5Config(
    vocab_size=128,
    emb_dim=128,
    num_heads=2,
    head_dim=64,
    mlp_dim=128,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dtype="bfloat16",
    param_dtype="bfloat16",
)
ONE_DEVICE = make_mesh(devices=jax.devices()[:1])


def test_rounding_goes_to_a_neighbour_and_keeps_the_mean() -> None:
    """bfloat16 has steps of 1/128 from 1 to 2."""
    draws = 20_000
    for value, low, share in ((1 + 0.3 / 128, 1.0, 0.3), (-1.5 - 0.9 / 128, -1.5, 0.9)):
        x = jnp.full(draws, value, jnp.float32)
        stored = np.asarray(optim._stored(x, jnp.bfloat16, jax.random.key(0)), np.float64)
        high = low + np.sign(low) / 128
        assert set(np.unique(stored)) == {low, high}
        assert (stored == high).mean() == pytest.approx(share, abs=0.02)  # 6 standard errors


def test_what_bfloat16_has_and_what_is_no_number_stays() -> None:
    exact = jnp.array([0.0, -0.0, 1.0, -2.5, 2.0**-126, 3.0e38, jnp.inf, -jnp.inf, jnp.nan])
    exact = exact.astype(jnp.bfloat16).astype(jnp.float32)
    for seed in range(5):
        stored = optim._stored(exact, jnp.bfloat16, jax.random.key(seed))
        np.testing.assert_array_equal(stored.astype(jnp.float32), exact)
    x = jnp.array([1.2345678])
    assert optim._stored(x, jnp.float32, jax.random.key(0)) is x


def distance_after(updates: int, rate: float) -> float:
    """How far a matrix is from its aim, as a share of how far it was; by Adafactor."""
    optimizer = optim.make_optimizer(OptimizerConfig("adafactor", rate), updates)
    rngs = jax.random.split(jax.random.key(0), 3)
    start, change = (jax.random.normal(rng, (128, 128)) for rng in rngs[:2])
    aim = start + 0.1 * change
    params: Any = {"head": {"kernel": start.astype(jnp.bfloat16)}}
    state, apply = optimizer.init(params), jax.jit(optimizer.apply)
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(state))
    for i in range(updates):
        gradients = jax.tree.map(lambda kernel: (kernel - aim).astype(jnp.bfloat16), params)
        key = jax.random.fold_in(rngs[2], i)
        params, state = apply(gradients, state, params, jnp.float32(1.0), key)
    (kernel,) = jax.tree.leaves(params)
    assert kernel.dtype == jnp.bfloat16
    return float(jnp.linalg.norm(kernel - aim) / jnp.linalg.norm(start - aim))


def test_small_updates_count_because_they_are_rounded_by_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_chance = distance_after(60, 1e-3)
    monkeypatch.setattr(optim, "_stored", lambda x, dtype, key: x.astype(dtype))
    to_nearest = distance_after(60, 1e-3)
    assert by_chance < 0.7
    assert to_nearest > by_chance + 0.1


@pytest.mark.slow
def test_a_network_learns_and_resumes() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 128, (4, 8), dtype=np.int32)
    batch = plain_batch(tokens, np.pad(tokens, ((0, 0), (1, 0)))[:, :-1])
    batch = batch._replace(targets_BT=jnp.asarray(tokens), weights_BT=jnp.ones(tokens.shape))
    train = TrainConfig(optimizer=OptimizerConfig("adafactor", 2e-2), dropout_rate=0.0)
    params = step.init_params(TINY, 0, ONE_DEVICE)
    state, optimizer, _ = step.init_state(TINY, train, params, 0, ONE_DEVICE)
    update = jax.jit(step.make_train_step(step.make_loss_fn(TINY, train), optimizer))
    losses, middle = [], state
    for i in range(20):
        if i == 10:
            middle = state
        state, metrics = update(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.5 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}

    again = middle
    for _ in range(10):
        again, _ = update(again, batch)
    jax.tree.map(np.testing.assert_array_equal, again, state)  # rounding is drawn alike


@pytest.mark.usefixtures("compiled_cheaply")
def test_checkpoints_keep_every_bit(tmp_path: Path) -> None:
    params = step.init_params(TINY, 0, ONE_DEVICE)
    native_folder.save(tmp_path / "model", TINY, params)
    config, loaded = native_folder.load(tmp_path / "model")
    assert config == TINY
    checkpoints = native.Checkpoints(tmp_path / "best", keep=1)
    checkpoints.save(20, params, {})
    checkpoints.close()
    wanted = step.abstract_params(TINY, ONE_DEVICE)
    best = native.restore_best(tmp_path / "best", 20, wanted)
    for read in (loaded, best):
        jax.tree.map(np.testing.assert_array_equal, read, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {jnp.dtype("bfloat16")}


def test_only_the_teacher_is_stored_so_and_takes_half() -> None:
    xxl = dataclasses.replace(NETWORKS["t5_1_1_xxl"], remat_policy="full")
    source = ModelSource(xxl, param_dtype="bfloat16")
    assert source.network == dataclasses.replace(xxl, param_dtype="bfloat16")
    assert ModelSource(xxl).network == xxl
    train = TrainConfig(batch_size=1)
    exact, half = (training_memory("teach", n, train, 1, 1) for n in (xxl, source.network))
    assert (exact.state_bytes_per_parameter, half.state_bytes_per_parameter) == (8, 4)
    assert half.gathered_bytes == exact.gathered_bytes / 2
