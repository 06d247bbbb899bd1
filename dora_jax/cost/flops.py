"""How much arithmetic a T5 does, counted by hand, and how much of a device's peak that is.

XLA's own count takes the body of a scan over layers once, so it cannot be used here. Only
matrix products count, two operations per multiply-add; norms, softmax, embedding look-ups
and the optimizer are left out, as everywhere in the field. Padding does not count, nor do
products that a mask throws away, nor what rematerialisation computes twice: the figure is
useful work, and a share of peak built on it (MFU) cannot be raised by wasting any.
Source: arXiv 2001.08361, section 2.1, and arXiv 2204.02311, appendix B (MFU), with the
layers of arXiv 1910.10683 and 2002.05202.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dora_jax.config import T5Config
from dora_jax.cost import hardware


class TokenCounts(NamedTuple):
    """The tokens of some examples, and the pairs of them that attention looks at."""

    encoder_tokens: int
    decoder_tokens: int
    encoder_pairs: int  # every source token with every one of its example: sum of s²
    decoder_pairs: int  # every target token with itself and those before: sum of t(t + 1)/2
    cross_pairs: int  # every target token with every source token: sum of s·t

    @classmethod
    def from_lengths(
        cls, source_lengths: Sequence[int] | np.ndarray, target_lengths: Sequence[int] | np.ndarray
    ) -> TokenCounts:
        """Counts for examples of these lengths, in tokens without padding.

        Args:
          source_lengths: [examples], integers.
          target_lengths: [examples], integers; example i has both lengths i.
        """
        source = np.asarray(source_lengths, np.int64)
        target = np.asarray(target_lengths, np.int64)
        if source.shape != target.shape or source.ndim != 1:
            raise ValueError(
                f"lengths have shapes {source.shape} and {target.shape}; expected one source and "
                "one target length an example."
            )
        return cls(
            encoder_tokens=int(source.sum()),
            decoder_tokens=int(target.sum()),
            encoder_pairs=int((source * source).sum()),
            decoder_pairs=int((target * (target + 1)).sum()) // 2,
            cross_pairs=int((source * target).sum()),
        )

    @classmethod
    def from_segments(
        cls, encoder_segments_BS: ArrayLike, decoder_segments_BT: ArrayLike
    ) -> TokenCounts:
        """Counts for a packed batch.

        Args:
          encoder_segments_BS: [B, S] integers; segments start at 1, padding is 0.
          decoder_segments_BT: [B, T], the same segments on the other side.
        """
        encoder_segments_BS = np.asarray(encoder_segments_BS)
        decoder_segments_BT = np.asarray(decoder_segments_BT)
        segments = 1 + max(encoder_segments_BS.max(initial=0), decoder_segments_BT.max(initial=0))
        return cls.from_lengths(
            _segment_lengths(encoder_segments_BS, int(segments)),
            _segment_lengths(decoder_segments_BT, int(segments)),
        )


def _segment_lengths(segments_BS: np.ndarray, segments: int) -> np.ndarray:
    """Length of every segment of every row, [B * (segments - 1)]; 0 where a row has none."""
    rows = len(segments_BS)
    numbered_BS = segments_BS + segments * np.arange(rows)[:, None]
    lengths = np.bincount(numbered_BS.ravel(), minlength=rows * segments)
    return lengths.reshape(rows, segments)[:, 1:].ravel()


def parameter_count(config: T5Config) -> int:
    """Number of parameters of a T5, by arithmetic: 76,961,152 for v1.1 small."""
    joined = config.num_heads * config.head_dim
    attention = 4 * config.emb_dim * joined
    mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
    encoder_layer = attention + mlp + 2 * config.emb_dim  # a norm before each block
    decoder_layer = 2 * attention + mlp + 3 * config.emb_dim
    embedding = config.vocab_size * config.emb_dim
    per_stack = config.relative_attention_num_buckets * config.num_heads + config.emb_dim
    return (
        embedding * (1 if config.logits_via_embedding else 2)
        + config.num_encoder_layers * encoder_layer
        + config.num_decoder_layers * decoder_layer
        + 2 * per_stack  # one relative bias and one final norm
    )


def forward_flops(config: T5Config, tokens: TokenCounts) -> float:
    """Operations of one forward pass.

    Args:
      config: the network.
      tokens: what it reads and writes, without padding.

    Returns:
      Floating-point operations, two per multiply-add.
    """
    joined = config.num_heads * config.head_dim
    projection = 2 * config.emb_dim * joined  # one of query, key, value, output; one token
    pair = 4 * joined  # a score and its share of the weighted sum
    mlp = 2 * (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
    encoder_layer = tokens.encoder_tokens * (4 * projection + mlp) + tokens.encoder_pairs * pair
    # Cross-attention makes keys and values from source tokens, queries and outputs from targets.
    decoder_layer = (
        tokens.decoder_tokens * (6 * projection + mlp)
        + tokens.encoder_tokens * 2 * projection
        + (tokens.decoder_pairs + tokens.cross_pairs) * pair
    )
    logits = tokens.decoder_tokens * 2 * config.emb_dim * config.vocab_size
    return float(
        config.num_encoder_layers * encoder_layer
        + config.num_decoder_layers * decoder_layer
        + logits
    )


def training_flops(config: T5Config, tokens: TokenCounts) -> float:
    """Operations of one update: the backward pass does each product twice, for both factors."""
    return 3.0 * forward_flops(config, tokens)


def decoding_flops(config: T5Config, tokens: TokenCounts) -> float:
    """Operations of greedy decoding with a key-value cache.

    Position by position it does the very products of a forward pass over what it wrote,
    once each; only their shapes, and so their speed, differ. `tokens` counts what was
    generated, with its EOS, as targets.
    """
    return forward_flops(config, tokens)


def peak_flops_per_second(device_kind: str) -> float | None:
    """Dense bf16 peak of one JAX device; None for one that is not in the table, like a CPU."""
    found = hardware.find(device_kind)
    return None if found is None else found.peak_bf16_flops_per_second


def mfu(flops: float, seconds: float, device_kind: str, devices: int = 1) -> float | None:
    """Model FLOPs utilisation: useful operations as a share of what the devices could do.

    Args:
      flops: operations done, from the functions above.
      seconds: time they took.
      device_kind: JAX's `device.device_kind`, or an item of the price book.
      devices: how many worked on it.

    Returns:
      A share of 1; None where the peak is not known, or no time passed.
    """
    peak = peak_flops_per_second(device_kind)
    if peak is None or seconds <= 0:
        return None
    return flops / (seconds * peak * devices)
