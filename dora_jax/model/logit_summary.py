"""What a loss must know of logits over the vocabulary: a few numbers a position, in one pass.

Every loss here depends on the logits through those of some ids (kept by a soft label, or the
target) and through sums over the rest of the vocabulary. `summarise` yields just these, with a
gradient written by hand, so the losses themselves are plain functions of small arrays.

The logits are given whole, or as the product that makes them (`BlockedLogits`). Then a block of
columns is made at a time, forward and once more backward, and no array over tokens and
vocabulary ever exists. Below `summarise` positions are flat: N = B * T, in the fields too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from dora_jax.shapes import Array

# A block takes columns from each of so many equal stretches of the vocabulary. Devices that
# share the vocabulary hold whole stretches, so all of them work at every block.
_STRETCHES = 128


@dataclasses.dataclass(frozen=True)
class BlockedLogits:
    """Logits [B, T, V] = states @ kernel, to be made `block` columns at a time.

    states_BTE: the decoder's, in the activations' dtype, scaled for the head.
    kernel_EV: of the output head, float32; cast to the states' dtype block by block.
    block: columns, rounded down to what the vocabulary's stretches allow.
    """

    states_BTE: jax.Array
    kernel_EV: jax.Array
    block: int

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, length, _ = self.states_BTE.shape
        return batch, length, self.kernel_EV.shape[1]


class LogitSummary(NamedTuple):
    """Of every position, float32; what was not asked for is None."""

    kept_BTK: jax.Array | None = None  # logits of the kept ids
    rest_BT: jax.Array | None = None  # log sum exp(logit / temperature) over all other ids
    target_BT: jax.Array | None = None  # logit of the target
    logz_BT: jax.Array | None = None  # log sum exp(logit) over all ids


class _Question(NamedTuple):
    """What is asked, beside the ids: hashable, for `custom_vjp`."""

    temperature: float
    apart: bool
    columns: int = 0  # of a block, from each stretch; 0: the logits are whole


def summarise(
    logits: Array | BlockedLogits,
    *,
    kept_ids_BTK: Array | None = None,
    temperature: float = 1.0,
    apart: bool = True,
    targets_BT: Array | None = None,
) -> LogitSummary:
    """The logits of some ids and the log-sums over the vocabulary, differentiable.

    Args:
      logits: float32 [B, T, V], or how to make them.
      kept_ids_BTK: int32; None leaves out `kept_BTK` and `rest_BT`.
      temperature: of `rest_BT`.
      apart: whether `rest_BT` leaves the kept ids out, exactly and without cancellation. They
        must then be distinct within a position. False sums over the whole vocabulary.
      targets_BT: int32; None leaves out `target_BT` and `logz_BT`.
    """
    batch, length, vocab = logits.shape
    ids = (
        None if kept_ids_BTK is None else jnp.asarray(kept_ids_BTK).reshape(batch * length, -1),
        None if targets_BT is None else jnp.asarray(targets_BT).reshape(batch * length, 1),
    )
    question = _Question(float(temperature), apart)
    if isinstance(logits, BlockedLogits):
        stretch = vocab // _stretches(vocab)
        columns = min(max(logits.block // _stretches(vocab), 1), stretch)
        states_NE = logits.states_BTE.reshape(batch * length, -1)
        summary = _of_blocks(question._replace(columns=columns), states_NE, logits.kernel_EV, ids)
    else:
        summary = _of_whole(question, logits.reshape(batch * length, vocab), ids)
    return jax.tree.map(
        lambda leaf: leaf.reshape(batch, length, *leaf.shape[1:]), cast(LogitSummary, summary)
    )


def _stretches(vocab: int) -> int:
    return math.gcd(vocab, _STRETCHES)


# --- One block of logits x_NW. `places` are the ids as columns of the block; W means outside.


def _summary(question: _Question, x_NW: jax.Array, places: Any) -> LogitSummary:
    kept_NK, target_N1 = places
    kept = rest = target = logz = None
    if kept_NK is not None:
        kept = _take(x_NW, kept_NK)
        apart_NW = _marked(x_NW.shape, kept_NK) if question.apart else None
        rest = _logsumexp(x_NW, question.temperature, apart_NW)
    if target_N1 is not None:
        target = _take(x_NW, target_N1)[:, 0]
        logz = _logsumexp(x_NW, 1.0)
    return LogitSummary(kept, rest, target, logz)


def _merge(one: LogitSummary, other: LogitSummary) -> LogitSummary:
    """Of two blocks together: each id lies in one of them, and has logit 0 in the other."""
    joined = []
    for join, a, b in zip((jnp.add, jnp.logaddexp) * 2, one, other, strict=True):
        joined.append(None if a is None or b is None else join(a, b))
    return LogitSummary(*joined)


def _cotangent(
    question: _Question,
    x_NW: jax.Array,
    places: Any,
    summary: LogitSummary,
    given: LogitSummary,
) -> jax.Array:
    """The gradient for a block, from that for the whole summary."""
    kept_NK, target_N1 = places
    rows_N1 = jnp.arange(x_NW.shape[0])[:, None]
    grad_NW = jnp.zeros_like(x_NW)
    if kept_NK is not None:
        assert summary.rest_BT is not None and given.rest_BT is not None
        share_NW = jnp.exp(x_NW / question.temperature - summary.rest_BT[:, None])
        grad_NW = share_NW * (given.rest_BT / question.temperature)[:, None]
        at_kept = grad_NW.at[rows_N1, kept_NK]
        # The kept are no part of the rest where they stand apart from it.
        change = at_kept.set if question.apart else at_kept.add
        grad_NW = change(given.kept_BTK, mode="drop")
    if target_N1 is not None:
        assert summary.logz_BT is not None
        assert given.logz_BT is not None and given.target_BT is not None
        grad_NW += jnp.exp(x_NW - summary.logz_BT[:, None]) * given.logz_BT[:, None]
        grad_NW = grad_NW.at[rows_N1, target_N1].add(given.target_BT[:, None], mode="drop")
    return grad_NW


def _logsumexp(
    x_NW: jax.Array, temperature: float, without_NW: jax.Array | None = None
) -> jax.Array:
    """log sum exp(x / temperature), [N]; -inf where nothing is left to sum.

    Written out, because jax.nn.logsumexp stores x / temperature.
    """
    if without_NW is not None:
        x_NW = jnp.where(without_NW, -jnp.inf, x_NW)
    max_N = jnp.max(x_NW, axis=1)
    finite_N = jnp.where(jnp.isfinite(max_N), max_N, 0.0)
    total_N = jnp.sum(jnp.exp((x_NW - finite_N[:, None]) / temperature), axis=1)
    return finite_N / temperature + jnp.log(total_N)


def _take(x_NW: jax.Array, places_NK: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_NW, places_NK, axis=1, mode="fill", fill_value=0.0)


def _marked(shape: tuple[int, ...], places_NK: jax.Array) -> jax.Array:
    rows_N1 = jnp.arange(shape[0])[:, None]
    return jnp.zeros(shape, bool).at[rows_N1, places_NK].set(True, mode="drop")


# --- Whole logits


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_whole(question, logits_NV, ids):
    return _summary(question, logits_NV, ids)


def _whole_forward(question, logits_NV, ids):
    summary = _summary(question, logits_NV, ids)
    return summary, (logits_NV, ids, summary)


def _whole_backward(question, residuals, given):
    logits_NV, ids, summary = residuals
    return _cotangent(question, logits_NV, ids, summary, given), None


_of_whole.defvjp(_whole_forward, _whole_backward)


# --- Blocks of logits


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_blocks(question, states_NE, kernel_EV, ids):
    return _blocks_forward(question, states_NE, kernel_EV, ids)[0]


def _blocks_forward(question, states_NE, kernel_EV, ids):
    kernel_ECR = _in_stretches(kernel_EV)

    def add(start: Any, width: int, total: LogitSummary) -> LogitSummary:
        x_NW, _ = _block(states_NE, kernel_ECR, start, width)
        places = _places(ids, kernel_ECR.shape, start, width)
        return _merge(total, _summary(question, x_NW, places))

    rows = states_NE.shape[0]
    zero_N, nothing_N = jnp.zeros(rows, jnp.float32), jnp.full(rows, -jnp.inf, jnp.float32)
    kept_ids_NK, target_ids_N1 = ids
    total = LogitSummary()
    if kept_ids_NK is not None:
        total = total._replace(
            kept_BTK=jnp.zeros(kept_ids_NK.shape, jnp.float32), rest_BT=nothing_N
        )
    if target_ids_N1 is not None:
        total = total._replace(target_BT=zero_N, logz_BT=nothing_N)
    summary = _over_blocks(add, kernel_ECR.shape[2], question.columns, total)
    return summary, (states_NE, kernel_EV, ids, summary)


def _blocks_backward(question, residuals, given):
    states_NE, kernel_EV, ids, summary = residuals
    kernel_ECR = _in_stretches(kernel_EV)

    def add(start: Any, width: int, grads: tuple[jax.Array, jax.Array]) -> Any:
        grad_states_NE, grad_kernel_ECR = grads
        x_NW, kernel_EW = _block(states_NE, kernel_ECR, start, width)
        places = _places(ids, kernel_ECR.shape, start, width)
        grad_NW = _cotangent(question, x_NW, places, summary, given).astype(states_NE.dtype)
        grad_states_NE += _product("NW,EW->NE", grad_NW, kernel_EW)
        grad_EW = _product("NE,NW->EW", states_NE, grad_NW).astype(kernel_ECR.dtype)
        grad_ECW = grad_EW.reshape(*kernel_ECR.shape[:2], width)
        place = (0, 0, start)
        return grad_states_NE, jax.lax.dynamic_update_slice(grad_kernel_ECR, grad_ECW, place)

    grads = jnp.zeros(states_NE.shape, jnp.float32), jnp.zeros_like(kernel_ECR)
    grad_states_NE, grad_kernel_ECR = _over_blocks(
        add, kernel_ECR.shape[2], question.columns, grads
    )
    return (
        grad_states_NE.astype(states_NE.dtype),
        grad_kernel_ECR.reshape(kernel_EV.shape),
        None,
    )


_of_blocks.defvjp(_blocks_forward, _blocks_backward)


def _in_stretches(kernel_EV: jax.Array) -> jax.Array:
    """[E, C, R]: C stretches of R consecutive columns."""
    emb_dim, vocab = kernel_EV.shape
    return kernel_EV.reshape(emb_dim, _stretches(vocab), -1)


def _block(
    states_NE: jax.Array, kernel_ECR: jax.Array, start: Any, width: int
) -> tuple[jax.Array, jax.Array]:
    """(logits, kernel) of the columns [start, start + width) of every stretch."""
    columns_ECW = jax.lax.dynamic_slice_in_dim(kernel_ECR, start, width, axis=2)
    kernel_EW = columns_ECW.reshape(kernel_ECR.shape[0], -1).astype(states_NE.dtype)
    return _product("NE,EW->NW", states_NE, kernel_EW), kernel_EW


def _product(how: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(how, one, other, preferred_element_type=jnp.float32)


def _places(ids: Any, shape: tuple[int, ...], start: Any, width: int) -> Any:
    """Ids as columns of the block; those outside as its width, which is no column."""
    _, stretches, length = shape

    def place(ids_NK: jax.Array) -> jax.Array:
        stretch_NK, column_NK = ids_NK // length, ids_NK % length - start
        inside_NK = (column_NK >= 0) & (column_NK < width)
        return jnp.where(inside_NK, stretch_NK * width + column_NK, stretches * width)

    return jax.tree.map(place, ids)


def _over_blocks(add: Callable[[Any, int, Any], Any], length: int, columns: int, total: Any) -> Any:
    """Folds `add(start, width, total)` over a stretch, in a loop: one block lives at a time."""
    blocks, left = divmod(length, columns)
    total = jax.lax.fori_loop(0, blocks, lambda i, total: add(i * columns, columns, total), total)
    return add(blocks * columns, left, total) if left else total
