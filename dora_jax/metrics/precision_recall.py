"""Precision, recall and F1 from summed counts, micro and macro.

The last axis of every array of counts holds right, predicted and gold: how often a class was
predicted where it is the gold, how often it was predicted, how often it is the gold. Letters
beyond `shapes.py`: R resamples, L classes (labels or entity types).
"""

from __future__ import annotations

import numpy as np


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 in percent; a ratio with nothing below the line is 0.

    F1 = 2 · right / (predicted + gold).

    Args:
        counts: float [..., 3].

    Returns:
        three float arrays [...].
    """
    right, predicted, gold = np.moveaxis(counts, -1, 0)
    return _percent(right, predicted), _percent(right, gold), _percent(2 * right, predicted + gold)


def micro_macro(
    counts_RL3: np.ndarray, *, macro_over_occurring: bool = True
) -> dict[str, np.ndarray]:
    """Averages over classes: micro from summed counts, macro as the mean of the classes' ratios.

    Args:
        counts_RL3: float [resamples, classes, 3].
        macro_over_occurring: the mean is over the classes that occur in the gold or in the
            predictions, as scikit-learn takes it when no labels are named; otherwise over all.

    Returns:
        `micro_` and `macro_` precision, recall and f1 → float [resamples], in percent.
    """
    classes_R = np.full(len(counts_RL3), counts_RL3.shape[1])
    if macro_over_occurring:
        classes_R = np.maximum((counts_RL3[..., 1] + counts_RL3[..., 2] > 0).sum(axis=1), 1)
    names = ("precision", "recall", "f1")
    micro = precision_recall_f1(counts_RL3.sum(axis=1))
    macro = precision_recall_f1(counts_RL3)
    return {f"micro_{name}": values_R for name, values_R in zip(names, micro, strict=True)} | {
        f"macro_{name}": values_RL.sum(axis=1) / classes_R
        for name, values_RL in zip(names, macro, strict=True)
    }


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100.0 * np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
