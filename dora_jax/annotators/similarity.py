"""How alike two texts are, by the runs of characters that they share."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

LENGTH = 3  # characters of a run
COLUMNS = 1024  # of hashed vectors


def ngrams(text: str) -> frozenset[str]:
    """The runs of `LENGTH` characters of a text in lower case, its ends marked by a space."""
    padded = f" {' '.join(text.lower().split())} "
    return frozenset(padded[i : i + LENGTH] for i in range(max(len(padded) - LENGTH + 1, 1)))


class Nearest:
    """Finds those of a fixed list of texts that are most like a given one.

    Similarity is Jaccard's: shared runs over all runs of the two texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._sizes = np.array([len(ngrams(text)) for text in texts], np.float64)
        places: defaultdict[str, list[int]] = defaultdict(list)
        for i, text in enumerate(texts):
            for ngram in ngrams(text):
                places[ngram].append(i)
        self._places = {ngram: np.array(found) for ngram, found in places.items()}

    def order(self, text: str) -> list[int]:
        """Places of all texts, the most similar first, ties in the order of the list."""
        wanted = ngrams(text)
        found = [self._places[ngram] for ngram in wanted if ngram in self._places]
        shared = np.zeros(len(self._sizes))
        if found:
            shared += np.bincount(np.concatenate(found), minlength=len(self._sizes))
        similarity = shared / (self._sizes + len(wanted) - shared)
        return np.argsort(-similarity, kind="stable").tolist()


def hashed_vectors(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors whose inner products are about the cosines of the texts' runs.

    Returns:
        float32 [texts, COLUMNS].
    """
    vectors_NC = np.zeros((len(texts), COLUMNS), np.float32)
    for vector_C, text in zip(vectors_NC, texts, strict=True):
        for ngram in ngrams(text):
            vector_C[zlib.crc32(ngram.encode("utf-8", "surrogatepass")) % COLUMNS] += 1.0
    return vectors_NC / np.linalg.norm(vectors_NC, axis=1, keepdims=True)
