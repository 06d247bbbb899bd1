"""Greedy decoding with a key-value cache, over any `step_fn(tokens, cache)`.

The encoder runs once, its keys and values for every decoder layer are projected once, and
the loop ends when every row has produced EOS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from dora_jax.config import T5Config
from dora_jax.model.layers import (
    Attention,
    DecoderLayer,
    KeyValue,
    RelativePositionBias,
    RMSNorm,
    attention_bias,
)
from dora_jax.model.t5 import T5, Params
from dora_jax.shapes import EOS_ID, PAD_ID

Cache = Any
StepFn = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]  # (tokens_B, cache) -> logits_BV


class DecoderCache(NamedTuple):
    """What decoding one more token needs of the tokens before."""

    position: jax.Array  # int32 scalar: the next one to decode
    past: list[KeyValue]  # per layer, [B, max length, H, D]


class SoftLabels(NamedTuple):
    """The K largest logits of each decoded position and the exact normalisers beside them."""

    topk_ids_BTK: jax.Array  # int32, descending logit, lowest id first on ties
    topk_logits_BTK: jax.Array  # float32, logit - row maximum
    row_max_BT: jax.Array  # float32
    logz_BTZ: jax.Array  # float32, log sum exp((logit - row maximum) / temperature)


def summarise_logits(
    logits_BV: jax.Array, top_k: int, temperatures: tuple[float, ...]
) -> SoftLabels:
    """Soft labels of one position (the T axis is absent)."""
    row_max_B = jnp.max(logits_BV, axis=-1)
    centred_BV = logits_BV - row_max_B[:, None]
    values_BK, ids_BK = jax.lax.top_k(centred_BV, min(top_k, logits_BV.shape[-1]))
    logz_BZ = jnp.stack(
        [jax.nn.logsumexp(centred_BV / temperature, axis=-1) for temperature in temperatures],
        axis=-1,
    )
    return SoftLabels(ids_BK.astype(jnp.int32), values_BK, row_max_B, logz_BZ)


def make_step_fn(
    config: T5Config, params: Params, encoder_tokens_BS: jax.Array, max_length: int
) -> tuple[StepFn, DecoderCache]:
    """Encodes the sources and returns the decoder's step with an empty cache.

    The layers are unrolled here, unlike in training: one position is little work, and a
    cache per layer is updated in place where a stacked one would be copied every step.

    Args:
      encoder_tokens_BS: int32, padded with 0.
      max_length: T, the number of positions the cache holds.
    """
    segments_BS = (encoder_tokens_BS != PAD_ID).astype(jnp.int32)
    encoded_BSE = T5(config).apply(
        {"params": params}, encoder_tokens_BS, segments_BS, method="encode"
    )
    decoder = params["decoder"]
    layers = [
        jax.tree.map(lambda leaf, i=i: leaf[i], decoder["layers"])
        for i in range(config.num_decoder_layers)
    ]
    memory = [
        Attention(config).apply(
            {"params": layer["encoder_decoder_attention"]}, encoded_BSE, method="project"
        )
        for layer in layers
    ]
    cross_bias = attention_bias(segments_BS[:, None, :] > 0)
    batch = encoder_tokens_BS.shape[0]
    empty = jnp.zeros((batch, max_length, config.num_heads, config.head_dim), config.dtype)
    cache = DecoderCache(jnp.int32(0), [KeyValue(empty, empty) for _ in layers])

    def step(tokens_B: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        key_positions_N = jnp.arange(max_length)
        position_bias = RelativePositionBias(config, bidirectional=False).apply(
            {"params": decoder["relpos_bias"]}, cache.position[None], key_positions_N
        )
        visible = (key_positions_N <= cache.position)[None, None, :]
        biases = (position_bias, attention_bias(visible))
        embedding_VE = params["token_embedder"]["embedding"]
        x_B1E = embedding_VE[tokens_B][:, None, :].astype(config.dtype)
        past = []
        for layer, layer_past, layer_memory in zip(layers, cache.past, memory, strict=True):
            x_B1E, layer_past = DecoderLayer(config).apply(
                {"params": layer},
                x_B1E,
                None,
                biases,
                (cross_bias,),
                layer_past,
                cache.position,
                layer_memory,
            )
            past.append(layer_past)
        x_B1E = RMSNorm(config.dtype).apply({"params": decoder["decoder_norm"]}, x_B1E)
        logits_B1V = cast(jax.Array, T5(config).apply({"params": params}, x_B1E, method="logits"))
        return logits_B1V[:, 0], DecoderCache(cache.position + 1, past)

    return step, cache


def greedy(
    step_fn: StepFn,
    cache: Cache,
    batch: int,
    max_length: int,
    record: Callable[[jax.Array], Any] | None = None,
    ended_B: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Takes the likeliest token until EOS, and keeps what `record` says of each step.

    Args:
      batch: B, the number of rows.
      record: from logits [B, V] to a pytree of arrays [B, ...].
      ended_B: rows that need no decoding (padding of the batch).

    Returns:
      tokens int32 [B, T], zero after EOS, no start token, lowest id on ties; and the
      records, [B, T, ...].
    """
    record = record or (lambda _: ())
    ended_B = jnp.zeros((batch,), bool) if ended_B is None else ended_B
    start_B = jnp.full((batch,), PAD_ID, jnp.int32)
    shapes = jax.eval_shape(lambda cache: record(step_fn(start_B, cache)[0]), cache)
    records = jax.tree.map(
        lambda leaf: jnp.zeros((batch, max_length, *leaf.shape[1:]), leaf.dtype), shapes
    )
    tokens_BT = jnp.full((batch, max_length), PAD_ID, jnp.int32)

    def unfinished(state: tuple) -> jax.Array:
        t, _, _, ended_B, _, _ = state
        return (t < max_length) & ~jnp.all(ended_B)

    def advance(state: tuple) -> tuple:
        t, last_B, cache, ended_B, tokens_BT, records = state
        logits_BV, cache = step_fn(last_B, cache)
        token_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        token_B = jnp.where(ended_B, PAD_ID, token_B)
        tokens_BT = jax.lax.dynamic_update_slice_in_dim(tokens_BT, token_B[:, None], t, 1)
        records = jax.tree.map(
            lambda kept, new: jax.lax.dynamic_update_slice_in_dim(kept, new[:, None], t, 1),
            records,
            record(logits_BV),
        )
        return t + 1, token_B, cache, ended_B | (token_B == EOS_ID), tokens_BT, records

    state = (jnp.int32(0), start_B, cache, ended_B, tokens_BT, records)
    state = jax.lax.while_loop(unfinished, advance, state)
    return state[4], state[5]


@functools.partial(jax.jit, static_argnums=(0, 3))
def greedy_decode(
    config: T5Config, params: Params, encoder_tokens_BS: jax.Array, max_decode_len: int
) -> jax.Array:
    """Greedy decoding of a padded batch.

    Args:
      encoder_tokens_BS: int32, padded with 0. Rows of nothing but padding stay empty.
      max_decode_len: T.

    Returns:
      int32 [B, T]: no start token, zeros after EOS (id 1), lowest id on ties.
    """
    step_fn, cache = make_step_fn(config, params, encoder_tokens_BS, max_decode_len)
    blank_B = jnp.all(encoder_tokens_BS == PAD_ID, axis=1)
    batch = encoder_tokens_BS.shape[0]
    return greedy(step_fn, cache, batch, max_decode_len, ended_B=blank_B)[0]


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def greedy_label(
    config: T5Config,
    params: Params,
    encoder_tokens_BS: jax.Array,
    max_decode_len: int,
    top_k: int,
    temperatures: tuple[float, ...],
) -> tuple[jax.Array, SoftLabels]:
    """Greedy decoding that keeps every position's soft label from the same pass.

    Returns:
      (tokens int32 [B, T] as of `greedy_decode`, the soft labels of those positions).
    """
    step_fn, cache = make_step_fn(config, params, encoder_tokens_BS, max_decode_len)
    blank_B = jnp.all(encoder_tokens_BS == PAD_ID, axis=1)
    batch = encoder_tokens_BS.shape[0]
    record = functools.partial(summarise_logits, top_k=top_k, temperatures=temperatures)
    return greedy(step_fn, cache, batch, max_decode_len, record, blank_B)
