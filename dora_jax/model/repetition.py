"""Keeping a decoder from going round in circles: no sequence of n tokens comes twice."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def without_repeats(
    logits_BV: jax.Array, tokens_BT: jax.Array, position: jax.Array, ngram_size: int
) -> jax.Array:
    """The logits, with every token ruled out that would end a sequence the row already has.

    Args:
      logits_BV: of the token at `position`.
      tokens_BT: int32, decoded so far; what stands at `position` and behind is not read.
      position: int32, a scalar or each row's own [B].
      ngram_size: length of the sequences that may come once only; 0 allows all.

    Returns:
      float [B, V], minus infinity where a token is ruled out.
    Source: `no_repeat_ngram_size` of Hugging Face's `generate` and of fairseq (Paulus et al.,
      arXiv 1705.04304, section 2.5, for n = 3).
    """
    if ngram_size == 0:
        return logits_BV
    batch, length = tokens_BT.shape
    before = ngram_size - 1  # tokens that stand before the one to choose
    position_B1 = jnp.broadcast_to(position, (batch,))[:, None]
    followed_BT = jnp.arange(length)[None] + before < position_B1
    for i in range(before):
        # The i-th of the last tokens, against the i-th token of every sequence.
        last_B1 = jnp.take_along_axis(tokens_BT, position_B1 - before + i, axis=1, mode="clip")
        followed_BT &= jnp.roll(tokens_BT, -i, axis=1) == last_B1
    ends_BT = jnp.where(followed_BT, jnp.roll(tokens_BT, -before, axis=1), logits_BV.shape[1])
    rows_B1 = jnp.arange(batch)[:, None]
    return logits_BV.at[rows_B1, ends_BT].set(-jnp.inf, mode="drop")
