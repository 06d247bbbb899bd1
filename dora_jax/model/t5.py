"""T5: a scanned encoder and decoder over packed rows, and its parameter tree.

The tree is T5X's scanned one with the layer axis first:

    token_embedder.embedding [V, E]
    encoder.{layers.*, relpos_bias.rel_embedding [H, buckets], encoder_norm.scale}
    decoder.{layers.*, relpos_bias.rel_embedding [H, buckets], decoder_norm.scale}
    logits_dense.kernel [E, V]                  (absent where the embedding serves as head)
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dora_jax import shapes
from dora_jax.config import T5Config
from dora_jax.model.layers import (
    DecoderLayer,
    Dense,
    Dropout,
    EncoderLayer,
    RelativePositionBias,
    RMSNorm,
    Sight,
    by_rows,
    relative_position_buckets,
)
from dora_jax.model.products import matrix_product
from dora_jax.shapes import Seq2SeqBatch

Params = Any  # a nested dict of arrays, as above

# e^6: with it a head gives one neighbour more weight than a row of 64 others together.
NEIGHBOUR_BIAS = 6.0


def _scanned(
    layer: type[EncoderLayer | DecoderLayer],
    config: T5Config,
    microbatches: int,
    length: int,
    broadcast: int,
) -> nn.Module:
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=cast(Any, (nn.broadcast,) * broadcast),  # Flax annotates an int alone
        length=length,
        metadata_params={nn.PARTITION_NAME: shapes.LAYERS},
        unroll=min(config.scan_unroll, length),
    )(config, microbatches, name="layers")


class Embedder(nn.Module):
    """Token embeddings, shared by encoder and decoder."""

    config: T5Config

    def setup(self) -> None:
        config = self.config
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), (shapes.VOCAB, shapes.EMBED)),
            (config.vocab_size, config.emb_dim),
            unbox=True,
        )

    def __call__(self, tokens: shapes.Array) -> jax.Array:
        # A gather: T5X's product with a one-hot matrix costs V times as much on a CPU. Its gradient
        # sums over all places of a token: in bfloat16 that sum would stand still after hundreds.
        return self.embedding.astype(jnp.float32)[tokens].astype(self.config.dtype)


class Encoder(nn.Module):
    """From embeddings [B, S, E] to states [B, S, E] after the final norm."""

    config: T5Config
    microbatches: int = 1

    @nn.compact
    def __call__(self, x_BSE: jax.Array, segments_BS: shapes.Array) -> jax.Array:
        config = self.config
        positions_S = jnp.arange(x_BSE.shape[1])
        position_bias = RelativePositionBias(config, bidirectional=True, name="relpos_bias")(
            positions_S, positions_S
        )
        sight = Sight(same_segment(segments_BS, segments_BS), position_bias)
        drop = Dropout(config.dropout_rate)
        x_BSE, _ = _scanned(EncoderLayer, config, self.microbatches, config.num_encoder_layers, 1)(
            drop(x_BSE), sight
        )
        return drop(RMSNorm(config.dtype, name="encoder_norm")(x_BSE))


class Decoder(nn.Module):
    """From embeddings [B, T, E] and the encoder's states to states [B, T, E]."""

    config: T5Config
    microbatches: int = 1

    @nn.compact
    def __call__(
        self,
        x_BTE: jax.Array,
        encoded_BSE: jax.Array,
        encoder_segments_BS: shapes.Array,
        segments_BT: shapes.Array,
    ) -> jax.Array:
        config = self.config
        length = x_BTE.shape[1]
        positions_T = jnp.arange(length)
        position_bias = RelativePositionBias(config, bidirectional=False, name="relpos_bias")(
            positions_T, positions_T
        )
        causal_TT = jnp.tril(jnp.ones((length, length), bool))
        visible = same_segment(segments_BT, segments_BT) & causal_TT[None]
        drop = Dropout(config.dropout_rate)
        x_BTE, _ = _scanned(DecoderLayer, config, self.microbatches, config.num_decoder_layers, 3)(
            drop(x_BTE),
            encoded_BSE,
            Sight(visible, position_bias),
            Sight(same_segment(segments_BT, encoder_segments_BS)),
        )
        return drop(RMSNorm(config.dtype, name="decoder_norm")(x_BTE))


def same_segment(query_segments_BQ: shapes.Array, key_segments_BN: shapes.Array) -> shapes.Array:
    """True [B, Q, N] where both positions belong to the same segment; segment 0 is padding."""
    same = query_segments_BQ[:, :, None] == key_segments_BN[:, None, :]
    return same & (key_segments_BN[:, None, :] > 0)


class T5(nn.Module):
    """The network. Dropout is active where `apply` is given a "dropout" key.

    The rows of a batch go through each layer in `microbatches` turns; results do not change.
    """

    config: T5Config
    microbatches: int = 1

    def setup(self) -> None:
        config = self.config
        self.token_embedder = Embedder(config)
        self.encoder = Encoder(config, self.microbatches)
        self.decoder = Decoder(config, self.microbatches)
        if not config.logits_via_embedding:
            self.logits_dense = Dense(
                config.vocab_size,
                (shapes.EMBED, shapes.VOCAB),
                config.emb_dim**-0.5,
                config.dtype,
                jnp.float32,
            )

    def encode(self, tokens_BS: shapes.Array, segments_BS: shapes.Array) -> jax.Array:
        """Encoder states [B, S, E] in the activations' dtype."""
        return by_rows(self.encoder(by_rows(self.token_embedder(tokens_BS)), segments_BS))

    def decode(
        self,
        encoded_BSE: jax.Array,
        encoder_segments_BS: shapes.Array,
        inputs_BT: shapes.Array,
        segments_BT: shapes.Array,
    ) -> jax.Array:
        """Decoder states [B, T, E] after the final norm, before the output head."""
        embedded_BTE = by_rows(self.token_embedder(inputs_BT))
        return by_rows(self.decoder(embedded_BTE, encoded_BSE, encoder_segments_BS, segments_BT))

    def logits(self, states_BTE: jax.Array) -> jax.Array:
        """float32 [B, T, V], never rounded to less: bfloat16 has steps of 0.125 beyond 16."""
        config = self.config
        if not config.logits_via_embedding:
            return by_rows(self.logits_dense(states_BTE), shapes.VOCAB)
        # v1.0 scales its states down, because its embedding is initialised at width 1.
        flat_NE = (states_BTE * config.emb_dim**-0.5).reshape(-1, config.emb_dim)
        logits_NV = matrix_product(flat_NE, self.token_embedder.embedding.T, jnp.float32)
        logits_BTV = logits_NV.reshape(*states_BTE.shape[:-1], config.vocab_size)
        return by_rows(logits_BTV, shapes.VOCAB)

    def states(self, batch: Seq2SeqBatch) -> jax.Array:
        """Decoder states [B, T, E] of a packed or plain batch, before the output head."""
        encoded = self.encode(batch.encoder_tokens_BS, batch.encoder_segments_BS)
        return self.decode(
            encoded,
            batch.encoder_segments_BS,
            batch.decoder_inputs_BT,
            batch.decoder_segments_BT,
        )

    def __call__(self, batch: Seq2SeqBatch) -> jax.Array:
        """float32 logits [B, T, V] of a packed or plain batch."""
        return self.logits(self.states(batch))


def plain_batch(encoder_tokens_BS: shapes.Array, decoder_inputs_BT: shapes.Array) -> Seq2SeqBatch:
    """A batch without packing: one example a row, the source padded with 0.

    The decoder's rows carry no mask: their first id is 0 as well, and causality keeps
    padding at the end from being seen. Targets and weights are 0.
    """
    encoder_tokens_BS = jnp.asarray(encoder_tokens_BS)
    decoder_inputs_BT = jnp.asarray(decoder_inputs_BT)
    return Seq2SeqBatch(
        encoder_tokens_BS=encoder_tokens_BS,
        encoder_segments_BS=(encoder_tokens_BS != shapes.PAD_ID).astype(jnp.int32),
        encoder_positions_BS=_positions(encoder_tokens_BS),
        decoder_inputs_BT=decoder_inputs_BT,
        decoder_segments_BT=jnp.ones_like(decoder_inputs_BT),
        decoder_positions_BT=_positions(decoder_inputs_BT),
        targets_BT=jnp.zeros_like(decoder_inputs_BT),
        weights_BT=jnp.zeros(decoder_inputs_BT.shape, jnp.float32),
    )


def _positions(tokens_BN: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(tokens_BN.shape[1], dtype=jnp.int32), tokens_BN.shape)


@functools.partial(jax.jit, static_argnums=0)
def forward(
    config: T5Config,
    params: Params,
    encoder_tokens_BS: shapes.Array,
    decoder_inputs_BT: shapes.Array,
) -> jax.Array:
    """The logits of plain rows, without dropout.

    Args:
      params: the tree at the head of this module, float32.
      encoder_tokens_BS: int32, padded with 0, which nothing attends to.
      decoder_inputs_BT: int32, the targets shifted right behind a 0.

    Returns:
      float32 [B, T, V].
    """
    batch = plain_batch(encoder_tokens_BS, decoder_inputs_BT)
    return cast(jax.Array, T5(config).apply({"params": params}, batch))


def random_params(config: T5Config, seed: int | jax.Array) -> Params:
    """Random parameters in the network's `param_dtype`, boxed with their logical axes."""
    token_11 = jnp.zeros((1, 1), jnp.int32)
    params = T5(config).init(jax.random.key(seed), plain_batch(token_11, token_11))["params"]
    return jax.tree.map(lambda leaf: leaf.astype(config.param_dtype), params)


@functools.cache  # tracing the network takes a tenth of a second
def abstract_params(config: T5Config) -> Params:
    """Shape, dtype and logical axes of every parameter (boxed); no memory is taken."""
    return jax.eval_shape(lambda: random_params(config, 0))


def copying_start(params: Params, network: T5Config) -> Params:
    """Changes random parameters so that training soon finds out how to copy.

    To copy, a head must single out a neighbour by its relative position, and the output head
    must undo the embedding of every token. T5's initial values leave both to training:
    position biases near 0, which Adam moves by a learning rate a step, and a head that knows
    no token. Here half of the heads start out looking at one neighbour each (encoder: -1, +1,
    -2, +2, …; decoder: -1, -2, …), and the output head as the transposed embedding at T5's
    own scale. On a few thousand sentences copying then appears after hundreds of updates
    instead of thousands (docs/benchmarks.md).
    """
    embedding_VE = params["token_embedder"]["embedding"]
    changed = dict(params)
    if not network.logits_via_embedding:
        changed["logits_dense"] = {"kernel": embedding_VE.T * network.emb_dim**-0.5}
    for stack in ("encoder", "decoder"):
        bidirectional = stack == "encoder"
        bias = params[stack]["relpos_bias"]["rel_embedding"]
        for head in range(network.num_heads // 2):
            distance = head // 2 + 1 if bidirectional else head + 1
            offset = distance if bidirectional and head % 2 else -distance
            bucket = relative_position_buckets(
                np.array([0]),
                np.array([offset]),
                bidirectional=bidirectional,
                num_buckets=network.relative_attention_num_buckets,
                max_distance=network.relative_attention_max_distance,
            )[0, 0]
            bias = bias.at[head, bucket].set(NEIGHBOUR_BIAS)
        changed[stack] = {**params[stack], "relpos_bias": {"rel_embedding": bias}}
    return changed
