"""The metrics once more, as their definitions read: loops over lists, nothing shared with ours."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence


def precision_recall_f1(
    gold: Sequence[str], guess: Sequence[str], classes: Sequence[str], average: str
) -> list[float]:
    """As scikit-learn's function of that name gives them with labels=classes, zero_division=0."""

    def ratios(named: Sequence[str]) -> list[float]:
        right = sum(g == p and g in named for g, p in zip(gold, guess, strict=True))
        predicted = sum(p in named for p in guess)
        actual = sum(g in named for g in gold)
        precision = right / predicted if predicted else 0.0
        recall = right / actual if actual else 0.0
        both = precision + recall
        return [precision, recall, 2 * precision * recall / both if both else 0.0]

    if average == "micro":
        return ratios(classes)
    by_class = [ratios([each]) for each in classes]
    return [sum(values) / len(classes) for values in zip(*by_class, strict=True)]


def authors_classes(answers: Sequence[str], numbers: dict[str, int]) -> list[int]:
    """Answers as the authors' script numbers them; what it does not know is class 0."""
    numbered = []
    for answer in answers:
        numbered.append(numbers.get(answer.strip().upper(), 0))
    return numbered


def authors_macro(gold: Sequence[int], guess: Sequence[int]) -> list[float]:
    """Macro precision, recall and F1 as scikit-learn gives them when no labels are named."""
    seen = sorted({str(number) for number in [*gold, *guess]})
    return precision_recall_f1([str(g) for g in gold], [str(p) for p in guess], seen, "macro")


def squad(target: str, prediction: str) -> tuple[float, float]:
    """Exact match and F1 of SQuAD v1.1."""

    def words(text: str) -> list[str]:
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    gold, predicted = words(target), words(prediction)
    left = list(gold)
    common = 0
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    f1 = 0.0
    if common:
        precision, recall = common / len(predicted), common / len(gold)
        f1 = 2 * precision * recall / (precision + recall)
    return float(gold == predicted), f1


def plain_bleu(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """BLEU-4 of token lists without smoothing."""
    product = 1.0
    for n in range(1, 5):
        ours = [tuple(predicted[i : i + n]) for i in range(len(predicted) - n + 1)]
        theirs = [tuple(gold[i : i + n]) for i in range(len(gold) - n + 1)]
        matched = sum(min(ours.count(gram), theirs.count(gram)) for gram in set(ours))
        if not matched:
            return 0.0
        product *= matched / len(ours)
    brevity = 1.0
    if len(predicted) <= len(gold):
        brevity = math.exp(1 - len(gold) / len(predicted))
    return brevity * product**0.25


def authors_bert_ibleu(bert_score: float, self_bleu: float) -> float:
    """One sentence's BERT-iBLEU in the words of the authors' script, 0.00001 on both halves."""
    kept, copied = bert_score + 1e-5, self_bleu + 1e-5
    return ((4.0 * kept ** (-1) + (1 - copied) ** (-1)) / (4.0 + 1)) ** (-1)


def bert_score_f1(
    candidate: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    candidate_idf: Sequence[float],
    reference_idf: Sequence[float],
) -> float:
    """BERTScore of two texts' token vectors, one cosine at a time."""

    def cosine(a: Sequence[float], b: Sequence[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    def mean_best(from_: Sequence, to: Sequence, idf: Sequence[float]) -> float:
        best = [max(cosine(a, b) for b in to) for a in from_]
        return sum(w * x for w, x in zip(idf, best, strict=True)) / sum(idf)

    precision = mean_best(candidate, reference, candidate_idf)
    recall = mean_best(reference, candidate, reference_idf)
    return 2 * precision * recall / (precision + recall)
