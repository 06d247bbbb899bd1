"""Which tensor of a Hugging Face T5 checkpoint is which parameter here: one table, both ways.

There every layer has tensors of its own and a matrix maps [out, in]; here the layers of a
stack share one array [L, in, out]. So a tensor is a parameter's layer, transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dora_jax.checkpoints.placement import is_stack

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


class Source(NamedTuple):
    """The tensor that fills a parameter, or one layer of it."""

    name: str
    shape: tuple[int, ...]  # as stored, [out, in]
    layer: int | None  # None: the parameter is no stack


def is_transposed(path: str) -> bool:
    """Whether the stored tensor is the parameter's transpose: all but the embedding are."""
    return path != _TABLE[EMBEDDING]


def sources(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Source]]:
    """For every parameter the stored tensors it is made of, in layer order.

    Args:
      shapes: of the parameters, by path with dots.
    """
    made_of: dict[str, list[Source]] = {}
    for path, shape in shapes.items():
        layer_shape = shape[1:] if is_stack(path) else shape
        stored_shape = layer_shape[::-1] if is_transposed(path) else layer_shape
        layers = range(shape[0]) if is_stack(path) else (None,)
        name = _THEIR_NAME[path]
        made_of[path] = [Source(name.format(layer), stored_shape, layer) for layer in layers]
    return made_of
