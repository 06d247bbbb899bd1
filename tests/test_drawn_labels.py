"""Random-sampling distillation: draws follow the teacher, and estimate without bias."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.config import LabelConfig, RunConfig, SoftLossConfig, T5Config, TrainConfig
from dora_jax.data.soft_labels import SoftLabelHeader, SoftRow
from dora_jax.data.token_store import concatenate
from dora_jax.model.decode import forced_label
from dora_jax.model.drawn_labels import draw_label, drawn_label
from dora_jax.model.losses import dense_loss, soft_label_loss
from dora_jax.parallel.mesh import make_mesh
from dora_jax.predict import label
from dora_jax.shapes import Examples
from dora_jax.train.step import init_params

V, DRAWS, REPEATS = 300, 8, 4000
TEMPERATURE = 2.0
ONE_11 = np.ones((1, 1), np.float32)


@pytest.fixture(scope="module")
def logits() -> tuple[np.ndarray, np.ndarray]:
    """(teacher's, student's) of one position: peaked, with a tail that matters."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, (1, V)).astype(np.float32), rng.normal(0, 3, (1, V)).astype(np.float32)


def draws_of(teacher_1V: np.ndarray, count: int, draws: int = DRAWS) -> Any:
    """Soft labels of the same position, drawn anew `count` times: a batch of them."""
    keys_B = jax.random.split(jax.random.key(0), count)
    teacher_BV = jnp.broadcast_to(teacher_1V, (count, V))
    return jax.jit(draw_label, static_argnums=(2, 3, 4))(
        teacher_BV, keys_B, draws, TEMPERATURE, (1.0, TEMPERATURE)
    )


def softmax(logits_1V: np.ndarray) -> np.ndarray:
    weights_V = np.exp(logits_1V[0].astype(np.float64) / TEMPERATURE)
    return weights_V / weights_V.sum()


def test_every_token_is_drawn_as_often_as_it_is_likely(
    logits: tuple[np.ndarray, np.ndarray],
) -> None:
    label = draws_of(logits[0], REPEATS)
    p_V = softmax(logits[0])
    counts_V = np.bincount(np.asarray(label.topk_ids_BTK).ravel(), minlength=V)
    expected_V = p_V * DRAWS * REPEATS
    deviation_V = np.sqrt(expected_V * (1 - p_V))
    assert np.max(np.abs(counts_V - expected_V) / np.maximum(deviation_V, 1.0)) < 4.5
    assert (counts_V > 0).sum() > 200


def test_draws_come_one_from_each_stratum(logits: tuple[np.ndarray, np.ndarray]) -> None:
    """Not by chance alone: in every single label a token of probability p has p K draws, give
    or take less than 2."""
    label = draws_of(logits[0], 50, draws=64)
    counts_BV = np.stack([np.bincount(ids, minlength=V) for ids in np.asarray(label.topk_ids_BTK)])
    assert np.max(np.abs(counts_BV - 64 * softmax(logits[0]))) < 2.0


def test_logits_and_normalisers_are_those_of_the_ids(
    logits: tuple[np.ndarray, np.ndarray],
) -> None:
    label = draws_of(logits[0], 3)
    log_p_BK = label.topk_logits_BTK / TEMPERATURE - label.logz_BTZ[:, 1:]
    np.testing.assert_allclose(
        np.exp(log_p_BK), softmax(logits[0])[np.asarray(label.topk_ids_BTK)], rtol=1e-5
    )
    np.testing.assert_allclose(label.row_max_BT, logits[0].max())


def test_a_token_of_no_probability_is_never_drawn() -> None:
    """Also at the ends of the vocabulary and of its blocks, where rounding might lead."""
    teacher_1V = np.full((1, V), -np.inf, np.float32)
    allowed = [1, 127, 130, 298]
    teacher_1V[0, allowed] = [0.0, -1.0, 2.0, 1.0]
    ids = np.asarray(draws_of(teacher_1V, 500).topk_ids_BTK)
    assert sorted(set(ids.ravel().tolist())) == allowed


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient_of_each(config: SoftLossConfig, student_1V: Any, label: Any) -> Any:
    """Of every drawn label alone: [REPEATS] and [REPEATS, V]."""

    def one(ids_K, logits_K, logz):
        def loss(student_1V):
            kept = ids_K[None, None], logits_K[None, None], logz[None, None]
            return soft_label_loss(student_1V[None], *kept, ONE_11, config)[0]

        return jax.value_and_grad(loss)(student_1V)

    return jax.vmap(one)(label.topk_ids_BTK, label.topk_logits_BTK, label.logz_BTZ[:, 1])


def largest_z(samples: Any, expected: Any) -> float:
    """How many standard errors the mean is off, at its worst; 1e-6 is rounding."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples)) + 1e-6
    return float(np.max(np.abs(samples.mean(axis=0) - np.asarray(expected)) / error))


@pytest.mark.parametrize("divergence", ["forward_kl", "jensen_shannon", "total_variation"])
def test_loss_and_gradient_are_unbiased(
    logits: tuple[np.ndarray, np.ndarray], divergence: str
) -> None:
    """Over 4,000 labels, no mean is 4.5 standard errors off.

    A token that is drawn a few times in all of them has no standard error to speak of, so the
    gradients for such tokens are added up.
    """
    teacher_1V, student_1V = logits
    config = SoftLossConfig(TEMPERATURE, "sample", divergence)
    losses, grads = loss_and_gradient_of_each(config, student_1V, draws_of(teacher_1V, REPEATS))
    want, want_grad_1V = jax.value_and_grad(
        lambda x: dense_loss(x[None], teacher_1V[None], ONE_11, config)[0]
    )(student_1V)
    rare_V = softmax(teacher_1V) * DRAWS * REPEATS < 50
    grads, want_grad = (
        np.append(
            np.asarray(g)[..., ~rare_V], np.asarray(g)[..., rare_V].sum(-1, keepdims=True), -1
        )
        for g in (grads, want_grad_1V)
    )
    assert np.std(losses) > 0.05 * want  # a single label says little
    assert largest_z(losses, want) < 4.5
    assert largest_z(grads, want_grad) < 4.5
    # The test has power: a bias of 5 % of the gradient would be seen.
    assert largest_z(grads, 1.05 * want_grad) > 5.0


NETWORK = T5Config(
    vocab_size=64, emb_dim=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=4
)


def test_labels_of_given_targets_are_drawn_where_forced_decoding_is() -> None:
    params = init_params(NETWORK, 0, make_mesh(devices=jax.devices()[:1]))
    sources_BS = np.array([[5, 6, 1, 0], [7, 8, 9, 1]], np.int32)
    targets_BT = np.array([[5, 9, 1], [3, 1, 0]], np.int32)
    arguments = (NETWORK, params, sources_BS, targets_BT)
    forced = forced_label(*arguments, 64, (1.0, 2.0))
    drawn = drawn_label(*arguments, np.uint32(3), np.array([10, 11]), 16, 2.0, (1.0, 2.0))
    np.testing.assert_allclose(drawn.logz_BTZ, forced.logz_BTZ, rtol=1e-5)
    np.testing.assert_allclose(drawn.row_max_BT, forced.row_max_BT, rtol=1e-5)
    # All 64 entries of the forced label, by id, at the ids that were drawn.
    by_id_BTV = np.take_along_axis(
        np.asarray(forced.topk_logits_BTK), np.argsort(forced.topk_ids_BTK, axis=-1), axis=-1
    )
    np.testing.assert_allclose(
        drawn.topk_logits_BTK,
        np.take_along_axis(by_id_BTV, np.asarray(drawn.topk_ids_BTK), axis=-1),
        atol=1e-5,
    )
    assert len(np.unique(drawn.topk_ids_BTK[0, 0])) > 4


def test_draws_depend_on_seed_example_and_place_and_not_on_the_batch() -> None:
    params = init_params(NETWORK, 0, make_mesh(devices=jax.devices()[:1]))
    source_S, target_T = np.array([5, 6, 1], np.int32), np.array([5, 5, 5], np.int32)

    def ids(seed: int, rows: list[int]) -> np.ndarray:
        sources, targets = np.tile(source_S, (len(rows), 1)), np.tile(target_T, (len(rows), 1))
        label = drawn_label(
            NETWORK, params, sources, targets, np.uint32(seed), np.array(rows), 16, 2.0, (2.0,)
        )
        return np.asarray(label.topk_ids_BTK)

    first = ids(0, [4, 5])
    np.testing.assert_array_equal(first, ids(0, [5, 4])[::-1])
    for other in (first[1], ids(1, [4, 5])[0]):
        assert (first[0] != other).any()


def test_a_store_says_whether_its_entries_were_drawn() -> None:
    fields = ("a" * 16, "b" * 16, "c" * 16, V, 8, (1.0, 2.0), "greedy")
    assert SoftLabelHeader(*fields).drawn_at == 0.0
    assert SoftLabelHeader(*fields, drawn_at=2.0).drawn_at == 2.0
    with pytest.raises(ValueError, match=r"drawn_at = 3.0 is not among temperatures = \(1.0, 2.0"):
        SoftLabelHeader(*fields, drawn_at=3.0)


def test_the_label_pass_draws_at_the_tokens_it_decodes() -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    params = init_params(NETWORK, 0, mesh)
    sources = concatenate([[5, 6, 1], [7, 8, 9, 1], [9, 1]])
    examples = Examples(*sources, *concatenate([[], [], []]))
    lengths = {"source_length": 4, "target_length": 5, "mesh": mesh}

    def rows(drawn_at: float, seed: int = 0, batch_size: int = 2) -> list[SoftRow]:
        config = LabelConfig(16, (1.0, 2.0), batch_size, drawn_at=drawn_at)
        return label(NETWORK, params, examples, range(3), config, seed=seed, **lengths)

    greedy, drawn, again = rows(0.0), rows(2.0), rows(2.0, batch_size=3)
    for one, other, same in zip(greedy, drawn, again, strict=True):
        np.testing.assert_array_equal(one.tokens_T, other.tokens_T)
        np.testing.assert_allclose(one.logz_TZ, other.logz_TZ, rtol=1e-4)
        np.testing.assert_array_equal(other.topk_ids_TK, same.topk_ids_TK)
        assert set(other.topk_ids_TK[0].tolist()) != set(one.topk_ids_TK[0].tolist())
    assert (drawn[0].topk_ids_TK != rows(2.0, seed=1)[0].topk_ids_TK).any()


def test_a_run_draws_for_its_own_loss() -> None:
    sample = TrainConfig(soft_loss=SoftLossConfig(TEMPERATURE, "sample"))
    RunConfig("r", "rehearsal", distill=sample, label=LabelConfig(drawn_at=TEMPERATURE))
    for label_config, train_config, needed in (
        (LabelConfig(), sample, "needs 2 "),
        (LabelConfig(drawn_at=TEMPERATURE), TrainConfig(), "needs 0 "),
    ):
        with pytest.raises(ValueError, match=needed):
            RunConfig("r", "rehearsal", distill=train_config, label=label_config)
