"""What a person should know of a task's data before money is spent on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dora_jax.config import DataConfig
from dora_jax.metrics.spans import parse_entities
from dora_jax.tasks.rows import Row
from dora_jax.tasks.sources import (
    count_leaks,
    describe_files,
    distinct_sources,
    order_of_labels,
    read_pools,
)
from dora_jax.tasks.task import TaskSpec

EXAMPLES = 5
MOST_FREQUENT = 10
PERCENTILES = (50, 90, 99)
_LABELLED = ("train", "validation", "test")

Rows = dict[str, list[Row]]
# Texts → how long each is; and the part of a text that fits into so many tokens.
CountLengths = Callable[[Sequence[str]], Sequence[int]]
Cut = Callable[[str, int], str]


def count_words(texts: Sequence[str]) -> list[int]:
    """Lengths where no vocabulary is at hand."""
    return [len(text.split()) for text in texts]


def describe_task(
    task: TaskSpec,
    data: DataConfig,
    price_usd_per_label: float,
    count_lengths: CountLengths = count_words,
    cut: Cut | None = None,
) -> dict[str, Any]:
    """Sizes, lengths, labels, repetitions, leaks, examples and prices of a task's data.

    Args:
        task: the task.
        data: its files, and how many labels are to be bought.
        price_usd_per_label: USD for one label.
        count_lengths: of inputs with their prompt, and of targets.
        cut: what a model sees of a text that is longer than its feature length; None shows
            texts whole, and counts none as truncated.

    Returns:
        a JSON-able account; docs/data.md says what its fields mean.

    Raises:
        ValueError: files that cannot be read, or bad rows.
    """
    pools = read_pools(task, data)
    asked = len(pools.train) if data.num_labels == -1 else data.num_labels
    count = min(asked, len(pools.train))
    order = order_of_labels(pools.train, data.labels_seed)
    labelled, rest = order[:count], order[count:]
    known = {row.source for row in (*labelled, *pools.validation)}
    texts = distinct_sources(rest + pools.unlabeled, known)
    rows = {
        "train": pools.train,
        "unlabeled": pools.unlabeled,
        "validation": pools.validation,
        "test": pools.test,
    }
    run = {"train": labelled, "unlabeled": texts, **{s: rows[s] for s in ("validation", "test")}}
    limits = {"input": data.source_length, "target": data.target_length}
    everything = {row.source for row in (*pools.train, *pools.unlabeled)}
    return {
        "task": task.name,
        "kind": task.kind,
        "origin": pools.origin,
        "splits": {split: _describe_rows(members) for split, members in rows.items() if members},
        "lengths": _lengths(task, rows, count_lengths, limits if cut else {}),
        "labels": {
            split: _label_counts(task, members)
            for split, members in {"labelled": labelled, **rows}.items()
            if split != "unlabeled"
        },
        "leaks": count_leaks(run),
        "run": {
            "labels_asked": asked,
            "labels": len(labelled),
            "unlabeled_texts": len(texts),
            "validation_rows": len(pools.validation),
            "test_rows": len(pools.test),
        },
        "price": {
            "usd_per_label": price_usd_per_label,
            "usd_for_the_run": price_usd_per_label * len(labelled),
            "texts_in_all": len(everything),
            "usd_for_all_texts": price_usd_per_label * len(everything),
        },
        "examples": [_example(task, row, cut, limits) for row in _spread(labelled)],
        **describe_files(pools.files),
    }


def _describe_rows(rows: list[Row]) -> dict[str, int]:
    targets: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        targets[row.source].add(row.target)
    return {
        "rows": len(rows),
        "repeated_sources": len(rows) - len(targets),
        "sources_with_different_targets": sum(len(of) > 1 for of in targets.values()),
        "empty_targets": sum(not row.target for row in rows),
    }


def _lengths(
    task: TaskSpec, rows: Rows, count_lengths: CountLengths, limits: dict[str, int]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Split → "input" and "target" → percentiles, and how many are beyond the limit."""
    lengths: dict[str, dict[str, dict[str, Any]]] = {}
    for split, members in rows.items():
        texts = {"input": [task.prompt_prefix + row.source for row in members]}
        if split in _LABELLED:
            texts["target"] = [row.target for row in members]
        if members:
            lengths[split] = {
                side: _percentiles(np.array(count_lengths(of_side)), limits.get(side))
                for side, of_side in texts.items()
            }
    return lengths


def _percentiles(lengths: np.ndarray, limit: int | None) -> dict[str, Any]:
    values = np.percentile(lengths, PERCENTILES, method="higher")
    facts = {f"p{p}": int(value) for p, value in zip(PERCENTILES, values, strict=True)}
    facts["max"] = int(lengths.max())
    if limit is None:
        return facts
    truncated = int((lengths > limit).sum())
    return facts | {
        "limit": limit,
        "truncated_rows": truncated,
        "truncated_share": truncated / len(lengths),
    }


def _label_counts(task: TaskSpec, rows: list[Row]) -> dict[str, int]:
    """Classes, entities by type, or the most frequent texts, with how often each occurs."""
    if task.kind == "text":
        return dict(Counter(row.target for row in rows).most_common(MOST_FREQUENT))
    if task.kind == "classification":
        counts = Counter(row.target for row in rows)
    else:
        entities = (parse_entities(row.target, task.labels) for row in rows)
        counts = Counter(entity_type for of_row in entities for _, entity_type in of_row)
    return {label: counts[label] for label in task.labels}


def _spread(rows: list[Row]) -> list[Row]:
    """A few rows from all over the list."""
    count = min(EXAMPLES, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _example(task: TaskSpec, row: Row, cut: Cut | None, limits: dict[str, int]) -> dict[str, str]:
    texts = {"input": task.prompt_prefix + row.source, "target": row.target}
    return {side: cut(text, limits[side]) if cut else text for side, text in texts.items()}
