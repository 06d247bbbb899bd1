"""From logical axes to the mesh: one table, and the shardings that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
    mesh_axes = []
    for axis in axes:
        if axis is not None and axis not in rules:
            raise ValueError(
                f"No rule for the logical axis {axis!r}; the table knows {', '.join(rules)}."
            )
        mesh_axes.append(None if axis is None else rules[axis])
    used = [name for entry in mesh_axes for name in _names(entry)]
    twice = {name for name in used if used.count(name) > 1}
    if twice:
        raise ValueError(
            f"Logical axes {axes} map to the mesh axes {mesh_axes}: {', '.join(twice)} would be "
            "used twice in one array. Change one of the rules."
        )
    return PartitionSpec(*mesh_axes)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _fits(shape: tuple[int, ...], wanted: PartitionSpec, mesh: Mesh) -> PartitionSpec:
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


def tree_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Shardings for a tree as `jax.eval_shape(model.init)` returns it.

    Leaves that carry logical axes (Flax's `LogicallyPartitioned` boxes) follow the table;
    plain leaves are replicated.
    """

    def one(leaf: Any) -> NamedSharding:
        if isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, _fits(leaf.value.shape, spec(leaf.names), mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(
        one, abstract, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; everything else whole."""
    return NamedSharding(mesh, spec((shapes.BATCH,)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
