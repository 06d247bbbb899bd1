"""Soft labels whose kept entries are drawn from the teacher's distribution, not its largest.

Largest entries miss the tail, and whatever is put in its place is biased. The mean over draws is
right in expectation: random-sampling distillation (arXiv 2503.16870). The draws are stratified,
one from each K-th of the probability. That keeps every expectation, and a token of probability p
comes up p K times, give or take two, instead of by chance.
"""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp

from dora_jax.config import T5Config
from dora_jax.model.decode import SoftLabels, summarise_logits
from dora_jax.model.t5 import T5, Params, plain_batch
from dora_jax.shapes import PAD_ID, Array

_BLOCK = 128
_BELOW_ONE = 1.0 - 2.0**-24


def draw_label(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    draws: int,
    drawn_at: float,
    temperatures: tuple[float, ...],
) -> SoftLabels:
    """A soft label of one position from draws (the T axis is absent).

    Args:
      logits_BV: float32.
      keys_B: a random key for each row.
      draws: K; a token may come up more than once.
      drawn_at: the temperature of the distribution drawn from.
      temperatures: of the log-normalisers.
    """
    label = summarise_logits(logits_BV, 1, temperatures)
    centred_BV = logits_BV - label.row_max_BT[:, None]
    strata_BK = jax.vmap(functools.partial(_strata, draws=draws))(keys_B)
    ids_BK = jax.vmap(_inverse_cdf)(jnp.exp(centred_BV / drawn_at), strata_BK)
    values_BK = jnp.take_along_axis(centred_BV, ids_BK, axis=-1)
    return label._replace(topk_ids_BTK=ids_BK, topk_logits_BTK=values_BK)


def _strata(key: jax.Array, draws: int) -> jax.Array:
    """One uniform number from each of `draws` equal parts of [0, 1)."""
    uniform_K = jax.random.uniform(key, (draws,))
    return jnp.minimum((jnp.arange(draws) + uniform_K) / draws, _BELOW_ONE)


def _inverse_cdf(weights_V: jax.Array, uniform_K: jax.Array) -> jax.Array:
    """Ids at which the running sum of the weights passes these shares of its total, int32 [K].

    First the block, then the place in it: a sum over 32,128 float32 in a row would lose the
    small ones, and costs several passes.
    """
    padded = jnp.pad(weights_V, (0, -len(weights_V) % _BLOCK))
    weights_GW = padded.reshape(-1, _BLOCK)  # G blocks
    mass_G = jnp.sum(weights_GW, axis=1)
    running_G = jnp.cumsum(mass_G)
    mark_K = uniform_K * running_G[-1]
    block_K = _first_above(running_G, mark_K)
    into_K = mark_K - (running_G - mass_G)[block_K]
    running_KW = jnp.cumsum(weights_GW[block_K], axis=1)
    place_K = jax.vmap(_first_above)(running_KW, into_K)
    return (block_K * _BLOCK + place_K).astype(jnp.int32)


def _first_above(running_N: jax.Array, mark: jax.Array) -> jax.Array:
    """The first place whose running sum exceeds the mark, and never one of weight 0."""
    last = jnp.argmax(running_N == running_N[-1])  # rounding may put the mark at the very end
    return jnp.minimum(jnp.searchsorted(running_N, mark, side="right"), last)


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8))
def drawn_label(
    config: T5Config,
    params: Params,
    encoder_tokens_BS: Array,
    targets_BT: Array,
    seed: Array,
    rows_B: Array,
    draws: int,
    drawn_at: float,
    temperatures: tuple[float, ...],
) -> SoftLabels:
    """What the network says of given targets, as draws.

    All positions pass the decoder at once; the logits are made one position at a time, so that
    they never stand in memory as [B, T, V]. The draws of a token depend on the seed, its
    example and its place, and not on the batch it is in.

    Args:
      encoder_tokens_BS: int32, padded with 0.
      targets_BT: int32, EOS at their end, padded with 0.
      seed: uint32 scalar.
      rows_B: int32, the number of each example in its split.
      draws, drawn_at, temperatures: as of `draw_label`.

    Returns:
      The soft labels of the targets' positions; what stands on padding has no meaning.
    """
    inputs_BT = jnp.pad(targets_BT[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_ID)
    batch = plain_batch(encoder_tokens_BS, inputs_BT)
    states_BTE = cast(jax.Array, T5(config).apply({"params": params}, batch, method="states"))
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows_B)

    def one(position: tuple[jax.Array, jax.Array]) -> SoftLabels:
        state_BE, t = position
        logits_B1V = T5(config).apply({"params": params}, state_BE[:, None], method="logits")
        keys_at_t_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, t)
        logits_BV = cast(jax.Array, logits_B1V)[:, 0]
        return draw_label(logits_BV, keys_at_t_B, draws, drawn_at, temperatures)

    by_position = jax.lax.map(
        one, (jnp.swapaxes(states_BTE, 0, 1), jnp.arange(states_BTE.shape[1]))
    )
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), by_position)
