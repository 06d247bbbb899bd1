"""Scores of short answers as SQuAD scores them: exact match and token F1.

*Paper* is SQuAD v1.1's official script. *Strict* brings both texts to NFKC first, since T5's
vocabulary can write no other form, and gives full F1 where both texts are empty after
normalisation, as SQuAD v2 does (v1.1 gives an exact match of 1 and an F1 of 0 there).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dora_jax.metrics.measurement import PAPER, Measurement, percent_means
from dora_jax.metrics.text import normalise, require_same_length

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_METRICS = ("exact_match", "f1", f"{PAPER}exact_match", f"{PAPER}f1")


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and repeated spaces.

    Source: Rajpurkar et al., EMNLP 2016, the official evaluation script.
    """
    plain = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def token_f1(target: str, prediction: str) -> float:
    """F1 over the multisets of words of two normalised answers, 0 to 1; 0 without common words."""
    gold, predicted = Counter(target.split()), Counter(prediction.split())
    common = (gold & predicted).total()
    return 2 * common / (gold.total() + predicted.total()) if common else 0.0


def mean_token_f1(targets: Sequence[str], predictions: Sequence[str]) -> float:
    """Strict F1 of answers in percent: how much of the gold text the predictions hold."""
    return measure_answers(targets, predictions, targets).metrics()["f1"]


def measure_answers(
    targets: Sequence[str],
    predictions: Sequence[str],
    sources: Sequence[str],
    *,
    primary: str = "f1",
) -> Measurement:
    """Exact match and token F1, each the mean over examples.

    Args:
        targets: gold answers.
        predictions: answers, in the same order.
        sources: of the same examples; only counted.
        primary: the strict metric a run reports by.

    Returns:
        A measurement with `exact_match` and `f1`, and the note `empty_predictions`.

    Raises:
        ValueError: lists of different lengths, or no examples.
    """
    require_same_length(targets, predictions, sources)
    pairs = list(zip(targets, predictions, strict=True))
    statistics_NC = np.array(
        [
            (*_strict(normalise(target), normalise(prediction)), *_squad(target, prediction), 1.0)
            for target, prediction in pairs
        ]
    )
    empty = sum(not prediction.strip() for prediction in predictions)
    return Measurement(
        statistics_NC, percent_means(_METRICS), primary, notes={"empty_predictions": empty}
    )


def _squad(target: str, prediction: str) -> tuple[float, float]:
    gold, predicted = normalise_answer(target), normalise_answer(prediction)
    return float(gold == predicted), token_f1(gold, predicted)


def _strict(target: str, prediction: str) -> tuple[float, float]:
    exact, f1 = _squad(target, prediction)
    return exact, max(exact, f1)
