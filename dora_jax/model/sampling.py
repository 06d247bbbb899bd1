"""Decoding by chance: temperature, the k likeliest tokens, the likeliest of total mass p.

Each row draws from a key of its own, folded from the seed, the row's id and the position. So
what a row becomes depends neither on its batch nor on where a run was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dora_jax.config import T5Config
from dora_jax.model.decode import blank_rows, generate, largest, without_eos_before
from dora_jax.model.decoder_step import make_step_fn
from dora_jax.model.t5 import Params


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn: logits / temperature, then the top k of them, then the top p.

    `top_k` 0 keeps all; `top_p` 1 keeps all, else the fewest tokens that together have at least
    that probability. Sorting a whole vocabulary is slow, so set `top_k` beside `top_p`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature = {self.temperature}; it must be greater than 0. For the likeliest "
                "token each time, decode greedily."
            )
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}; it must be 0 (all tokens) or more.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p = {self.top_p}; it must lie in (0, 1].")


def draw(logits_BV: jax.Array, uniform_B: jax.Array, sampling: Sampling) -> jax.Array:
    """One token a row, int32 [B], by inverting the distribution function.

    Args:
      logits_BV: float32.
      uniform_B: float32 in [0, 1).
    """
    scaled_BV = logits_BV / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        return _invert(jax.nn.softmax(scaled_BV), uniform_B)
    vocab = logits_BV.shape[-1]
    kept_BK, ids_BK = largest(scaled_BV, min(sampling.top_k or vocab, vocab))
    probabilities_BK = jax.nn.softmax(kept_BK)
    likelier_BK = jnp.cumsum(probabilities_BK, axis=-1) - probabilities_BK
    probabilities_BK = jnp.where(likelier_BK < sampling.top_p, probabilities_BK, 0.0)
    chosen_B = _invert(probabilities_BK, uniform_B)
    return jnp.take_along_axis(ids_BK, chosen_B[:, None], axis=-1)[:, 0]


def _invert(probabilities_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The first index of some probability at which the sum exceeds that share of the total."""
    sums_BV = jnp.cumsum(probabilities_BV, axis=-1)
    # Parallel sums differ by roundings, so that the sum may rise where the probability is 0.
    sums_BV = jnp.where(probabilities_BV > 0.0, sums_BV, 0.0)
    total_B1 = jnp.max(sums_BV, axis=-1, keepdims=True)
    exceeds_BV = sums_BV > uniform_B[:, None] * total_B1
    # The lowest of their ids: XLA's CPU backend vectorises a minimum and no argmax.
    vocab = probabilities_BV.shape[-1]
    return jnp.min(jnp.where(exceeds_BV, jnp.arange(vocab)[None], vocab), axis=-1)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 7))
def sample_decode(
    config: T5Config,
    params: Params,
    encoder_tokens_BS: jax.Array,
    max_decode_len: int,
    sampling: Sampling,
    seed: jax.Array | int,
    row_ids_B: jax.Array,
    min_decode_len: int = 0,
) -> jax.Array:
    """Decodes by chance; the same seed and row ids draw the same tokens.

    Args:
      encoder_tokens_BS: int32, padded with 0. Rows of nothing but padding stay empty.
      max_decode_len: T.
      row_ids_B: int32, what tells the rows' random numbers apart.
      min_decode_len: so many tokens come before EOS may.

    Returns:
      int32 [B, T]: no start token, zeros after EOS.
    """
    step_fn, cache = make_step_fn(config, params, encoder_tokens_BS, max_decode_len)
    keys_B = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(row_ids_B)

    def choose(logits_BV: jax.Array, position: jax.Array) -> jax.Array:
        here_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, position)
        logits_BV = without_eos_before(logits_BV, position, min_decode_len)
        return draw(logits_BV, jax.vmap(jax.random.uniform)(here_B), sampling)

    batch, ended_B = encoder_tokens_BS.shape[0], blank_rows(encoder_tokens_BS)
    return generate(step_fn, cache, batch, max_decode_len, choose=choose, ended_B=ended_B)[0]
