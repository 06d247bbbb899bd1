"""Logits in blocks: the same numbers and gradients as whole ones, on any mesh, in less memory."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.config import SoftLossConfig, T5Config, TrainConfig
from dora_jax.data.packing import Example, fill, place
from dora_jax.data.soft_labels import SoftRow
from dora_jax.model.logit_summary import BlockedLogits, LogitSummary, summarise
from dora_jax.model.losses import batch_loss
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import Seq2SeqBatch
from dora_jax.train import step

B, T, E, K = 2, 5, 8, 7
TEMPERATURE = 2.0


def make_inputs(vocab: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """(states, kernel, kept ids, targets): distinct ids, of all stretches and columns."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(0, 1, (B, T, E)).astype(np.float32),
        rng.normal(0, 1, (E, vocab)).astype(np.float32),
        np.argsort(rng.random((B, T, vocab)))[..., :K].astype(np.int32),
        rng.integers(0, vocab, (B, T)).astype(np.int32),
    )


def plain_summary(states_BTE, kernel_EV, ids_BTK, targets_BT, apart: bool = True) -> LogitSummary:
    """What `summarise` means, with JAX's own gradient."""
    logits_BTV = jnp.asarray(states_BTE) @ kernel_EV
    kept_BTV = jax.nn.one_hot(ids_BTK, kernel_EV.shape[1], dtype=bool).any(axis=-2)
    return LogitSummary(
        jnp.take_along_axis(logits_BTV, ids_BTK, axis=-1),
        jax.nn.logsumexp(logits_BTV / TEMPERATURE, axis=-1, where=~kept_BTV if apart else None),
        jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0],
        jax.nn.logsumexp(logits_BTV, axis=-1),
    )


def value_and_gradient(function, states_BTE, kernel_EV) -> Any:
    """The summary, and the gradient of a sum that weighs each of its numbers differently."""

    def weighed(states_BTE, kernel_EV):
        summary = function(states_BTE, kernel_EV)
        rng = np.random.default_rng(1)
        weights = [rng.normal(0, 1, leaf.shape).astype(np.float32) for leaf in summary]
        return sum(jnp.sum(a * b) for a, b in zip(summary, weights, strict=True)), summary

    (_, summary), grads = jax.jit(jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True))(
        states_BTE, kernel_EV
    )
    return summary, grads


# 384 = 128 stretches of 3, 40 = 8 of 5, 37 has no stretches; a block of 100 leaves a rest over.
@pytest.mark.parametrize(("vocab", "block"), [(384, 0), (384, 128), (384, 256), (40, 16), (37, 5)])
@pytest.mark.parametrize("apart", [True, False])
def test_summary_and_gradient_are_the_plain_ones(vocab: int, block: int, apart: bool) -> None:
    states_BTE, kernel_EV, ids_BTK, targets_BT = make_inputs(vocab)

    def ours(states_BTE, kernel_EV):
        whole = jnp.dot(states_BTE, kernel_EV)
        logits = BlockedLogits(states_BTE, kernel_EV, block) if block else whole
        return summarise(
            logits,
            kept_ids_BTK=ids_BTK,
            temperature=TEMPERATURE,
            apart=apart,
            targets_BT=targets_BT,
        )

    got = value_and_gradient(ours, states_BTE, kernel_EV)
    want = value_and_gradient(
        lambda x, kernel: plain_summary(x, kernel, ids_BTK, targets_BT, apart),
        states_BTE,
        kernel_EV,
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6), got, want)


def test_repeated_ids_each_get_their_gradient() -> None:
    """Draws repeat: two of one id weigh twice."""
    states_BTE, kernel_EV, ids_BTK, targets_BT = make_inputs(384)
    ids_BTK[..., 1] = ids_BTK[..., 0]

    def ours(states_BTE, kernel_EV):
        logits = BlockedLogits(states_BTE, kernel_EV, 128)
        asked = {"kept_ids_BTK": ids_BTK, "targets_BT": targets_BT}
        return summarise(logits, temperature=TEMPERATURE, apart=False, **asked)

    def plain(states_BTE, kernel_EV):
        return plain_summary(states_BTE, kernel_EV, ids_BTK, targets_BT, apart=False)

    got = value_and_gradient(ours, states_BTE, kernel_EV)
    want = value_and_gradient(plain, states_BTE, kernel_EV)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6), got, want)


def test_a_rest_below_rounding_is_exact() -> None:
    """All but 1e-20 of the probability on the kept ids: 1 - sum(q) would know nothing of it."""
    logits_BTV = np.full((1, 1, 40), -46.0, np.float32)
    logits_BTV[..., :K] = 0.0
    ids_BTK = np.arange(K, dtype=np.int32)[None, None]
    rest_BT = summarise(logits_BTV, kept_ids_BTK=ids_BTK).rest_BT
    assert rest_BT is not None
    np.testing.assert_allclose(rest_BT, -46.0 + np.log(40 - K), rtol=1e-6)


def test_only_what_is_asked_is_there() -> None:
    states_BTE, kernel_EV, ids_BTK, targets_BT = make_inputs(384)
    logits = BlockedLogits(jnp.asarray(states_BTE), jnp.asarray(kernel_EV), 128)
    hard = summarise(logits, targets_BT=targets_BT)
    soft = summarise(logits, kept_ids_BTK=ids_BTK)
    assert [leaf is None for leaf in hard] == [True, True, False, False]
    assert [leaf is None for leaf in soft] == [False, False, True, True]


# --- Memory. Shapes of which V is by far the largest; nothing is run.

LONG_T, LARGE_V = 512, 16384


def long_loss(block: int) -> Any:
    """(function, its arguments): soft, hard and z-loss of 1,024 positions."""
    config = dataclasses.replace(CONFIG, vocabulary_block=block)

    def loss(states_BTE, kernel_EV, batch):
        logits = BlockedLogits(states_BTE, kernel_EV, block)
        whole = jnp.dot(states_BTE, kernel_EV)
        return batch_loss(logits if block else whole, batch, config, 0)[0]

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((B, LONG_T, *shape), dtype)

    tokens_BT = array(dtype=jnp.int32)
    batch = Seq2SeqBatch(*[tokens_BT] * 7, array())._replace(  # pyright: ignore[reportCallIssue]
        topk_ids_BTK=array(K, dtype=jnp.int32),
        topk_logits_BTK=array(K, dtype=jnp.float16),
        logz_BTZ=array(1),
    )
    kernel_EV = jax.ShapeDtypeStruct((E, LARGE_V), jnp.float32)
    return jax.value_and_grad(loss, argnums=(0, 1)), (array(E), kernel_EV, batch)


def temporary_bytes(block: int) -> int:
    function, arguments = long_loss(block)
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]


def test_blocks_take_a_fraction_of_the_memory() -> None:
    whole_array = B * LONG_T * LARGE_V * 4
    whole, blocked = temporary_bytes(0), temporary_bytes(1024)
    assert whole > 1.5 * whole_array  # logits and their gradient
    assert blocked < 0.5 * whole_array  # of a sixteenth each


# --- The network, with packed rows of soft and human labels.

NETWORK = T5Config(
    vocab_size=384,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
CONFIG = TrainConfig(
    soft_loss=SoftLossConfig(hard_label_share=0.3), gold_share=0.2, z_loss=1e-2, dropout_rate=0.1
)
ONE_DEVICE = make_mesh(devices=jax.devices()[:1])
# LLVM's optimisations are most of these tests' time, and none of what they test.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


ROWS = 8


def packed_batch() -> Seq2SeqBatch:
    """20 examples of several lengths in 8 rows, every fifth with a human's label."""
    rng = np.random.default_rng(0)
    examples = []
    for i, length in enumerate(rng.integers(2, 9, 20).tolist()):
        tokens_T = rng.integers(2, NETWORK.vocab_size, length).astype(np.int32)
        teacher_TV = rng.normal(0, 2, (length, NETWORK.vocab_size))
        centred_TV = teacher_TV - teacher_TV.max(axis=-1, keepdims=True)
        ids_TK = np.argsort(-centred_TV, axis=-1)[:, :K].astype(np.int32)
        kept_TK = np.take_along_axis(centred_TV, ids_TK, axis=-1).astype(np.float16)
        logz_TZ = np.log(np.exp(centred_TV / 2.0).sum(axis=-1, keepdims=True)).astype(np.float32)
        soft = SoftRow(tokens_T, ids_TK, kept_TK, logz_TZ, teacher_TV.max(axis=-1))
        examples.append(Example(tokens_T, tokens_T, soft if i % 5 else None))
    lengths_N = np.array([len(example.target) for example in examples])
    return fill(examples, place(lengths_N, lengths_N, 16, 16), ROWS, 16, 16)


def loss_and_gradient(network: T5Config, block: int, mesh: Any) -> Any:
    config = dataclasses.replace(CONFIG, vocabulary_block=block)
    params = jax.device_put(
        step.init_params(network, 0, ONE_DEVICE), step.param_shardings(network, mesh)
    )
    batch = jax.device_put(packed_batch(), partitioning.batch_sharding(mesh))
    loss_fn = jax.value_and_grad(step.make_loss_fn(network, config), has_aux=True)
    compiled = jax.jit(loss_fn, compiler_options=COMPILER_OPTIONS)
    return jax.device_get(compiled(params, batch, jax.random.key(0)))


def largest_error(got: Any, want: Any) -> float:
    """Over all arrays, relative to the largest number of each."""
    return max(
        jax.tree.leaves(
            jax.tree.map(lambda a, b: float(np.max(np.abs(a - b)) / np.max(np.abs(b))), got, want)
        )
    )


@pytest.mark.parametrize("tied", [False, True])
def test_the_networks_loss_in_blocks_on_one_device_and_on_eight(tied: bool) -> None:
    network = dataclasses.replace(NETWORK, logits_via_embedding=tied)
    whole = loss_and_gradient(network, 0, ONE_DEVICE)
    blocked = loss_and_gradient(network, 128, ONE_DEVICE)
    assert whole[0][1] > 60  # target tokens
    np.testing.assert_allclose(blocked[0][0], whole[0][0], rtol=1e-6)
    assert largest_error(blocked, whole) < 1e-5
    sharded = loss_and_gradient(network, 128, make_mesh(fsdp=2, tensor=4))
    assert largest_error(sharded, whole) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_the_network_in_blocks_has_no_array_over_tokens_and_vocabulary(tied: bool) -> None:
    """Neither forward nor backward, by the shapes in the compiled program."""
    network = dataclasses.replace(NETWORK, vocab_size=LARGE_V, logits_via_embedding=tied)
    params, batch = step.abstract_params(network, ONE_DEVICE), packed_batch()
    tokens = batch.targets_BT.size

    def largest(block: int) -> int:
        """Elements of the largest array with a row for each token."""
        config = dataclasses.replace(CONFIG, vocabulary_block=block)
        loss_fn = jax.value_and_grad(step.make_loss_fn(network, config), has_aux=True)
        lowered = jax.jit(loss_fn, compiler_options=COMPILER_OPTIONS).lower(
            params, batch, jax.random.key(0)
        )
        rows = rf"(?:{ROWS},{tokens // ROWS}|{tokens})"
        shapes = re.findall(rf"f32\[{rows},([0-9]+)\]", str(lowered.compile().as_text()))
        return tokens * max(map(int, shapes))

    assert largest(0) == tokens * LARGE_V
    assert largest(1024) == tokens * 1024


def test_half_precision_in_blocks() -> None:
    network = dataclasses.replace(NETWORK, dtype="bfloat16")
    whole = loss_and_gradient(network, 0, ONE_DEVICE)
    blocked = loss_and_gradient(network, 128, ONE_DEVICE)
    np.testing.assert_allclose(blocked[0][0], whole[0][0], rtol=1e-3)
    assert largest_error(blocked[1], whole[1]) < 3e-2


def test_a_negative_block_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary_block = -1"):
        TrainConfig(vocabulary_block=-1)
