"""The plan of a network's pieces: what devices hold in fact, and the sums by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from dora_jax import shapes
from dora_jax.config import OptimizerConfig, T5Config
from dora_jax.cost.flops import parameter_count
from dora_jax.model.sizes import NETWORKS
from dora_jax.model.t5 import abstract_params
from dora_jax.parallel.mesh import abstract_mesh, make_mesh
from dora_jax.parallel.shard_plan import bytes_per_device, render, shard_plan
from dora_jax.train import step
from dora_jax.train.optim import make_optimizer

SMALL = T5Config()
MESHES = [(8, 1, tensor) for tensor in (1, 2, 4, 8)] + [(tensor, 1, tensor) for tensor in (3, 5, 6)]
MESHES += [(7, -1, 1), (8, 8, 1), (8, 2, 2), (8, 4, 2), (8, 2, 4), (512, 64, 8)]


def boxed(shape: tuple[int, ...], axes: tuple[str, ...]) -> nn.LogicallyPartitioned:
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), axes)


@pytest.mark.parametrize(("devices", "fsdp", "tensor"), MESHES)
def test_pieces_are_whole_and_account_for_every_byte(devices: int, fsdp: int, tensor: int) -> None:
    mesh = abstract_mesh(devices, fsdp=fsdp, tensor=tensor)
    rows = shard_plan(abstract_params(SMALL), mesh)
    assert sum(row.total_bytes for row in rows) == 4 * parameter_count(SMALL)
    for row in rows:
        taken = [axis for entry in row.spec for axis in (entry or "").split() if axis]
        pieces = math.prod(mesh.shape[axis] for axis in taken)
        assert row.bytes_per_device * pieces == row.total_bytes
        asked = {shapes.EMBED: "fsdp", shapes.VOCAB: "tensor", shapes.MLP: "tensor"}
        asked |= {shapes.JOINED_KV: "tensor", shapes.HEADS: "tensor"}
        wanted = [asked[axis] for axis in row.logical_axes if axis in asked]
        split = {axis for axis in wanted if mesh.shape[axis] > 1}
        assert split == ({*taken} - {a for a in taken if mesh.shape[a] == 1}) | {*row.unsplit}


def test_the_plan_is_what_devices_hold() -> None:
    network = T5Config(256, 128, 4, 2, 3, 32, 256)
    mesh = make_mesh(fsdp=2, tensor=4)
    params = step.init_params(network, 0, mesh)
    held = {
        ".".join(key.key for key in path): leaf.addressable_shards[5].data.nbytes
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    rows = shard_plan(abstract_params(network), mesh)
    assert {row.name: row.bytes_per_device for row in rows} == held
    assert rows == shard_plan(abstract_params(network), abstract_mesh(8, fsdp=2, tensor=4))
    assert bytes_per_device(params) == sum(held.values())
    optimizer = make_optimizer(OptimizerConfig("adamw"), 10)
    moments = jax.eval_shape(optimizer.init, step.abstract_params(network, mesh))
    shardings = step.state_shardings(network, optimizer, mesh).opt_state
    placed = jax.tree.map(
        lambda slot, sharding: jax.ShapeDtypeStruct(slot.shape, slot.dtype, sharding=sharding),
        moments,
        shardings,
    )
    counters = sum(leaf.size * 4 for leaf in jax.tree.leaves(placed) if leaf.ndim == 0)
    assert bytes_per_device(placed) == 2 * sum(held.values()) + counters


def test_xxl_over_two_hosts_of_eight() -> None:
    """By hand: wi_0 of the encoder is 24 x 4096 x 10240 float32, over 16 devices."""
    mesh = abstract_mesh(16, fsdp=2, tensor=8)
    rows = shard_plan(abstract_params(NETWORKS["t5_1_1_xxl"]), mesh)
    by_name = {row.name: row for row in rows}
    wi = by_name["encoder.layers.mlp.wi_0.kernel"]
    assert wi.spec == PartitionSpec(None, "fsdp", "tensor")
    assert wi.bytes_per_device == 24 * 4096 * 10240 * 4 // 16 == 251_658_240
    held = sum(row.bytes_per_device for row in rows)
    assert held == pytest.approx(4 * parameter_count(NETWORKS["t5_1_1_xxl"]) / 16, rel=1e-3)
    assert not [row for row in rows if row.unsplit]


def test_what_a_shape_does_not_allow_is_told() -> None:
    """T5-Small v1.1 has 6 heads: their bias cannot be split over 4 devices."""
    mesh = abstract_mesh(8, fsdp=2, tensor=4)
    rows = shard_plan(abstract_params(SMALL), mesh)
    bias = [row.name for row in rows if row.unsplit]
    assert bias == [f"{side}.relpos_bias.rel_embedding" for side in ("decoder", "encoder")]
    text = render(rows, mesh)
    assert "mesh of 8 devices: data 1, fsdp 2, tensor 4" in text
    assert f"not split over tensor, which its shape does not allow: {bias[0]}" in text
    [line] = [line for line in text.splitlines() if line.startswith("token_embedder")]
    assert line.split("  ")[-1].strip() == f"{32128 * 512 * 4 // 8:,}"
    assert "32128 x 512" in line
    assert "tensor, fsdp" in line
    total, held = (
        sum(getattr(row, of) for row in rows) for of in ("total_bytes", "bytes_per_device")
    )
    assert f"{total:,} bytes in all, {held:,} a device" in text


def test_collisions_and_unknown_axes_raise() -> None:
    mesh = abstract_mesh(8, tensor=2)
    with pytest.raises(ValueError, match="tensor would be used twice"):
        shard_plan({"w": boxed((8, 8), (shapes.MLP, shapes.VOCAB))}, mesh)
    with pytest.raises(ValueError, match="No rule for the logical axis 'mpl'"):
        shard_plan({"w": boxed((8,), ("mpl",))}, mesh)


def test_a_mesh_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fsdp=3 and tensor=2 .*; there are 8\."):
        abstract_mesh(8, fsdp=3, tensor=2)
    with pytest.raises(ValueError, match=r"there are 0\."):
        abstract_mesh(0)
