"""Greedy labelling in rows that take a new text where one has ended.

A batch that is decoded as one waits for its longest answer. Here every row is at a position of its
own. The rows are advanced until enough of them have ended; their answers are taken out, and new
sources are encoded into their places. What a row decodes does not depend on its neighbours.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from dora_jax import shapes
from dora_jax.config import T5Config
from dora_jax.model.decode import SoftLabels, likeliest, summarise_logits
from dora_jax.model.decoder_step import (
    DecoderCache,
    KeyValue,
    Memory,
    Prepared,
    empty_cache,
    encode,
    step_over,
)
from dora_jax.model.repetition import without_repeats
from dora_jax.shapes import EOS_ID, PAD_ID


@dataclasses.dataclass(frozen=True)
class Labelling:
    """What is compiled: the network, and shapes and settings of a pass.

    Attributes:
      batch: B, rows at work at once.
      source_length: S, to which sources are padded.
      max_length: T, the most tokens of an answer.
      top_k, temperatures: of the soft labels.
      no_repeat_ngram_size: as in `repetition.without_repeats`.
    """

    network: T5Config
    batch: int
    source_length: int
    max_length: int
    top_k: int
    temperatures: tuple[float, ...]
    no_repeat_ngram_size: int = 0


class Rows(NamedTuple):
    """B texts at work."""

    memory: tuple[Memory, ...]
    cache: DecoderCache  # with a position for each row
    last_B: jax.Array  # int32, the token before
    ended_B: jax.Array  # True too where there is no text
    tokens_BT: jax.Array  # int32, zero after EOS
    soft: SoftLabels  # of the tokens' positions; what stands behind EOS has no meaning


@functools.partial(jax.jit, static_argnums=0)
def no_rows(how: Labelling) -> Rows:
    """Places for B texts, without any."""
    network, batch, length = how.network, how.batch, how.max_length
    cache = empty_cache(network, batch, length)
    shape = (batch, network.num_heads, how.source_length, network.head_dim)
    keys_BHSD = jnp.zeros(shape, cache.past[0].key_BHND.dtype)
    bias_BS = jnp.zeros((batch, how.source_length), jnp.float32)
    kept = min(how.top_k, network.vocab_size)
    rows = Rows(
        memory=(Memory(KeyValue(keys_BHSD, keys_BHSD), bias_BS),) * network.num_decoder_layers,
        cache=cache._replace(position=jnp.zeros(batch, jnp.int32)),
        last_B=jnp.full(batch, PAD_ID, jnp.int32),
        ended_B=jnp.ones(batch, bool),
        tokens_BT=jnp.full((batch, length), PAD_ID, jnp.int32),
        soft=SoftLabels(
            jnp.zeros((batch, length, kept), jnp.int32),
            jnp.zeros((batch, length, kept), jnp.float32),
            jnp.zeros((batch, length), jnp.float32),
            jnp.zeros((batch, length, len(how.temperatures)), jnp.float32),
        ),
    )
    return _split(rows)


def _split(rows: Rows) -> Rows:
    """Over the devices, as the activations of attention are."""

    def split(leaf: jax.Array) -> jax.Array:
        axes = (shapes.BATCH, shapes.HEADS, shapes.LENGTH, shapes.KV)
        if leaf.ndim < len(axes):
            axes = (shapes.BATCH, *(None,) * (leaf.ndim - 1))
        return with_logical_constraint(leaf, axes)

    return jax.tree.map(split, rows)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def fill(
    how: Labelling, prepared: Prepared, rows: Rows, places_R: jax.Array, tokens_RS: jax.Array
) -> Rows:
    """New texts in some places.

    Args:
      rows: donated.
      places_R: int32, distinct; B or above for a text that is only filler.
      tokens_RS: int32, sources padded with 0.
    """

    def put(old: jax.Array, new: jax.Array | int) -> jax.Array:
        return old.at[places_R].set(new, mode="drop")

    encoded = encode(how.network, prepared, tokens_RS)
    filled = Rows(
        memory=jax.tree.map(put, rows.memory, encoded),
        cache=rows.cache._replace(position=put(rows.cache.position, 0)),
        last_B=put(rows.last_B, PAD_ID),
        ended_B=put(rows.ended_B, False),
        tokens_BT=put(rows.tokens_BT, PAD_ID),
        soft=rows.soft,
    )
    return _split(filled)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(how: Labelling, prepared: Prepared, rows: Rows, enough: jax.Array) -> Rows:
    """Decodes until so many rows have ended, those without a text among them.

    Args:
      rows: donated.
      enough: int32, at most B.
    """
    step = step_over(how.network, prepared, rows.memory, how.max_length)
    rows_B = jnp.arange(how.batch)

    def unfinished(rows: Rows) -> jax.Array:
        return jnp.sum(rows.ended_B) < enough

    def one(rows: Rows) -> Rows:
        position_B, ended_B = rows.cache.position, rows.ended_B
        logits_BV, cache = step(rows.last_B, rows.cache)
        logits_BV = without_repeats(logits_BV, rows.tokens_BT, position_B, how.no_repeat_ngram_size)
        token_B = jnp.where(ended_B, PAD_ID, likeliest(logits_BV))

        def put(kept: jax.Array, new: jax.Array) -> jax.Array:
            return kept.at[rows_B, position_B].set(new, mode="drop", unique_indices=True)

        soft = summarise_logits(logits_BV, how.top_k, how.temperatures)
        return rows._replace(
            # A row that has ended stays where it is: what it writes is behind its EOS.
            cache=cache._replace(position=jnp.where(ended_B, position_B, position_B + 1)),
            last_B=token_B,
            ended_B=ended_B | (token_B == EOS_ID) | (position_B + 1 == how.max_length),
            tokens_BT=put(rows.tokens_BT, token_B),
            soft=jax.tree.map(put, rows.soft, soft),
        )

    return jax.lax.while_loop(unfinished, one, rows)


@jax.jit
def answers(rows: Rows, places_R: jax.Array) -> tuple[jax.Array, SoftLabels]:
    """Tokens [R, T] of some rows, and their soft labels."""
    return jax.tree.map(lambda leaf: leaf[places_R], (rows.tokens_BT, rows.soft))
