"""The published T5 networks by name: one table. `gin/models/` has a file for each.

`NETWORKS["t5_1_1_small"]` is `@t5_1_1_small/T5Config()` in gin; a test holds both together.
Vocabulary sizes are rounded up to a multiple of 128, as the checkpoints are.
Source: config.json of google-t5/t5-*, google/t5-v1_1-*, google/flan-t5-*, google/mt5-* on the
hub; t5x/examples/t5/{t5_1_0,t5_1_1,mt5}/*.gin; arXiv 1910.10683, 2002.05202, 2010.11934,
2210.11416.
"""

from __future__ import annotations

import dataclasses

from dora_jax.config import T5Config

_MT5_VOCAB_SIZE = 250_112


def _v1_0(emb_dim: int, layers: int, num_heads: int, head_dim: int, mlp_dim: int) -> T5Config:
    """ReLU; the embedding serves as output head, its input scaled down."""
    return T5Config(
        emb_dim=emb_dim,
        num_heads=num_heads,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        mlp_activations=("relu",),
        logits_via_embedding=True,
    )


def _v1_1(emb_dim: int, layers: int, num_heads: int, mlp_dim: int) -> T5Config:
    """GELU (tanh form) times linear; an output head of its own."""
    return T5Config(
        emb_dim=emb_dim,
        num_heads=num_heads,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        head_dim=64,
        mlp_dim=mlp_dim,
        mlp_activations=("gelu", "linear"),
        logits_via_embedding=False,
    )


_SIZES_1_1 = {
    "small": _v1_1(512, 8, 6, 1024),
    "base": _v1_1(768, 12, 12, 2048),
    "large": _v1_1(1024, 24, 16, 2816),
    "xl": _v1_1(2048, 24, 32, 5120),
    "xxl": _v1_1(4096, 24, 64, 10240),
}

NETWORKS: dict[str, T5Config] = {
    "t5_small": _v1_0(512, 6, 8, 64, 2048),
    "t5_base": _v1_0(768, 12, 12, 64, 3072),
    "t5_large": _v1_0(1024, 24, 16, 64, 4096),
    "t5_3b": _v1_0(1024, 24, 32, 128, 16384),
    "t5_11b": _v1_0(1024, 24, 128, 128, 65536),
    **{f"t5_1_1_{size}": network for size, network in _SIZES_1_1.items()},
    # Flan-T5 is v1.1, trained on.
    **{f"flan_t5_{size}": network for size, network in _SIZES_1_1.items()},
    **{
        f"mt5_{size}": dataclasses.replace(network, vocab_size=_MT5_VOCAB_SIZE)
        for size, network in _SIZES_1_1.items()
    },
}


def network(name: str) -> T5Config:
    """The network of that name.

    Raises:
      ValueError: there is none; names those there are.
    """
    if name not in NETWORKS:
        raise ValueError(f"There is no network {name!r}; there are {', '.join(NETWORKS)}.")
    return NETWORKS[name]
