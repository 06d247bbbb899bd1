"""Which texts people shall label next: drawn, those a model is unsure of, or those unlike the rest.

Each of the three is a fixed order for its inputs, so that the first 100 are among the first 200.
Source of the farthest-first order: Gonzalez 1985; Sener and Savarese, ICLR 2018 (arXiv 1708.00489).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from dora_jax.annotators.similarity import hashed_vectors


def at_random(sources: Sequence[str], count: int, seed: int) -> list[int]:
    """Places of `count` texts, drawn by seed and content, whatever the order of the file."""

    def drawn(place: int) -> bytes:
        return hashlib.sha256(f"{seed}\n{sources[place]}".encode("utf-8", "replace")).digest()

    return sorted(range(len(sources)), key=drawn)[:count]


def most_uncertain(
    sources: Sequence[str], count: int, uncertainty: Mapping[str, float]
) -> list[int]:
    """Places of the texts with the largest uncertainty, ties in the order of the file.

    Raises:
        ValueError: the uncertainty of a text is not known.
    """
    unknown = [source for source in sources if source not in uncertainty]
    if unknown:
        raise ValueError(
            f"The uncertainty of {len(unknown):,} of {len(sources):,} texts is not known, the "
            f"first {unknown[0][:60]!r}. Name a run or a file that covers the pool."
        )
    return sorted(range(len(sources)), key=lambda i: -uncertainty[sources[i]])[:count]


def most_diverse(sources: Sequence[str], count: int, labelled: Sequence[str]) -> list[int]:
    """Places of texts, each the farthest from all that are labelled or chosen before it.

    Distance is 1 − cosine of hashed runs of characters. Where nothing is labelled, the text
    farthest from the mean of all begins.
    """
    vectors_NC = hashed_vectors(sources)
    if labelled:
        nearest_N = np.full(len(sources), -np.inf, np.float32)
        for start in range(0, len(labelled), 512):  # blocks: the whole matrix may be large
            known_MC = hashed_vectors(labelled[start : start + 512])
            nearest_N = np.maximum(nearest_N, (vectors_NC @ known_MC.T).max(axis=1))
    else:
        nearest_N = vectors_NC @ vectors_NC.mean(axis=0)
    chosen: list[int] = []
    for _ in range(min(count, len(sources))):
        place = int(np.argmin(nearest_N))
        first, similarity_N = not chosen and not labelled, vectors_NC @ vectors_NC[place]
        nearest_N = similarity_N if first else np.maximum(nearest_N, similarity_N)
        chosen.append(place)
        nearest_N[chosen] = np.inf
    return chosen
