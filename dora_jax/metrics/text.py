"""What every metric asks of texts before it counts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def normalise(text: str) -> str:
    """NFKC form with single spaces: what T5's vocabulary can write at all.

    Its SentencePiece model reads text in NFKC, so a prediction never holds "™" or "µ" (U+00B5)
    where the gold has them; without this every such answer would count as wrong.
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def require_same_length(
    targets: Sequence[str], predictions: Sequence[str], sources: Sequence[str]
) -> None:
    """Refuses lists that are not about the same examples, and empty ones.

    Raises:
        ValueError: lists of different lengths, or without any example.
    """
    if not len(targets) == len(predictions) == len(sources) or not targets:
        raise ValueError(
            "Scoring needs one target, one prediction and one source for each example, and at "
            f"least one example; got {len(targets)} targets, {len(predictions)} predictions and "
            f"{len(sources)} sources."
        )
