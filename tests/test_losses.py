"""The losses against dense references in float64, at the edges, and position by position."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dora_jax.config import SoftLossConfig, TrainConfig
from dora_jax.data.packing import Example, fill, place
from dora_jax.data.soft_labels import SoftRow
from dora_jax.model.losses import batch_loss, cross_entropy, soft_label_loss
from dora_jax.shapes import Seq2SeqBatch

B, T, V = 3, 5, 40
ONES_BT = np.ones((B, T), np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def soften(
    teacher_BTV: np.ndarray, top_k: int, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the soft-label store keeps of a teacher: ids, logit - maximum, log-normaliser."""
    ids_BTK = np.argsort(-teacher_BTV, axis=-1)[..., :top_k].astype(np.int32)
    below_BTV = teacher_BTV - teacher_BTV.max(axis=-1, keepdims=True)
    logz_BT = np.log(np.exp(below_BTV / temperature).sum(axis=-1))
    logits_BTK = np.take_along_axis(below_BTV, ids_BTK, axis=-1)
    return ids_BTK, logits_BTK.astype(np.float32), logz_BT.astype(np.float32)


def dense_kl(student_BTV, teacher_BTV, ids_BTK, temperature, tail):
    """Mean over the batch of T^2 KL(teacher || student), written over the whole vocabulary."""
    log_q_BTV = jax.nn.log_softmax(student_BTV / temperature)
    log_p_BTV = jax.nn.log_softmax(teacher_BTV / temperature)
    kept_BTV = jax.nn.one_hot(ids_BTK, V, dtype=bool).any(axis=-2)
    if tail == "renormalise":
        log_p_BTV -= jax.nn.logsumexp(log_p_BTV, axis=-1, where=kept_BTV, keepdims=True)
    p_BTV = jnp.exp(log_p_BTV)
    kl_BT = jnp.sum(p_BTV * (log_p_BTV - log_q_BTV), axis=-1, where=kept_BTV)
    if tail == "bucket" and ids_BTK.shape[-1] < V:
        rest_BT = jnp.sum(p_BTV, axis=-1, where=~kept_BTV)
        log_q_rest_BT = jax.nn.logsumexp(log_q_BTV, axis=-1, where=~kept_BTV)
        kl_BT += rest_BT * (jnp.log(rest_BT) - log_q_rest_BT)
    return jnp.sum(kl_BT) * temperature**2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("top_k", [1, 6, V])
def test_soft_loss_and_gradient_are_the_dense_ones(
    rng: np.random.Generator, top_k: int, temperature: float, tail: str
) -> None:
    student_BTV, teacher_BTV = rng.normal(0, 2, (2, B, T, V))
    labels = soften(teacher_BTV, top_k, temperature)
    loss, grad_BTV = soft_loss_and_gradient(
        student_BTV.astype(np.float32), labels, tail, temperature
    )
    want, want_grad_BTV = jax.jit(jax.value_and_grad(dense_kl), static_argnums=(3, 4))(
        student_BTV, teacher_BTV, labels[0], temperature, tail
    )
    assert want_grad_BTV.dtype == np.float64
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(grad_BTV, want_grad_BTV, atol=5e-6 * temperature)


def soft_loss_and_gradient(student_BTV, labels, tail="bucket", temperature=2.0):
    weights_BT = np.ones(student_BTV.shape[:2], np.float32)

    def loss(student_BTV):
        labelled = functools.partial(soft_label_loss, student_BTV, *labels, weights_BT)
        return labelled(temperature=temperature, tail=tail)[0]

    return jax.jit(jax.value_and_grad(loss))(student_BTV)


def test_the_stores_half_precision_is_enough(rng: np.random.Generator) -> None:
    student_BTV, teacher_BTV = rng.normal(0, 3, (2, B, T, V)).astype(np.float32)
    ids_BTK, logits_BTK, logz_BT = soften(teacher_BTV, 8, 2.0)
    exact, exact_grad_BTV = soft_loss_and_gradient(student_BTV, (ids_BTK, logits_BTK, logz_BT))
    half = (ids_BTK, logits_BTK.astype(np.float16), logz_BT)
    loss, grad_BTV = soft_loss_and_gradient(student_BTV, half)
    np.testing.assert_allclose(loss, exact, rtol=1e-3)
    np.testing.assert_allclose(grad_BTV, exact_grad_BTV, atol=2e-3)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(rng: np.random.Generator) -> None:
    teacher_BTV = rng.normal(0, 2, (B, T, V)).astype(np.float32)
    loss, grad_BTV = soft_loss_and_gradient(teacher_BTV, soften(teacher_BTV, 8, 2.0))
    np.testing.assert_allclose(loss, 0.0, atol=1e-4)
    np.testing.assert_allclose(grad_BTV, np.zeros((B, T, V)), atol=1e-5)


# Teacher and student put (nearly) everything on one token each, in all combinations: the
# same one, another kept one, one that was not kept.
@pytest.mark.parametrize("student_choice", [0, 1, 9])
@pytest.mark.parametrize("teacher_gap", [20.0, 1e4])
@pytest.mark.parametrize("student_gap", [20.0, 1e4])
def test_extreme_logits_stay_finite_and_point_at_the_teacher(
    student_gap: float, teacher_gap: float, student_choice: int
) -> None:
    teacher_BTV = np.full((1, 1, V), -teacher_gap)
    teacher_BTV[..., 0] = 0.0
    student_BTV = np.full((1, 1, V), -student_gap, np.float32)
    student_BTV[..., student_choice] = 0.0
    for tail in ("bucket", "renormalise"):
        loss, grad_BTV = soft_loss_and_gradient(student_BTV, soften(teacher_BTV, 4, 2.0), tail)
        assert np.isfinite(loss)
        assert np.isfinite(grad_BTV).all()
        if student_choice != 0:  # T^2 * gap / T, and -T and T on the two choices
            np.testing.assert_allclose(loss, 2.0 * student_gap, rtol=0.01)
            np.testing.assert_allclose(grad_BTV[0, 0, 0], -2.0, rtol=0.01)
            np.testing.assert_allclose(grad_BTV[0, 0, student_choice], 2.0, rtol=0.01)
        elif student_gap == teacher_gap:
            np.testing.assert_allclose(loss, 0.0, atol=0.01)
            np.testing.assert_allclose(grad_BTV, np.zeros_like(grad_BTV), atol=0.01)


# 1 - sum(q) in float32 knows a tail of 6e-3 to 1e-4 of itself, and one of 6e-6 to 0.1.
@pytest.mark.parametrize(("gap", "rtol"), [(16.0, 1e-3), (30.0, 0.2)])
def test_a_student_without_a_tail_is_pulled_towards_one(gap: float, rtol: float) -> None:
    """The teacher leaves 30 % outside the two kept entries, the student next to nothing."""
    p_BTV = np.full((1, 1, V), 0.3 / (V - 2))
    p_BTV[..., :2] = 0.35
    student_BTV = np.full((1, 1, V), -gap, np.float32)
    student_BTV[..., :2] = 0.0
    labels = soften(np.log(p_BTV), 2, 2.0)
    p_BTV = p_BTV**0.5 / (p_BTV**0.5).sum()
    q_BTV = np.exp(student_BTV / 2.0) / np.exp(student_BTV / 2.0).sum()
    outside = p_BTV[..., 2:].sum()
    assert outside > 0.5
    _, grad_BTV = soft_loss_and_gradient(student_BTV, labels, "bucket")
    want_BTV = 2.0 * (q_BTV - p_BTV)  # the teacher's tail is flat, as the student's
    np.testing.assert_allclose(grad_BTV, want_BTV, rtol=rtol)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_cross_entropy_is_optax_plus_t5x_z_loss(rng: np.random.Generator, z_loss: float) -> None:
    logits_BTV = rng.normal(0, 3, (B, T, V)).astype(np.float32)
    targets_BT = rng.integers(0, V, (B, T))
    weights_BT = rng.uniform(0, 2, (B, T)).astype(np.float32)
    total, weight = cross_entropy(jnp.asarray(logits_BTV), targets_BT, weights_BT, z_loss)
    want_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
    logz_BT = np.log(np.exp(logits_BTV.astype(np.float64)).sum(axis=-1))
    want = ((want_BT + z_loss * logz_BT**2) * weights_BT).sum()
    np.testing.assert_allclose(total, want, rtol=1e-6)
    np.testing.assert_allclose(weight, weights_BT.sum(), rtol=1e-6)


def make_batch(rng: np.random.Generator, taught: list[bool]) -> Seq2SeqBatch:
    """One row of 20 targets: 5 an example, with soft labels where taught; the rest padding."""
    examples = []
    for has_teacher in taught:
        target = rng.integers(2, V, T).astype(np.int32)
        ids_TK, logits_TK, logz_T = soften(rng.normal(0, 2, (T, V)), 6, 2.0)
        soft = SoftRow(target, ids_TK, logits_TK.astype(np.float16), logz_T[:, None], ONES_BT[0])
        examples.append(Example(target, target, soft if has_teacher else None))
    lengths = np.full(len(examples), T)
    return fill(examples, place(lengths, lengths, 20, 20), 1, 20, 20)


def make_logits(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 2, (1, 20, V)).astype(np.float32)


def train_config(hard_label_share: float = 0.0, **fields: float) -> TrainConfig:
    soft_loss = SoftLossConfig(hard_label_share=hard_label_share)
    return dataclasses.replace(TrainConfig(soft_loss=soft_loss), **fields)


def loss_weight_gradient(logits_BTV, batch, config, temperature_index=0):
    def loss(logits_BTV):
        return batch_loss(logits_BTV, batch, config, temperature_index)

    (total, weight), grad_BTV = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits_BTV)
    return total, weight, grad_BTV


def soft_part(logits_BTV, batch, where=slice(None)):
    """Loss and gradient of the sliced positions alone, all of them taught."""
    assert batch.logz_BTZ is not None
    labels = (batch.topk_ids_BTK, batch.topk_logits_BTK, batch.logz_BTZ[..., 0])
    return soft_loss_and_gradient(logits_BTV[:, where], [label[:, where] for label in labels])


def hard_part(logits_BTV, batch, where=slice(None), z_loss=0.0):
    """Loss and gradient of the sliced positions alone, by the human's labels."""
    logits_BTV, targets_BT = logits_BTV[:, where], batch.targets_BT[:, where]
    ones_BT = np.ones(targets_BT.shape, np.float32)
    return jax.value_and_grad(lambda x: cross_entropy(x, targets_BT, ones_BT, z_loss)[0])(
        logits_BTV
    )


@pytest.mark.parametrize("taught", [True, False])
def test_what_is_masked_or_padding_contributes_nothing(
    rng: np.random.Generator, taught: bool
) -> None:
    """15 of 20 positions are filled, 12 count: the same as 12 alone, whatever the others say."""
    batch = make_batch(rng, [taught] * 3)
    batch.weights_BT[:, 12:] = 0.0
    logits_BTV = make_logits(rng)
    logits_BTV[:, 14:18, 7] = 1e4
    total, weight, grad_BTV = loss_weight_gradient(logits_BTV, batch, train_config())
    part = soft_part if taught else hard_part
    want, want_grad_BTV = part(logits_BTV, batch, slice(12))
    np.testing.assert_allclose(total, want, rtol=1e-6)
    np.testing.assert_allclose(grad_BTV[:, :12], want_grad_BTV, atol=1e-6)
    assert weight == 12
    assert not np.any(grad_BTV[:, 12:])


def test_a_humans_label_among_soft_ones_takes_the_hard_loss(rng: np.random.Generator) -> None:
    batch = make_batch(rng, [True, False, True])
    assert batch.logz_BTZ is not None
    assert np.isinf(batch.logz_BTZ[0, 5:10]).all()
    logits_BTV = make_logits(rng)
    config = train_config(gold_share=0.3, z_loss=0.01)
    total, weight, grad_BTV = loss_weight_gradient(logits_BTV, batch, config)
    gold, gold_grad_BTV = hard_part(logits_BTV, batch, slice(5, 10), z_loss=0.01)
    soft = [soft_part(logits_BTV, batch, where) for where in (slice(0, 5), slice(10, 15))]
    np.testing.assert_allclose(total, soft[0][0] + gold + soft[1][0], rtol=1e-6)
    want_BTV = np.concatenate([soft[0][1], gold_grad_BTV, soft[1][1]], axis=1)
    np.testing.assert_allclose(grad_BTV[:, :15], want_BTV, atol=1e-6)
    assert weight == 15


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_hard_label_share_mixes_the_two_losses(rng: np.random.Generator, share: float) -> None:
    batch, logits_BTV = make_batch(rng, [True] * 4), make_logits(rng)
    total, weight, _ = loss_weight_gradient(logits_BTV, batch, train_config(share))
    soft, hard = (part(logits_BTV, batch)[0] for part in (soft_part, hard_part))
    assert abs(soft - hard) > 1.0
    np.testing.assert_allclose(total, (1 - share) * soft + share * hard, rtol=1e-6)
    assert weight == 20


def test_the_temperature_index_chooses_the_normaliser(rng: np.random.Generator) -> None:
    batch, logits_BTV = make_batch(rng, [True] * 4), make_logits(rng)
    assert batch.logz_BTZ is not None
    two_BTZ = np.concatenate([batch.logz_BTZ + 0.5, batch.logz_BTZ], axis=-1)
    two = batch._replace(logz_BTZ=two_BTZ)
    want = soft_part(logits_BTV, batch)[0]
    first, second = (loss_weight_gradient(logits_BTV, two, train_config(), i)[0] for i in (0, 1))
    np.testing.assert_allclose(second, want, rtol=1e-6)
    assert abs(first - want) > 1.0
