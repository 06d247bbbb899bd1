"""Rows that take new texts: the same labels as of batches that end as one, in fewer steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from tiny_decoder import TINY, drawn_params

from dora_jax import predict
from dora_jax.config import LabelConfig
from dora_jax.data.soft_labels import SoftRow
from dora_jax.data.token_store import concatenate
from dora_jax.model import refilling
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import Examples

TEXTS, SOURCE, TARGET = 21, 14, 10
TOGETHER = LabelConfig(top_k=4, temperatures=(1.0, 2.0), batch_size=4, widths=2)

pytestmark = pytest.mark.usefixtures("compiled_cheaply")


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn_params()


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(1)
    sources = [rng.integers(2, 24, rng.integers(1, SOURCE + 1)) for _ in range(TEXTS)]
    nothing = [np.zeros(0, np.int32)] * TEXTS
    return Examples(*concatenate(sources), *concatenate(nothing))


def label(
    params: Any, examples: Examples, config: LabelConfig, devices: int = 1, **more: Any
) -> list[SoftRow]:
    mesh = make_mesh(fsdp=1, tensor=1, devices=jax.devices()[:devices])
    lengths = {"source_length": SOURCE, "target_length": TARGET}
    indices = range(len(examples) - 1)  # not all, so that places and indices differ
    return predict.label(TINY, params, examples, indices, config, mesh=mesh, **lengths, **more)


def assert_same(found: list[SoftRow], wanted: list[SoftRow]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.tokens_T, other.tokens_T)
        for part, wanted_part in zip(one[1:], other[1:], strict=True):
            np.testing.assert_allclose(part, wanted_part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "share", "ngram"), [(4, 0.25, 0), (4, 1.0, 2), (3, 0.5, 2), (64, 0.125, 0)]
)
def test_labels_are_those_of_batches_that_end_as_one(
    params: Any, examples: Examples, batch_size: int, share: float, ngram: int
) -> None:
    together = dataclasses.replace(TOGETHER, no_repeat_ngram_size=ngram)
    wanted = label(params, examples, together)
    refilled = dataclasses.replace(together, batch_size=batch_size, refill_share=share)
    counted: list[int] = []
    assert_same(label(params, examples, refilled, after_batch=counted.append), wanted)
    assert sum(counted) == TEXTS - 1
    assert len({len(row.tokens_T) for row in wanted}) > 3  # or this would show little


def test_a_mesh_changes_nothing(params: Any, examples: Examples) -> None:
    wanted = label(params, examples, TOGETHER)
    refilled = dataclasses.replace(TOGETHER, refill_share=0.25)
    assert_same(label(params, examples, refilled, devices=2), wanted)


def test_fewer_steps(params: Any, examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    advance = refilling.advance

    def counting(how: Any, prepared: Any, rows: Any, enough: Any) -> Any:
        nonlocal steps
        before_B = np.array(rows.cache.position)
        rows = advance(how, prepared, rows, enough)
        steps += int((np.asarray(rows.cache.position) - before_B).max())
        return rows

    monkeypatch.setattr(refilling, "advance", counting)
    one_width = dataclasses.replace(TOGETHER, widths=1)
    wanted = label(params, examples, one_width)
    label(params, examples, dataclasses.replace(one_width, refill_share=0.25))
    source_lengths = [len(examples.source(i)) for i in range(TEXTS - 1)]
    longest_first = np.argsort(-np.array(source_lengths), kind="stable")
    answers = np.array([len(row.tokens_T) for row in wanted])[longest_first]
    together = sum(int(answers[i : i + 4].max()) for i in range(0, TEXTS - 1, 4))
    assert answers.sum() / 4 <= steps < together


def test_drawn_answers_are_not_refilled(params: Any, examples: Examples) -> None:
    drawn = dataclasses.replace(TOGETHER, sampling_temperature=1.0)
    refilled = dataclasses.replace(drawn, refill_share=0.5)
    assert_same(label(params, examples, refilled), label(params, examples, drawn))


@pytest.mark.parametrize("share", [-0.5, 1.5])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=rf"refill_share = {share}; it must lie in \[0, 1\]"):
        LabelConfig(refill_share=share)
