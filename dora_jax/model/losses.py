"""The losses of the one training step, as sums over tokens.

All take logits of one batch and return (sum of losses, sum of weights): the step divides,
after adding up microbatches and devices. Logits may come whole or in blocks (`logit_summary`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dora_jax.config import SoftLossConfig, TrainConfig
from dora_jax.model.divergences import divergence, drawn_divergence
from dora_jax.model.logit_summary import BlockedLogits, LogitSummary, summarise
from dora_jax.shapes import Array, Seq2SeqBatch

Logits = Array | BlockedLogits

# Below this share of the probability float32 cannot tell a teacher's tail from rounding.
_TAIL_FLOOR = 1e-7


def cross_entropy(
    logits: Logits, targets_BT: Array, weights_BT: Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of -log p(target), plus `z_loss` * log(Z)^2 (T5X's regulariser).

    Args:
      logits: float32 [B, T, V], or in blocks.
      targets_BT: int32.
      weights_BT: float32; 0 leaves a position out.

    Returns:
      (loss sum in nats, weight sum), float32 scalars.
    """
    loss_BT = _hard_loss(summarise(logits, targets_BT=targets_BT), z_loss)
    return jnp.sum(loss_BT * weights_BT), jnp.sum(weights_BT)


def _hard_loss(summary: LogitSummary, z_loss: float) -> jax.Array:
    assert summary.logz_BT is not None and summary.target_BT is not None
    return summary.logz_BT - summary.target_BT + z_loss * jnp.square(summary.logz_BT)


def soft_label_loss(
    logits: Logits,
    topk_ids_BTK: Array,
    topk_logits_BTK: Array,
    logz_BT: Array,
    weights_BT: Array,
    config: SoftLossConfig,
) -> tuple[jax.Array, jax.Array]:
    """A divergence of teacher and student at a temperature, times its square, from kept entries.

    With p the teacher's softmax(l / T) at the kept ids, r = 1 - sum(p) what lies outside, q the
    student's softmax and s = 1 - sum(q), the divergence is taken between

        bucket        (p, r) and (q, s): the rest is one more class
        renormalise   (p / sum(p), 0) and (q, s): the teacher says nothing else
        sample        the ids are draws from p, and the mean over them estimates the dense loss

    Args:
      logits: the student's, float32 [B, T, V], or in blocks.
      topk_ids_BTK: int32; distinct within a position, but for `sample`.
      topk_logits_BTK: the teacher's logits minus their row maximum.
      logz_BT: log sum exp((l - max) / T) over the whole vocabulary, at this T.
      weights_BT: float32; 0 leaves a position out.

    Returns:
      (loss sum in nats, weight sum), float32 scalars.
    """
    summary = summarise(
        logits,
        kept_ids_BTK=topk_ids_BTK,
        temperature=config.temperature,
        apart=config.tail != "sample",
    )
    whole = topk_ids_BTK.shape[-1] == logits.shape[-1]
    loss_BT = _soft_loss(summary, topk_logits_BTK, logz_BT, config, whole)
    return jnp.sum(loss_BT * weights_BT), jnp.sum(weights_BT)


def _soft_loss(
    summary: LogitSummary,
    topk_logits_BTK: Array,
    logz_BT: Array,
    config: SoftLossConfig,
    whole: bool,
) -> jax.Array:
    """[B, T]; `whole` where every id is kept, so that there is no rest."""
    assert summary.kept_BTK is not None and summary.rest_BT is not None
    temperature, name = config.temperature, config.divergence
    log_p_BTK = jnp.asarray(topk_logits_BTK, jnp.float32) / temperature - logz_BT[..., None]
    kept_BTK = summary.kept_BTK / temperature
    if config.tail == "sample":
        log_q_BTK = kept_BTK - summary.rest_BT[..., None]
        return drawn_divergence(name, log_p_BTK, log_q_BTK) * temperature**2
    # Rounding of the stored logits may take the kept sum above 1.
    log_kept_BT = jax.nn.logsumexp(log_p_BTK, axis=-1)
    rest_BT = -jnp.expm1(jnp.minimum(log_kept_BT, 0.0))
    if config.tail == "renormalise":
        log_p_BTK = log_p_BTK - log_kept_BT[..., None]
        rest_BT = jnp.zeros_like(rest_BT)
    if name == "reverse_kl":
        rest_BT = jnp.maximum(rest_BT, _TAIL_FLOOR)
    if whole:
        return divergence(name, log_p_BTK, jax.nn.log_softmax(kept_BTK)) * temperature**2
    log_p = jnp.concatenate([log_p_BTK, jnp.log(rest_BT)[..., None]], axis=-1)
    log_q = jax.nn.log_softmax(jnp.concatenate([kept_BTK, summary.rest_BT[..., None]], axis=-1))
    return divergence(name, log_p, log_q) * temperature**2


def dense_loss(
    logits_BTV: Array, teacher_logits_BTV: Array, weights_BT: Array, config: SoftLossConfig
) -> tuple[jax.Array, jax.Array]:
    """The divergence from the teacher's logits over the whole vocabulary: the reference.

    Args:
      logits_BTV, teacher_logits_BTV: float32; the teacher's get no gradient.
      weights_BT: float32; 0 leaves a position out.

    Returns:
      (loss sum in nats, weight sum), float32 scalars.
    """
    teacher_BTV = jax.lax.stop_gradient(jnp.asarray(teacher_logits_BTV))
    log_p_BTV = jax.nn.log_softmax(teacher_BTV / config.temperature)
    log_q_BTV = jax.nn.log_softmax(logits_BTV / config.temperature)
    loss_BT = divergence(config.divergence, log_p_BTV, log_q_BTV) * config.temperature**2
    return jnp.sum(loss_BT * weights_BT), jnp.sum(weights_BT)


def batch_loss(
    logits: Logits, batch: Seq2SeqBatch, config: TrainConfig, temperature_index: int
) -> tuple[jax.Array, jax.Array]:
    """The loss a batch asks for: hard without soft labels, soft with them.

    In a soft batch, positions whose `logz` is infinite carry a human's label and no
    teacher's; they take the hard loss. A hard-label share of 1 takes the teacher's tokens
    alone (sequence-level distillation): its probabilities are not even looked at.
    """
    soft = config.soft_loss
    if batch.topk_ids_BTK is None or soft.hard_label_share == 1.0:
        return cross_entropy(logits, batch.targets_BT, batch.weights_BT, config.z_loss)
    assert batch.topk_logits_BTK is not None and batch.logz_BTZ is not None
    if soft.paper_compat:
        raise ValueError(
            "SoftLossConfig.paper_compat counts padding positions, about which cached soft labels "
            "say nothing. Distil from the teacher itself (train.step.make_online_loss_fn), or "
            "set paper_compat = False."
        )
    hard = soft.hard_label_share > 0.0 or config.gold_share > 0.0
    summary = summarise(
        logits,
        kept_ids_BTK=batch.topk_ids_BTK,
        temperature=soft.temperature,
        apart=soft.tail != "sample",
        targets_BT=batch.targets_BT if hard else None,
    )
    logz_BT = batch.logz_BTZ[..., temperature_index]
    taught_BT = jnp.isfinite(logz_BT)
    whole = batch.topk_ids_BTK.shape[-1] == logits.shape[-1]
    loss_BT = _soft_loss(
        summary, batch.topk_logits_BTK, jnp.where(taught_BT, logz_BT, 0.0), soft, whole
    )
    loss_BT = loss_BT * taught_BT * (1.0 - soft.hard_label_share)
    if hard:
        share_BT = jnp.where(taught_BT, soft.hard_label_share, 1.0)
        loss_BT += _hard_loss(summary, config.z_loss) * share_BT
    return jnp.sum(loss_BT * batch.weights_BT), jnp.sum(batch.weights_BT)


def online_loss(
    logits_BTV: Array, teacher_logits_BTV: Array, batch: Seq2SeqBatch, config: TrainConfig
) -> tuple[jax.Array, jax.Array]:
    """The loss of a batch whose teacher is at hand, over the whole vocabulary.

    `paper_compat` counts every position of the rows, padding too, and so divides by B * T: the
    authors' KLDivLoss(reduction="batchmean") over flattened rows. Their rows hold one example
    each, padded to the longest.
    """
    soft = config.soft_loss
    weights_BT = jnp.ones_like(batch.weights_BT) if soft.paper_compat else batch.weights_BT
    total, weight = dense_loss(logits_BTV, teacher_logits_BTV, weights_BT, soft)
    total *= 1.0 - soft.hard_label_share
    if soft.hard_label_share > 0.0:
        hard, _ = cross_entropy(logits_BTV, batch.targets_BT, batch.weights_BT, config.z_loss)
        total += hard * soft.hard_label_share
    return total, weight
