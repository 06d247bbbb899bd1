"""No sequence of n tokens twice: against transformers' processor, and on a row by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.model.repetition import without_repeats

VOCAB = 7


@pytest.mark.parametrize("ngram_size", [1, 2, 3, 5])
def test_the_same_tokens_are_ruled_out_as_in_transformers(ngram_size: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(ngram_size)
    tokens_BT = rng.integers(0, 2, (16, 12)).astype(np.int32)
    logits_BV = rng.normal(size=(16, VOCAB)).astype(np.float32)
    ours = jax.jit(without_repeats, static_argnums=3)
    ruled_out = 0
    for position in range(12):
        # What stands behind the position must not matter.
        decoded_BT = np.where(np.arange(12) < position, tokens_BT, 1)
        found_BV = np.asarray(ours(logits_BV, decoded_BT, position, ngram_size))
        expected_BV = transformers.NoRepeatNGramLogitsProcessor(ngram_size)(
            torch.LongTensor(tokens_BT[:, :position]),
            torch.FloatTensor(logits_BV),
        )
        np.testing.assert_array_equal(found_BV, expected_BV.numpy())
        ruled_out += int(np.isinf(found_BV).sum())
    assert ruled_out > 10


def test_0_rules_nothing_out() -> None:
    tokens_BT = jnp.ones((2, 4), jnp.int32)
    logits_BV = jnp.ones((2, VOCAB))
    np.testing.assert_array_equal(without_repeats(logits_BV, tokens_BT, jnp.int32(3), 0), logits_BV)
