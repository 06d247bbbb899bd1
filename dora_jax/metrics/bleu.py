"""BLEU of one sentence against one reference, on the tokens of WMT's mteval-v13a.

Two forms: *plain* is 0 unless some four tokens in a row agree (TensorFlow's nmt, which Hugging
Face's `evaluate` wraps); *smoothed* is sacreBLEU's for sentences: only orders the sentence is
long enough for, and "exp" smoothing of those without a match.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_ORDERS = 4
# mteval-v13a: symbols apart; full stops and commas apart unless between digits; a dash after a
# digit apart.
_SPLITS = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def tokenise_13a(text: str) -> list[str]:
    """The tokens of mteval-v13a, case kept.

    Source: mteval-v13a.pl of NIST; Post, WMT 2018 (sacreBLEU), whose `13a` this is.
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in _SPLITS:
        text = pattern.sub(replacement, text)
    return text.split()


def sentence_bleu(prediction: str, reference: str, *, smoothed: bool) -> float:
    """BLEU-4 of one sentence, 0 to 1.

    min(1, e^(1 - reference length / prediction length)) · (Π precision_n)^(1/orders)

    Args:
        prediction: the sentence that is judged.
        reference: what it is compared with.
        smoothed: see the top of this file.

    Source: Papineni et al., ACL 2002; Chen and Cherry, WMT 2014, method 3 (the smoothing).
    """
    predicted, gold = tokenise_13a(prediction), tokenise_13a(reference)
    if not predicted or not gold:
        return 0.0
    matches = [_matches(predicted, gold, n) for n in range(1, _ORDERS + 1)]
    possible = [max(len(predicted) - n, 0) for n in range(_ORDERS)]
    if smoothed:
        precisions = _smoothed_precisions(matches, possible)
    else:
        precisions = [m / max(p, 1) for m, p in zip(matches, possible, strict=True)]
    if min(precisions) == 0.0:
        return 0.0
    brevity_penalty = math.exp(min(0.0, 1.0 - len(gold) / len(predicted)))
    mean_log = sum(math.log(precision) for precision in precisions) / len(precisions)
    return brevity_penalty * math.exp(mean_log)


def _matches(predicted: Sequence[str], gold: Sequence[str], n: int) -> int:
    def ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    return (ngrams(predicted) & ngrams(gold)).total()


def _smoothed_precisions(matches: Sequence[int], possible: Sequence[int]) -> list[float]:
    """Of the orders with n-grams; the k-th without a match gets 1 / (2^k · n-grams)."""
    if not any(matches):
        return [0.0]
    precisions, share = [], 1.0
    for matched, total in zip(matches, possible, strict=True):
        if total == 0:
            break
        if matched == 0:
            share /= 2
        precisions.append((matched or share) / total)
    return precisions
