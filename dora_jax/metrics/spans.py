"""Scores of entity recognition written as text: `entity [Type] entity [Type] ...`.

Two ways of counting. *Strict* compares the multisets of (entity, type) pairs of prediction
and gold. *Paper* is the arithmetic of the authors' published script, kept so that numbers
can be set beside theirs; it forgives a great deal (see `paper_scores`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from dora_jax.metrics.bootstrap import bootstrap_intervals
from dora_jax.metrics.scores import Scores

_BRACKETED = re.compile(r"\[([^\[\]]*)\]")

Entity = tuple[str, str]


def normalise(text: str) -> str:
    """NFKC form with single spaces: what T5's vocabulary can write at all.

    Its SentencePiece model reads text in NFKC, so a prediction never holds "™" or "µ" (U+00B5)
    where the gold has them; without this every such entity would count as wrong.
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


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


def span_statistics(
    targets: Sequence[str], predictions: Sequence[str], entity_types: Sequence[str]
) -> np.ndarray:
    """Counts per example from which every strict metric follows.

    Returns:
        float64 [examples, 3 * types]: for each type the pairs that are right, those
        predicted, and those in the gold. A pair predicted twice is right at most as often as
        the gold has it.

    Raises:
        ValueError: as many predictions as targets are needed, at least one.
    """
    if len(targets) != len(predictions) or not targets:
        raise ValueError(
            f"Scoring needs one prediction for each target, and at least one; got "
            f"{len(targets)} targets and {len(predictions)} predictions."
        )
    column = {entity_type: i for i, entity_type in enumerate(entity_types)}
    statistics_NTK = np.zeros((len(targets), len(entity_types), 3))
    for counts_TK, target, prediction in zip(statistics_NTK, targets, predictions, strict=True):
        gold = Counter(parse_entities(target, entity_types))
        predicted = Counter(parse_entities(prediction, entity_types))
        for k, pairs in enumerate((gold & predicted, predicted, gold)):
            for (_, entity_type), count in pairs.items():
                counts_TK[column[entity_type], k] += count
    return statistics_NTK.reshape(len(targets), -1)


def summarise_spans(totals_RC: np.ndarray) -> dict[str, np.ndarray]:
    """Micro and macro precision, recall and F1, in percent, from summed `span_statistics`.

    F1 is 2 · right / (predicted + gold). A ratio with nothing below the line is 0: so an
    example without entities that is predicted to have none costs nothing and earns nothing,
    and the F1 of a set without any entity is 0. Macro is the mean over the types that occur
    in the gold or the predictions.

    Args:
        totals_RC: float [resamples, 3 * types].

    Returns:
        Metric name → float [resamples].
    """
    totals_RTK = totals_RC.reshape(len(totals_RC), -1, 3)
    occurs_RT = totals_RTK[..., 1] + totals_RTK[..., 2] > 0
    occurring_R = np.maximum(occurs_RT.sum(axis=1), 1)
    metrics = _ratios("micro_", totals_RTK.sum(axis=1))
    for name, values_RT in _ratios("macro_", totals_RTK).items():
        metrics[name] = values_RT.sum(axis=1) / occurring_R
    return metrics


def _ratios(prefix: str, totals_K: np.ndarray) -> dict[str, np.ndarray]:
    right, predicted, gold = np.moveaxis(totals_K, -1, 0)
    return {
        f"{prefix}precision": _percent(right, predicted),
        f"{prefix}recall": _percent(right, gold),
        f"{prefix}f1": _percent(2 * right, predicted + gold),
    }


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100.0 * np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def score_spans(
    targets: Sequence[str],
    predictions: Sequence[str],
    sources: Sequence[str],
    *,
    entity_types: Sequence[str],
    paper_types: Sequence[str],
    primary: str = "micro_f1",
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Strict and paper scores of predicted entities, with bootstrap intervals.

    Args:
        targets: gold texts.
        predictions: predicted texts, in the same order.
        sources: the sentences, for the note on entities that no source contains; "" where
            unknown.
        entity_types: the types that count as tags.
        paper_types: the classes of the authors' script; the first is what it puts in place of
            a missing prediction.
        primary: the metric the run reports by.
        resamples: of the bootstrap; 0 leaves the intervals out.
        confidence: coverage of the intervals.
        seed: of the bootstrap.

    Returns:
        Scores in percent. `strict` has micro and macro precision, recall and f1, and
        `f1/<Type>` for each type that occurs.

    Raises:
        ValueError: no examples, or lists of different lengths.
    """
    if len(sources) != len(targets):
        raise ValueError(f"There are {len(targets)} targets but {len(sources)} sources.")
    statistics_NC = span_statistics(targets, predictions, entity_types)
    total_1C = statistics_NC.sum(axis=0, keepdims=True)
    strict = {name: float(value[0]) for name, value in summarise_spans(total_1C).items()}
    counts_TK = total_1C.reshape(-1, 3)
    f1_T = _ratios("", counts_TK)["f1"]
    for entity_type, f1, (_, predicted, gold) in zip(entity_types, f1_T, counts_TK, strict=True):
        if predicted + gold > 0:
            strict[f"f1/{entity_type}"] = float(f1)
    paper, paper_notes = paper_scores(targets, predictions, paper_types)
    right, predicted, gold = (int(count) for count in counts_TK.sum(axis=0))
    return Scores(
        examples=len(targets),
        primary=primary,
        strict=strict,
        paper=paper,
        intervals=(
            bootstrap_intervals(
                statistics_NC,
                summarise_spans,
                resamples=resamples,
                confidence=confidence,
                seed=seed,
            )
            if resamples
            else {}
        ),
        notes={
            "gold_entities": gold,
            "predicted_entities": predicted,
            "right_entities": right,
            "predicted_not_in_source": _not_in_source(predictions, sources, entity_types),
            "examples_without_gold": sum(not parse_entities(t, entity_types) for t in targets),
            **paper_notes,
        },
    )


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


def paper_scores(
    targets: Sequence[str], predictions: Sequence[str], paper_types: Sequence[str]
) -> tuple[dict[str, float], dict[str, int | float]]:
    """The numbers of the authors' script, which are not entity-level F1.

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
        Metrics in percent, and notes: how many gold entities the parser kept.

    Source: run_t5.py of github.com/jm-kang/Distill-or-Annotate (7f4465f), `ner_parse`,
    `ner_postprocess`, `compute_metrics`.
    """
    column = {entity_type: i for i, entity_type in enumerate(paper_types)}
    confusion = np.zeros((len(paper_types), len(paper_types)))  # gold, predicted
    for target, prediction in zip(targets, predictions, strict=True):
        predicted = _paper_parse(prediction, column)
        for entity, gold_type in _paper_parse(target, column).items():
            guess = predicted.get(entity, paper_types[0])
            confusion[column[gold_type], column[guess]] += 1
    counts_TK = np.stack(
        [np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)], axis=-1
    )
    metrics = summarise_spans(counts_TK.reshape(1, -1))
    values = {name: float(value[0]) for name, value in metrics.items()}
    return values, {"paper_gold_entities": int(confusion.sum())}
