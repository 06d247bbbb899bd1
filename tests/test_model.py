"""The network is T5: equal to transformers', causal, deaf to padding, and packed = unpacked."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import dora_jax
from dora_jax.checkpoints import huggingface
from dora_jax.config import T5Config
from dora_jax.data.packing import Example, fill, place
from dora_jax.model import layers
from dora_jax.model.t5 import T5, abstract_params, plain_batch
from dora_jax.shapes import Array

TINY = T5Config(
    vocab_size=40,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=8,
    mlp_dim=24,
)
V1_0_SMALL = T5Config(
    num_heads=8,
    num_encoder_layers=6,
    num_decoder_layers=6,
    mlp_dim=2048,
    mlp_activations=("relu",),
    logits_via_embedding=True,
)
V1_1_XXL = T5Config(
    emb_dim=4096,
    num_heads=64,
    num_encoder_layers=24,
    num_decoder_layers=24,
    mlp_dim=10240,
)


# Most tests use rows of one shape, so that the network is compiled once for all of them.
SOURCE_BS = np.random.default_rng(0).integers(2, 40, (2, 11)).astype(np.int32)
INPUTS_BT = np.random.default_rng(1).integers(2, 40, (2, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def params() -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32),
        nn.unbox(abstract_params(TINY)),
    )


apply = jax.jit(
    lambda config, params, batch, rngs: T5(config).apply({"params": params}, batch, rngs=rngs),
    static_argnums=0,
)


@functools.partial(jax.jit, static_argnums=0)
def weighted_logits(
    config: T5Config,
    params: Any,
    source_BS: Array,
    inputs_BT: Array,
    weights_BTV: Array,
) -> tuple[Any, jax.Array]:
    """The gradient of the weighted sum of all logits, and the logits."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits_BTV = dora_jax.forward(config, params, source_BS, inputs_BT)
        return jnp.sum(logits_BTV * weights_BTV), logits_BTV

    return jax.grad(loss, has_aux=True)(params)


def random_weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("config", "count"),
    [(V1_0_SMALL, 60_506_624), (T5Config(), 76_961_152), (V1_1_XXL, 11_135_332_352)],
    ids=["v1.0-small", "v1.1-small", "v1.1-xxl"],
)
def test_parameter_counts(config: T5Config, count: int) -> None:
    leaves = jax.tree.leaves(nn.unbox(abstract_params(config)))
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == count


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A T5 of transformers, and the same as configuration and parameters of ours."""
    reference = pytest.importorskip("t5_reference")
    model = reference.make_model(request.param)
    folder = reference.save_model(model, tmp_path_factory.mktemp("t5"))
    return model, *huggingface.load(folder)


@pytest.mark.parametrize(
    ("batch", "source_length", "target_length"), [(2, 1, 1), (3, 17, 17), (2, 512, 512)]
)
def test_logits_and_gradients_are_those_of_transformers(
    theirs: Any, tmp_path: Path, batch: int, source_length: int, target_length: int
) -> None:
    reference = pytest.importorskip("t5_reference")
    original, config, params = theirs
    rows = reference.random_rows(1, batch, source_length, target_length)
    model = copy.deepcopy(original)
    expected_BTV = reference.logits_of(model, *rows)
    weights_BTV = random_weights(*expected_BTV.shape)
    (expected_BTV * reference.torch.from_numpy(weights_BTV)).sum().backward()
    for tensor in model.parameters():
        tensor.data = tensor.grad  # a gradient is stored and renamed like its parameter
    _, expected = huggingface.load(reference.save_model(model, tmp_path))
    actual, actual_BTV = weighted_logits(config, params, *rows, weights_BTV)
    assert reference.relative_error(actual_BTV, expected_BTV.detach()) < 1e-5
    largest = max(np.abs(gradient).max() for gradient in jax.tree.leaves(expected))

    def error(ours: jax.Array, gradient: jax.Array) -> float:
        # Of one position, queries and keys have no gradient: both sides hold roundings of 0.
        if np.abs(gradient).max() < 1e-6 * largest:
            return float(np.abs(ours).max() / largest)
        return reference.relative_error(ours, gradient)

    errors = jax.tree.map(error, actual, expected)
    assert max(jax.tree.leaves(errors)) < 1e-4, errors


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_position_buckets_are_those_of_transformers(
    bidirectional: bool, num_buckets: int, max_distance: int
) -> None:
    reference = pytest.importorskip("t5_reference")
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = np.arange(-600, 601)
    expected = T5Attention._relative_position_bucket(
        reference.torch.from_numpy(offsets), bidirectional, num_buckets, max_distance
    )

    def buckets(keys_N: Array) -> jax.Array:
        return layers.relative_position_buckets(
            np.zeros(1, np.int32),
            keys_N,
            bidirectional=bidirectional,
            num_buckets=num_buckets,
            max_distance=max_distance,
        )[0]

    np.testing.assert_array_equal(buckets(offsets), expected)
    # Compiled, a logarithm may round otherwise.
    np.testing.assert_array_equal(jax.jit(buckets)(offsets), expected)


def test_packed_rows_give_the_logits_of_plain_ones(params: Any) -> None:
    lengths = [(5, 3), (9, 5), (2, 4), (7, 1), (4, 6)]
    rng = np.random.default_rng(3)
    examples = [
        Example(
            rng.integers(2, 40, source).astype(np.int32),
            rng.integers(2, 40, target).astype(np.int32),
        )
        for source, target in lengths
    ]
    sources_N, targets_N = np.transpose(lengths)
    placement = place(sources_N, targets_N, 16, 12)
    assert placement.num_rows < len(examples) - 1
    packed = fill(examples, placement, len(examples), 16, 12)
    packed_BTV = apply(TINY, params, packed, None)
    assert np.isfinite(packed_BTV).all()  # the rows of nothing but padding too
    tokens_BS, inputs_BT = np.zeros((5, 16), np.int32), np.zeros((5, 12), np.int32)
    for i, (source, target, _) in enumerate(examples):
        tokens_BS[i, : len(source)] = source
        inputs_BT[i, 1 : len(target)] = target[:-1]
    plain_BTV = apply(TINY, params, plain_batch(tokens_BS, inputs_BT), None)
    for i, length in enumerate(targets_N):
        start = placement.target_start_N[i]
        in_row_TV = packed_BTV[placement.row_N[i], start : start + length]
        np.testing.assert_allclose(in_row_TV, plain_BTV[i, :length], rtol=1e-4, atol=1e-4)


def test_no_position_sees_a_later_one(params: Any) -> None:
    # Every decoder input has an embedding row of its own, so that the gradient of a row is
    # what that one position does to the logits.
    inputs_BT = np.arange(10, 22, dtype=np.int32).reshape(2, 6)
    source_BS = np.broadcast_to(np.arange(25, 36, dtype=np.int32), (2, 11))
    for t in (0, 2, 5):
        weights_BTV = np.zeros((2, 6, 40), np.float32)
        weights_BTV[0, t] = random_weights(40)
        grads, _ = weighted_logits(TINY, params, source_BS, inputs_BT, weights_BTV)
        influence_BT = np.abs(grads["token_embedder"]["embedding"]).max(-1)[inputs_BT]
        assert (influence_BT[0, : t + 1] > 0).all()
        assert (influence_BT[0, t + 1 :] == 0).all()
        assert (influence_BT[1] == 0).all()  # nor another row


def test_what_is_masked_is_as_if_it_were_not_there(params: Any) -> None:
    sliced_BTV = dora_jax.forward(TINY, params, SOURCE_BS[:, :7], INPUTS_BT)
    # Tokens remain behind the mask, so that only the mask keeps them out.
    unmasked = plain_batch(SOURCE_BS, INPUTS_BT)
    segments_BS = np.broadcast_to((np.arange(11) < 7).astype(np.int32), (2, 11))
    masked = unmasked._replace(encoder_segments_BS=jnp.asarray(segments_BS))
    masked_BTV = apply(TINY, params, masked, None)
    np.testing.assert_allclose(masked_BTV, sliced_BTV, rtol=1e-4, atol=1e-4)
    unmasked_BTV = apply(TINY, params, unmasked, None)
    assert np.abs(unmasked_BTV - sliced_BTV).max() > 0.1


@pytest.mark.parametrize(
    "variant",
    [{"remat_policy": "minimal"}, {"remat_policy": "full", "scan_unroll": 2}],
    ids=str,
)
def test_how_layers_are_compiled_changes_nothing(params: Any, variant: dict[str, Any]) -> None:
    arguments = (params, SOURCE_BS, INPUTS_BT, random_weights(2, 6, 40))
    expected = weighted_logits(TINY, *arguments)
    actual = weighted_logits(dataclasses.replace(TINY, **variant), *arguments)

    def check(a: jax.Array, b: jax.Array) -> None:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))

    jax.tree.map(check, actual, expected)


def test_remat_stores_less_for_the_backward_pass(params: Any) -> None:
    def stored_bytes(policy: str) -> int:
        config = dataclasses.replace(TINY, remat_policy=policy)
        rows = (jnp.ones((2, 64), jnp.int32),) * 2

        def backward(params: Any) -> Any:
            return jax.vjp(lambda params: dora_jax.forward(config, params, *rows), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(backward, params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    everything, products, inputs = map(stored_bytes, ("none", "minimal", "full"))
    assert products < 0.8 * everything
    assert inputs < 0.6 * products


def test_bfloat16_activations_stay_near_float32(params: Any) -> None:
    batch = plain_batch(SOURCE_BS, INPUTS_BT)
    expected_BTV = apply(TINY, params, batch, None)
    actual_BTV = apply(dataclasses.replace(TINY, dtype="bfloat16"), params, batch, None)
    assert actual_BTV.dtype == jnp.float32
    error = np.abs(actual_BTV - expected_BTV).max() / np.abs(expected_BTV).max()
    assert 0 < error < 0.03  # bfloat16 has 8 bits of mantissa: 0.004 a rounding
    assert np.any(actual_BTV != actual_BTV.astype(jnp.bfloat16))  # the logits are not rounded


def test_dropout_keeps_its_share_and_the_mean() -> None:
    x = jnp.ones((300, 333))  # no multiple of the four bytes of a random word
    dropped = np.asarray(layers.dropout(x, 0.25, jax.random.key(0)))
    assert np.unique(dropped).tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert np.abs((dropped == 0).mean(axis=0) - 0.25).max() < 0.12  # in every column
    again = layers.dropout(x, 0.25, jax.random.key(1))
    assert (dropped == 0).mean() != (np.asarray(again) == 0).mean()
    np.testing.assert_array_equal(layers.dropout(x, 0.25, None), x)
    np.testing.assert_array_equal(layers.dropout(x, 0.0, jax.random.key(0)), x)


def test_dropout_is_active_only_with_a_key(params: Any) -> None:
    config = dataclasses.replace(TINY, dropout_rate=0.5)
    batch = plain_batch(SOURCE_BS, INPUTS_BT)
    plain_BTV = apply(TINY, params, batch, None)
    np.testing.assert_allclose(apply(config, params, batch, None), plain_BTV, rtol=1e-6)
    one_BTV, other_BTV = (
        apply(config, params, batch, {"dropout": jax.random.key(seed)}) for seed in (0, 1)
    )
    assert np.abs(one_BTV - plain_BTV).max() > 0.1
    assert np.abs(one_BTV - other_BTV).max() > 0.1
