"""The losses against their definitions in float64, at the edges, and position by position."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dora_jax.config import SoftLossConfig, TrainConfig
from dora_jax.data.packing import Example, fill, place
from dora_jax.data.soft_labels import SoftRow
from dora_jax.model.divergences import divergence
from dora_jax.model.losses import batch_loss, cross_entropy, dense_loss, soft_label_loss
from dora_jax.shapes import Seq2SeqBatch
from dora_jax.training_config import DIVERGENCES

B, T, V = 3, 5, 40
ONES_BT = np.ones((B, T), np.float32)
SOFT = SoftLossConfig()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def soften(
    teacher_BTV: np.ndarray, top_k: int, temperature: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the soft-label store keeps of a teacher: ids, logit - maximum, log-normaliser."""
    ids_BTK = np.argsort(-teacher_BTV, axis=-1)[..., :top_k].astype(np.int32)
    below_BTV = teacher_BTV - teacher_BTV.max(axis=-1, keepdims=True)
    logz_BT = np.log(np.exp(below_BTV / temperature).sum(axis=-1))
    logits_BTK = np.take_along_axis(below_BTV, ids_BTK, axis=-1)
    return ids_BTK, logits_BTK.astype(np.float32), logz_BT.astype(np.float32)


def naive_loss(
    student_BTV: np.ndarray, teacher_BTV: np.ndarray, ids_BTK: np.ndarray, config: SoftLossConfig
) -> np.ndarray:
    """[B, T]: T^2 times the divergence, from the definitions, of kept entries and what is left."""

    def classes(logits_BTV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights_BTV = np.exp(logits_BTV / config.temperature)
        weights_BTV /= weights_BTV.sum(axis=-1, keepdims=True)
        kept_BTK = np.take_along_axis(weights_BTV, ids_BTK, axis=-1)
        np.put_along_axis(weights_BTV, ids_BTK, 0.0, axis=-1)
        return kept_BTK, weights_BTV.sum(axis=-1, keepdims=True)

    (p_BTK, r_BT1), (q_BTK, s_BT1) = classes(teacher_BTV), classes(student_BTV)
    if config.tail == "renormalise":
        p_BTK = p_BTK / p_BTK.sum(axis=-1, keepdims=True)
    elif ids_BTK.shape[-1] < V:
        p_BTK, q_BTK = np.concatenate([p_BTK, r_BT1], -1), np.concatenate([q_BTK, s_BT1], -1)
        s_BT1 = np.zeros_like(s_BT1)  # nothing that only the student says
    m_BTK = (p_BTK + q_BTK) / 2
    terms = {
        "forward_kl": p_BTK * np.log(p_BTK / q_BTK),
        "reverse_kl": q_BTK * np.log(q_BTK / p_BTK),
        "jensen_shannon": (p_BTK * np.log(p_BTK / m_BTK) + q_BTK * np.log(q_BTK / m_BTK)) / 2,
        "total_variation": np.abs(p_BTK - q_BTK) / 2,
    }
    alone = {"jensen_shannon": math.log(2.0) / 2, "total_variation": 0.5}  # s log(s / (s / 2)) / 2
    loss_BT = terms[config.divergence].sum(axis=-1)
    loss_BT += alone.get(config.divergence, 0.0) * s_BT1[..., 0]
    return loss_BT * config.temperature**2


def differences(loss: Callable[[np.ndarray], np.ndarray], student_BTV: np.ndarray) -> np.ndarray:
    """The gradient by central differences, of all positions at once: they do not interact."""
    step = 1e-5
    columns = []
    for shift_V in step * np.eye(V):
        higher_BT, lower_BT = loss(student_BTV + shift_V), loss(student_BTV - shift_V)
        columns.append((higher_BT - lower_BT) / (2 * step))
    return np.stack(columns, axis=-1)


DEFINED = [(tail, name) for tail in ("bucket", "renormalise") for name in DIVERGENCES]
DEFINED.remove(("renormalise", "reverse_kl"))


@pytest.mark.parametrize(("tail", "divergence"), DEFINED)
@pytest.mark.parametrize(("top_k", "temperature"), [(1, 2.0), (6, 0.5), (6, 2.0), (V, 2.0)])
def test_soft_loss_and_gradient_are_the_defined_ones(
    rng: np.random.Generator, top_k: int, temperature: float, tail: str, divergence: str
) -> None:
    student_BTV, teacher_BTV = rng.normal(0, 2, (2, B, T, V))
    labels = soften(teacher_BTV, top_k, temperature)
    config = SoftLossConfig(temperature, tail, divergence)
    loss, grad_BTV = soft_loss_and_gradient(student_BTV.astype(np.float32), labels, config)

    def naive(student_BTV: np.ndarray) -> np.ndarray:
        return naive_loss(student_BTV, teacher_BTV, labels[0], config)

    np.testing.assert_allclose(loss, naive(student_BTV).sum(), rtol=2e-5)
    want_BTV = differences(naive, student_BTV)
    np.testing.assert_allclose(grad_BTV, want_BTV, atol=5e-6 * max(temperature, 1.0))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_whole_vocabulary_kept_is_the_dense_loss(
    rng: np.random.Generator, divergence: str
) -> None:
    student_BTV, teacher_BTV = rng.normal(0, 2, (2, B, T, V)).astype(np.float32)
    config = SoftLossConfig(divergence=divergence)
    loss, grad_BTV = soft_loss_and_gradient(student_BTV, soften(teacher_BTV, V, 2.0), config)
    want, want_grad_BTV = dense_loss_and_gradient(student_BTV, teacher_BTV, config)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(grad_BTV, want_grad_BTV, atol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_more_entries_come_nearer_to_the_dense_loss_from_below(
    rng: np.random.Generator, divergence: str
) -> None:
    """Merging classes loses what tells the two apart: the data-processing inequality."""
    student_BTV, teacher_BTV = rng.normal(0, 2, (2, B, T, V)).astype(np.float32)
    config = SoftLossConfig(divergence=divergence)
    losses = [
        float(soft_loss_and_gradient(student_BTV, soften(teacher_BTV, k, 2.0), config)[0])
        for k in (1, 2, 4, 8, 16, 32, V)
    ]
    dense, _ = dense_loss_and_gradient(student_BTV, teacher_BTV, config)
    assert losses[0] < 0.8 * losses[-1]
    assert all(one <= other + 1e-4 for one, other in itertools.pairwise(losses))
    np.testing.assert_allclose(losses[-1], dense, rtol=1e-5)


@functools.partial(jax.jit, static_argnames="config")
def dense_loss_and_gradient(student_BTV, teacher_BTV, config=SOFT):
    weights_BT = np.ones(student_BTV.shape[:2], np.float32)

    def loss(student_BTV):
        return dense_loss(student_BTV, teacher_BTV, weights_BT, config)[0]

    return jax.value_and_grad(loss)(student_BTV)


@functools.partial(jax.jit, static_argnames="config")
def soft_loss_and_gradient(student_BTV, labels, config=SOFT):
    weights_BT = np.ones(student_BTV.shape[:2], np.float32)

    ids_BTK, logits_BTK, logz_BT = labels

    def loss(student_BTV):
        return soft_label_loss(student_BTV, ids_BTK, logits_BTK, logz_BT, weights_BT, config)[0]

    return jax.value_and_grad(loss)(student_BTV)


def test_divergences_of_two_coins_by_hand() -> None:
    log_p, log_q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    want = {
        "forward_kl": 0.5 * math.log(2) + 0.5 * math.log(2 / 3),
        "reverse_kl": 0.25 * math.log(0.5) + 0.75 * math.log(1.5),
        "jensen_shannon": 0.0338220,  # m = (0.375, 0.625)
        "total_variation": 0.25,
    }
    for name in DIVERGENCES:
        np.testing.assert_allclose(divergence(name, log_p, log_q), want[name], atol=1e-6)
        np.testing.assert_allclose(divergence(name, log_p, log_p), 0.0, atol=1e-6)
    with pytest.raises(ValueError, match="no divergence 'kl'"):
        divergence("kl", log_p, log_q)


@pytest.mark.parametrize(
    ("tail", "reason"), [("renormalise", "infinite"), ("sample", "no bounded variance")]
)
def test_what_is_undefined_is_refused_in_words(tail: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"'{tail}' is undefined: .*{reason}.*\"bucket\""):
        SoftLossConfig(tail=tail, divergence="reverse_kl")


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
        labels, config = soften(teacher_BTV, 4, 2.0), SoftLossConfig(tail=tail)
        loss, grad_BTV = soft_loss_and_gradient(student_BTV, labels, config)
        assert np.isfinite(loss)
        assert np.isfinite(grad_BTV).all()
        if student_choice != 0:  # T^2 * gap / T, and -T and T on the two choices
            np.testing.assert_allclose(loss, 2.0 * student_gap, rtol=0.01)
            np.testing.assert_allclose(grad_BTV[0, 0, 0], -2.0, rtol=0.01)
            np.testing.assert_allclose(grad_BTV[0, 0, student_choice], 2.0, rtol=0.01)
        elif student_gap == teacher_gap:
            np.testing.assert_allclose(loss, 0.0, atol=0.01)
            np.testing.assert_allclose(grad_BTV, np.zeros_like(grad_BTV), atol=0.01)


@pytest.mark.parametrize("gap", [16.0, 30.0, 80.0])
def test_a_student_without_a_tail_is_pulled_towards_one(gap: float) -> None:
    """The teacher leaves 30 % outside the two kept entries, the student next to nothing.

    1 - sum(q) in float32 would know a tail of 6e-6 to a tenth of itself, and none of 1e-16.
    """
    p_BTV = np.full((1, 1, V), 0.3 / (V - 2))
    p_BTV[..., :2] = 0.35
    student_BTV = np.full((1, 1, V), -gap, np.float32)
    student_BTV[..., :2] = 0.0
    labels = soften(np.log(p_BTV), 2, 2.0)
    p_BTV = p_BTV**0.5 / (p_BTV**0.5).sum()
    q_BTV = np.exp(student_BTV / 2.0) / np.exp(student_BTV / 2.0).sum()
    outside = p_BTV[..., 2:].sum()
    assert outside > 0.5
    loss, grad_BTV = soft_loss_and_gradient(student_BTV, labels)
    want_BTV = 2.0 * (q_BTV - p_BTV)  # the teacher's tail is flat, as the student's
    np.testing.assert_allclose(grad_BTV, want_BTV, rtol=1e-5)
    # So flat that merging it loses nothing.
    student_BTV = student_BTV.astype(np.float64)
    log_q_BTV = student_BTV / 2 - np.log(np.exp(student_BTV / 2).sum())
    np.testing.assert_allclose(loss, 4 * (p_BTV * (np.log(p_BTV) - log_q_BTV)).sum(), rtol=1e-5)


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


@functools.partial(jax.jit, static_argnames=("config", "temperature_index"))
def loss_weight_gradient(logits_BTV, batch, config, temperature_index=0):
    def loss(logits_BTV):
        return batch_loss(logits_BTV, batch, config, temperature_index)

    (total, weight), grad_BTV = jax.value_and_grad(loss, has_aux=True)(logits_BTV)
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


def test_sequence_level_takes_the_tokens_and_looks_at_no_probability(
    rng: np.random.Generator,
) -> None:
    batch, logits_BTV = make_batch(rng, [True, False, True]), make_logits(rng)
    assert batch.topk_logits_BTK is not None
    broken = batch._replace(topk_logits_BTK=np.full_like(batch.topk_logits_BTK, np.nan))
    total, weight, grad_BTV = loss_weight_gradient(logits_BTV, broken, train_config(1.0))
    want, want_grad_BTV = hard_part(logits_BTV, batch, slice(15))
    np.testing.assert_allclose(total, want, rtol=1e-6)
    np.testing.assert_allclose(grad_BTV[:, :15], want_grad_BTV, atol=1e-6)
    assert weight == 15
    assert not np.any(grad_BTV[:, 15:])


def test_the_temperature_index_chooses_the_normaliser(rng: np.random.Generator) -> None:
    batch, logits_BTV = make_batch(rng, [True] * 4), make_logits(rng)
    assert batch.logz_BTZ is not None
    two_BTZ = np.concatenate([batch.logz_BTZ + 0.5, batch.logz_BTZ], axis=-1)
    two = batch._replace(logz_BTZ=two_BTZ)
    want = soft_part(logits_BTV, batch)[0]
    first, second = (loss_weight_gradient(logits_BTV, two, train_config(), i)[0] for i in (0, 1))
    np.testing.assert_allclose(second, want, rtol=1e-6)
    assert abs(first - want) > 1.0
