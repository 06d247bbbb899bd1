"""How far annotators agree, and the label that most of them gave."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dora_jax.annotators.answers import LabelledTask, write_spans
from dora_jax.metrics.answers import mean_token_f1
from dora_jax.metrics.spans import parse_entities

# id of a text → annotator → target
Labels = Mapping[str, Mapping[str, str]]


class Merged(NamedTuple):
    """One label a text, and the texts on which no majority agrees."""

    targets: dict[str, str]
    conflicts: dict[str, dict[str, str]]


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Agreement of two annotators beyond chance; None where chance alone makes them agree.

    κ = (p_o − p_e) / (1 − p_e), with p_e = Σ_c p_one(c) · p_other(c).

    Source: Cohen 1960.
    """
    count = len(one)
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / count
    of_one, of_other = Counter(one), Counter(other)
    by_chance = sum(of_one[label] * of_other[label] for label in of_one) / count**2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def fleiss_kappa(counts_NC: np.ndarray) -> float | None:
    """Agreement of several annotators beyond chance; None where chance alone makes them agree.

    κ = (mean P_i − Σ_c p_c²) / (1 − Σ_c p_c²), with P_i the share of pairs that agree on text i,
    and p_c the share of all labels that are c. Texts may have different numbers of labels.

    Args:
        counts_NC: int [texts, classes], labels of each class; at least two a text.

    Source: Fleiss 1971.
    """
    labels_N = counts_NC.sum(axis=1)
    agreeing_N = (counts_NC**2).sum(axis=1) - labels_N
    observed = (agreeing_N / (labels_N * (labels_N - 1))).mean()
    share_C = counts_NC.sum(axis=0) / counts_NC.sum()
    by_chance = float((share_C**2).sum())
    return None if by_chance == 1 else float((observed - by_chance) / (1 - by_chance))


def span_f1(one: Sequence[str], other: Sequence[str], entity_types: Sequence[str]) -> float:
    """Micro-F1 of one annotator's entities against another's, in [0, 1]; 1 where none are."""
    shared = total = 0
    for a, b in zip(one, other, strict=True):
        of_a = Counter(parse_entities(a, entity_types))
        of_b = Counter(parse_entities(b, entity_types))
        shared += (of_a & of_b).total()
        total += of_a.total() + of_b.total()
    return 2 * shared / total if total else 1.0


def agreement(task: LabelledTask, labels: Labels) -> dict[str, Any]:
    """What is known of the annotators' agreement on texts with two labels or more, JSON-able."""
    several = {row: given for row, given in labels.items() if len(given) > 1}
    people = sorted({person for given in several.values() for person in given})
    report: dict[str, Any] = {"annotators": people, "texts_with_several_labels": len(several)}
    pairs = {}
    for one, other in itertools.combinations(people, 2):
        both = [given for given in several.values() if one in given and other in given]
        if both:
            mine, theirs = [given[one] for given in both], [given[other] for given in both]
            pairs[f"{one} and {other}"] = {"texts": len(both), **_of_pair(task, mine, theirs)}
    report["pairs"] = pairs
    if several and task.kind == "classification":
        counts = [
            [list(given.values()).count(c) for c in task.labels] for given in several.values()
        ]
        report["fleiss_kappa"] = fleiss_kappa(np.array(counts))
    return report


def _of_pair(task: LabelledTask, one: list[str], other: list[str]) -> dict[str, float | None]:
    same = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    if task.kind == "classification":
        return {"same": same, "cohen_kappa": cohen_kappa(one, other)}
    if task.kind == "spans":
        return {"same": same, "span_f1": span_f1(one, other, task.labels)}
    return {"same": same, "token_f1": mean_token_f1(one, other) / 100}


def merge(task: LabelledTask, labels: Labels) -> Merged:
    """The majority's label of every text.

    A class or a text needs more votes than any other; an entity needs those of more than half of
    the text's annotators, so that two who differ keep what they share.
    """
    targets: dict[str, str] = {}
    conflicts: dict[str, dict[str, str]] = {}
    for row, given in labels.items():
        votes = Counter(given.values()).most_common(2)
        if len(votes) == 1 or (task.kind != "spans" and votes[0][1] > votes[1][1]):
            targets[row] = votes[0][0]
        elif task.kind == "spans":
            targets[row] = _shared_entities(list(given.values()), task.labels)
        else:
            conflicts[row] = dict(given)
    return Merged(targets, conflicts)


def _shared_entities(targets: Sequence[str], entity_types: Sequence[str]) -> str:
    """Entities in the order of the first annotator who has most of them."""
    counted = [Counter(parse_entities(target, entity_types)) for target in targets]
    needed = len(targets) // 2 + 1
    kept: Counter[tuple[str, str]] = Counter()
    for pair in set().union(*counted):
        # The k-th repetition is kept where a majority has k of them.
        kept[pair] = sorted((c[pair] for c in counted), reverse=True)[needed - 1]
    fullest = max(range(len(targets)), key=lambda i: (counted[i] & kept).total())
    ordered = []
    for pair in parse_entities(targets[fullest], entity_types):
        if kept[pair] > 0:
            kept[pair] -= 1
            ordered.append(pair)
    return write_spans([*ordered, *sorted(kept.elements())])
