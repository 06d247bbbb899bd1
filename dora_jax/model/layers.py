"""The layers of T5: RMS norm, relative position bias, attention, MLP, and the two blocks.

Parameter names and logical axes are T5X's (t5x/examples/scalable_t5/layers.py), so that
checkpoints convert by renaming. Kernels of attention are stored joined, [E, H*D], because
T5's Adafactor factors exactly that matrix.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jax.ad_checkpoint import checkpoint_name

from dora_jax import shapes
from dora_jax.config import T5Config
from dora_jax.model.attention import attend
from dora_jax.model.products import matrix_product

PRODUCT = "product"  # the name of what a `Dense` gives, for remat policies

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),  # the tanh form, as T5 v1.1
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


class Sight(NamedTuple):
    """What queries see of the keys, the same in all layers of a stack."""

    visible_BQN: shapes.Array  # bool
    position_bias_1HQN: jax.Array | None = None  # float32; cross-attention has none


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout with one random byte an element; no key means no dropout.

    The rate is rounded to the nearest 1/256. Four elements share one random word: on a CPU,
    random words are most of what dropout costs.
    """
    dropped = round(rate * 256)
    if key is None or dropped == 0:
        return x
    *rows, width = x.shape
    words = jax.random.bits(key, (*rows, -(-width // 4)), jnp.uint32)
    random_bytes = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*rows, -1)
    keep = random_bytes[..., :width] >= dropped
    return jnp.where(keep, x * (256.0 / (256 - dropped)), 0).astype(x.dtype)


class Dropout(nn.Module):
    """`dropout` with its key from Flax's "dropout" stream; inactive where that has none."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        active = self.rate > 0.0 and self.has_rng("dropout")
        return dropout(x, self.rate, self.make_rng("dropout") if active else None)


def rms_norm(x: jax.Array, scale: jax.Array, dtype: Any, axis: int = -1) -> jax.Array:
    """Root-mean-square norm in float32, without centring and bias (arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axis, keepdims=True) + 1e-6)
    return (normed * scale).astype(dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its scale."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_E = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones_init(), (shapes.EMBED,)),
            (x.shape[-1],),
            unbox=True,
        )
        return rms_norm(x, jnp.expand_dims(scale_E, range(x.ndim - 1)), self.dtype)


class Dense(nn.Module):
    """A matrix product without bias, as everywhere in T5."""

    features: int
    axes: tuple[str, str]
    stddev: float
    dtype: Any
    result: Any = None  # its dtype, if another

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes),
            (x.shape[-1], self.features),
            unbox=True,
        )
        # Flat, because XLA's CPU backend is half as fast at the kernel's gradient when it has
        # to contract batch and length as two dimensions.
        flat = matrix_product(
            x.reshape(-1, x.shape[-1]).astype(self.dtype), kernel, self.result or self.dtype
        )
        flat = checkpoint_name(flat, PRODUCT)
        return flat.reshape(*x.shape[:-1], self.features)


def relative_position_buckets(
    query_positions_Q: jax.Array | np.ndarray,
    key_positions_N: jax.Array | np.ndarray,
    *,
    bidirectional: bool,
    num_buckets: int,
    max_distance: int,
) -> jax.Array:
    """T5's buckets of key - query: exact when near, logarithmic up to `max_distance`.

    Returns:
      int32 [Q, N] in [0, num_buckets).
    Source: arXiv 1910.10683, section 2.1; t5x scalable_t5 `_relative_position_bucket`.
    """
    distance_QN = jnp.asarray(key_positions_N)[None, :] - jnp.asarray(query_positions_Q)[:, None]
    offset_QN = jnp.zeros_like(distance_QN)
    if bidirectional:
        num_buckets //= 2
        offset_QN = jnp.where(distance_QN > 0, num_buckets, 0)
        distance_QN = jnp.abs(distance_QN)
    else:
        distance_QN = jnp.maximum(-distance_QN, 0)
    exact = num_buckets // 2
    # The logarithm of 0 never counts: those distances are below `exact`.
    log_ratio_QN = jnp.log(jnp.maximum(distance_QN, 1).astype(jnp.float32) / exact)
    far_QN = exact + (log_ratio_QN / np.log(max_distance / exact) * (num_buckets - exact)).astype(
        jnp.int32
    )
    far_QN = jnp.minimum(far_QN, num_buckets - 1)
    return (offset_QN + jnp.where(distance_QN < exact, distance_QN, far_QN)).astype(jnp.int32)


class RelativePositionBias(nn.Module):
    """One learned bias per head and bucket, shared by all layers of a stack.

    In packed rows a segment is contiguous, so differences of row positions are the
    differences of positions within the segment.
    """

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions_Q: jax.Array, key_positions_N: jax.Array) -> jax.Array:
        """Returns float32 [1, H, Q, N]."""
        config = self.config
        embedding = self.param(
            "rel_embedding",
            nn.with_logical_partitioning(
                nn.initializers.normal(config.emb_dim**-0.5),
                (shapes.HEADS, shapes.RELPOS_BUCKETS),
            ),
            (config.num_heads, config.relative_attention_num_buckets),
            unbox=True,
        )
        buckets_QN = relative_position_buckets(
            query_positions_Q,
            key_positions_N,
            bidirectional=self.bidirectional,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        return embedding.astype(jnp.float32)[:, buckets_QN][None]


class Attention(nn.Module):
    """Multi-head attention with an additive bias and, as in T5, no 1/sqrt(D) scaling.

    Dropout leaves a key out for all queries of a head at once, as T5's own (flaxformer
    dense_attention.py and mesh-tensorflow broadcast it along the queries; transformers does not).
    It then is dropout of the values, which no form of attention has to know of.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        joined = config.num_heads * config.head_dim
        into = (shapes.EMBED, shapes.JOINED_KV)
        # The missing 1/sqrt(D) of the logits stands in the initial scale of the query.
        query_std = (config.emb_dim * config.head_dim) ** -0.5
        std = config.emb_dim**-0.5
        self.query = Dense(joined, into, query_std, config.dtype)
        self.key = Dense(joined, into, std, config.dtype)
        self.value = Dense(joined, into, std, config.dtype)
        self.out = Dense(
            config.emb_dim, (shapes.JOINED_KV, shapes.EMBED), joined**-0.5, config.dtype
        )

    def _heads(self, x_BNJ: jax.Array) -> jax.Array:
        return x_BNJ.reshape(*x_BNJ.shape[:-1], self.config.num_heads, self.config.head_dim)

    def _dropped(self, value_BNHD: jax.Array) -> jax.Array:
        rate = self.config.dropout_rate
        if rate == 0.0 or not self.has_rng("dropout"):
            return value_BNHD
        kept_BNH1 = dropout(
            jnp.ones(value_BNHD.shape[:-1], value_BNHD.dtype), rate, self.make_rng("dropout")
        )[..., None]
        return value_BNHD * kept_BNH1

    def __call__(self, x_BQE: jax.Array, attended_BNE: jax.Array, sight: Sight) -> jax.Array:
        """Attends from x to the other states."""
        mixed_BQHD = attend(
            self._heads(self.query(x_BQE)),
            self._heads(self.key(attended_BNE)),
            self._dropped(self._heads(self.value(attended_BNE))),
            *sight,
            self.config.attention,
        )
        return self.out(mixed_BQHD.reshape(*x_BQE.shape[:-1], -1))


class MLP(nn.Module):
    """Feed-forward layer: the product of its activations' branches (one branch in v1.0)."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BNE: jax.Array) -> jax.Array:
        config = self.config
        single = len(config.mlp_activations) == 1
        branches = []
        for i, activation in enumerate(config.mlp_activations):
            branch = Dense(
                config.mlp_dim,
                (shapes.EMBED, shapes.MLP),
                config.emb_dim**-0.5,
                config.dtype,
                name="wi" if single else f"wi_{i}",
            )(x_BNE)
            branches.append(ACTIVATIONS[activation](branch))
        hidden = Dropout(config.dropout_rate)(functools.reduce(operator.mul, branches))
        return Dense(
            config.emb_dim,
            (shapes.MLP, shapes.EMBED),
            config.mlp_dim**-0.5,
            config.dtype,
            name="wo",
        )(hidden)


# What the backward pass finds stored: everything, the results of matrix products, or
# nothing but each layer's input.
_REMAT = {
    "minimal": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _in_turns(layer: EncoderLayer | DecoderLayer, rows: int, arguments: Any) -> jax.Array:
    """`layer.block(*arguments)`, for so many rows in `layer.microbatches` turns.

    Only one turn's intermediate values exist at once, in the backward pass too, where remat
    recomputes them turn by turn. Turns lie within the layer, and not around the whole update,
    because the gradient that the turns add up is then one layer's and not a second tree of all
    parameters; and because shared weights are gathered once for all turns.
    """
    config, turns = layer.config, layer.microbatches
    # The scan over layers keeps XLA from merging the recomputation with the first pass.
    block = _block
    if config.remat_policy != "none":
        block = nn.remat(_block, policy=_REMAT[config.remat_policy], prevent_cse=False)
    if turns == 1:
        return block(layer, *arguments)
    leaves, structure = jax.tree.flatten(arguments)
    pairs = [(leaf.shape[0] == rows, leaf) for leaf in leaves]  # the rest is of every row

    def turn(layer: Any, nothing: None, pieces: list[jax.Array]) -> tuple[None, jax.Array]:
        rest = iter(pieces)
        own = [next(rest) if is_split else leaf for is_split, leaf in pairs]
        return None, block(layer, *jax.tree.unflatten(structure, own))

    scanned = nn.scan(
        turn, variable_broadcast="params", split_rngs={"params": False, "dropout": True}
    )
    # Every turn takes rows from all over the batch, so that each device has its share of each.
    pieces = [
        leaf.reshape(-1, turns, *leaf.shape[1:]).swapaxes(0, 1)
        for is_split, leaf in pairs
        if is_split
    ]
    _, done = scanned(layer, None, pieces)
    return done.swapaxes(0, 1).reshape(rows, *done.shape[2:])


def _block(layer: Any, x: jax.Array, *arguments: Any) -> jax.Array:
    return by_rows(layer.block(by_rows(x), *arguments))


def by_rows(x: jax.Array, last: str | None = None) -> jax.Array:
    """Rows over the devices, `last` by its rule, the rest whole; where the caller set up a mesh.

    Else XLA takes the split of the embedding's columns for that of all activations: then every
    device works on all rows, and holds the logits of all of them.
    """
    return with_logical_constraint(x, (shapes.BATCH, *(x.ndim - 2) * (None,), last))


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each normed before and added to the residual stream."""

    config: T5Config
    microbatches: int = 1

    def setup(self) -> None:
        config = self.config
        self.pre_attention_layer_norm = RMSNorm(config.dtype)
        self.attention = Attention(config)
        self.pre_mlp_layer_norm = RMSNorm(config.dtype)
        self.mlp = MLP(config)
        self.drop = Dropout(config.dropout_rate)

    def __call__(self, x_BSE: jax.Array, sight: Sight) -> tuple[jax.Array, None]:
        return _in_turns(self, len(x_BSE), (x_BSE, sight)), None

    def block(self, x_BSE: jax.Array, sight: Sight) -> jax.Array:
        """The layer on some rows."""
        normed = self.pre_attention_layer_norm(x_BSE)
        x_BSE = x_BSE + self.drop(self.attention(normed, normed, sight))
        return x_BSE + self.drop(self.mlp(self.pre_mlp_layer_norm(x_BSE)))


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and MLP, over whole rows."""

    config: T5Config
    microbatches: int = 1

    def setup(self) -> None:
        config = self.config
        self.pre_self_attention_layer_norm = RMSNorm(config.dtype)
        self.self_attention = Attention(config)
        self.pre_cross_attention_layer_norm = RMSNorm(config.dtype)
        self.encoder_decoder_attention = Attention(config)
        self.pre_mlp_layer_norm = RMSNorm(config.dtype)
        self.mlp = MLP(config)
        self.drop = Dropout(config.dropout_rate)

    def __call__(
        self,
        x_BTE: jax.Array,
        encoded_BSE: jax.Array,
        own: Sight,
        cross: Sight,
    ) -> tuple[jax.Array, None]:
        arguments = (x_BTE, encoded_BSE, own, cross)
        return _in_turns(self, len(x_BTE), arguments), None

    def block(
        self,
        x_BTE: jax.Array,
        encoded_BSE: jax.Array,
        own: Sight,
        cross: Sight,
    ) -> jax.Array:
        """The layer on some rows."""
        normed = self.pre_self_attention_layer_norm(x_BTE)
        x_BTE = x_BTE + self.drop(self.self_attention(normed, normed, own))
        normed = self.pre_cross_attention_layer_norm(x_BTE)
        attended = self.encoder_decoder_attention(normed, encoded_BSE, cross)
        x_BTE = x_BTE + self.drop(attended)
        return x_BTE + self.drop(self.mlp(self.pre_mlp_layer_norm(x_BTE)))
