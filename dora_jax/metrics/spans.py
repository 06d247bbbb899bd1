"""Scores of entity recognition written as text: `entity [Type] entity [Type] ...`.

Two ways of counting. *Strict* compares the multisets of (entity, type) pairs of prediction
and gold. *Paper* is the arithmetic of the authors' published script, kept so that numbers
can be set beside theirs; it forgives a great deal (see `paper_scores`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from dora_jax.metrics.measurement import PAPER, Measurement
from dora_jax.metrics.precision_recall import micro_macro, precision_recall_f1
from dora_jax.metrics.text import normalise, require_same_length

_BRACKETED = re.compile(r"\[([^\[\]]*)\]")

Entity = tuple[str, str]


def parse_entities(text: str, entity_types: Collection[str]) -> list[Entity]:
    """The (entity, type) pairs of a target or a prediction, in reading order.

    Brackets that hold none of `entity_types` are part of the entity's text ("[32P] dCTP"). A
    tag with no text before it is the pair ("", type), so that it is charged. Text after the
    last tag names no entity and is left out.
    """
    entities, start = [], 0
    for match in _BRACKETED.finditer(text):
        if match[1] in entity_types:
            entities.append((normalise(text[start : match.start()]), match[1]))
            start = match.end()
    return entities


def measure_spans(
    targets: Sequence[str],
    predictions: Sequence[str],
    sources: Sequence[str],
    *,
    entity_types: Sequence[str],
    paper_types: Sequence[str],
    primary: str = "micro_f1",
) -> Measurement:
    """Precision, recall and F1 of predicted entities, micro, macro and by type.

    Args:
        targets: gold texts.
        predictions: predicted texts, in the same order.
        sources: the sentences, for the note on entities that no source contains; "" where
            unknown.
        entity_types: the types that count as tags.
        paper_types: the classes of the authors' script; the first is what it puts in place of
            a missing prediction.
        primary: the strict metric a run reports by.

    Returns:
        A measurement with micro and macro precision, recall and f1, `f1/<Type>` for each type
        that occurs, and counts of entities as notes. An example without entities that is
        predicted to have none costs nothing and earns nothing; the F1 of a set without any
        entity is 0.

    Raises:
        ValueError: no examples, or lists of different lengths.
    """
    require_same_length(targets, predictions, sources)
    strict_NC = span_statistics(targets, predictions, entity_types)
    paper_NC = paper_statistics(targets, predictions, paper_types)
    total_L3 = strict_NC.sum(axis=0).reshape(-1, 3)
    occurs_L = total_L3[:, 1] + total_L3[:, 2] > 0

    def summarise(totals_RC: np.ndarray) -> dict[str, np.ndarray]:
        counts_RL3 = totals_RC.reshape(len(totals_RC), -1, 3)
        strict_RL3, paper_RL3 = np.split(counts_RL3, [len(entity_types)], axis=1)
        metrics = micro_macro(strict_RL3)
        f1_RL = precision_recall_f1(strict_RL3)[2]
        of_types = zip(entity_types, occurs_L, f1_RL.T, strict=True)
        metrics |= {f"f1/{name}": f1_R for name, occurs, f1_R in of_types if occurs}
        paper = micro_macro(paper_RL3)
        return metrics | {f"{PAPER}{name}": values_R for name, values_R in paper.items()}

    right, predicted, gold = (int(count) for count in total_L3.sum(axis=0))
    return Measurement(
        np.concatenate([strict_NC, paper_NC], axis=1),
        summarise,
        primary,
        notes={
            "gold_entities": gold,
            "predicted_entities": predicted,
            "right_entities": right,
            "predicted_not_in_source": _not_in_source(predictions, sources, entity_types),
            "examples_without_gold": sum(not parse_entities(t, entity_types) for t in targets),
            "paper_gold_entities": int(paper_NC.reshape(-1, 3)[:, 2].sum()),
        },
    )


def span_statistics(
    targets: Sequence[str], predictions: Sequence[str], entity_types: Sequence[str]
) -> np.ndarray:
    """Counts per example from which every strict metric follows.

    Returns:
        float64 [examples, 3 * types]: for each type the pairs that are right, those
        predicted, and those in the gold. A pair predicted twice is right at most as often as
        the gold has it.
    """
    column = {entity_type: i for i, entity_type in enumerate(entity_types)}
    statistics_NL3 = np.zeros((len(targets), len(entity_types), 3))
    for counts_L3, target, prediction in zip(statistics_NL3, targets, predictions, strict=True):
        gold = Counter(parse_entities(target, entity_types))
        predicted = Counter(parse_entities(prediction, entity_types))
        for k, pairs in enumerate((gold & predicted, predicted, gold)):
            for (_, entity_type), count in pairs.items():
                counts_L3[column[entity_type], k] += count
    return statistics_NL3.reshape(len(targets), -1)


def _not_in_source(
    predictions: Sequence[str], sources: Sequence[str], entity_types: Sequence[str]
) -> int:
    return sum(
        entity not in normalise(source)
        for prediction, source in zip(predictions, sources, strict=True)
        if source
        for entity, _ in parse_entities(prediction, entity_types)
    )


def _paper_parse(text: str, paper_types: Collection[str]) -> dict[str, str]:
    """Entity → upper-case type, as the authors' script reads a line.

    The slice ends one word early, so the last word of every entity is lost and all one-word
    entities become "", of which a line keeps only the last.
    """
    words, entities, previous_tag = text.split(), {}, -1
    for i, word in enumerate(words):
        entity_type = word[1:-1].upper()
        if "[" in word and "]" in word and entity_type in paper_types:
            entities[" ".join(words[previous_tag + 1 : i - 1])] = entity_type
            previous_tag = i
    return entities


def paper_statistics(
    targets: Sequence[str], predictions: Sequence[str], paper_types: Sequence[str]
) -> np.ndarray:
    """Counts per example behind the numbers of the authors' script; not entity-level F1.

    Every gold entity that survives its parser (see `_paper_parse`) is one item; the predicted
    class is the type given to the same words, or `paper_types[0]` where there is none. What
    is predicted beyond the gold is never charged, so micro precision, recall and F1 are all
    the accuracy over these items. Macro averages over the classes among labels or predictions.
    Text is taken as it stands, as the script does. Predicting nothing at all scores 9.25 on the
    WLP test set.

    Args:
        targets: gold texts.
        predictions: predicted texts, in the same order.
        paper_types: upper-case classes; the first stands in for a missing prediction.

    Returns:
        float64 [examples, 3 * classes]: right, predicted and gold of each class.

    Source: run_t5.py of github.com/jm-kang/Distill-or-Annotate (7f4465f), `ner_parse`,
    `ner_postprocess`, `compute_metrics`.
    """
    column = {entity_type: i for i, entity_type in enumerate(paper_types)}
    statistics_NL3 = np.zeros((len(targets), len(paper_types), 3))
    for counts_L3, target, prediction in zip(statistics_NL3, targets, predictions, strict=True):
        predicted = _paper_parse(prediction, column)
        for entity, gold_type in _paper_parse(target, column).items():
            guess = predicted.get(entity, paper_types[0])
            counts_L3[column[gold_type], 0] += guess == gold_type
            counts_L3[column[guess], 1] += 1
            counts_L3[column[gold_type], 2] += 1
    return statistics_NL3.reshape(len(targets), -1)
