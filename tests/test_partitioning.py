"""Meshes, the rule table, and that no weight is ever whole on one device."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dora_jax import shapes
from dora_jax.config import OptimizerConfig, T5Config
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import AXES, data_shards, make_mesh
from dora_jax.train import step
from dora_jax.train.optim import make_optimizer

CONFIG = T5Config(
    vocab_size=256,
    emb_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_dim=256,
    num_encoder_layers=2,
    num_decoder_layers=3,
)


@pytest.mark.parametrize(
    ("fsdp", "tensor", "shape"),
    [(1, 1, (8, 1, 1)), (8, 1, (1, 8, 1)), (2, 2, (2, 2, 2)), (1, 4, (2, 1, 4)), (2, 4, (1, 2, 4))],
)
def test_mesh_gives_data_what_is_left_over(
    fsdp: int, tensor: int, shape: tuple[int, int, int]
) -> None:
    mesh = make_mesh(fsdp=fsdp, tensor=tensor)
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape
    assert data_shards(mesh) == shape[0] * shape[1]
    # The last axis has the neighbours: the fastest links.
    assert [device.id for device in mesh.devices.flat] == list(range(8))


@pytest.mark.parametrize(("fsdp", "tensor"), [(3, 1), (1, 16), (0, 1), (1, -1)])
def test_mesh_that_does_not_fit_is_refused(fsdp: int, tensor: int) -> None:
    with pytest.raises(ValueError, match=rf"fsdp={fsdp} and tensor={tensor} .*; there are 8\."):
        make_mesh(fsdp=fsdp, tensor=tensor)


def test_mesh_over_named_devices() -> None:
    mesh = make_mesh(fsdp=2, devices=jax.devices()[4:6])
    assert mesh.devices.shape == (1, 2, 1)
    assert [device.id for device in mesh.devices.flat] == [4, 5]


def test_spec_follows_the_table() -> None:
    assert partitioning.spec((shapes.BATCH,)) == PartitionSpec(("data", "fsdp"))
    assert partitioning.spec((shapes.EMBED, shapes.MLP)) == PartitionSpec("fsdp", "tensor")
    assert partitioning.spec((shapes.LAYERS, None)) == PartitionSpec(None, None)
    assert partitioning.spec(("row",), {"row": "data"}) == PartitionSpec("data")


def test_an_axis_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"No rule for the logical axis 'mpl'.* mlp,"):
        partitioning.spec((shapes.EMBED, "mpl"))


def test_one_mesh_axis_is_not_used_twice() -> None:
    with pytest.raises(ValueError, match=r"\('mlp', 'vocab'\).*tensor would be used twice"):
        partitioning.spec((shapes.MLP, shapes.VOCAB))
    with pytest.raises(ValueError, match="fsdp would be used twice"):
        partitioning.spec((shapes.BATCH, shapes.EMBED))


@pytest.mark.parametrize("logits_via_embedding", [True, False])
def test_every_large_parameter_is_split_by_fsdp_and_tensor(logits_via_embedding: bool) -> None:
    config = T5Config(
        vocab_size=256,
        emb_dim=128,
        num_heads=4,
        head_dim=32,
        mlp_dim=256,
        logits_via_embedding=logits_via_embedding,
    )
    mesh = make_mesh(fsdp=2, tensor=4)
    for leaf in jax.tree.leaves(step.abstract_params(config, mesh)):
        pieces = math.prod(leaf.shape) / math.prod(leaf.sharding.shard_shape(leaf.shape))
        is_matrix = math.prod(leaf.shape[-2:]) >= 128 * 128
        assert pieces == (8 if is_matrix else pieces)
        assert leaf.dtype == np.float32


def test_an_axis_that_does_not_divide_stays_whole() -> None:
    """T5-Small v1.1 has 6 heads: over 4 devices, only their bias stays unsplit."""
    params = step.abstract_params(T5Config(), make_mesh(fsdp=2, tensor=4))
    assert params["encoder"]["relpos_bias"]["rel_embedding"].sharding.spec == PartitionSpec(
        None, None
    )
    query = params["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert query.sharding.spec == PartitionSpec(None, "fsdp", "tensor")


def test_parameters_are_made_in_pieces_and_are_the_same_on_any_mesh() -> None:
    alone = step.init_params(CONFIG, 3, make_mesh(devices=jax.devices()[:1]))
    spread = step.init_params(CONFIG, 3, make_mesh(fsdp=2, tensor=4))
    jax.tree.map(np.testing.assert_array_equal, alone, spread)
    embedding = spread["token_embedder"]["embedding"]
    assert {shard.data.shape for shard in embedding.addressable_shards} == {(64, 64)}
    held = sum(leaf.addressable_shards[5].data.nbytes for leaf in jax.tree.leaves(spread))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(spread))
    assert held < 1.05 * whole / 8
    other = step.init_params(CONFIG, 4, make_mesh(devices=jax.devices()[:1]))
    assert not np.array_equal(embedding, other["token_embedder"]["embedding"])


def leaves_by_place(tree: Any) -> dict[str, list]:
    """The leaves of a tree by the trailing dict keys of their paths: by parameter."""
    places: dict[str, list] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        keys = itertools.takewhile(lambda e: isinstance(e, jax.tree_util.DictKey), reversed(path))
        places.setdefault("/".join(entry.key for entry in reversed(list(keys))), []).append(leaf)
    return places


def test_adamw_slots_are_sharded_like_their_parameters() -> None:
    mesh = make_mesh(fsdp=2, tensor=4)
    optimizer = make_optimizer(OptimizerConfig("adamw"), 10)
    shardings = step.state_shardings(CONFIG, optimizer, mesh)
    slots = leaves_by_place(shardings.opt_state)
    params = leaves_by_place(shardings.params)
    assert any(not sharding.is_fully_replicated for [sharding] in params.values())
    for place, [sharding] in params.items():
        assert slots.pop(place) == [sharding, sharding]  # first and second moment
    assert list(slots) == [""]  # counters
    assert all(sharding.is_fully_replicated for sharding in slots[""])
    assert shardings.step.is_fully_replicated
    assert shardings.seed.is_fully_replicated


def test_adafactor_slots_are_factored_or_sharded_like_their_parameters() -> None:
    mesh = make_mesh(fsdp=2, tensor=4)
    optimizer = make_optimizer(OptimizerConfig("adafactor"), 10)
    params = step.abstract_params(CONFIG, mesh)
    slots = jax.eval_shape(optimizer.init, params)
    shardings = step.state_shardings(CONFIG, optimizer, mesh).opt_state
    assert jax.tree.structure(slots) == jax.tree.structure(shardings)
    slots, shardings = leaves_by_place(slots), leaves_by_place(shardings)
    mirrored = set()
    for place, [param] in leaves_by_place(params).items():
        for slot, sharding in zip(slots[place], shardings[place], strict=True):
            if slot.shape == param.shape:
                mirrored.add(place)
                assert sharding == param.sharding
            else:  # a row, a column, or one unused number
                assert sharding.is_fully_replicated
                assert math.prod(slot.shape) <= math.prod(param.shape) / 128
    assert mirrored == {place for place in slots if place.endswith(("scale", "rel_embedding"))}


def test_batches_are_split_by_rows() -> None:
    mesh = make_mesh(fsdp=2, tensor=2)
    rows_BS = jax.device_put(np.zeros((8, 6), np.int32), partitioning.batch_sharding(mesh))
    assert {shard.data.shape for shard in rows_BS.addressable_shards} == {(2, 6)}
    assert data_shards(mesh) == 4
