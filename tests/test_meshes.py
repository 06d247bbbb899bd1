"""Labelling and decoding on meshes that do not divide the network: the same as on one device.

test_step.py holds training steps equal, test_decode.py the decoding cache.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from dora_jax import predict
from dora_jax.config import LabelConfig, T5Config
from dora_jax.data.soft_labels import SoftRow
from dora_jax.data.token_store import concatenate
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, Examples
from dora_jax.train.step import init_params

pytestmark = pytest.mark.usefixtures("compiled_cheaply")
# Three heads over two or eight devices, 36 pieces over eight: neither divides.
NETWORK = T5Config(
    vocab_size=36,
    emb_dim=16,
    num_heads=3,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=24,
)
LABEL = LabelConfig(top_k=6, temperatures=(1.0, 2.0), batch_size=8, widths=1)
LENGTHS: dict[str, Any] = {"source_length": 16, "target_length": 5}
COUNT = 6


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(0)
    sources = [[*rng.integers(2, 36, 2 + i).tolist(), EOS_ID] for i in range(COUNT)]
    return Examples(*concatenate(sources), *concatenate([[] for _ in sources]))


def label(examples: Examples, fsdp: int, tensor: int, devices: int) -> list[SoftRow]:
    mesh = make_mesh(fsdp=fsdp, tensor=tensor, devices=jax.devices()[:devices])
    params = init_params(NETWORK, 0, mesh)
    return predict.label(NETWORK, params, examples, range(COUNT), LABEL, mesh=mesh, **LENGTHS)


@pytest.fixture(scope="module")
def alone(examples: Examples) -> list[SoftRow]:
    rows = label(examples, 1, 1, 1)
    assert len({tuple(row.tokens_T.tolist()) for row in rows}) > 3
    return rows


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 8), (4, 2)])
def test_eight_devices_label_as_one(
    examples: Examples, alone: list[SoftRow], fsdp: int, tensor: int
) -> None:
    for row, expected in zip(label(examples, fsdp, tensor, 8), alone, strict=True):
        np.testing.assert_array_equal(row.tokens_T, expected.tokens_T)
        np.testing.assert_array_equal(row.topk_ids_TK, expected.topk_ids_TK)
        np.testing.assert_allclose(row.logz_TZ, expected.logz_TZ, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(row.row_max_T, expected.row_max_T, rtol=1e-5, atol=1e-5)
