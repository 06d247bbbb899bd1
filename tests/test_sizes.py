"""The table of networks: the trees it makes have the published numbers of parameters."""

from __future__ import annotations

import math

import jax
import pytest

from dora_jax.checkpoints import placement
from dora_jax.cost.flops import parameter_count
from dora_jax.model.sizes import NETWORKS, network
from dora_jax.model.t5 import abstract_params

# Source: the parameter counts that the hub and transformers give for the checkpoints.
PARAMETERS = {
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    "flan_t5_small": 76_961_152,
    "flan_t5_base": 247_577_856,
    "flan_t5_large": 783_150_080,
    "flan_t5_xl": 2_849_757_184,
    "flan_t5_xxl": 11_135_332_352,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "mt5_xl": 3_742_619_648,
    "mt5_xxl": 12_921_057_280,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_trees_have_the_published_size(name: str) -> None:
    config = network(name)
    leaves = jax.tree.leaves(abstract_params(config))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == PARAMETERS[name]
    assert parameter_count(config) == PARAMETERS[name]
    assert ("logits_dense.kernel" in placement.shapes(config)) == (not config.logits_via_embedding)


def test_versions_differ_as_published() -> None:
    v1_0, v1_1 = network("t5_small"), network("t5_1_1_small")
    assert (v1_0.mlp_activations, v1_0.logits_via_embedding) == (("relu",), True)
    assert (v1_1.mlp_activations, v1_1.logits_via_embedding) == (("gelu", "linear"), False)
    assert network("flan_t5_xl") == network("t5_1_1_xl")
    assert network("mt5_base").vocab_size == 250_112


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="no network 't5_huge'; there are t5_small, "):
        network("t5_huge")
