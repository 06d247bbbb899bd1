"""Attention in both forms: their values and gradients, packed rows, dropout, what cuDNN takes."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dora_jax.config import T5Config
from dora_jax.model import attention, layers
from dora_jax.model.backend import compiling_for
from dora_jax.model.t5 import same_segment

ROWS, QUERIES, KEYS, HEADS, HEAD_DIM = 2, 12, 10, 3, 8
# Three texts and padding in the first row, of which the second has keys and no queries.
QUERY_SEGMENTS_BQ = np.array([[1] * 5 + [3] * 4 + [0] * 3, [1] * 12], np.int32)
KEY_SEGMENTS_BN = np.array([[1] * 3 + [2] * 2 + [3] * 4 + [0], [1] * 10], np.int32)
KINDS = ("bidirectional", "causal", "cross")


def arrays(kind: str, dtype: str) -> tuple[Any, Any, jax.Array | None]:
    """(query, key, value), what is visible, the position bias."""
    keys = KEYS if kind == "cross" else QUERIES
    segments_BN = KEY_SEGMENTS_BN if kind == "cross" else QUERY_SEGMENTS_BQ
    visible_BQN = same_segment(QUERY_SEGMENTS_BQ, segments_BN)
    if kind == "causal":
        visible_BQN = visible_BQN & np.tril(np.ones((QUERIES, keys), bool))
    rngs = iter(jax.random.split(jax.random.key(0), 4))
    query, key, value = (
        jax.random.normal(next(rngs), (ROWS, length, HEADS, HEAD_DIM)).astype(dtype)
        for length in (QUERIES, keys, keys)
    )
    bias = 3 * jax.random.normal(next(rngs), (1, HEADS, QUERIES, keys))
    return (query, key, value), visible_BQN, None if kind == "cross" else bias


def value_and_gradients(attend: Any, kind: str, dtype: str = "float32") -> Any:
    """What real queries get, and the gradients of query, key, value and bias."""
    heads, visible_BQN, bias = arrays(kind, dtype)
    real_BQ11 = (QUERY_SEGMENTS_BQ > 0)[..., None, None]

    def loss(heads: tuple[jax.Array, ...], bias: jax.Array | None) -> Any:
        mixed_BQHD = attend(*heads, visible_BQN, bias).astype(jnp.float32) * real_BQ11
        weight = jnp.cos(jnp.arange(mixed_BQHD.size, dtype=jnp.float32))
        return jnp.sum(mixed_BQHD * weight.reshape(mixed_BQHD.shape)), mixed_BQHD

    grads, mixed_BQHD = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(heads, bias)
    return mixed_BQHD, grads


jax_reference = functools.partial(attention.cudnn_attention, implementation="xla")


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    def check(actual: Any, expected: Any) -> None:
        found, wanted = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert np.isfinite(found).all()
        assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()

    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_agree_in_values_and_all_gradients(kind: str) -> None:
    ours = value_and_gradients(attention.xla_attention, kind)
    assert_close(ours, value_and_gradients(jax_reference, kind), 2e-6)
    gradients = jax.tree.leaves(ours[1])
    assert len(gradients) == (3 if kind == "cross" else 4)  # the bias has one
    assert min(float(jnp.abs(leaf).max()) for leaf in gradients) > 1e-2


def test_in_bfloat16_they_agree_as_far_as_it_has_digits() -> None:
    exact = value_and_gradients(attention.xla_attention, "causal")
    ours = value_and_gradients(attention.xla_attention, "causal", "bfloat16")
    assert_close(ours, exact, 0.03)
    assert_close(value_and_gradients(jax_reference, "causal", "bfloat16"), exact, 0.03)


def test_against_sums_in_float64() -> None:
    (query, key, value), visible_BQN, bias = arrays("causal", "float32")
    logits = np.einsum("bqhd,bnhd->bhqn", *(np.asarray(x, np.float64) for x in (query, key)))
    weights = np.exp(logits + np.asarray(bias, np.float64)) * np.asarray(visible_BQN)[:, None]
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    expected = np.einsum("bhqn,bnhd->bqhd", weights, np.asarray(value, np.float64))
    mixed_BQHD, _ = value_and_gradients(attention.xla_attention, "causal")
    assert_close(mixed_BQHD, expected, 1e-6)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "queries", "keys", "taken"),
    [
        ("bfloat16", 64, 512, 512, True),
        ("bfloat16", 64, 80, 96, True),
        ("bfloat16", 128, 128, 512, True),
        ("float32", 64, 512, 512, False),
        ("bfloat16", 132, 512, 512, False),
        ("bfloat16", 60, 512, 512, False),
        ("bfloat16", 64, 511, 512, False),
        ("bfloat16", 64, 512, 511, False),
        ("bfloat16", 64, 512, 192, False),  # 64 modulo 128
        ("bfloat16", 64, 192, 512, True),
        ("bfloat16", 64, 32, 512, False),  # few queries
    ],
)
def test_what_cudnn_takes(dtype: str, head_dim: int, queries: int, keys: int, taken: bool) -> None:
    assert attention.cudnn_takes(dtype, head_dim, queries, keys) == taken


def test_cudnn_without_a_gpu_is_refused_and_auto_goes_on() -> None:
    (query, key, value), visible_BQN, bias = arrays("causal", "bfloat16")
    given = query, key, value, visible_BQN, bias
    with pytest.raises(ValueError, match='Set ATTENTION = "auto"'):
        attention.attend(*given, "cudnn")
    chosen = attention.attend(*given, "auto")
    np.testing.assert_array_equal(chosen, attention.attend(*given, "xla"))


def test_a_program_for_tpus_that_a_gpus_host_compiles_does_not_call_cudnn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = types.SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert attention.on_cuda()
    with compiling_for("tpu"):
        assert not attention.on_cuda()
    device.compute_capability = "gfx90a"  # AMD
    assert not attention.on_cuda()


def test_an_update_on_a_gpu_calls_cudnn_and_takes_the_bias_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lowered for CUDA here: JAX's own checks of shapes and types run then, cuDNN does not."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91800)
    monkeypatch.setattr(attention, "on_cuda", lambda: True)
    config = T5Config(
        vocab_size=16, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, dtype="bfloat16"
    )
    layer = layers.EncoderLayer(dataclasses.replace(config, dropout_rate=0.1))
    segments_BS: Any = jax.ShapeDtypeStruct((4, 96), jnp.int32)
    x_BSE: Any = jax.ShapeDtypeStruct((4, 96, 16), jnp.bfloat16)
    bias_1HSS: Any = jax.ShapeDtypeStruct((1, 2, 96, 96), jnp.float32)

    def sight(segments_BS: jax.Array, bias_1HSS: jax.Array) -> layers.Sight:
        return layers.Sight(same_segment(segments_BS, segments_BS), bias_1HSS)

    def loss(params: Any, bias: jax.Array, x: jax.Array, segments: jax.Array) -> jax.Array:
        done, _ = layer.apply(params, x, sight(segments, bias), rngs={"dropout": jax.random.key(0)})
        return jnp.sum(done.astype(jnp.float32))

    def init(x: jax.Array, segments: jax.Array, bias: jax.Array) -> Any:
        return layer.init(jax.random.key(0), x, sight(segments, bias))

    params = jax.eval_shape(init, x_BSE, segments_BS, bias_1HSS)
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(params, bias_1HSS, x_BSE, segments_BS)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "@__cudnn$fmha" in line]
    forward, backward = calls
    assert "@__cudnn$fmhaScaleBiasSoftmax(" in forward
    assert "@__cudnn$fmhaScaleBiasSoftmaxBackward(" in backward
    assert backward.rpartition("->")[2].count("tensor<4x2x96x96xbf16>") == 1  # the bias' gradient
    assert "4x2x96x96xf32" not in text  # no logits


def test_dropout_leaves_a_key_out_for_all_queries_of_a_head() -> None:
    """Without queries and keys each weight is 1/N: the sum of the values tells which were kept."""
    config = T5Config(vocab_size=16, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=8)
    module = layers.Attention(dataclasses.replace(config, dropout_rate=0.5))
    x_BNE = jax.random.normal(jax.random.key(0), (1, 6, 8))
    sight = layers.Sight(jnp.ones((1, 6, 6), bool))
    initial = nn.unbox(module.init(jax.random.key(1), x_BNE, x_BNE, sight)["params"])
    params = jax.tree.map(jnp.zeros_like, initial)
    params["value"] = initial["value"]
    params["out"] = {"kernel": jnp.eye(8)}

    def run(key: jax.Array | None) -> np.ndarray:
        rngs = {} if key is None else {"dropout": key}
        return np.asarray(module.apply({"params": params}, x_BNE, x_BNE, sight, rngs=rngs))

    value_NHD = np.asarray(x_BNE[0] @ params["value"]["kernel"]).reshape(6, 2, 4)
    subsets = np.array(list(np.ndindex(*(2,) * 6)))
    sums_HD = 2 * np.einsum("kn,nhd->khd", subsets, value_NHD) / 6
    kept = []
    for seed in range(20):
        dropped_BQE = run(jax.random.key(seed))
        np.testing.assert_allclose(dropped_BQE, np.broadcast_to(dropped_BQE[:, :1], (1, 6, 8)))
        by_head = dropped_BQE[0, 0].reshape(2, 4)
        for head in range(2):
            errors = np.abs(sums_HD[:, head] - by_head[head]).max(axis=1)
            assert errors.min() < 1e-6
            kept.append(subsets[errors.argmin()])
    assert 0.4 < np.mean(kept) < 0.6
    np.testing.assert_allclose(run(None)[0, 0], value_NHD.mean(axis=0).reshape(-1), atol=1e-6)
