"""Every layer and block of the network gives what the same part of transformers' T5 gives."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

from dora_jax.checkpoints import huggingface
from dora_jax.model import layers
from dora_jax.model.t5 import same_segment

reference = pytest.importorskip("t5_reference")
torch = reference.torch
BATCH = 3


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = reference.make_model(request.param)
    return model, *huggingface.load(reference.save_model(model, tmp_path_factory.mktemp("t5")))


def states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def padding_mask(length: int) -> np.ndarray:
    """1 on tokens; every row but the first ends with padding."""
    lengths_B = np.maximum(1, length - np.arange(BATCH) * length // BATCH)
    return (np.arange(length)[None] < lengths_B[:, None]).astype(np.int32)


def apply(module: nn.Module, params: Any, *arguments: Any) -> Any:
    return jax.jit(module.apply)({"params": params}, *arguments)


def layer_params(params: Any, stack: str, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], params[stack]["layers"])


def check(actual: Any, expected: Any) -> None:
    assert reference.relative_error(actual, expected.detach().numpy()) < 1e-5


def their_bias(stack: Any, length: int) -> Any:
    return stack.block[0].layer[0].SelfAttention.compute_bias(length, length)


def our_bias(config: Any, params: Any, stack: str, length: int) -> jax.Array:
    positions_N = np.arange(length)
    module = layers.RelativePositionBias(config, bidirectional=stack == "encoder")
    return apply(module, params[stack]["relpos_bias"], positions_N, positions_N)


def test_norm_and_mlp(model: Any) -> None:
    theirs, config, params = model
    x_BSE = states(0, BATCH, 17, config.emb_dim)
    for i in range(config.num_encoder_layers):
        ours, layer = layer_params(params, "encoder", i), theirs.encoder.block[i].layer[1]
        normed = layer.layer_norm(torch.from_numpy(x_BSE))
        check(apply(layers.RMSNorm("float32"), ours["pre_mlp_layer_norm"], x_BSE), normed)
        expected = layer.DenseReluDense(normed)
        check(apply(layers.MLP(config), ours["mlp"], normed.detach().numpy()), expected)


@pytest.mark.parametrize("length", [1, 17, 512])
def test_encoder_blocks(model: Any, length: int) -> None:
    theirs, config, params = model
    mask_BS = padding_mask(length)
    x_BSE = states(length, BATCH, length, config.emb_dim)
    their_mask = torch.from_numpy(np.where(mask_BS, 0.0, -1e10).astype(np.float32))[:, None, None]
    position_bias = their_bias(theirs.encoder, length)
    ours_bias = our_bias(config, params, "encoder", length)
    check(ours_bias, position_bias)
    sight = layers.Sight(same_segment(mask_BS, mask_BS), ours_bias)
    for i, block in enumerate(theirs.encoder.block):
        expected = block(torch.from_numpy(x_BSE), their_mask, position_bias)[0]
        ours = layer_params(params, "encoder", i)
        actual, _ = apply(layers.EncoderLayer(config), ours, x_BSE, sight)
        real = mask_BS > 0  # what padding becomes is nobody's business
        check(np.asarray(actual)[real], expected[torch.from_numpy(real)])


@pytest.mark.parametrize(("source_length", "length"), [(1, 1), (17, 5), (40, 512)])
def test_decoder_blocks(model: Any, source_length: int, length: int) -> None:
    theirs, config, params = model
    mask_BS = padding_mask(source_length)
    encoded_BSE = states(1, BATCH, source_length, config.emb_dim)
    x_BTE = states(2, BATCH, length, config.emb_dim)
    causal_TT = np.tril(np.ones((length, length), bool))
    their_causal = torch.from_numpy(np.where(causal_TT, 0.0, -1e10).astype(np.float32))[None, None]
    their_cross = torch.from_numpy(np.where(mask_BS, 0.0, -1e10).astype(np.float32))[:, None, None]
    position_bias = their_bias(theirs.decoder, length)
    ours_bias = our_bias(config, params, "decoder", length)
    check(ours_bias, position_bias)
    segments_BT = np.ones((BATCH, length), np.int32)
    visible = same_segment(segments_BT, segments_BT) & causal_TT[None]
    own = layers.Sight(visible, ours_bias)
    cross = layers.Sight(same_segment(segments_BT, mask_BS))
    for i, block in enumerate(theirs.decoder.block):
        expected = block(
            torch.from_numpy(x_BTE),
            their_causal,
            position_bias,
            torch.from_numpy(encoded_BSE),
            their_cross,
        )[0]
        ours = layer_params(params, "decoder", i)
        actual, _ = apply(layers.DecoderLayer(config), ours, x_BTE, encoded_BSE, own, cross)
        check(actual, expected)
