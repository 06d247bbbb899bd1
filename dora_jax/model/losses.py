"""The two losses of the one training step, as sums over tokens.

Both take logits of one batch and return (sum of losses, sum of weights): the step divides,
after adding up microbatches and devices.
"""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp

from dora_jax.config import TrainConfig
from dora_jax.shapes import Array, Seq2SeqBatch

# Below this share of the probability float32 cannot tell a tail from rounding.
_TAIL_FLOOR = 1e-7


def cross_entropy(
    logits_BTV: jax.Array, targets_BT: Array, weights_BT: Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of -log p(target), plus `z_loss` * log(Z)^2 (T5X's regulariser).

    Args:
      logits_BTV: float32.
      targets_BT: int32.
      weights_BT: float32; 0 leaves a position out.

    Returns:
      (loss sum in nats, weight sum), float32 scalars.
    """
    logz_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_logit_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    loss_BT = logz_BT - target_logit_BT + z_loss * jnp.square(logz_BT)
    return jnp.sum(loss_BT * weights_BT), jnp.sum(weights_BT)


def soft_label_loss(
    logits_BTV: jax.Array,
    topk_ids_BTK: Array,
    topk_logits_BTK: Array,
    logz_BT: Array,
    weights_BT: Array,
    *,
    temperature: float,
    tail: str,
) -> tuple[jax.Array, jax.Array]:
    """Forward KL(teacher || student) at a temperature, times its square, from kept entries.

    With p the teacher's probabilities softmax(l / T) on its K kept entries, r = 1 - sum(p)
    what lies outside, and q the student's softmax over the whole vocabulary:

        bucket        sum_K p log(p / q) + r log(r / (1 - sum_K q))
        renormalise   sum_K p' log(p' / q),  p' = p / sum(p)

    The gradient for the logits is written by hand, T * (q - p) with the tail scaled as a
    whole, so that no teacher array over V and no copy of the student's softmax is kept.

    Args:
      logits_BTV: the student's, float32.
      topk_ids_BTK: int32, distinct within a position.
      topk_logits_BTK: the teacher's logits minus their row maximum.
      logz_BT: log sum exp((l - max) / T) over the whole vocabulary, at this T.
      weights_BT: float32; 0 leaves a position out.

    Returns:
      (loss sum in nats, weight sum), float32 scalars.
    """
    p_BTK = jnp.exp(topk_logits_BTK.astype(jnp.float32) / temperature - logz_BT[..., None])
    rest_BT = jnp.maximum(1.0 - jnp.sum(p_BTK, axis=-1), 0.0)
    if tail == "renormalise":
        p_BTK = p_BTK / jnp.sum(p_BTK, axis=-1, keepdims=True)
        rest_BT = jnp.zeros_like(rest_BT)
    loss_BT = cast(
        jax.Array, _kl_kept_and_rest(temperature, logits_BTV, topk_ids_BTK, p_BTK, rest_BT)
    )
    return jnp.sum(loss_BT * weights_BT), jnp.sum(weights_BT)


def _student(
    temperature: float, logits_BTV: jax.Array, ids_BTK: Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log q of the kept entries, 1 - sum q floored, log Z), at the temperature."""
    logz_BT = jax.nn.logsumexp(logits_BTV / temperature, axis=-1)
    kept_BTK = jnp.take_along_axis(logits_BTV, ids_BTK, axis=-1) / temperature
    log_q_BTK = kept_BTK - logz_BT[..., None]
    rest_BT = jnp.maximum(1.0 - jnp.sum(jnp.exp(log_q_BTK), axis=-1), _TAIL_FLOOR)
    return log_q_BTK, rest_BT, logz_BT


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kl_kept_and_rest(temperature, logits_BTV, ids_BTK, p_BTK, rest_BT):
    return _kl_forward(temperature, logits_BTV, ids_BTK, p_BTK, rest_BT)[0]


def _kl_forward(temperature, logits_BTV, ids_BTK, p_BTK, rest_BT):
    log_q_BTK, q_rest_BT, logz_BT = _student(temperature, logits_BTV, ids_BTK)
    kept_BT = jnp.sum(jax.scipy.special.xlogy(p_BTK, p_BTK) - p_BTK * log_q_BTK, axis=-1)
    tail_BT = jax.scipy.special.xlogy(rest_BT, rest_BT) - rest_BT * jnp.log(q_rest_BT)
    loss_BT = (kept_BT + tail_BT) * temperature**2
    return loss_BT, (logits_BTV, logz_BT, log_q_BTK, q_rest_BT, ids_BTK, p_BTK, rest_BT)


def _kl_backward(temperature, residuals, cotangent_BT):
    logits_BTV, logz_BT, log_q_BTK, q_rest_BT, ids_BTK, p_BTK, rest_BT = residuals
    scale_BT = cotangent_BT * temperature  # T^2 of the loss, 1/T of the logits
    # Outside the kept entries: q_j - r * q_j / q_rest, one factor for the whole row.
    factor_BT = (1.0 - rest_BT / q_rest_BT) * scale_BT
    grad_BTV = jnp.exp(logits_BTV / temperature - logz_BT[..., None]) * factor_BT[..., None]
    kept_BTK = (jnp.exp(log_q_BTK) - p_BTK) * scale_BT[..., None]
    batch, length, _ = logits_BTV.shape
    grad_BTV = grad_BTV.at[
        jnp.arange(batch)[:, None, None], jnp.arange(length)[None, :, None], ids_BTK
    ].set(kept_BTK)
    return grad_BTV, None, None, None


_kl_kept_and_rest.defvjp(_kl_forward, _kl_backward)


def batch_loss(
    logits_BTV: jax.Array, batch: Seq2SeqBatch, config: TrainConfig, temperature_index: int
) -> tuple[jax.Array, jax.Array]:
    """The loss a batch asks for: hard without soft labels, soft with them.

    In a soft batch, positions whose `logz` is infinite carry a human's label and no
    teacher's; they take the hard loss.
    """
    if batch.topk_ids_BTK is None:
        return cross_entropy(logits_BTV, batch.targets_BT, batch.weights_BT, config.z_loss)
    assert batch.topk_logits_BTK is not None and batch.logz_BTZ is not None
    soft = config.soft_loss
    logz_BT = batch.logz_BTZ[..., temperature_index]
    taught_BT = jnp.isfinite(logz_BT)
    total, _ = soft_label_loss(
        logits_BTV,
        batch.topk_ids_BTK,
        batch.topk_logits_BTK,
        jnp.where(taught_BT, logz_BT, 0.0),
        batch.weights_BT * taught_BT * (1.0 - soft.hard_label_share),
        temperature=soft.temperature,
        tail=soft.tail,
    )
    if soft.hard_label_share > 0.0 or config.gold_share > 0.0:
        hard_weights_BT = batch.weights_BT * jnp.where(taught_BT, soft.hard_label_share, 1.0)
        total += cross_entropy(logits_BTV, batch.targets_BT, hard_weights_BT, config.z_loss)[0]
    return total, jnp.sum(batch.weights_BT)
