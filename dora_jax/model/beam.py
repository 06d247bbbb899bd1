"""Beam search over any `step_fn(tokens, cache)`, with the rules of transformers.

Each step takes the 2K best continuations of a source's K running beams. Those among the best K
that end are scored, sum of log-probabilities / length**length_penalty, and compete for the K
finished places; the best K that do not end run on. At the longest length every beam ends.
Source: transformers 5.23, `GenerationMixin._beam_search`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dora_jax.config import T5Config
from dora_jax.model.decode import blank_rows, without_eos_before
from dora_jax.model.decoder_step import DecoderCache, StepFn, make_step_fn
from dora_jax.model.t5 import Params
from dora_jax.shapes import EOS_ID, PAD_ID

# Below every sum of log-probabilities, and finite as in transformers: sums of it compare.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """How beams are kept and when a source is done.

    `length_penalty` above 0 favours long texts, below 0 short ones. `early_stopping` as in
    transformers: "full" (its True) stops at K finished texts; "heuristic" (False, its default)
    once the best running beam, scored at its present length, is worse than all of them;
    "exhaustive" ("never") once it could not beat them at any length.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: str = "heuristic"

    def __post_init__(self) -> None:
        if self.num_beams < 2:
            raise ValueError(
                f"num_beams = {self.num_beams}; a beam search has at least 2. One beam is greedy "
                "decoding."
            )
        if self.early_stopping not in ("full", "heuristic", "exhaustive"):
            raise ValueError(
                f"early_stopping = {self.early_stopping!r}; choose 'full', 'heuristic' or "
                "'exhaustive'."
            )


class _Beams(NamedTuple):
    """The state of the search."""

    position: jax.Array  # int32 scalar: tokens decoded so far
    cache: DecoderCache
    running_BKT: jax.Array  # int32 tokens
    running_score_BK: jax.Array  # float32, sum of log-probabilities, best first
    finished_BKT: jax.Array
    finished_score_BK: jax.Array  # with the length penalty, best first
    is_finished_BK: jax.Array  # whether the place is taken
    improvable_B: jax.Array  # whether a running beam may still find a place


def beam_search(
    step_fn: StepFn,
    cache: DecoderCache,
    blank_B: jax.Array,
    max_length: int,
    search: BeamSearch,
    min_length: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """The K best texts of each source.

    Args:
      step_fn: over B * K rows, the beams of a source side by side.
      blank_B: sources that need no decoding.
      max_length: T.
      min_length: so many tokens come before EOS may.

    Returns:
      tokens int32 [B, K, T], zero after EOS, no start token; and their scores, float32 [B, K],
      best first.
    """
    batch, beams = blank_B.shape[0], search.num_beams
    nothing_BKT = jnp.full((batch, beams, max_length), PAD_ID, jnp.int32)
    never_BK = jnp.full((batch, beams), _NEVER, jnp.float32)
    start = _Beams(
        position=jnp.int32(0),
        cache=cache,
        running_BKT=nothing_BKT,
        running_score_BK=never_BK.at[:, 0].set(0.0),  # all beams are the same at first
        finished_BKT=nothing_BKT,
        finished_score_BK=never_BK,
        is_finished_BK=jnp.zeros((batch, beams), bool),
        improvable_B=~blank_B,
    )

    def unfinished(state: _Beams) -> jax.Array:
        return (state.position < max_length) & jnp.any(_is_open(state, search))

    def advance(state: _Beams) -> _Beams:
        return _advance(step_fn, state, search, min_length)

    end = jax.lax.while_loop(unfinished, advance, start)
    return end.finished_BKT, end.finished_score_BK


def _is_open(state: _Beams, search: BeamSearch) -> jax.Array:
    """True [B] where a source's finished texts may still change."""
    if search.early_stopping != "full":
        return state.improvable_B
    return state.improvable_B & ~jnp.all(state.is_finished_BK, axis=1)


def _advance(step_fn: StepFn, state: _Beams, search: BeamSearch, min_length: int) -> _Beams:
    batch, beams, max_length = state.running_BKT.shape
    t = state.position
    last_BK = jax.lax.dynamic_index_in_dim(state.running_BKT, jnp.maximum(t - 1, 0), 2, False)
    logits_BV, cache = step_fn(jnp.where(t == 0, PAD_ID, last_BK).reshape(-1), state.cache)
    log_probs_BV = without_eos_before(jax.nn.log_softmax(logits_BV), t, min_length)
    vocab = logits_BV.shape[-1]
    sums_BKV = log_probs_BV.reshape(batch, beams, vocab) + state.running_score_BK[:, :, None]
    # C = 2K: even if the best K all end, K are left to run on.
    score_BC, index_BC = jax.lax.top_k(sums_BKV.reshape(batch, -1), 2 * beams)
    parent_BC, token_BC = index_BC // vocab, index_BC % vocab
    tokens_BCT = _rows(state.running_BKT, parent_BC)
    tokens_BCT = jax.lax.dynamic_update_slice_in_dim(tokens_BCT, token_BC[:, :, None], t, 2)
    ends_BC = (token_BC == EOS_ID) | (t + 1 == max_length)

    running_score_BK, next_BK = jax.lax.top_k(score_BC + ends_BC * _NEVER, beams)
    finished = _finish(state, search, tokens_BCT, score_BC, ends_BC)
    state = _Beams(
        t + 1,
        reordered(cache, _rows(parent_BC, next_BK)),
        _rows(tokens_BCT, next_BK),
        running_score_BK,
        *finished,
        state.improvable_B,
    )
    return state._replace(improvable_B=state.improvable_B & _can_improve(state, search))


def _finish(
    state: _Beams,
    search: BeamSearch,
    tokens_BCT: jax.Array,
    score_BC: jax.Array,
    ends_BC: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best K of the texts finished before and those that end now: tokens, scores, taken."""
    beams = search.num_beams
    ends_BC = ends_BC & (jnp.arange(2 * beams) < beams)[None]
    length = (state.position + 1).astype(jnp.float32)
    admitted_BC = ends_BC & _is_open(state, search)[:, None]
    new_score_BC = score_BC / length**search.length_penalty + ~admitted_BC * _NEVER
    scores = jnp.concatenate([state.finished_score_BK, new_score_BC], axis=1)
    score_BK, best_BK = jax.lax.top_k(scores, beams)
    tokens = jnp.concatenate([state.finished_BKT, tokens_BCT], axis=1)
    taken = jnp.concatenate([state.is_finished_BK, admitted_BC], axis=1)
    return _rows(tokens, best_BK), score_BK, _rows(taken, best_BK)


def _can_improve(state: _Beams, search: BeamSearch) -> jax.Array:
    """True [B] where the best running beam may beat a finished text, or a place is free."""
    longest = search.early_stopping == "exhaustive" and search.length_penalty > 0.0
    length = state.running_BKT.shape[2] if longest else state.position
    length = jnp.asarray(length, jnp.float32)
    best_B = state.running_score_BK[:, 0] / length**search.length_penalty
    worst_B = jnp.min(state.finished_score_BK, axis=1)
    worst_BK = jnp.where(state.is_finished_BK, worst_B[:, None], _NEVER)
    return jnp.any(best_B[:, None] > worst_BK, axis=1)


def _rows(values_BK: jax.Array, index_BC: jax.Array) -> jax.Array:
    """For each source, the chosen ones of its rows."""
    return jax.vmap(lambda values, index: values[index])(values_BK, index_BC)


def reordered(cache: DecoderCache, parent_BK: jax.Array) -> DecoderCache:
    """The cache in which each beam goes on from its parent."""
    batch, beams = parent_BK.shape

    def one(leaf: jax.Array) -> jax.Array:
        by_source = leaf.reshape(batch, beams, *leaf.shape[1:])
        return _rows(by_source, parent_BK).reshape(leaf.shape)

    return cache._replace(past=jax.tree.map(one, cache.past))


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def beam_decode(
    config: T5Config,
    params: Params,
    encoder_tokens_BS: jax.Array,
    max_decode_len: int,
    search: BeamSearch,
    min_decode_len: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Beam search over a padded batch.

    Args:
      encoder_tokens_BS: int32, padded with 0. Rows of nothing but padding stay empty.
      max_decode_len: T.
      min_decode_len: so many tokens come before EOS may.

    Returns:
      as of `beam_search`: tokens int32 [B, K, T] and scores float32 [B, K], best first.
    """
    step_fn, cache = make_step_fn(
        config, params, encoder_tokens_BS, max_decode_len, search.num_beams
    )
    blank_B = blank_rows(encoder_tokens_BS)
    return beam_search(step_fn, cache, blank_B, max_decode_len, search, min_decode_len)
