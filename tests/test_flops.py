"""FLOPs and parameter counts by arithmetic, against published and counted ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dora_jax.config import T5Config
from dora_jax.cost.flops import (
    TokenCounts,
    decoding_flops,
    forward_flops,
    mfu,
    parameter_count,
    training_flops,
)
from dora_jax.model.t5 import T5, abstract_params, plain_batch

V1_0_SMALL = T5Config(
    num_heads=8,
    num_encoder_layers=6,
    num_decoder_layers=6,
    mlp_dim=2048,
    mlp_activations=("relu",),
    logits_via_embedding=True,
)
V1_1_SMALL = T5Config()
V1_1_XXL = T5Config(
    emb_dim=4096,
    num_heads=64,
    num_encoder_layers=24,
    num_decoder_layers=24,
    mlp_dim=10240,
)


# Source: transformers' own count of t5-small, google/t5-v1_1-small and google/t5-v1_1-xxl.
@pytest.mark.parametrize(
    ("config", "parameters"),
    [(V1_0_SMALL, 60_506_624), (V1_1_SMALL, 76_961_152), (V1_1_XXL, 11_135_332_352)],
)
def test_parameter_counts_are_those_of_the_checkpoints(config, parameters):
    assert parameter_count(config) == parameters


def enumerated_flops(config, source_length, target_length):
    """Operations of a forward pass over one example, product by product, head by head."""

    def product(rows, inner, columns):
        return 2 * rows * inner * columns

    heads, width, model = config.num_heads, config.head_dim, config.emb_dim
    s, t = source_length, target_length

    def mlp(tokens):
        into = len(config.mlp_activations) * product(tokens, model, config.mlp_dim)
        return into + product(tokens, config.mlp_dim, model)

    def attention(queries, keys, seen):
        total = 0
        for _ in range(heads):
            total += product(queries, model, width) + 2 * product(keys, model, width)
            for query in range(queries):
                total += product(1, width, seen(query)) + product(1, seen(query), width)
            total += product(queries, width, model)
        return total

    encoder = attention(s, s, lambda _: s) + mlp(s)
    decoder = attention(t, t, lambda query: query + 1) + attention(t, s, lambda _: s) + mlp(t)
    return (
        config.num_encoder_layers * encoder
        + config.num_decoder_layers * decoder
        + product(t, model, config.vocab_size)
    )


@pytest.mark.parametrize("activations", [("relu",), ("gelu", "linear")])
def test_forward_flops_are_those_of_every_product(activations):
    config = T5Config(
        vocab_size=50,
        emb_dim=12,
        num_heads=3,
        head_dim=5,
        mlp_dim=7,
        num_encoder_layers=2,
        num_decoder_layers=3,
        mlp_activations=activations,
    )
    lengths = [(4, 3), (9, 1), (2, 6)]
    expected = sum(enumerated_flops(config, s, t) for s, t in lengths)
    tokens = TokenCounts.from_lengths(*zip(*lengths, strict=True))
    assert forward_flops(config, tokens) == expected
    assert decoding_flops(config, tokens) == expected
    assert training_flops(config, tokens) == 3 * expected


def test_flops_approach_two_a_parameter_and_token():
    """The field's rule of thumb, 2·N·D, with each token in one of the two stacks only."""
    short = TokenCounts.from_lengths([1] * 1000, [1] * 1000)
    config = V1_1_XXL
    # Every source and target token passes its own stack: together, all weights but the
    # embedding table, once a pair.
    weights = parameter_count(config) - config.vocab_size * config.emb_dim
    assert forward_flops(config, short) == pytest.approx(2 * weights * 1000, rel=1e-4)


def test_packing_changes_no_count():
    encoder_segments_BS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 3, 0, 0]])
    decoder_segments_BT = np.array([[1, 2, 2, 2, 0], [1, 1, 2, 0, 0]])
    packed = TokenCounts.from_segments(encoder_segments_BS, decoder_segments_BT)
    assert packed == TokenCounts.from_lengths([3, 2, 1, 2, 1], [1, 3, 2, 1, 0])
    assert packed.encoder_tokens == 9
    assert packed.decoder_pairs == 1 + 6 + 3 + 1
    assert packed.cross_pairs == 3 + 6 + 2 + 2


def test_a_batch_of_padding_is_no_work():
    nothing = TokenCounts.from_segments(np.zeros((2, 4), np.int32), np.zeros((2, 3), np.int32))
    assert nothing == TokenCounts(0, 0, 0, 0, 0)
    assert forward_flops(V1_1_SMALL, nothing) == 0


def test_lengths_must_come_in_pairs():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        TokenCounts.from_lengths([1, 2], [1, 2, 3])


def test_mfu_is_the_share_of_all_devices_peak():
    assert mfu(312e12 * 10, seconds=20, device_kind="NVIDIA A100-SXM4-40GB") == 0.5
    assert mfu(989e12 * 10, seconds=20, device_kind="NVIDIA H200", devices=2) == 0.25
    assert mfu(197e12, seconds=1, device_kind="TPU v5 lite") == 1.0


def test_mfu_is_unknown_where_the_peak_is():
    assert mfu(1e12, seconds=1, device_kind="cpu") is None
    assert mfu(1e12, seconds=0, device_kind="NVIDIA H200") is None


@pytest.mark.parametrize("tied", [False, True])
def test_the_count_is_that_of_xla_for_an_unrolled_network(tied: bool) -> None:
    """XLA counts a loop's body once, so that only unrolled layers are all counted."""
    network = T5Config(
        vocab_size=1024,
        emb_dim=256,
        num_heads=4,
        num_encoder_layers=3,
        num_decoder_layers=2,
        mlp_dim=512,
        logits_via_embedding=tied,
        scan_unroll=3,
    )
    rows, source, target = 4, 48, 32
    tokens = [jax.ShapeDtypeStruct((rows, length), jnp.int32) for length in (source, target)]
    batch, params = jax.eval_shape(plain_batch, *tokens), nn.unbox(abstract_params(network))

    def logits(params: Any, batch: Any) -> jax.Array:
        return cast(jax.Array, T5(network).apply({"params": params}, batch))

    def counted_by_xla(function: Callable[..., Any]) -> float:
        analysis = jax.jit(function).lower(params, batch).cost_analysis()
        assert isinstance(analysis, dict)
        return analysis["flops"]

    # XLA multiplies what a causal mask throws away, too.
    pairs = rows * source * source, rows * target * target, rows * source * target
    counts = TokenCounts(rows * source, rows * target, *pairs)
    gradient = jax.grad(lambda params, batch: logits(params, batch).sum())
    assert counted_by_xla(logits) == pytest.approx(forward_flops(network, counts), rel=0.01)
    assert counted_by_xla(gradient) == pytest.approx(training_flops(network, counts), rel=0.02)
