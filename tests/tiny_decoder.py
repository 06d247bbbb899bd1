"""A tiny network whose decoding ends at many lengths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dora_jax.config import T5Config
from dora_jax.model.t5 import abstract_params
from dora_jax.shapes import EOS_ID

TINY = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=8,
    mlp_dim=24,
)


def drawn_params() -> Any:
    """Its parameters, drawn widely enough that the likeliest tokens differ."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.4, leaf.shape), jnp.float32),
        nn.unbox(abstract_params(TINY)),
    )
    head_EV = params["logits_dense"]["kernel"]
    params["logits_dense"]["kernel"] = head_EV.at[:, EOS_ID].multiply(3.0)  # some rows end early
    return params
