"""The vocabulary of array shapes: one letter a dimension, one name a logical axis.

An array's name ends in the letters of its dimensions, `logits_BTV`, so that a wrong
product is visible where it is written.

    B  batch: packed rows, or examples where nothing is packed
    S  source (encoder) positions        T  target (decoder) positions
    Q  query positions                   N  key positions
    V  vocabulary                        E  embedding (model) width
    H  attention heads                   D  width of one head
    M  hidden width of the MLP           L  layers of one stack
    K  kept entries of a soft label      Z  temperatures with a stored normaliser
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray

# Logical axes of parameters and activations: T5X's names, so that its users and its
# checkpoints need no translation (t5x/partitioning.py, `standard_logical_axis_rules`).
BATCH = "batch"
LENGTH = "length"
VOCAB = "vocab"
EMBED = "embed"
HEADS = "heads"
KV = "kv"
JOINED_KV = "joined_kv"
MLP = "mlp"
RELPOS_BUCKETS = "relpos_buckets"
LAYERS = "layers"

# Token ids every T5 vocabulary agrees on.
PAD_ID = 0
EOS_ID = 1
UNK_ID = 2


class Seq2SeqBatch(NamedTuple):
    """One update's worth of packed (or plain) encoder–decoder rows.

    Segment ids start at 1; 0 marks padding. Positions restart at 0 in every segment.
    `weights_BT` is 1 where a target token counts and 0 where it does not. The last three
    fields are the teacher's soft labels, aligned with `targets_BT`; they are None in a
    batch of hard labels, and one training step serves both.
    """

    encoder_tokens_BS: Array  # int32
    encoder_segments_BS: Array  # int32
    encoder_positions_BS: Array  # int32
    decoder_inputs_BT: Array  # int32, targets shifted right within each segment
    decoder_segments_BT: Array  # int32
    decoder_positions_BT: Array  # int32
    targets_BT: Array  # int32
    weights_BT: Array  # float32
    topk_ids_BTK: Array | None = None  # int32, descending logit
    topk_logits_BTK: Array | None = None  # float16, logit - row maximum
    logz_BTZ: Array | None = None  # float32, log-normaliser - row maximum / temperature


class Examples(NamedTuple):
    """A split of token sequences without padding, as the token store keeps them.

    Sequence i is `source_tokens[source_offsets[i]:source_offsets[i + 1]]`. Both sides end
    with EOS. Unlabelled text has empty targets.
    """

    source_tokens: np.ndarray  # int32 [total source tokens]
    source_offsets: np.ndarray  # int64 [examples + 1]
    target_tokens: np.ndarray  # int32 [total target tokens]
    target_offsets: np.ndarray  # int64 [examples + 1]

    def __len__(self) -> int:  # a NamedTuple's own len would be its number of fields
        return len(self.source_offsets) - 1

    def source(self, i: int) -> np.ndarray:
        return self.source_tokens[self.source_offsets[i] : self.source_offsets[i + 1]]

    def target(self, i: int) -> np.ndarray:
        return self.target_tokens[self.target_offsets[i] : self.target_offsets[i + 1]]
