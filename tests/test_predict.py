"""Batch inference: every example as if it were alone, whatever the batches and the devices."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import dora_jax
from dora_jax import predict
from dora_jax.config import LabelConfig, T5Config
from dora_jax.data.token_store import concatenate
from dora_jax.model.decode import greedy_label, target_log_probabilities
from dora_jax.model.t5 import abstract_params
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, Examples

TINY = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=24,
)
SOURCE_LENGTH, LENGTH, EXAMPLES = 70, 6, 11


@pytest.fixture(scope="module")
def params() -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.8, leaf.shape), jnp.float32),
        nn.unbox(abstract_params(TINY)),
    )


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Sources of 1 to 70 tokens, targets of 1 to 6, in no order."""
    rng = np.random.default_rng(1)

    def rows(longest: int) -> list[list[int]]:
        lengths = rng.permutation(np.linspace(1, longest, EXAMPLES).astype(int))
        return [[*rng.integers(2, 24, n - 1).tolist(), EOS_ID] for n in lengths]

    return Examples(*concatenate(rows(SOURCE_LENGTH)), *concatenate(rows(LENGTH)))


@pytest.fixture(scope="module")
def alone(params: Any, examples: Examples) -> list[tuple[list[int], Any]]:
    """Every example's tokens up to its EOS, and their soft labels, decoded in a batch of one."""
    found = []
    for i in range(EXAMPLES):
        source_1S = np.zeros((1, SOURCE_LENGTH), np.int32)
        source_1S[0, : len(examples.source(i))] = examples.source(i)
        tokens_1T, soft = greedy_label(TINY, params, source_1S, LENGTH, 5, (1.0, 2.0))
        tokens = np.asarray(tokens_1T)[0].tolist()
        end = tokens.index(EOS_ID) if EOS_ID in tokens else LENGTH
        found.append((tokens[:end], soft))
    assert len({tuple(tokens) for tokens, _ in found}) > 5, found
    return found


SETTINGS: Any = {"source_length": SOURCE_LENGTH, "target_length": LENGTH}


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (2, 2)])
def test_decoding_keeps_the_order_and_drops_filled_rows(
    params: Any, examples: Examples, alone: list[tuple[list[int], Any]], fsdp: int, tensor: int
) -> None:
    mesh = make_mesh(fsdp=fsdp, tensor=tensor)
    decoded = predict.decode(TINY, params, examples, batch_size=8, mesh=mesh, **SETTINGS)
    assert [tokens.tolist() for tokens in decoded] == [tokens for tokens, _ in alone]


def test_there_is_one_program_for_each_width(params: Any, examples: Examples) -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    cache_size = cast(Any, dora_jax.greedy_decode)._cache_size  # no type of JAX's tells of it
    before = cache_size()
    batches: list[int] = []
    for _ in range(2):
        predict.decode(
            TINY,
            params,
            examples,
            batch_size=2,
            mesh=mesh,
            after_batch=lambda: batches.append(cache_size() - before),
            **SETTINGS,
        )
    assert len(batches) == 12  # the last of each pass with one row filled up
    # Widths are 16, 32, 48, 64 and 70; pairs of neighbours fall into 4 of them at least.
    assert 4 <= batches[5] <= 5
    assert batches[-1] == batches[5]


def test_labels_are_those_of_the_examples_alone(
    params: Any, examples: Examples, alone: list[tuple[list[int], Any]]
) -> None:
    config = LabelConfig(top_k=5, temperatures=(1.0, 2.0), batch_size=3)
    mesh = make_mesh(devices=jax.devices()[:1])
    chosen = [7, 2, 9, 0]
    rows = predict.label(TINY, params, examples, chosen, config, mesh=mesh, **SETTINGS)
    for row, i in zip(rows, chosen, strict=True):
        tokens, soft = alone[i]
        ended = [EOS_ID] if len(tokens) < LENGTH else []
        assert row.tokens_T.tolist() == [*tokens, *ended]
        kept = len(row.tokens_T)
        np.testing.assert_array_equal(row.topk_ids_TK, soft.topk_ids_BTK[0, :kept])
        np.testing.assert_allclose(row.topk_logits_TK, soft.topk_logits_BTK[0, :kept], atol=1e-4)
    forced = predict.label(
        TINY, params, examples, chosen, config, mesh=mesh, forced=True, **SETTINGS
    )
    for row, i in zip(forced, chosen, strict=True):
        np.testing.assert_array_equal(row.tokens_T, examples.target(i))


def test_scores_are_those_of_the_targets_alone(params: Any, examples: Examples) -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    scores = predict.score(TINY, params, examples, batch_size=4, mesh=mesh, **SETTINGS)
    for i, score_T in enumerate(scores):
        source_1S = np.zeros((1, SOURCE_LENGTH), np.int32)
        source_1S[0, : len(examples.source(i))] = examples.source(i)
        target_1T = np.zeros((1, LENGTH), np.int32)
        target_1T[0, : len(examples.target(i))] = examples.target(i)
        expected_1T = target_log_probabilities(TINY, params, source_1S, target_1T)
        assert len(score_T) == len(examples.target(i))
        np.testing.assert_allclose(score_T, expected_1T[0, : len(score_T)], atol=1e-4)
    short = {**SETTINGS, "target_length": LENGTH - 1}
    with pytest.raises(ValueError, match="has 6 tokens; expected 1 to 5"):
        predict.score(TINY, params, examples, batch_size=4, mesh=mesh, **short)
