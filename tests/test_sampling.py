"""Sampling: the distribution it claims, transformers' support, and what a seed fixes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import dora_jax
from dora_jax.config import T5Config
from dora_jax.model.sampling import Sampling, draw, sample_decode
from dora_jax.model.t5 import abstract_params
from dora_jax.shapes import EOS_ID, PAD_ID

DRAWS = 20_000
TINY = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=24,
)


def shares(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """How often each token is drawn at evenly spread uniform numbers."""
    uniform_B = (np.arange(DRAWS, dtype=np.float32) + 0.5) / DRAWS
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (DRAWS, len(logits_V)))
    drawn_B = np.asarray(draw(logits_BV, jnp.asarray(uniform_B), sampling))
    return np.bincount(drawn_B, minlength=len(logits_V)) / DRAWS


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=5),
        Sampling(top_p=0.8),
        Sampling(2.0, 9, 0.6),
        Sampling(top_k=400),
        Sampling(top_p=1e-6),
    ],
    ids=str,
)
def test_shares_are_the_probabilities_of_transformers(sampling: Sampling) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits_V = np.random.default_rng(0).normal(0.0, 2.0, 17).astype(np.float32)
    processors = [process.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        processors.append(process.TopKLogitsWarper(sampling.top_k))
    processors.append(process.TopPLogitsWarper(sampling.top_p))
    scores = torch.from_numpy(logits_V)[None]
    for processor in processors:
        scores = processor(None, scores)
    expected_V = torch.softmax(scores, -1)[0].numpy()
    actual_V = shares(logits_V, sampling)
    np.testing.assert_allclose(actual_V, expected_V, atol=2.5 / DRAWS)
    assert (actual_V[expected_V == 0] == 0).all()


def test_by_hand() -> None:
    logits_V = np.log(np.array([0.1, 0.4, 0.3, 0.2]))
    np.testing.assert_allclose(shares(logits_V, Sampling()), [0.1, 0.4, 0.3, 0.2], atol=2e-4)
    # The fewest tokens with at least 0.65 together are 1 and 2.
    of_top_p_V = shares(logits_V, Sampling(top_p=0.65))
    np.testing.assert_allclose(of_top_p_V, [0, 4 / 7, 3 / 7, 0], atol=1e-4)
    np.testing.assert_array_equal(shares(logits_V, Sampling(top_k=1)), [0, 1, 0, 0])


@pytest.fixture(scope="module")
def params() -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32),
        nn.unbox(abstract_params(TINY)),
    )


def test_a_row_depends_on_seed_and_id_and_not_on_its_batch(params: Any) -> None:
    source_BS = np.broadcast_to(np.arange(2, 8, dtype=np.int32), (6, 6)).copy()
    source_BS[4] = PAD_ID
    ids_B = np.array([3, 4, 5, 3, 6, 7], np.int32)
    arguments = (TINY, params, source_BS, 9, Sampling())
    tokens_BT = np.asarray(sample_decode(*arguments, 0, ids_B))
    np.testing.assert_array_equal(sample_decode(*arguments, 0, ids_B), tokens_BT)
    np.testing.assert_array_equal(tokens_BT[0], tokens_BT[3])  # the same id and source
    assert (tokens_BT[4] == PAD_ID).all()
    assert len({tuple(row) for row in tokens_BT}) == 5
    reversed_BT = np.asarray(
        sample_decode(TINY, params, source_BS[::-1], 9, Sampling(), 0, ids_B[::-1])
    )
    np.testing.assert_array_equal(reversed_BT, tokens_BT[::-1])
    other_BT = np.asarray(sample_decode(*arguments, 1, ids_B))
    assert (other_BT != tokens_BT).any()
    ends_BT = np.cumsum(tokens_BT == EOS_ID, axis=1) - (tokens_BT == EOS_ID)
    assert (tokens_BT[ends_BT > 0] == PAD_ID).all()


def test_one_likeliest_token_is_greedy(params: Any) -> None:
    source_BS = np.random.default_rng(2).integers(2, 24, (6, 6)).astype(np.int32)
    greedy_BT = dora_jax.greedy_decode(TINY, params, source_BS, 9)
    ids_B = np.arange(6, dtype=np.int32)
    sampled_BT = sample_decode(TINY, params, source_BS, 9, Sampling(top_k=1), 0, ids_B)
    np.testing.assert_array_equal(sampled_BT, greedy_BT)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}], ids=str)
def test_what_is_no_distribution_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sampling(**settings)
