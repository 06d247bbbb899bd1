"""The training step: the same on any mesh, in any microbatches, and after any resumption."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dora_jax.config import OptimizerConfig, SoftLossConfig, T5Config, TrainConfig
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, PAD_ID, Seq2SeqBatch
from dora_jax.train import step
from dora_jax.train.step import StepMetrics, TrainState

# Every matrix has 128 rows and columns, so that Adafactor factors it.
NETWORK = T5Config(
    vocab_size=128,
    emb_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_dim=128,
    num_encoder_layers=1,
    num_decoder_layers=2,
)
B, S, T, K = 8, 6, 5, 4
HARD = TrainConfig(train_steps=10, dropout_rate=0.1)
SOFT = dataclasses.replace(
    HARD,
    soft_loss=SoftLossConfig(hard_label_share=0.3),
    optimizer=OptimizerConfig("adamw", learning_rate=1e-4),
)
# LLVM's optimisations are most of these tests' time, and none of what they test.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}

ONE_DEVICE = make_mesh(devices=jax.devices()[:1])


def make_batch(with_soft: bool = False) -> Seq2SeqBatch:
    """Two segments a row and padding at the end of each; rows weigh differently."""
    rng = np.random.default_rng(0)
    lengths_B = rng.integers(3, T + 1, B)
    filled_BT = np.arange(T) < lengths_B[:, None]
    targets_BT = rng.integers(2, 128, (B, T), dtype=np.int32)
    segments_BS = np.tile(np.array([1, 1, 1, 2, 2, 0], np.int32), (B, 1))
    segments_BT = np.where(filled_BT, np.array([1, 1, 2, 2, 2], np.int32), 0)
    topk_BTK = np.sort(rng.exponential(2.0, (B, T, K)), axis=-1)
    return Seq2SeqBatch(
        encoder_tokens_BS=rng.integers(2, 128, (B, S), dtype=np.int32),
        encoder_segments_BS=segments_BS,
        encoder_positions_BS=np.tile(np.array([0, 1, 2, 0, 1, 0], np.int32), (B, 1)),
        decoder_inputs_BT=np.roll(targets_BT, 1, axis=1),
        decoder_segments_BT=segments_BT,
        decoder_positions_BT=np.tile(np.array([0, 1, 0, 1, 2], np.int32), (B, 1)),
        targets_BT=targets_BT,
        weights_BT=filled_BT.astype(np.float32),
        topk_ids_BTK=np.argsort(rng.random((B, T, 128)))[..., :K].astype(np.int32)
        if with_soft
        else None,
        topk_logits_BTK=(topk_BTK[..., :1] - topk_BTK).astype(np.float16) if with_soft else None,
        logz_BTZ=np.full((B, T, 1), 1.6, np.float32) if with_soft else None,
    )


pytestmark = pytest.mark.usefixtures("compiled_cheaply")


@pytest.fixture(scope="module")
def params() -> Any:
    """On the host, so that no test can donate another one's."""
    return jax.device_get(step.init_params(NETWORK, 0, ONE_DEVICE))


def start(
    params: Any, config: TrainConfig, mesh: Mesh, batch: Seq2SeqBatch, seed: int
) -> tuple[TrainState, Callable[[TrainState, Seq2SeqBatch], tuple[TrainState, StepMetrics]]]:
    """A state on the mesh and its update, as the loop has them: sharded, jitted, donated."""
    placed = jax.device_put(params, step.param_shardings(NETWORK, mesh))
    state, optimizer, shardings = step.init_state(NETWORK, config, placed, seed, mesh)
    loss_fn = step.make_loss_fn(NETWORK, config)
    train_step = jax.jit(
        step.make_train_step(loss_fn, optimizer),
        in_shardings=(shardings, jax.tree.map(lambda _: partitioning.batch_sharding(mesh), batch)),
        out_shardings=(shardings, partitioning.replicated(mesh)),
        donate_argnums=0,
        compiler_options=COMPILER_OPTIONS,
    )

    def split_step(state: TrainState, batch: Seq2SeqBatch) -> tuple[TrainState, StepMetrics]:
        with partitioning.split_over(mesh):
            return train_step(state, batch)

    return jax.device_put(state, shardings), split_step


def two_updates(
    params: Any, config: TrainConfig, mesh: Mesh, batch: Seq2SeqBatch, seed: int = 7
) -> tuple[TrainState, StepMetrics]:
    """The state after two updates and the metrics of the second, on the host."""
    state, train_step = start(params, config, mesh, batch, seed)
    state, _ = train_step(state, batch)
    return jax.device_get(train_step(state, batch))


def largest_difference(a: Any, b: Any) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.fixture(scope="module")
def adafactor_alone(params: Any) -> tuple[TrainState, StepMetrics]:
    return two_updates(params, HARD, ONE_DEVICE, make_batch())


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (2, 2), (1, 4)])
def test_eight_devices_are_one(
    adafactor_alone: tuple[TrainState, StepMetrics], params: Any, fsdp: int, tensor: int
) -> None:
    mesh = make_mesh(fsdp=fsdp, tensor=tensor)
    got = two_updates(params, HARD, mesh, make_batch())
    assert largest_difference(got, adafactor_alone) < 1e-5
    assert largest_difference(got[0].params, params) > 1e-3


def test_eight_devices_are_one_for_soft_labels_and_adamw(params: Any) -> None:
    batch = make_batch(with_soft=True)
    alone = two_updates(params, SOFT, ONE_DEVICE, batch)
    got = two_updates(params, SOFT, make_mesh(fsdp=4, tensor=2), batch)
    assert largest_difference(got, alone) < 1e-5
    assert largest_difference(got[0].params, params) > 1e-4


def test_the_step_counts_and_keeps_the_seed(
    adafactor_alone: tuple[TrainState, StepMetrics],
) -> None:
    state, _ = adafactor_alone
    assert (state.step, state.seed) == (2, 7)
    assert state.step.dtype == np.int32


def test_microbatches_are_one_batch(params: Any) -> None:
    """Rows weigh differently, so a mean of means would not do."""
    config = dataclasses.replace(HARD, dropout_rate=0.0)
    batch = make_batch()
    assert len(set(batch.weights_BT.reshape(4, -1).sum(axis=1))) > 1
    want = two_updates(params, config, ONE_DEVICE, batch)
    got = two_updates(params, dataclasses.replace(config, microbatches=4), ONE_DEVICE, batch)
    assert largest_difference(got, want) < 1e-5


@pytest.fixture(scope="module")
def one_device_step(params: Any) -> tuple[TrainState, Callable]:
    config = dataclasses.replace(HARD, optimizer=OptimizerConfig("adafactor", 1e-2))
    state, train_step = start(params, config, ONE_DEVICE, make_batch(), seed=7)
    return jax.device_get(state), train_step


def test_dropout_depends_on_seed_and_step_only(
    one_device_step: tuple[TrainState, Callable],
) -> None:
    fresh, train_step = one_device_step

    def loss_at(step_number: int, seed: int) -> float:
        state = fresh._replace(step=np.int32(step_number), seed=np.uint32(seed))
        return float(train_step(jax.device_put(state), make_batch())[1].loss)

    reference = loss_at(0, 7)
    assert loss_at(0, 7) == reference
    assert len({reference, loss_at(1, 7), loss_at(0, 8), loss_at(1, 8)}) == 4


def test_loss_and_gradient_are_means_per_target_token(
    one_device_step: tuple[TrainState, Callable],
) -> None:
    """Twice every weight is the same mean; 0 of them is no number's division by 0."""
    fresh, train_step = one_device_step
    batch = make_batch()
    once, twice, none = (
        train_step(jax.device_put(fresh), batch._replace(weights_BT=factor * batch.weights_BT))[1]
        for factor in (np.float32(1), np.float32(2), np.float32(0))
    )
    np.testing.assert_allclose(twice, once, rtol=1e-5)
    assert 1.0 < once.loss < 20.0
    assert once.gradient_norm > 0.1
    assert none == (0.0, 0.0)


def test_the_state_is_donated(one_device_step: tuple[TrainState, Callable]) -> None:
    """Whatever is larger than a number a layer. A dtype that changed would warn besides."""
    fresh, train_step = one_device_step
    state = jax.device_put(fresh)
    train_step(state, make_batch())
    kept = [leaf for leaf in jax.tree.leaves(state) if not leaf.is_deleted()]
    assert all(leaf.size <= NETWORK.num_decoder_layers for leaf in kept)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def make_copy_batch(rng: np.random.Generator) -> Seq2SeqBatch:
    """Three symbols out of 12, to be written down again."""
    tokens_BN = np.zeros((B, S), np.int32)
    tokens_BN[:, :3] = rng.integers(2, 14, (B, 3))
    tokens_BN[:, 3] = EOS_ID
    targets_BT = tokens_BN[:, :T]
    return make_batch()._replace(
        encoder_tokens_BS=tokens_BN,
        encoder_segments_BS=(tokens_BN != PAD_ID).astype(np.int32),
        decoder_inputs_BT=np.pad(targets_BT, ((0, 0), (1, 0)))[:, :T],
        decoder_segments_BT=(targets_BT != PAD_ID).astype(np.int32),
        targets_BT=targets_BT,
        weights_BT=(targets_BT != PAD_ID).astype(np.float32),
    )


def test_the_network_learns_to_read_its_source(
    one_device_step: tuple[TrainState, Callable],
) -> None:
    """Who knows everything but the source loses log(12) on three tokens in four."""
    fresh, train_step = one_device_step
    state, losses = jax.device_put(fresh), []
    rng = np.random.default_rng(0)
    for _ in range(60):
        state, metrics = train_step(state, make_copy_batch(rng))
        losses.append(float(metrics.loss))
    assert losses[0] > np.log(128)
    assert np.mean(losses[-10:]) < 0.85 * np.log(12) * 3 / 4
