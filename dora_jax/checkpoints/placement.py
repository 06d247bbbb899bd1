"""Puts parameters into their shardings, one stored tensor at a time.

Of many hosts each reads a share of the tensors and sends them to the others, piece by piece: 64
hosts read a checkpoint once together, not once each.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from dora_jax.config import T5Config
from dora_jax.model.t5 import Params, abstract_params
from dora_jax.parallel import hosts, partitioning
from dora_jax.parallel.mesh import make_mesh

_MESSAGE_BYTES = 64 << 20  # of a tensor on its way from the host that read it
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
      mesh: where the parameters go, over all hosts; default one device of this host, which then
        reads everything by itself.
      read: path → the layers of a stack in order, or the one array of any other parameter.

    Returns:
      The parameter tree in the network's `param_dtype`, sharded by the rule table.
    """
    readers = _readers(config, 1 if mesh is None else hosts.count())
    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    boxed = abstract_params(config)

    shardings = partitioning.tree_shardings(boxed, mesh)
    parameters = sum(math.prod(shape) for shape in shapes(config).values())
    with tqdm(
        total=parameters, desc="read weights", unit="", unit_scale=True, leave=False, disable=None
    ) as bar:

        def one(keys: Any, leaf: Any, sharding: NamedSharding) -> jax.Array:
            path = dotted(keys)
            sent = _sent_to_all(read, path, leaf.shape, readers)
            arrays = (array.astype(leaf.dtype, copy=False) for array in sent)
            if is_stack(path):
                return _stack(arrays, leaf, sharding, bar)
            (array,) = arrays
            bar.update(array.size)
            return partitioning.place(array, sharding)

        return jax.tree_util.tree_map_with_path(one, nn.unbox(boxed), shardings)


def _readers(config: T5Config, count: int) -> dict[str, int] | None:
    """Which host reads which parameter, so that all read about as much; None: each reads all."""
    if count == 1:
        return None
    shares, readers = [0] * count, {}
    for path, shape in sorted(shapes(config).items(), key=lambda item: -math.prod(item[1])):
        readers[path] = shares.index(min(shares))
        shares[readers[path]] += math.prod(shape)
    return readers


def _sent_to_all(
    read: Callable[[str], Iterable[np.ndarray]],
    path: str,
    shape: tuple[int, ...],
    readers: dict[str, int] | None,
) -> Iterator[np.ndarray]:
    """The arrays of a parameter, on every host, of which one reads them."""
    if readers is None:
        yield from read(path)
        return
    is_reader = readers[path] == jax.process_index()
    layers, layer_shape = (shape[0], shape[1:]) if is_stack(path) else (1, shape)
    own = iter(read(path)) if is_reader else itertools.repeat(None)
    for _ in range(layers):
        yield _sent(next(own), layer_shape)


def _sent(own: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """An array that one host has, float32, on all of them; it travels in rows of few bytes."""
    rows = max(1, _MESSAGE_BYTES // (4 * math.prod(shape[1:])))
    whole = np.empty(shape, np.float32)
    for start in range(0, shape[0], rows):
        part = whole[start : start + rows]
        message = part if own is None else own[start : start + rows]
        part[:] = multihost_utils.broadcast_one_to_all(
            np.asarray(message, np.float32), is_source=own is not None
        )
    return whole


def _stack(
    layers: Iterable[np.ndarray], leaf: Any, sharding: NamedSharding, bar: tqdm
) -> jax.Array:
    """Fills [L, ...] layer by layer on the devices; the host never holds the whole stack."""
    of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    stacked = jnp.zeros(leaf.shape, leaf.dtype, device=sharding)
    for i, layer in enumerate(layers):
        stacked = _set_layer(stacked, partitioning.place(layer, of_layer), i)
        # Dispatch runs ahead of the devices: without waiting, all layers would be in memory.
        stacked.block_until_ready()
        bar.update(layer.size)
    return stacked


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: jax.Array, layer: jax.Array, i: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, i, 0)
