"""Attention with T5's position bias, in the form that each device is fast at.

XLA's form writes weights [B, H, Q, N] to memory, float32 before the softmax. cuDNN's, by
`jax.nn.dot_product_attention`, never does; it reads one bias in the activations' dtype instead, the
position bias and the mask of packed rows together, and gives the bias' gradient. That bias is
[B, H, Q, N] as well: segments differ from row to row, and the lengths and offsets that cuDNN takes
for packed rows are not in JAX's public interface (jax-ml/jax pull request 29731).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dora_jax import shapes
from dora_jax.model.backend import platform

# Added to the logits of masked pairs. Finite, so that a row with nothing to attend to
# (padding) gives a uniform distribution and not NaN.
MASKED = -1e10


def attend(
    query_BQHD: jax.Array,
    key_BNHD: jax.Array,
    value_BNHD: jax.Array,
    visible_BQN: shapes.Array,
    position_bias_1HQN: jax.Array | None,
    implementation: str,
) -> jax.Array:
    """softmax(q k + bias) v over the visible keys, without 1/sqrt(D), as in T5.

    Args:
      query_BQHD, key_BNHD, value_BNHD: of one dtype.
      visible_BQN: where a query may look.
      position_bias_1HQN: float32, or None (cross-attention).
      implementation: "xla", "cudnn", or "auto": cuDNN where `cudnn_takes` it.

    Returns:
      [B, Q, H, D] in the dtype of `value_BNHD`. Where a query sees no key, anything finite.

    Raises:
      ValueError: "cudnn" where it cannot be.
    """
    dtype, (head_dim, keys) = query_BQHD.dtype, (query_BQHD.shape[-1], key_BNHD.shape[1])
    taken = cudnn_takes(str(dtype), head_dim, query_BQHD.shape[1], keys)
    if implementation == "cudnn" and not (taken and on_cuda()):
        raise ValueError(
            f'ATTENTION = "cudnn" takes an NVIDIA GPU of compute capability 8.0 or more, bfloat16 '
            f"and even lengths; here are {jax.default_backend()}, {dtype}, heads of {head_dim}, "
            f'{query_BQHD.shape[1]} queries and {keys} keys. Set ATTENTION = "auto".'
        )
    if implementation != "xla" and taken and on_cuda():
        return cudnn_attention(query_BQHD, key_BNHD, value_BNHD, visible_BQN, position_bias_1HQN)
    return xla_attention(query_BQHD, key_BNHD, value_BNHD, visible_BQN, position_bias_1HQN)


def xla_attention(
    query_BQHD: jax.Array,
    key_BNHD: jax.Array,
    value_BNHD: jax.Array,
    visible_BQN: shapes.Array,
    position_bias_1HQN: jax.Array | None,
) -> jax.Array:
    """`attend` as products and a softmax, logits in float32."""
    logits_BHQN = jnp.einsum(
        "BQHD,BNHD->BHQN", query_BQHD, key_BNHD, preferred_element_type=jnp.float32
    )
    if position_bias_1HQN is not None:
        logits_BHQN = logits_BHQN + position_bias_1HQN
    logits_BHQN = logits_BHQN + jnp.where(visible_BQN, 0.0, MASKED)[:, None]
    weights_BHQN = jax.nn.softmax(logits_BHQN, axis=-1).astype(value_BNHD.dtype)
    return jnp.einsum("BHQN,BNHD->BQHD", weights_BHQN, value_BNHD)


def cudnn_attention(
    query_BQHD: jax.Array,
    key_BNHD: jax.Array,
    value_BNHD: jax.Array,
    visible_BQN: shapes.Array,
    position_bias_1HQN: jax.Array | None,
    implementation: str = "cudnn",
) -> jax.Array:
    """`attend` as one fused operation; the bias is rounded to the activations' dtype, as T5X's is.

    Args:
      implementation: of `jax.nn.dot_product_attention`; "xla" computes the same without a GPU.
    """
    # A query that sees nothing, padding, sees everything: nobody reads it, and cuDNN's backward
    # pass overflows where a row's log-sum is far below 0 (see `cudnn_takes`).
    seen_BQN = visible_BQN | ~visible_BQN.any(axis=-1, keepdims=True)
    bias = None if position_bias_1HQN is None else position_bias_1HQN.astype(query_BQHD.dtype)
    return jax.nn.dot_product_attention(
        query_BQHD,
        key_BNHD,
        value_BNHD,
        bias=bias,
        mask=seen_BQN[:, None],
        scale=1.0,
        implementation=implementation,  # type: ignore[arg-type]
    )


def cudnn_takes(dtype: str, head_dim: int, queries: int, keys: int) -> bool:
    """Whether cuDNN computes attention with a bias, and the bias' gradient, of these sizes.

    bfloat16, heads of at most 128 in steps of 8, even lengths (the checks of
    jax/_src/cudnn/fused_attention_stablehlo.py, 0.10.2). Not numbers of keys that are 64 modulo
    128: with a mask, the backward pass on Hopper then gives NaN for rows whose log-sum is below
    -88 (github.com/pytorch/pytorch/issues/196678, September 2026), which T5's unscaled logits
    may reach; nor fewer than 64 queries, where the same was seen for a single one
    (github.com/NVIDIA/cudnn-frontend/issues/1072) and XLA loses little.
    """
    return (
        dtype == "bfloat16"
        and head_dim <= 128
        and head_dim % 8 == 0
        and queries >= 64
        and queries % 2 == 0
        and keys % 2 == 0
        and keys % 128 != 64
    )


def on_cuda() -> bool:
    """Whether programs run on NVIDIA GPUs that cuDNN's attention knows: Ampere or later."""
    if platform() != "gpu":
        return False
    major = jax.local_devices()[0].compute_capability.partition(".")[0]  # of AMD's GPUs "gfx90a"
    return major.isdecimal() and int(major) >= 8
