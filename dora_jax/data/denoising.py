"""Denoising: making (inputs, targets) out of plain text, for pretraining without labels.

Three tasks: *span corruption* replaces spans of tokens by one sentinel each and asks for the
missing spans, *copying* asks for random pieces back, *extraction* asks for what stands
between a text's frequent pieces. Pure functions of the tokens and a random generator.
Source: arXiv 1910.10683, sections 3.1.4 and 3.3.4.
"""

from __future__ import annotations

import itertools

import numpy as np

from dora_jax.shapes import EOS_ID

_EOS = np.array([EOS_ID], np.int32)


def _segment_lengths(num_items: int, num_segments: int, rng: np.random.Generator) -> list[int]:
    """Lengths (all above 0) of a uniformly random split of items into that many segments."""
    if num_segments == 1:
        return [num_items]
    inner = rng.permutation(num_items - 1)[: num_segments - 1] + 1
    cuts = [0, *sorted(inner.tolist()), num_items]
    return [stop - start for start, stop in itertools.pairwise(cuts)]


def random_spans_noise_mask(
    length: int, rng: np.random.Generator, noise_density: float, mean_span_length: float
) -> np.ndarray:
    """Which tokens to hide: random spans that together cover `noise_density` of the text.

    Args:
      length: tokens in the text. Of a text of one token or none, nothing is hidden.
      rng: advanced by this call.
      noise_density: share of tokens to hide; at least one is hidden and one is kept.
      mean_span_length: mean length of a hidden span, in tokens.
    Returns:
      bool [length].
    Source: `random_spans_noise_mask` with `random_roll` in t5/data/preprocessors.py. T5 rolls
      the mask for short texts, as here: unrolled, the last token would always be hidden and
      the first never.
    """
    if length < 2:
        return np.zeros(length, bool)
    num_noise = min(max(round(length * noise_density), 1), length - 1)
    num_kept = length - num_noise
    num_spans = min(max(round(num_noise / mean_span_length), 1), num_noise, num_kept)
    kept_lengths = _segment_lengths(num_kept, num_spans, rng)
    noise_lengths = _segment_lengths(num_noise, num_spans, rng)
    mask = np.zeros(length, bool)
    position = 0
    for kept, noise in zip(kept_lengths, noise_lengths, strict=True):
        mask[position + kept : position + kept + noise] = True
        position += kept + noise
    shift = int(rng.integers(length))
    return np.concatenate((mask[length - shift :], mask[: length - shift]))


def _span_starts(mask: np.ndarray) -> np.ndarray:
    starts = mask.copy()
    starts[1:] &= ~mask[:-1]
    return starts


def _sentinels(num_spans: int, sentinel_ids: np.ndarray) -> np.ndarray:
    if num_spans > len(sentinel_ids):
        raise ValueError(
            f"Denoising needs {num_spans} sentinels for one text, the vocabulary has "
            f"{len(sentinel_ids)}; shorten the texts, lower noise_density, raise "
            "mean_span_length, or give the vocabulary more extra_ids."
        )
    return sentinel_ids[:num_spans]


def corrupt(tokens: np.ndarray, mask: np.ndarray, sentinel_ids: np.ndarray) -> np.ndarray:
    """The text with each hidden span replaced by one sentinel, then EOS.

    Args:
      tokens: int32 [length], without EOS.
      mask: bool [length], true where hidden.
      sentinel_ids: int32 [sentinels], in the order of use.
    Returns:
      int32 [kept tokens + spans + 1].
    Raises:
      ValueError: the mask has more spans than there are sentinels.
    """
    starts = _span_starts(mask)
    corrupted = tokens.copy()
    corrupted[starts] = _sentinels(int(starts.sum()), sentinel_ids)
    return np.concatenate((corrupted[~mask | starts], _EOS))


def hidden_spans(tokens: np.ndarray, mask: np.ndarray, sentinel_ids: np.ndarray) -> np.ndarray:
    """What `corrupt` hid: sentinel, span, sentinel, span, …, then EOS.

    Args and Raises: as `corrupt`.
    Returns:
      int32 [hidden tokens + spans + 1].
    """
    starts_of_hidden = _span_starts(mask)[mask]
    span_of_hidden = np.cumsum(starts_of_hidden)
    num_hidden = len(span_of_hidden)
    num_spans = int(span_of_hidden[-1]) if num_hidden else 0
    spans = np.empty(num_hidden + num_spans + 1, np.int32)
    places = np.arange(num_hidden) + span_of_hidden
    spans[places] = tokens[mask]
    spans[places[starts_of_hidden] - 1] = _sentinels(num_spans, sentinel_ids)
    spans[-1] = EOS_ID
    return spans


def span_corruption(
    tokens: np.ndarray,
    rng: np.random.Generator,
    noise_density: float,
    mean_span_length: float,
    sentinel_ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """T5's pretraining task: the damaged text in, the missing spans out.

    Args:
      tokens: int32 [length], without EOS.
      rng: advanced by this call.
      noise_density: share of tokens to hide.
      mean_span_length: mean length of a hidden span, in tokens.
      sentinel_ids: int32 [sentinels], in the order of use.
    Returns:
      (inputs, targets), int32, both ending in EOS; targets are EOS alone where nothing is hidden.
    Raises:
      ValueError: one text needs more sentinels than there are.
    """
    mask = random_spans_noise_mask(len(tokens), rng, noise_density, mean_span_length)
    return corrupt(tokens, mask, sentinel_ids), hidden_spans(tokens, mask, sentinel_ids)


def copying(
    length: int, pieces: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random pieces in, the same out.

    Small models learn a few thousand sentences by heart before they learn to copy. Random
    pieces leave them no other way, and show rare ones as often as frequent ones.

    Args:
      length: of the sequence, without EOS.
      pieces: int32 [distinct pieces], to draw from.
      rng: advanced by this call.
    Returns:
      (inputs, targets), int32, equal, both ending in EOS.
    """
    drawn = np.concatenate((rng.choice(pieces, length), _EOS)).astype(np.int32)
    return drawn, drawn


def frequent_pieces(tokens: np.ndarray, share: float) -> np.ndarray:
    """The most frequent pieces that together make up `share` of a text: its function words.

    Args:
      tokens: int32, all tokens of the text.
      share: of the text, in [0, 1).
    Returns:
      int32, ids, sorted.
    """
    ids, counts = np.unique(tokens, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    return np.sort(ids[order[before < share * len(tokens)]]).astype(np.int32)


def extraction(
    tokens: np.ndarray, frequent: np.ndarray, separator: int
) -> tuple[np.ndarray, np.ndarray]:
    """A text in, the stretches between its frequent pieces out, a separator behind each.

    The movements of tagging without its labels: copy a phrase, close it, find the next one.

    Args:
      tokens: int32 [length], without EOS.
      frequent: int32, sorted ids of the pieces to leave out.
      separator: id that closes a stretch, a sentinel.
    Returns:
      (inputs, targets), int32, both ending in EOS.
    """
    kept = ~np.isin(tokens, frequent)
    closes = kept & ~np.append(kept[1:], False)
    places = np.arange(int(kept.sum())) + (np.cumsum(closes) - closes)[kept]
    targets = np.full(int(kept.sum() + closes.sum()) + 1, separator, np.int32)
    targets[places] = tokens[kept]
    targets[-1] = EOS_ID
    return np.concatenate((tokens, _EOS)).astype(np.int32), targets
