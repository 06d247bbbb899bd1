"""Decoding token by token over any `step_fn(tokens, cache)`, greedy decoding, and forced decoding.

The loop ends when every row has produced EOS. `sampling.py` and `beam.py` choose otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from dora_jax.config import T5Config
from dora_jax.model.backend import platform
from dora_jax.model.decoder_step import Cache, StepFn, make_step_fn
from dora_jax.model.repetition import without_repeats
from dora_jax.model.t5 import T5, Params, plain_batch
from dora_jax.shapes import EOS_ID, PAD_ID

Choose = Callable[[jax.Array, jax.Array], jax.Array]  # (logits_BV, position) -> tokens_B

_BLOCK = 128  # divides the width of every padded vocabulary
# Near sqrt(32,128 / 64), where blocks and candidates, which are both sorted, are fewest.
_SORTED_BLOCK = 32


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
    values_BK, ids_BK = largest(centred_BV, min(top_k, logits_BV.shape[-1]))
    logz_BZ = jnp.stack(
        [jax.nn.logsumexp(centred_BV / temperature, axis=-1) for temperature in temperatures],
        axis=-1,
    )
    return SoftLabels(ids_BK, values_BK, row_max_B, logz_BZ)


def likeliest(logits_BV: jax.Array) -> jax.Array:
    """The largest logit's id, int32 [B]; the lowest id on ties.

    First the block, then the place in it: XLA's CPU backend vectorises a maximum, but takes ten
    times as long for an argmax over the whole vocabulary.
    """
    vocab = logits_BV.shape[-1]
    padding = ((0, -vocab % _BLOCK), (0, 0))
    # Vocabulary first, as the decoder's step leaves the logits in memory.
    logits_VB = jnp.pad(logits_BV.T, padding, constant_values=-jnp.inf)
    logits_GVB = logits_VB.reshape(-1, _BLOCK, logits_BV.shape[0])  # G blocks
    block_B = jnp.argmax(jnp.max(logits_GVB, axis=1), axis=0)
    block_VB = jnp.take_along_axis(logits_GVB, block_B[None, None, :], axis=0)[0]
    return (block_B * _BLOCK + jnp.argmax(block_VB, axis=0)).astype(jnp.int32)


def largest(logits_BV: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row, descending [B, K], and their ids, int32; the lowest first on ties.

    The k blocks with the largest maxima hold the k largest entries, so that a tenth of a vocabulary
    is looked through for 64 of them. On NVIDIA GPUs XLA sorts whole rows for a `top_k` of more than
    16 (NVIDIA/cccl issue 6391, openxla/xla issue 25487); on a CPU this takes two thirds of
    the time of its `top_k`. A TPU has one of its own, which knows vocabularies that are sharded.
    """
    values_BK, ids_BK = (
        jax.lax.top_k(logits_BV, k)
        if platform() == "tpu" or logits_BV.shape[-1] <= k * _SORTED_BLOCK
        else _largest_by_blocks(logits_BV, k)
    )
    return values_BK, ids_BK.astype(jnp.int32)


def _largest_by_blocks(logits_BV: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    batch, vocab = logits_BV.shape
    padding = ((0, 0), (0, -vocab % _SORTED_BLOCK))
    padded_BV = jnp.pad(logits_BV, padding, constant_values=-jnp.inf)
    logits_BGV = padded_BV.reshape(batch, -1, _SORTED_BLOCK)  # G blocks
    _, blocks_BK = jax.lax.top_k(jnp.max(logits_BGV, axis=-1), k)
    blocks_BK = jnp.sort(blocks_BK, axis=-1)  # places in the order of ids, for ties
    candidates_BKV = jnp.take_along_axis(logits_BGV, blocks_BK[:, :, None], axis=1)
    values_BK, places_BK = jax.lax.top_k(candidates_BKV.reshape(batch, -1), k)
    block_BK = jnp.take_along_axis(blocks_BK, places_BK // _SORTED_BLOCK, axis=1)
    return values_BK, block_BK * _SORTED_BLOCK + places_BK % _SORTED_BLOCK


def without_eos_before(logits_BV: jax.Array, position: jax.Array, min_length: int) -> jax.Array:
    """The logits, with EOS ruled out where fewer than `min_length` tokens precede it."""
    if min_length == 0:
        return logits_BV
    is_eos_V = jnp.arange(logits_BV.shape[1]) == EOS_ID
    return jnp.where((position < min_length) & is_eos_V[None], -jnp.inf, logits_BV)


def generate(
    step_fn: StepFn,
    cache: Cache,
    batch: int,
    max_length: int,
    *,
    choose: Choose = lambda logits_BV, position: likeliest(logits_BV),
    record: Callable[[jax.Array], Any] = lambda logits_BV: (),
    ended_B: jax.Array | None = None,
    no_repeat_ngram_size: int = 0,
) -> tuple[jax.Array, Any]:
    """Chooses a token of every row until EOS, and keeps what `record` says of each step.

    Args:
      batch: B, the number of rows.
      choose: from logits [B, V] and the position, int32, to tokens [B].
      record: from logits [B, V] to a pytree of arrays [B, ...].
      ended_B: rows that need no decoding (padding of the batch).
      no_repeat_ngram_size: as in `repetition.without_repeats`; `choose` and `record` get the
        logits that are left.

    Returns:
      tokens int32 [B, T], zero after EOS, no start token; and the records, [B, T, ...].
    """
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
        logits_BV = without_repeats(logits_BV, tokens_BT, t, no_repeat_ngram_size)
        token_B = jnp.where(ended_B, PAD_ID, choose(logits_BV, t))
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


def blank_rows(encoder_tokens_BS: jax.Array) -> jax.Array:
    """True [B] where a row is nothing but padding, so that there is nothing to decode."""
    return jnp.all(encoder_tokens_BS == PAD_ID, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def greedy_decode(
    config: T5Config,
    params: Params,
    encoder_tokens_BS: jax.Array,
    max_decode_len: int,
    min_decode_len: int = 0,
    no_repeat_ngram_size: int = 0,
) -> jax.Array:
    """Greedy decoding of a padded batch.

    Args:
      encoder_tokens_BS: int32, padded with 0. Rows of nothing but padding stay empty.
      max_decode_len: T.
      min_decode_len: so many tokens come before EOS may.
      no_repeat_ngram_size: so many tokens never come twice in the same order; 0: they may.

    Returns:
      int32 [B, T]: no start token, zeros after EOS (id 1), lowest id on ties.
    """
    step_fn, cache = make_step_fn(config, params, encoder_tokens_BS, max_decode_len)

    def choose(logits_BV: jax.Array, position: jax.Array) -> jax.Array:
        return likeliest(without_eos_before(logits_BV, position, min_decode_len))

    batch, ended_B = encoder_tokens_BS.shape[0], blank_rows(encoder_tokens_BS)
    return generate(
        step_fn,
        cache,
        batch,
        max_decode_len,
        choose=choose,
        ended_B=ended_B,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )[0]


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def greedy_label(
    config: T5Config,
    params: Params,
    encoder_tokens_BS: jax.Array,
    max_decode_len: int,
    top_k: int,
    temperatures: tuple[float, ...],
    no_repeat_ngram_size: int = 0,
) -> tuple[jax.Array, SoftLabels]:
    """Greedy decoding that keeps every position's soft label from the same pass.

    Returns:
      (tokens int32 [B, T] as of `greedy_decode`, the soft labels of those positions).
    """
    step_fn, cache = make_step_fn(config, params, encoder_tokens_BS, max_decode_len)
    record = functools.partial(summarise_logits, top_k=top_k, temperatures=temperatures)
    batch, ended_B = encoder_tokens_BS.shape[0], blank_rows(encoder_tokens_BS)
    return generate(
        step_fn,
        cache,
        batch,
        max_decode_len,
        record=record,
        ended_B=ended_B,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )


def forced(
    config: T5Config,
    params: Params,
    encoder_tokens_BS: jax.Array,
    targets_BT: jax.Array,
    record: Callable[[jax.Array, jax.Array], Any],
) -> Any:
    """What `record` says of each position of given targets, the tokens before it being theirs.

    All positions pass the decoder at once; the logits are made one position at a time, so that
    they never stand in memory as [B, T, V].

    Args:
      encoder_tokens_BS: int32, padded with 0.
      targets_BT: int32, EOS at their end, padded with 0.
      record: from logits [B, V] and the position's targets [B] to a pytree of arrays [B, ...].

    Returns:
      the records, [B, T, ...]. What stands on padding has no meaning.
    """
    inputs_BT = jnp.pad(targets_BT[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_ID)
    batch = plain_batch(encoder_tokens_BS, inputs_BT)
    states_BTE = cast(jax.Array, T5(config).apply({"params": params}, batch, method="states"))

    def one(position: tuple[jax.Array, jax.Array]) -> Any:
        state_BE, target_B = position
        logits_B1V = T5(config).apply({"params": params}, state_BE[:, None], method="logits")
        return record(cast(jax.Array, logits_B1V)[:, 0], target_B)

    by_position = jax.lax.map(one, (jnp.swapaxes(states_BTE, 0, 1), targets_BT.T))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), by_position)


@functools.partial(jax.jit, static_argnums=0)
def target_log_probabilities(
    config: T5Config, params: Params, encoder_tokens_BS: jax.Array, targets_BT: jax.Array
) -> jax.Array:
    """Log of each target token's probability given those before it, as of `forced`.

    Returns:
      float32 [B, T], nats, 0 on padding.
    """

    def record(logits_BV: jax.Array, target_B: jax.Array) -> jax.Array:
        logit_B = jnp.take_along_axis(logits_BV, target_B[:, None], axis=-1)[:, 0]
        return jnp.where(target_B == PAD_ID, 0.0, logit_B - jax.nn.logsumexp(logits_BV, axis=-1))

    return forced(config, params, encoder_tokens_BS, targets_BT, record)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def forced_label(
    config: T5Config,
    params: Params,
    encoder_tokens_BS: jax.Array,
    targets_BT: jax.Array,
    top_k: int,
    temperatures: tuple[float, ...],
) -> SoftLabels:
    """The soft labels of given targets, as of `forced`."""

    def record(logits_BV: jax.Array, _: jax.Array) -> SoftLabels:
        return summarise_logits(logits_BV, top_k, temperatures)

    return forced(config, params, encoder_tokens_BS, targets_BT, record)
