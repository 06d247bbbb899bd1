"""Which tensor of a Hugging Face T5 checkpoint is which parameter here: one table, both ways.

There every layer has tensors of its own and a matrix maps [out, in]; here the layers of a
stack share one array [L, in, out]. So a tensor is a parameter's layer, transposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

EMBEDDING = "shared.weight"
HEAD = "lm_head.weight"

# Hugging Face's name → the path in our tree. Source: transformers, models/t5/modeling_t5.py.
_TABLE = {
    EMBEDDING: "token_embedder.embedding",
    "encoder.block.{}.layer.0.layer_norm.weight": "encoder.layers.pre_attention_layer_norm.scale",
    "encoder.block.{}.layer.0.SelfAttention.q.weight": "encoder.layers.attention.query.kernel",
    "encoder.block.{}.layer.0.SelfAttention.k.weight": "encoder.layers.attention.key.kernel",
    "encoder.block.{}.layer.0.SelfAttention.v.weight": "encoder.layers.attention.value.kernel",
    "encoder.block.{}.layer.0.SelfAttention.o.weight": "encoder.layers.attention.out.kernel",
    "encoder.block.{}.layer.1.layer_norm.weight": "encoder.layers.pre_mlp_layer_norm.scale",
    "encoder.block.{}.layer.1.DenseReluDense.wi.weight": "encoder.layers.mlp.wi.kernel",
    "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight": "encoder.layers.mlp.wi_0.kernel",
    "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight": "encoder.layers.mlp.wi_1.kernel",
    "encoder.block.{}.layer.1.DenseReluDense.wo.weight": "encoder.layers.mlp.wo.kernel",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
        "encoder.relpos_bias.rel_embedding"
    ),
    "encoder.final_layer_norm.weight": "encoder.encoder_norm.scale",
    "decoder.block.{}.layer.0.layer_norm.weight": (
        "decoder.layers.pre_self_attention_layer_norm.scale"
    ),
    "decoder.block.{}.layer.0.SelfAttention.q.weight": "decoder.layers.self_attention.query.kernel",
    "decoder.block.{}.layer.0.SelfAttention.k.weight": "decoder.layers.self_attention.key.kernel",
    "decoder.block.{}.layer.0.SelfAttention.v.weight": "decoder.layers.self_attention.value.kernel",
    "decoder.block.{}.layer.0.SelfAttention.o.weight": "decoder.layers.self_attention.out.kernel",
    "decoder.block.{}.layer.1.layer_norm.weight": (
        "decoder.layers.pre_cross_attention_layer_norm.scale"
    ),
    "decoder.block.{}.layer.1.EncDecAttention.q.weight": (
        "decoder.layers.encoder_decoder_attention.query.kernel"
    ),
    "decoder.block.{}.layer.1.EncDecAttention.k.weight": (
        "decoder.layers.encoder_decoder_attention.key.kernel"
    ),
    "decoder.block.{}.layer.1.EncDecAttention.v.weight": (
        "decoder.layers.encoder_decoder_attention.value.kernel"
    ),
    "decoder.block.{}.layer.1.EncDecAttention.o.weight": (
        "decoder.layers.encoder_decoder_attention.out.kernel"
    ),
    "decoder.block.{}.layer.2.layer_norm.weight": "decoder.layers.pre_mlp_layer_norm.scale",
    "decoder.block.{}.layer.2.DenseReluDense.wi.weight": "decoder.layers.mlp.wi.kernel",
    "decoder.block.{}.layer.2.DenseReluDense.wi_0.weight": "decoder.layers.mlp.wi_0.kernel",
    "decoder.block.{}.layer.2.DenseReluDense.wi_1.weight": "decoder.layers.mlp.wi_1.kernel",
    "decoder.block.{}.layer.2.DenseReluDense.wo.weight": "decoder.layers.mlp.wo.kernel",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
        "decoder.relpos_bias.rel_embedding"
    ),
    "decoder.final_layer_norm.weight": "decoder.decoder_norm.scale",
    HEAD: "logits_dense.kernel",
}
_THEIR_NAME = {path: name for name, path in _TABLE.items()}

_SHOWN = 5  # names an error lists before it only counts


class Source(NamedTuple):
    """The tensor that fills a parameter, or one layer of it."""

    name: str
    shape: tuple[int, ...]  # as stored, [out, in]
    layer: int | None  # None: the parameter is no stack


def is_transposed(path: str) -> bool:
    """Whether the stored tensor is the parameter's transpose: all but the embedding are."""
    return path != _TABLE[EMBEDDING]


def sources(params: Any) -> dict[str, list[Source]]:
    """For every parameter (path with dots) the stored tensors it is made of, in layer order.

    Args:
      params: a tree of anything that has a `shape`.
    """
    made_of: dict[str, list[Source]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = ".".join(key.key for key in keys)
        name, shape = _THEIR_NAME[path], tuple(leaf.shape)
        stacked = "{}" in name
        layer_shape = shape[1:] if stacked else shape
        stored_shape = layer_shape[::-1] if is_transposed(path) else layer_shape
        layers = range(shape[0]) if stacked else (None,)
        made_of[path] = [Source(name.format(layer), stored_shape, layer) for layer in layers]
    return made_of


def check(expected: Sequence[Source], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuses a checkpoint that is not exactly the expected tensors.

    Args:
      expected: every tensor of the network.
      found: the stored tensors' shapes by name.
      where: the checkpoint, for the message.

    Raises:
      ValueError: tensors are missing, unknown, or of another shape; names them.
    """
    wanted = {source.name: source.shape for source in expected}
    wrong = {
        "missing": [f"{name} {shape}" for name, shape in wanted.items() if name not in found],
        "unknown": [f"{name} {shape}" for name, shape in found.items() if name not in wanted],
        "of another shape": [
            f"{name} expected {shape}, found {found[name]}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
    }
    if any(wrong.values()):
        parts = [f"{len(names)} {kind}: {_some(names)}" for kind, names in wrong.items() if names]
        raise ValueError(
            f"{where} does not hold the T5 network that its config.json describes. Tensors "
            + "; ".join(parts)
            + ". Compare num_layers, d_model, d_ff, d_kv, num_heads, vocab_size and "
            "feed_forward_proj in config.json with the checkpoint, or download it again."
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
