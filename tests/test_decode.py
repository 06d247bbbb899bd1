"""Greedy decoding: transformers' ids, the uncached network's argmax, and the loop's rules."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_decoder import TINY, drawn_params

import dora_jax
from dora_jax.checkpoints import huggingface
from dora_jax.model.backend import compiling_for
from dora_jax.model.decode import (
    forced_label,
    generate,
    greedy_label,
    largest,
    likeliest,
    summarise_logits,
    target_log_probabilities,
)
from dora_jax.model.t5 import abstract_params
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, PAD_ID

LENGTH = 12


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn_params()


@pytest.fixture(scope="module")
def sources_BS() -> np.ndarray:
    """Twelve padded sources of several lengths, the last of them empty."""
    tokens_BS = np.random.default_rng(1).integers(2, 24, (12, 9)).astype(np.int32)
    for row in range(12):
        tokens_BS[row, 9 - row % 9 :] = PAD_ID
    tokens_BS[-1] = PAD_ID
    return tokens_BS


def ends(tokens_BT: np.ndarray) -> np.ndarray:
    """Position of each row's EOS, or the number of positions."""
    is_eos_BT = np.asarray(tokens_BT) == EOS_ID
    return np.where(is_eos_BT.any(1), is_eos_BT.argmax(1), is_eos_BT.shape[1])


@pytest.mark.parametrize(
    ("version", "source_length", "max_length", "min_length"),
    [("v1.0", 13, LENGTH, 0), ("v1.1", 13, LENGTH, 0), ("v1.1", 200, 40, 40), ("v1.0", 1, 1, 0)],
)
def test_ids_are_those_of_transformers(
    tmp_path: Path, version: str, source_length: int, max_length: int, min_length: int
) -> None:
    reference = pytest.importorskip("t5_reference")
    # transformers 5.23 sizes its cache by the encoder's layers, so both stacks have as many.
    model = reference.make_model(version, seed=3, num_decoder_layers=2)
    with reference.torch.no_grad():
        model.lm_head.weight[EOS_ID] *= 3.0  # some rows end early
    config, params = huggingface.load(reference.save_model(model, tmp_path))
    tokens_BS, _ = reference.random_rows(4, 16, source_length, 1)
    expected_BT = reference.generate(
        model, tokens_BS, max_length, min_new_tokens=min_length, num_beams=1
    )
    ends_B = ends(expected_BT)
    assert ends_B.max() == max_length, ends_B
    assert ends_B.min() < max_length or max_length == 1 or min_length, ends_B
    actual_BT = dora_jax.greedy_decode(config, params, tokens_BS, max_length, min_length)
    np.testing.assert_array_equal(actual_BT, expected_BT)


def test_the_cache_changes_nothing(params: Any, sources_BS: np.ndarray) -> None:
    tokens_BT = np.asarray(dora_jax.greedy_decode(TINY, params, sources_BS, LENGTH))
    assert tokens_BT.shape == (12, LENGTH)
    assert tokens_BT.dtype == np.int32
    inputs_BT = np.concatenate([np.zeros((12, 1), np.int32), tokens_BT[:, :-1]], axis=1)
    logits_BTV = dora_jax.forward(TINY, params, sources_BS, inputs_BT)
    likeliest_BT = np.argmax(logits_BTV, axis=-1)
    ends_B = ends(tokens_BT)
    assert ends_B.min() < LENGTH - 2
    assert (ends_B == LENGTH).sum() > 1  # the empty row is one of them
    for row, end in enumerate(ends_B[:-1]):
        np.testing.assert_array_equal(tokens_BT[row, : end + 1], likeliest_BT[row, : end + 1])
        assert (tokens_BT[row, end + 1 :] == PAD_ID).all()
    assert (tokens_BT[-1] == PAD_ID).all()  # nothing to decode, so nothing decoded


def test_soft_labels_are_those_of_the_uncached_network(params: Any, sources_BS: np.ndarray) -> None:
    tokens_BT, soft = greedy_label(TINY, params, sources_BS, LENGTH, 5, (1.0, 2.0))
    np.testing.assert_array_equal(
        tokens_BT, dora_jax.greedy_decode(TINY, params, sources_BS, LENGTH)
    )
    tokens_BT = np.asarray(tokens_BT)
    inputs_BT = np.concatenate([np.zeros((12, 1), np.int32), tokens_BT[:, :-1]], axis=1)
    logits_BTV = np.asarray(dora_jax.forward(TINY, params, sources_BS, inputs_BT))
    max_BT1 = logits_BTV.max(-1, keepdims=True)
    counted_BT = tokens_BT != PAD_ID
    assert counted_BT.sum() > 40

    def check(actual: jax.Array, expected: np.ndarray) -> None:
        np.testing.assert_allclose(
            np.asarray(actual)[counted_BT], expected[counted_BT], rtol=1e-4, atol=1e-4
        )

    ids_BTK = np.argsort(-logits_BTV, axis=-1, kind="stable")[..., :5]
    np.testing.assert_array_equal(np.asarray(soft.topk_ids_BTK)[counted_BT], ids_BTK[counted_BT])
    np.testing.assert_array_equal(soft.topk_ids_BTK[..., 0][counted_BT], tokens_BT[counted_BT])
    check(soft.topk_logits_BTK, np.take_along_axis(logits_BTV - max_BT1, ids_BTK, -1))
    check(soft.row_max_BT, max_BT1[..., 0])
    logz_BTZ = [np.log(np.exp((logits_BTV - max_BT1) / t).sum(-1)) for t in (1.0, 2.0)]
    check(soft.logz_BTZ, np.stack(logz_BTZ, axis=-1))


def test_forced_soft_labels_of_decoded_tokens_are_those_of_decoding(
    params: Any, sources_BS: np.ndarray
) -> None:
    tokens_BT, decoded = greedy_label(TINY, params, sources_BS, LENGTH, 5, (1.0, 2.0))
    forced = forced_label(TINY, params, sources_BS, tokens_BT, 5, (1.0, 2.0))
    counted_BT = np.asarray(tokens_BT) != PAD_ID
    for name, one, other in zip(forced._fields, forced, decoded, strict=True):
        one, other = np.asarray(one)[counted_BT], np.asarray(other)[counted_BT]
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=name)


def test_bfloat16_decodes_like_the_uncached_network(params: Any, sources_BS: np.ndarray) -> None:
    half = dataclasses.replace(TINY, dtype="bfloat16")
    tokens_BT, decoded = greedy_label(half, params, sources_BS, LENGTH, 5, (1.0,))
    counted_BT = np.asarray(tokens_BT) != PAD_ID
    decoded_B = np.asarray(decoded.row_max_BT)[counted_BT]

    forced = forced_label(half, params, sources_BS, tokens_BT, 5, (1.0,))
    expected_B = np.asarray(forced.row_max_BT)[counted_BT]
    error = np.linalg.norm(decoded_B - expected_B) / np.linalg.norm(expected_B)
    assert error < 0.01  # bfloat16 has 8 bits of mantissa: 0.004 a rounding


def test_target_log_probabilities_are_those_of_the_whole_softmax(
    params: Any, sources_BS: np.ndarray
) -> None:
    targets_BT = np.random.default_rng(5).integers(2, 24, (12, LENGTH)).astype(np.int32)
    targets_BT[3, 4:] = [EOS_ID, *[PAD_ID] * (LENGTH - 5)]
    scores_BT = np.asarray(target_log_probabilities(TINY, params, sources_BS, targets_BT))
    inputs_BT = np.concatenate([np.zeros((12, 1), np.int32), targets_BT[:, :-1]], axis=1)
    logits_BTV = np.array(dora_jax.forward(TINY, params, sources_BS, inputs_BT))
    logits_BTV -= np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    expected_BT = np.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
    expected_BT[3, 5:] = 0.0
    np.testing.assert_allclose(scores_BT, expected_BT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vocab", [3, 128, 700])
def test_the_likeliest_is_the_lowest_id_of_the_largest(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits_BV = rng.integers(-9, 4, (50, vocab)).astype(np.float32)  # full of ties
    logits_BV[0] = -np.inf
    logits_BV[1, -1] = 7.0
    np.testing.assert_array_equal(likeliest(jnp.asarray(logits_BV)), logits_BV.argmax(1))


def test_the_cache_is_split_like_attention(params: Any, sources_BS: np.ndarray) -> None:
    """Rows over data and fsdp, heads over tensor, and the same tokens."""
    mesh = make_mesh(fsdp=2, tensor=2)
    placed = jax.device_put(params, partitioning.tree_shardings(abstract_params(TINY), mesh))
    rows_BS = jax.device_put(sources_BS, partitioning.batch_sharding(mesh))
    rules = tuple(partitioning.RULES.items())
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        program = dora_jax.greedy_decode.lower(TINY, placed, rows_BS, LENGTH).compile()
    loops = [line for line in program.as_text().splitlines() if " while(" in line]  # pyright: ignore[reportOptionalMemberAccess]
    # 12 rows over 4 shards, 2 heads over 2 devices.
    assert any(f"f32[3,1,{LENGTH},8]" in loop for loop in loops)
    assert not re.search(rf"f32\[(?!3,1)\d+,\d+,{LENGTH},8\]", "".join(loops))
    expected_BT = dora_jax.greedy_decode(TINY, params, sources_BS, LENGTH)
    np.testing.assert_array_equal(program(placed, rows_BS), expected_BT)


def test_a_summary_keeps_no_more_than_the_vocabulary() -> None:
    logits_BV = jnp.asarray([[0.0, 2.0, 2.0, -1.0]])
    soft = summarise_logits(logits_BV, top_k=9, temperatures=(1.0,))
    assert soft.topk_ids_BTK.tolist() == [[1, 2, 0, 3]]  # the lowest id first on ties
    assert soft.topk_logits_BTK.tolist() == [[0.0, 0.0, -2.0, -3.0]]
    probabilities = np.exp(soft.topk_logits_BTK - soft.logz_BTZ)
    assert probabilities.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("vocab", "k"), [(65, 2), (97, 3), (128, 3), (1000, 7), (32128, 64)])
def test_the_largest_by_blocks_are_those_of_the_whole_row(vocab: int, k: int) -> None:
    generator = np.random.default_rng(vocab)
    many_ties_BV = generator.integers(-3, 3, (16, vocab)).astype(np.float32)
    few_places_BV = np.where(generator.random((16, vocab)) < 1 / vocab, 1.0, -np.inf)
    ordered_BV = np.sort(generator.standard_normal((16, vocab)))  # all in the last block
    for logits_BV in (many_ties_BV, few_places_BV.astype(np.float32), ordered_BV):
        wanted = jax.lax.top_k(jnp.asarray(logits_BV, jnp.float32), k)
        found = largest(jnp.asarray(logits_BV, jnp.float32), k)
        for wanted_BK, found_BK in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(found_BK, wanted_BK)


def test_no_whole_vocabulary_is_sorted_but_by_a_tpu() -> None:
    """On GPUs XLA's own top-k of more than 16 sorts its whole operand."""

    def widths() -> set[str]:
        traced = jax.jit(lambda x: largest(x, 64)).trace(
            jax.ShapeDtypeStruct((8, 32128), "float32")
        )
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        return set(re.findall(r"chlo\.top_k.*?tensor<8x(\d+)xf32>", text))

    assert widths() == {"1004", "2048"}
    with compiling_for("tpu"):
        assert widths() == {"32128"}


def scripted(script_BTV: np.ndarray, fed: list[list[int]]) -> Any:
    """A step function that plays logits back and writes down what it was fed."""

    def step(tokens_B: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda tokens: fed.append(tokens.tolist()), tokens_B)
        return jnp.asarray(script_BTV)[:, t], t + 1

    return step


def test_the_loop_ends_with_its_rows() -> None:
    # Row 0 says 3, EOS; row 1 says 2 (tied with 3), 2, EOS; row 2 needs no decoding.
    script_BTV = np.zeros((3, 6, 4), np.float32)
    script_BTV[0, 0, 3] = script_BTV[0, 1:, EOS_ID] = 1.0
    script_BTV[1, :2, 2:] = script_BTV[1, 2:, EOS_ID] = 1.0
    script_BTV[2, :, 3] = 1.0
    fed: list[list[int]] = []
    tokens_BT, records = generate(
        scripted(script_BTV, fed),
        jnp.int32(0),
        batch=3,
        max_length=6,
        record=lambda logits_BV: logits_BV[:, 2],
        ended_B=jnp.array([False, False, True]),
    )
    jax.effects_barrier()
    assert tokens_BT.tolist() == [[3, 1, 0, 0, 0, 0], [2, 2, 1, 0, 0, 0], [0] * 6]
    assert fed == [[0, 0, 0], [3, 2, 0], [1, 2, 0]]  # three steps, of at most six
    np.testing.assert_array_equal(records[:, :3], script_BTV[:, :3, 2])
    assert (records[:, 3:] == 0).all()


def test_nothing_is_decoded_where_every_row_is_blank() -> None:
    fed: list[list[int]] = []
    tokens_BT, _ = generate(
        scripted(np.ones((2, 4, 3), np.float32), fed),
        jnp.int32(0),
        batch=2,
        max_length=4,
        ended_B=jnp.ones(2, bool),
    )
    jax.effects_barrier()
    assert fed == []
    assert (tokens_BT == PAD_ID).all()
