"""Beam search: transformers' ids, brute force on a small tree, and the rules of the loop."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.checkpoints import huggingface
from dora_jax.model.beam import BeamSearch, beam_decode, beam_search
from dora_jax.model.decode import target_log_probabilities
from dora_jax.model.decoder_step import DecoderCache, KeyValue
from dora_jax.shapes import EOS_ID

THEIR_NAMES: dict[str, Any] = {"full": True, "heuristic": False, "exhaustive": "never"}
LENGTH = 12


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    reference = pytest.importorskip("t5_reference")
    # transformers 5.23 sizes its cache by the encoder's layers, so both stacks have as many.
    model = reference.make_model(request.param, seed=3, num_decoder_layers=2)
    with reference.torch.no_grad():
        model.lm_head.weight[EOS_ID] *= 3.0  # some rows end early
    return model, *huggingface.load(reference.save_model(model, tmp_path_factory.mktemp("t5")))


@pytest.mark.parametrize(
    ("search", "min_length"),
    [
        (BeamSearch(2, 1.0, "heuristic"), 0),
        (BeamSearch(3, 0.0, "exhaustive"), 0),
        (BeamSearch(4, 2.0, "exhaustive"), 0),
        (BeamSearch(5, -1.0, "heuristic"), 4),
        (BeamSearch(8, 0.6, "full"), LENGTH),
        (BeamSearch(8, 0.6, "full"), 0),
    ],
    ids=str,
)
def test_ids_are_those_of_transformers(model: Any, search: BeamSearch, min_length: int) -> None:
    reference = pytest.importorskip("t5_reference")
    theirs, config, params = model
    tokens_BS, _ = reference.random_rows(4, 6, 13, 1)
    expected_BT = reference.generate(
        theirs,
        tokens_BS,
        LENGTH,
        min_new_tokens=min_length,
        num_beams=search.num_beams,
        length_penalty=search.length_penalty,
        early_stopping=THEIR_NAMES[search.early_stopping],
    )
    actual_BKT, score_BK = beam_decode(config, params, tokens_BS, LENGTH, search, min_length)
    np.testing.assert_array_equal(actual_BKT[:, 0], expected_BT)
    assert (np.diff(score_BK, axis=1) <= 0).all()


def test_scores_are_the_log_probabilities_of_the_texts(model: Any) -> None:
    reference = pytest.importorskip("t5_reference")
    _, config, params = model
    tokens_BS, _ = reference.random_rows(4, 6, 13, 1)
    tokens_BS[-1] = 0  # nothing to decode
    search = BeamSearch(3, 0.7, "heuristic")
    texts_BKT, score_BK = beam_decode(config, params, tokens_BS, LENGTH, search)
    assert (np.asarray(texts_BKT[-1]) == 0).all()
    for beam in range(3):
        texts_BT = np.asarray(texts_BKT[:, beam])
        sums_B = target_log_probabilities(config, params, tokens_BS, texts_BT).sum(1)
        is_eos_BT = texts_BT == EOS_ID
        length_B = np.where(is_eos_BT.any(1), is_eos_BT.argmax(1) + 1, LENGTH)
        # A token with id 0 is a text's own here, not padding, and has no probability above.
        plain_B = ((texts_BT != 0).sum(1) == length_B)[:-1]
        assert plain_B.any()
        np.testing.assert_allclose(
            score_BK[:-1, beam][plain_B],
            (sums_B / length_B**search.length_penalty)[:-1][plain_B],
            rtol=1e-4,
        )


def tree_step(log_probs_TUV: jax.Array) -> Any:
    """A step whose distribution depends on the position and the token before."""

    def step(tokens_B: jax.Array, cache: DecoderCache) -> tuple[jax.Array, DecoderCache]:
        # The past holds all tokens so far, so that a beam that took another's shows.
        past = cache.past[0].key_BHND.at[:, 0, cache.position, 0].set(tokens_B)
        last_B = past[:, 0, cache.position, 0].astype(int)
        logits_BV = log_probs_TUV[cache.position, last_B]
        return logits_BV, DecoderCache(cache.position + 1, (KeyValue(past, past),))

    return step


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_as_many_beams_as_texts_find_the_best_text(penalty: float) -> None:
    vocab, length = 4, 3
    rng = np.random.default_rng(7)
    log_probs_TUV = rng.normal(0.0, 2.0, (length, vocab, vocab))
    log_probs_TUV -= np.log(np.exp(log_probs_TUV).sum(-1, keepdims=True))

    def score(text: tuple[int, ...]) -> float:
        pairs = zip((0, *text), text, strict=False)
        total = sum(log_probs_TUV[t, u, v] for t, (u, v) in enumerate(pairs))
        return total / len(text) ** penalty

    texts = [
        text
        for n in range(1, length + 1)
        for text in itertools.product(range(vocab), repeat=n)
        if EOS_ID not in text[:-1] and (text[-1] == EOS_ID or n == length)
    ]
    best = max(texts, key=score)
    beams = 36
    empty = jnp.zeros((beams, 1, length, 1))
    cache = DecoderCache(jnp.int32(0), (KeyValue(empty, empty),))
    tokens_BKT, score_BK = beam_search(
        tree_step(jnp.asarray(log_probs_TUV, jnp.float32)),
        cache,
        jnp.array([False]),
        length,
        BeamSearch(beams, penalty, "exhaustive"),
    )
    assert tuple(tokens_BKT[0, 0].tolist()[: len(best)]) == best
    assert float(score_BK[0, 0]) == pytest.approx(score(best), rel=1e-5)


@pytest.mark.parametrize("settings", [{"num_beams": 1}, {"early_stopping": "soon"}], ids=str)
def test_what_is_no_search_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        BeamSearch(**settings)
