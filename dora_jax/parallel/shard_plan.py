"""Which piece of every parameter a device holds: the rule table applied, without any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from dora_jax.parallel import partitioning


class PlannedParameter(NamedTuple):
    """One parameter, and how it lies on the mesh."""

    name: str  # path with dots, "encoder.layers.mlp.wo.kernel"
    shape: tuple[int, ...]
    logical_axes: tuple[str | None, ...]
    spec: PartitionSpec
    unsplit: tuple[str, ...]  # mesh axes that the table asks for and the shape does not allow
    total_bytes: int
    bytes_per_device: int


def shard_plan(abstract: Any, mesh: Mesh | AbstractMesh) -> list[PlannedParameter]:
    """How every parameter of a network is split over a mesh.

    Args:
      abstract: `model.t5.abstract_params(network)`, with its logical axes.
      mesh: `mesh.make_mesh(...)`, or `mesh.abstract_mesh(...)` for devices that are not here.

    Returns:
      One row a parameter, in the tree's order.

    Raises:
      ValueError: a logical axis has no rule, or two of one parameter ask for one mesh axis.
    """
    leaves = jax.tree_util.tree_leaves_with_path(
        abstract, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    return [_planned(path, leaf, mesh) for path, leaf in leaves]


def _planned(path: tuple[Any, ...], leaf: Any, mesh: Mesh | AbstractMesh) -> PlannedParameter:
    value, axes = nn.unbox(leaf), (None,) * nn.unbox(leaf).ndim
    if isinstance(leaf, nn.LogicallyPartitioned):
        axes = leaf.names
    wanted = partitioning.spec(axes)
    sharding = partitioning.leaf_sharding(leaf, mesh)
    given = partitioning.mesh_axes(sharding.spec)
    # An axis of one device splits nothing, whatever the shape.
    unsplit = [
        axis
        for axis in partitioning.mesh_axes(wanted)
        if axis not in given and mesh.shape[axis] > 1
    ]
    size = value.dtype.itemsize
    return PlannedParameter(
        name=".".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey)),
        shape=tuple(value.shape),
        logical_axes=tuple(axes),
        spec=sharding.spec,
        unsplit=tuple(unsplit),
        total_bytes=math.prod(value.shape) * size,
        bytes_per_device=math.prod(sharding.shard_shape(value.shape)) * size,
    )


def bytes_per_device(tree: Any) -> int:
    """What one device holds of a tree: of a training state, say.

    Args:
      tree: arrays, or `jax.ShapeDtypeStruct`, each with its sharding.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def render(rows: Sequence[PlannedParameter], mesh: Mesh | AbstractMesh) -> str:
    """The plan as a table of text, one line a parameter, with the sums below."""
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    header = ("parameter", "shape", "logical axes", "mesh axes", "bytes a device")
    cells = [header] + [
        (
            row.name,
            " x ".join(map(str, row.shape)),
            ", ".join(axis or "-" for axis in row.logical_axes),
            ", ".join(_axis_text(entry) for entry in row.spec),
            f"{row.bytes_per_device:,}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = [f"mesh of {math.prod(mesh.shape.values())} devices: {sizes}"]
    for *left, held in cells:
        columns = [f"{text:<{width}}" for text, width in zip(left, widths, strict=False)]
        lines.append("  ".join([*columns, f"{held:>{widths[-1]}}"]))
    total, held = sum(row.total_bytes for row in rows), sum(row.bytes_per_device for row in rows)
    lines.append(f"{total:,} bytes in all, {held:,} a device")
    lines += [
        f"not split over {', '.join(row.unsplit)}, which its shape does not allow: {row.name}"
        for row in rows
        if row.unsplit
    ]
    return "\n".join(lines)


def _axis_text(entry: str | tuple[str, ...] | None) -> str:
    return "-" if entry is None else entry if isinstance(entry, str) else "+".join(entry)
