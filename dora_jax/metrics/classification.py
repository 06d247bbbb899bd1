"""Scores of answers that name one of a few classes.

*Strict* counts an answer that names no class as wrong and as no prediction of any class, and
takes macro averages over all classes of the task. *Paper* is the arithmetic of the authors'
script, in which such an answer is a prediction of the first class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from dora_jax.metrics.measurement import PAPER, Measurement
from dora_jax.metrics.precision_recall import micro_macro, precision_recall_f1
from dora_jax.metrics.text import normalise, require_same_length

# The column of the confusion matrix for answers that name no class.
UNPARSABLE = "(no class)"


def parse_class(text: str, labels: Sequence[str]) -> str | None:
    """The class an answer names, or None.

    Spaces, Unicode form and, where it leaves no doubt, case are ignored; an answer that holds
    anything beside the label names no class.
    """
    answer = normalise(text)
    if answer in labels:
        return answer
    same = [label for label in labels if label.casefold() == answer.casefold()]
    return same[0] if len(same) == 1 else None


def measure_classification(
    targets: Sequence[str],
    predictions: Sequence[str],
    sources: Sequence[str],
    *,
    labels: Sequence[str],
    primary: str = "accuracy",
    paper_metrics: Collection[str] | None = None,
) -> Measurement:
    """Accuracy, precision, recall and F1, micro, macro and by class.

    Args:
        targets: gold classes.
        predictions: answers, in the same order.
        sources: of the same examples; only counted.
        labels: the classes of the task; the first is the one that the authors' script puts in
            place of an answer that names none.
        primary: the strict metric a run reports by.
        paper_metrics: which metrics the authors' script gives; all where None.

    Returns:
        A measurement with `accuracy`, micro and macro precision, recall and f1, `f1/<class>`,
        the confusion matrix, and the note `unparsable`.

    Raises:
        ValueError: lists of different lengths, no examples, or a gold class not in `labels`.

    Source: run_t5.py of github.com/jm-kang/Distill-or-Annotate (7f4465f), `postprocess_text`,
    `compute_metrics`.
    """
    require_same_length(targets, predictions, sources)
    column = {label: i for i, label in enumerate(labels)}
    none = len(labels)
    gold_N = np.array([column[_gold(t, i, labels)] for i, t in enumerate(targets)])
    parsed = [parse_class(prediction, labels) for prediction in predictions]
    guess_N = np.array([none if label is None else column[label] for label in parsed])
    paper_guess_N = np.array([_paper_class(p, labels) for p in predictions])
    statistics_NC = np.concatenate(
        [_counts(gold_N, guess_N, none), _counts(gold_N, paper_guess_N, none)], axis=1
    )

    def summarise(totals_RC: np.ndarray) -> dict[str, np.ndarray]:
        strict_RL3, paper_RL3 = np.split(totals_RC.reshape(len(totals_RC), -1, 3), 2, axis=1)
        metrics = _metrics(strict_RL3, macro_over_occurring=False)
        f1_RL = precision_recall_f1(strict_RL3)[2]
        metrics |= {f"f1/{label}": f1_RL[:, i] for label, i in column.items()}
        paper = _metrics(paper_RL3, macro_over_occurring=True)
        kept = paper if paper_metrics is None else paper_metrics
        return metrics | {f"{PAPER}{name}": paper[name] for name in kept}

    unparsable = [p for p, label in zip(predictions, parsed, strict=True) if label is None]
    return Measurement(
        statistics_NC,
        summarise,
        primary,
        notes={"unparsable": len(unparsable)},
        confusion=_confusion(gold_N, guess_N, labels),
        remarks=_remarks(unparsable, len(predictions), labels),
    )


def _gold(target: str, example: int, labels: Sequence[str]) -> str:
    label = parse_class(target, labels)
    if label is None:
        raise ValueError(
            f"The target of example {example} is {target!r}, which is none of the classes "
            f"{', '.join(labels)}. Mend the target, or name the class among the labels."
        )
    return label


def _paper_class(prediction: str, labels: Sequence[str]) -> int:
    """The column of a prediction as the authors' script reads it: in capitals, else the first."""
    capitals = [label.upper() for label in labels]
    answer = prediction.strip().upper()
    return capitals.index(answer) if answer in capitals else 0


def _counts(gold_N: np.ndarray, guess_N: np.ndarray, labels: int) -> np.ndarray:
    """Float [examples, 3 · labels]: right, predicted and gold of each class."""
    one_hot_LL = np.eye(labels + 1, labels)  # the row of "no class" is empty
    gold_NL, guess_NL = one_hot_LL[gold_N], one_hot_LL[guess_N]
    return np.stack([gold_NL * guess_NL, guess_NL, gold_NL], axis=-1).reshape(len(gold_N), -1)


def _metrics(counts_RL3: np.ndarray, macro_over_occurring: bool) -> dict[str, np.ndarray]:
    right_R, _, gold_R = counts_RL3.sum(axis=1).T
    accuracy_R = 100.0 * right_R / gold_R  # every example has one gold class
    averages = micro_macro(counts_RL3, macro_over_occurring=macro_over_occurring)
    return {"accuracy": accuracy_R, **averages}


def _confusion(
    gold_N: np.ndarray, guess_N: np.ndarray, labels: Sequence[str]
) -> dict[str, dict[str, int]]:
    size = len(labels) + 1
    counts_LL = np.bincount(gold_N * size + guess_N, minlength=len(labels) * size)
    rows = counts_LL.reshape(len(labels), size).tolist()
    columns = (*labels, UNPARSABLE)
    return {
        gold: dict(zip(columns, row, strict=True)) for gold, row in zip(labels, rows, strict=True)
    }


def _remarks(unparsable: list[str], examples: int, labels: Sequence[str]) -> tuple[str, ...]:
    if not unparsable:
        return ()
    common = Counter(unparsable).most_common(3)
    return (
        f"{len(unparsable):,} of {examples:,} predictions name none of the classes "
        f"{', '.join(labels)} and count as wrong; the most frequent: "
        f"{', '.join(f'{text!r} ({count:,})' for text, count in common)}.",
    )
