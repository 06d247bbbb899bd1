"""From logical axes to the mesh: one table, and the shardings that follow from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from dora_jax import shapes

# One line a logical axis. Matrix products are split over `tensor` along heads, MLP width
# and vocabulary; the other side of every matrix is split over `fsdp`.
RULES: dict[str, str | tuple[str, ...] | None] = {
    shapes.BATCH: ("data", "fsdp"),
    shapes.LENGTH: None,
    shapes.VOCAB: "tensor",
    shapes.EMBED: "fsdp",
    shapes.HEADS: "tensor",
    shapes.KV: None,
    shapes.JOINED_KV: "tensor",
    shapes.MLP: "tensor",
    shapes.RELPOS_BUCKETS: None,
    shapes.LAYERS: None,
}


def spec(
    axes: tuple[str | None, ...], rules: Mapping[str, str | tuple[str, ...] | None] = RULES
) -> PartitionSpec:
    """The mesh axes of an array with these logical axes.

    Raises:
      ValueError: if a logical axis has no rule, or two of them ask for one mesh axis.
    """
    wanted = []
    for axis in axes:
        if axis is not None and axis not in rules:
            raise ValueError(
                f"No rule for the logical axis {axis!r}; the table knows {', '.join(rules)}."
            )
        wanted.append(None if axis is None else rules[axis])
    used = mesh_axes(wanted)
    twice = {name for name in used if used.count(name) > 1}
    if twice:
        raise ValueError(
            f"Logical axes {axes} map to the mesh axes {wanted}: {', '.join(twice)} would be "
            "used twice in one array. Change one of the rules."
        )
    return PartitionSpec(*wanted)


def mesh_axes(wanted: Iterable[Any]) -> tuple[str, ...]:
    """All mesh axes that an array with this spec is split over."""
    return tuple(name for entry in wanted for name in _names(entry))


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _fits(
    shape: tuple[int, ...], wanted: PartitionSpec, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Drops mesh axes that do not divide their dimension (6 heads over 4 devices)."""

    def size(entry: Any) -> int:
        product = 1
        for name in _names(entry):
            product *= mesh.shape[name]
        return product

    return PartitionSpec(
        *(
            entry if dim % size(entry) == 0 else None
            for dim, entry in zip(shape, wanted, strict=True)
        )
    )


def leaf_sharding(leaf: Any, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A leaf with logical axes (Flax's `LogicallyPartitioned` box) follows the table.

    A plain one is whole on every device.
    """
    if isinstance(leaf, nn.LogicallyPartitioned):
        return NamedSharding(mesh, _fits(leaf.value.shape, spec(leaf.names), mesh))
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(abstract: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings for a tree as `jax.eval_shape(model.init)` returns it, leaf by leaf."""
    return jax.tree.map(
        lambda leaf: leaf_sharding(leaf, mesh),
        abstract,
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )


def place(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that every host has whole, onto the devices; each takes its own piece of it."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def place_rows(rows: Any, num_rows: int, mesh: Mesh) -> Any:
    """This host's rows of a batch, onto its devices: global arrays of `num_rows` rows.

    Args:
      rows: a tree of numpy arrays; along the first axis the rows of `mesh.own_shards`.
      num_rows: of all hosts together.
      mesh: whose data shards divide `num_rows`.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda own: jax.make_array_from_process_local_data(
            sharding, own, (num_rows, *own.shape[1:])
        ),
        rows,
    )


@contextlib.contextmanager
def split_over(mesh: Mesh) -> Iterator[None]:
    """Inside, what the network says of its arrays' axes splits them over the mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; everything else whole."""
    return NamedSharding(mesh, spec((shapes.BATCH,)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
