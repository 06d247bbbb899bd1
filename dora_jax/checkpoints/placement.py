"""Puts parameters into their shardings, one stored tensor at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from dora_jax.config import T5Config
from dora_jax.model.t5 import Params, abstract_params
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import make_mesh

_STACK = ".layers."  # in the paths of all parameters that are stacks of layers


def is_stack(path: str) -> bool:
    """Whether a parameter is [L, ...], one slice a layer."""
    return _STACK in path


def shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Path with dots → shape of every parameter of a network."""
    leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(abstract_params(config)))
    return {dotted(keys): tuple(leaf.shape) for keys, leaf in leaves}


def by_path(params: Params) -> dict[str, Any]:
    """Path with dots → leaf of a parameter tree."""
    return {dotted(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}


def dotted(keys: tuple[Any, ...]) -> str:
    """The path of a leaf as one text, "encoder.layers.mlp.wo.kernel"."""
    return ".".join(key.key for key in keys)


def fill(
    config: T5Config, mesh: Mesh | None, read: Callable[[str], Iterable[np.ndarray]]
) -> Params:
    """Makes the parameters of a network from tensors that are read one after another.

    Beyond the parameters themselves, host memory holds what `read` holds and one copy of it.

    Args:
      config: the network.
      mesh: where the parameters go; default one device.
      read: path → the layers of a stack in order, or the one array of any other parameter.

    Returns:
      The parameter tree, float32, sharded by the rule table.
    """
    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    boxed = abstract_params(config)

    shardings = partitioning.tree_shardings(boxed, mesh)
    parameters = sum(math.prod(shape) for shape in shapes(config).values())
    with tqdm(
        total=parameters, desc="read weights", unit="", unit_scale=True, leave=False, disable=None
    ) as bar:

        def one(keys: Any, leaf: Any, sharding: NamedSharding) -> jax.Array:
            path = dotted(keys)
            if is_stack(path):
                return _stack(read(path), leaf.shape, sharding, bar)
            (array,) = read(path)
            bar.update(array.size)
            return _put(array, sharding)

        return jax.tree_util.tree_map_with_path(one, nn.unbox(boxed), shardings)


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _stack(
    layers: Iterable[np.ndarray], shape: tuple[int, ...], sharding: NamedSharding, bar: tqdm
) -> jax.Array:
    """Fills [L, ...] layer by layer on the devices; the host never holds the whole stack."""
    of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    stacked = jnp.zeros(shape, jnp.float32, device=sharding)
    for i, layer in enumerate(layers):
        stacked = _set_layer(stacked, _put(layer, of_layer), i)
        # Dispatch runs ahead of the devices: without waiting, all layers would be in memory.
        stacked.block_until_ready()
        bar.update(layer.size)
    return stacked


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: jax.Array, layer: jax.Array, i: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, i, 0)
