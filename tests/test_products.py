"""Products of activations and kernels: their values, gradients and types."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.model.products import as_written, matrix_product


def operands(dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x in the dtype, kernel in float32, and a weight for the result."""
    x, kernel, weight = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(24, 16), (16, 40), (24, 40)])
    )
    return x.astype(dtype), kernel, weight


def loss(x: jax.Array, kernel: jax.Array, weight: jax.Array, dtype: str) -> jax.Array:
    return jnp.sum(weight * matrix_product(x, kernel, dtype).astype(jnp.float32))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_values_and_gradients_are_those_of_a_product(dtype: str, tolerance: float) -> None:
    x, kernel, weight = operands(dtype)
    product = jax.jit(matrix_product, static_argnums=2)(x, kernel, dtype)
    grad_x, grad_kernel = jax.jit(jax.grad(loss, (0, 1)), static_argnums=3)(
        x, kernel, weight, dtype
    )
    exact = [np.asarray(array, np.float64) for array in (x, kernel, weight)]
    for found, wanted in (
        (product, exact[0] @ exact[1]),
        (grad_x, exact[2] @ exact[1].T),
        (grad_kernel, exact[0].T @ exact[2]),
    ):
        error = np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max()
        assert error < tolerance


def test_kernels_and_logits_keep_float32() -> None:
    x, kernel, weight = operands("bfloat16")
    assert matrix_product(x, kernel, "bfloat16").dtype == jnp.bfloat16
    logits = matrix_product(x, kernel, jnp.float32)
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(logits, x.astype(jnp.float32) @ rounded, rtol=1e-5, atol=1e-5)
    grad_x, grad_kernel = jax.grad(loss, (0, 1))(x, kernel, weight, "float32")
    assert (grad_x.dtype, grad_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    # More digits than bfloat16 has: they were not rounded on the way.
    assert np.any(grad_kernel != grad_kernel.astype(jnp.bfloat16).astype(jnp.float32))


def test_no_product_of_half_precision_is_widened() -> None:
    """Every product reads bfloat16: what the CPU's matrix unit takes, and a GPU's."""
    x, kernel, weight = operands("bfloat16")
    text = jax.jit(jax.grad(loss, (0, 1)), static_argnums=3).lower(x, kernel, weight, "float32")
    products = [line for line in text.as_text().splitlines() if "dot_general" in line]
    assert len(products) == 2
    for line in products:
        operands_types, _, _ = line.partition("->")
        assert operands_types.count("xbf16>") == 2


def test_a_transpose_as_written_is_the_transpose() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(jax.jit(lambda x: as_written(x.T))(x), x.T)
