"""Products of activations and kernels, in the form that each backend is fast at.

Activations may be bfloat16 where kernels and their gradients are float32. XLA's CPU backend
multiplies bfloat16 on the matrix unit (AMX) where the result is float32 and both operands lie in
memory as they are written, ten times as fast as float32; else it widens both and multiplies in
float32. So the gradients are written out here: XLA's own would be products of both types.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from dora_jax.model.backend import platform


def product_dtype(dtype: Any) -> Any:
    """What a product of matrices of this dtype gives, before it is rounded to it.

    On a CPU float32 (see above); elsewhere the product itself rounds.
    """
    return jnp.float32 if platform() == "cpu" else dtype


def matrix_product(x_NI: jax.Array, kernel_IO: jax.Array, dtype: Any) -> jax.Array:
    """x @ kernel, with the kernel in the activations' dtype.

    The incoming gradient is rounded to the activations' dtype, as the activations themselves are;
    the kernel's gradient is accumulated in float32 and returned in the kernel's dtype.

    Args:
      x_NI: activations.
      kernel_IO: float32 or bfloat16.
      dtype: of the result.
    """
    return cast(jax.Array, _differentiable(x_NI, kernel_IO, dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _differentiable(x_NI: jax.Array, kernel_IO: jax.Array, dtype: Any) -> jax.Array:
    return _rounded(x_NI, kernel_IO.astype(x_NI.dtype), (1, 0), dtype)


def _forward(x_NI: jax.Array, kernel_IO: jax.Array, dtype: Any) -> tuple[jax.Array, Any]:
    return matrix_product(x_NI, kernel_IO, dtype), (x_NI, kernel_IO)


def _backward(dtype: Any, residuals: Any, grad_NO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_NI, kernel_IO = residuals
    grad_NO = grad_NO.astype(x_NI.dtype)
    grad_x_NI = _rounded(grad_NO, kernel_IO.astype(x_NI.dtype), (1, 1), x_NI.dtype)
    if platform() == "cpu" and x_NI.dtype != jnp.float32:
        return grad_x_NI, _rounded(as_written(x_NI.T), grad_NO, (1, 0), kernel_IO.dtype)
    return grad_x_NI, _rounded(x_NI, grad_NO, (0, 0), kernel_IO.dtype)


_differentiable.defvjp(_forward, _backward)


def _rounded(one: jax.Array, other: jax.Array, summed: tuple[int, int], dtype: Any) -> jax.Array:
    """The product over one dimension of each, computed as the backend likes it."""
    dimensions = (((summed[0],), (summed[1],)), ((), ()))
    product = jax.lax.dot_general(
        one, other, dimensions, preferred_element_type=product_dtype(dtype)
    )
    return product.astype(dtype)


def as_written(matrix: jax.Array) -> jax.Array:
    """Row after row in memory, also where it is another's transpose."""
    return with_layout_constraint(matrix, Layout(major_to_minor=(0, 1)))
