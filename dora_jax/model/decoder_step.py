"""One decoder position at a time: the network of t5.py in the form that decoding runs.

Decoding reads every weight once for each position, so each weight lies as its product wants
it: products of the same input are joined, and kernels are stored by output, [N, K]. XLA's CPU
backend is up to twice as fast at them then. Keys and values lie [B, H, N, D], where the products
of every row and head are contiguous. The encoder runs once, and its keys and values are
projected once. Keys and values are kept in the `product_dtype` of the activations, rounded to
theirs: the CPU backend has no batched products of bfloat16, and would widen the whole cache at
every step. tests/test_decode.py holds this network equal to `t5.forward`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint

from dora_jax import shapes
from dora_jax.config import T5Config
from dora_jax.model.attention import MASKED
from dora_jax.model.layers import ACTIVATIONS, relative_position_buckets, rms_norm
from dora_jax.model.products import as_written, product_dtype
from dora_jax.model.t5 import T5, Params

Cache = Any
StepFn = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]  # (tokens_B, cache) -> logits_BV


class KeyValue(NamedTuple):
    """Projected keys and values of one attention."""

    key_BHND: jax.Array
    value_BHND: jax.Array


class DecoderCache(NamedTuple):
    """What decoding one more token needs of the tokens before."""

    position: jax.Array  # int32: the next one to decode; a scalar, or [B]: each row's own
    past: tuple[KeyValue, ...]  # per layer, N = the most positions


class LayerWeights(NamedTuple):
    """One decoder layer, in the activations' dtype; norms in float32."""

    self_norm_E: jax.Array
    query_key_value_JE: jax.Array  # J = heads × (query, key, value) × D
    self_out_EJ: jax.Array
    cross_norm_E: jax.Array
    cross_query_JE: jax.Array
    cross_out_EJ: jax.Array
    mlp_norm_E: jax.Array
    wi_ME: tuple[jax.Array, ...]  # one for each activation
    wo_EM: jax.Array


class DecoderWeights(NamedTuple):
    """The decoder as decoding reads it."""

    layers: tuple[LayerWeights, ...]
    head_VE: jax.Array


class Prepared(NamedTuple):
    """Parameters, and beside them the decoder's once more in the form that decoding reads."""

    params: Params
    decoder: DecoderWeights


class Memory(NamedTuple):
    """The encoder's keys and values for one decoder layer."""

    keys_values: KeyValue
    bias_BS: jax.Array  # 0, or MASKED on padding


def make_step_fn(
    config: T5Config,
    params: Params | Prepared,
    encoder_tokens_BS: jax.Array,
    max_length: int,
    beams: int = 1,
) -> tuple[StepFn, DecoderCache]:
    """Encodes the sources and returns the decoder's step with an empty cache.

    Args:
      params: as they are, or prepared once for many calls.
      encoder_tokens_BS: int32, padded with 0.
      max_length: N, the number of positions the cache holds.
      beams: rows that decode each source, side by side; the step takes B * beams tokens. The
        encoder's keys and values are kept once for all beams of a source.
    """
    prepared = params if isinstance(params, Prepared) else prepare(config, params)
    memory = encode(config, prepared, encoder_tokens_BS)
    cache = empty_cache(config, encoder_tokens_BS.shape[0] * beams, max_length)
    return step_over(config, prepared, memory, max_length, beams), cache


def empty_cache(config: T5Config, batch: int, max_length: int) -> DecoderCache:
    """Of rows that begin together."""
    shape = (batch, config.num_heads, max_length, config.head_dim)
    empty_BHND = jnp.zeros(shape, product_dtype(config.dtype))
    past = tuple(KeyValue(empty_BHND, empty_BHND) for _ in range(config.num_decoder_layers))
    return DecoderCache(jnp.int32(0), past)


def step_over(
    config: T5Config,
    prepared: Prepared,
    memory: Sequence[Memory],
    max_length: int,
    beams: int = 1,
) -> StepFn:
    """The decoder's step over encoded sources; arguments as of `make_step_fn`."""
    weights, decoder = prepared.params, prepared.decoder
    bias_HX = _bias_by_distance(config, weights, max_length)
    embedding_VE = weights["token_embedder"]["embedding"]

    def step(tokens_B: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        t = cache.position
        bias_BHN = _bias_at(bias_HX, t)
        x_EB = as_written(embedding_VE[tokens_B].astype(config.dtype).T)
        past = []
        for layer, layer_past, layer_memory in zip(decoder.layers, cache.past, memory, strict=True):
            mixed_EB, layer_past = _self_attention(config, layer, x_EB, layer_past, t, bias_BHN)
            x_EB = x_EB + mixed_EB
            x_EB = x_EB + _cross_attention(config, layer, x_EB, layer_memory, beams)
            x_EB = x_EB + _mlp(config, layer, x_EB)
            past.append(layer_past)
        x_EB = _norm(config, x_EB, weights["decoder"]["decoder_norm"]["scale"])
        if config.logits_via_embedding:
            x_EB = x_EB * config.emb_dim**-0.5
        logits_VB = _product(decoder.head_VE, x_EB, jnp.float32)
        return logits_VB.T, DecoderCache(t + 1, tuple(past))

    return step


def _split_by_heads(cache_BHND: jax.Array) -> jax.Array:
    """Rows and heads over the devices, as attention is, where the caller has set up a mesh."""
    axes = (shapes.BATCH, shapes.HEADS, shapes.LENGTH, shapes.KV)
    return with_logical_constraint(cache_BHND, axes)


def prepare(config: T5Config, params: Params) -> Prepared:
    """Lays the decoder's weights out for decoding, which every call would do for itself.

    They take as much memory again, in the activations' dtype.
    """
    return Prepared(params, _decoder_weights(config, params))


@functools.partial(jax.jit, static_argnums=0)
def _decoder_weights(config: T5Config, params: Params) -> DecoderWeights:
    layers = tuple(_layer_weights(config, params, i) for i in range(config.num_decoder_layers))
    return DecoderWeights(layers, _head(config, params))


def _layer_weights(config: T5Config, params: Params, i: int) -> LayerWeights:
    """Decoder layer `i` of the scanned tree, its kernels transposed and joined."""
    layer = jax.tree.map(lambda leaf: leaf[i], params["decoder"]["layers"])

    def kernel(block: dict[str, Any], name: str) -> jax.Array:
        return block[name]["kernel"].astype(config.dtype).T

    own, cross, mlp = layer["self_attention"], layer["encoder_decoder_attention"], layer["mlp"]
    by_head = [
        kernel(own, name).reshape(config.num_heads, config.head_dim, config.emb_dim)
        for name in ("query", "key", "value")
    ]
    branches = len(config.mlp_activations)
    wi_names = ["wi"] if branches == 1 else [f"wi_{branch}" for branch in range(branches)]
    return LayerWeights(
        self_norm_E=layer["pre_self_attention_layer_norm"]["scale"],
        # Joined within each head, so that a device keeps its heads.
        query_key_value_JE=jnp.stack(by_head, axis=1).reshape(-1, config.emb_dim),
        self_out_EJ=kernel(own, "out"),
        cross_norm_E=layer["pre_cross_attention_layer_norm"]["scale"],
        cross_query_JE=kernel(cross, "query"),
        cross_out_EJ=kernel(cross, "out"),
        mlp_norm_E=layer["pre_mlp_layer_norm"]["scale"],
        wi_ME=tuple(kernel(mlp, name) for name in wi_names),
        wo_EM=kernel(mlp, "wo"),
    )


def _head(config: T5Config, params: Params) -> jax.Array:
    if config.logits_via_embedding:
        return params["token_embedder"]["embedding"].astype(config.dtype)
    return params["logits_dense"]["kernel"].astype(config.dtype).T


def encode(
    config: T5Config, prepared: Prepared, encoder_tokens_BS: jax.Array
) -> tuple[Memory, ...]:
    """What every decoder layer sees of the sources, int32 padded with 0."""
    params = prepared.params
    segments_BS = (encoder_tokens_BS != shapes.PAD_ID).astype(jnp.int32)
    encoded_BSE = T5(config).apply(
        {"params": params}, encoder_tokens_BS, segments_BS, method="encode"
    )
    bias_BS = jnp.where(segments_BS > 0, 0.0, MASKED)
    attention = params["decoder"]["layers"]["encoder_decoder_attention"]
    kept = product_dtype(config.dtype)

    def projected(name: str, i: int) -> jax.Array:
        kernel_EHD = (
            attention[name]["kernel"][i]
            .astype(config.dtype)
            .reshape(config.emb_dim, config.num_heads, config.head_dim)
        )
        projected_BHSD = jnp.einsum(
            "BSE,EHD->BHSD", encoded_BSE, kernel_EHD, preferred_element_type=kept
        )
        return _split_by_heads(projected_BHSD.astype(config.dtype).astype(kept))

    return tuple(
        Memory(KeyValue(projected("key", i), projected("value", i)), bias_BS)
        for i in range(config.num_decoder_layers)
    )


def _bias_by_distance(config: T5Config, params: Params, length: int) -> jax.Array:
    """Position bias and causal mask of every step, [H, 2 * length - 1].

    Entry length - 1 - d is for a key d positions back; what lies ahead is MASKED. So the
    biases at position t, over all keys, are the slice that starts at length - 1 - t.
    """
    buckets_N = relative_position_buckets(
        np.array([length - 1]),
        np.arange(length),
        bidirectional=False,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
    )[0]
    back_HN = params["decoder"]["relpos_bias"]["rel_embedding"].astype(jnp.float32)[:, buckets_N]
    return jnp.pad(back_HN, ((0, 0), (0, length - 1)), constant_values=MASKED)


def _bias_at(bias_HX: jax.Array, position: jax.Array) -> jax.Array:
    """Bias and mask of all keys at a position [1, H, N], or at each row's own [B, H, N]."""
    length = (bias_HX.shape[1] + 1) // 2
    start = length - 1 - position
    if position.ndim == 0:
        return jax.lax.dynamic_slice_in_dim(bias_HX, start, length, axis=1)[None]
    return bias_HX[:, start[:, None] + jnp.arange(length)[None]].swapaxes(0, 1)


def _written(past_BHND: jax.Array, new_BHD: jax.Array, position: jax.Array) -> jax.Array:
    """With the new keys or values at their positions; behind the last one nothing is written."""
    if position.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(past_BHND, new_BHD[:, :, None], position, axis=2)
    rows_B = jnp.arange(len(past_BHND))
    return past_BHND.at[rows_B, :, position].set(new_BHD, mode="drop", unique_indices=True)


def _product(kernel_NK: jax.Array, x_KB: jax.Array, dtype: Any = None) -> jax.Array:
    """[N, B]. The barrier keeps XLA from turning the product round, which makes it slower."""
    dtype = dtype or x_KB.dtype
    product_NB = jnp.dot(kernel_NK, x_KB, preferred_element_type=product_dtype(dtype))
    return jax.lax.optimization_barrier(product_NB).astype(dtype)


def _norm(config: T5Config, x_EB: jax.Array, scale_E: jax.Array) -> jax.Array:
    return rms_norm(x_EB, scale_E[:, None], config.dtype, axis=0)


def _self_attention(
    config: T5Config,
    layer: LayerWeights,
    x_EB: jax.Array,
    past: KeyValue,
    t: jax.Array,
    bias_BHN: jax.Array,
) -> tuple[jax.Array, KeyValue]:
    joined_JB = _product(layer.query_key_value_JE, _norm(config, x_EB, layer.self_norm_E))
    joined_JB = joined_JB.astype(product_dtype(config.dtype))
    joined_H3DB = joined_JB.reshape(config.num_heads, 3, config.head_dim, -1)
    query_BHD, key_BHD, value_BHD = (joined_H3DB[:, i].transpose(2, 0, 1) for i in range(3))
    past = KeyValue(
        *(
            _split_by_heads(_written(old, new, t))
            for old, new in zip(past, (key_BHD, value_BHD), strict=True)
        )
    )
    logits_BHN = jnp.einsum(
        "BHD,BHND->BHN", query_BHD, past.key_BHND, preferred_element_type=jnp.float32
    )
    weights_BHN = jax.nn.softmax(logits_BHN + bias_BHN).astype(config.dtype)
    mixed_BHD = jnp.einsum(
        "BHN,BHND->BHD", weights_BHN.astype(past.value_BHND.dtype), past.value_BHND
    )
    mixed_BJ = mixed_BHD.reshape(x_EB.shape[1], -1).astype(config.dtype)
    return _product(layer.self_out_EJ, as_written(mixed_BJ.T)), past


def _cross_attention(
    config: T5Config, layer: LayerWeights, x_EB: jax.Array, memory: Memory, beams: int
) -> jax.Array:
    """Q counts the beams here: all of them look at the keys of their one source."""
    query_JB = _product(layer.cross_query_JE, _norm(config, x_EB, layer.cross_norm_E))
    query_BQHD = query_JB.T.reshape(-1, beams, config.num_heads, config.head_dim)
    query_BQHD = query_BQHD.astype(product_dtype(config.dtype))
    logits_BHQS = jnp.einsum(
        "BQHD,BHSD->BHQS",
        query_BQHD,
        memory.keys_values.key_BHND,
        preferred_element_type=jnp.float32,
    )
    weights_BHQS = jax.nn.softmax(logits_BHQS + memory.bias_BS[:, None, None]).astype(config.dtype)
    mixed_BQHD = jnp.einsum(
        "BHQS,BHSD->BQHD",
        weights_BHQS.astype(product_dtype(config.dtype)),
        memory.keys_values.value_BHND,
    )
    mixed_BJ = mixed_BQHD.reshape(x_EB.shape[1], -1).astype(config.dtype)
    return _product(layer.cross_out_EJ, as_written(mixed_BJ.T))


def _mlp(config: T5Config, layer: LayerWeights, x_EB: jax.Array) -> jax.Array:
    normed_EB = _norm(config, x_EB, layer.mlp_norm_E)
    branches_MB = [
        ACTIVATIONS[activation](_product(wi_ME, normed_EB))
        for activation, wi_ME in zip(config.mlp_activations, layer.wi_ME, strict=True)
    ]
    return _product(layer.wo_EM, functools.reduce(operator.mul, branches_MB))
