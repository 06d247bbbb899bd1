"""A task of the user's own, from the settings of a run: no Python needs to be written for it."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from pathlib import Path
from typing import NoReturn

from dora_jax.config import DataConfig
from dora_jax.cost.prices import SET_BY_USER
from dora_jax.metrics.answers import measure_answers
from dora_jax.metrics.classification import measure_classification
from dora_jax.metrics.spans import measure_spans
from dora_jax.metrics.text import normalise
from dora_jax.tasks.classes import check_class, check_text
from dora_jax.tasks.rows import Columns
from dora_jax.tasks.sources import read_own
from dora_jax.tasks.span_targets import check_span_target, tags_in
from dora_jax.tasks.task import TaskSpec, get_task

# More classes than this are hardly classes, and would fill a page of every message.
MAX_CLASSES = 200


def task_of(data: DataConfig, price_usd_per_label: float = -1.0) -> TaskSpec:
    """The task of a run: the user's own where its train file is named, else one of the paper.

    Args:
        data: of the run.
        price_usd_per_label: of the user's own task, which no price book has; -1: not given.

    Raises:
        ValueError: no such task, or settings of an own task that are missing or do not fit.
    """
    own = data.own
    if own.train_file:
        return _own_task(data, price_usd_per_label)
    for name in ("test_file", "validation_file", "unlabeled_file"):
        if getattr(own, name):
            raise ValueError(
                f"{name.upper()} = {getattr(own, name)!r}, but TRAIN_FILE is not set; a task of "
                "your own needs both, a task of the paper neither."
            )
    return get_task(data.task)


def _own_task(data: DataConfig, price_usd_per_label: float) -> TaskSpec:
    own = data.own
    _check_name(data.task)
    if not own.test_file:
        raise ValueError(
            "TRAIN_FILE is set, but not TEST_FILE: name labelled rows that are kept for the final "
            "score; no row of them may be in the train file."
        )
    if own.source_column == own.target_column:
        raise ValueError(
            f"SOURCE_COLUMN and TARGET_COLUMN are both {own.source_column!r}; name the column of "
            "the texts and that of their labels."
        )
    if price_usd_per_label < 0:
        raise ValueError(
            f"No price book knows what a label of {data.task!r} costs; give the price in USD with "
            "PRICE_USD_PER_LABEL, or 0 where labels cost nothing."
        )
    labels = _labels(data)
    measures = {
        "classification": functools.partial(measure_classification, labels=labels),
        "spans": functools.partial(
            measure_spans,
            entity_types=labels,
            paper_types=tuple(dict.fromkeys(label.upper() for label in labels)),
        ),
        "text": measure_answers,
    }
    checks = {
        "classification": functools.partial(check_class, labels=labels),
        "spans": functools.partial(check_span_target, entity_types=labels),
        "text": check_text,
    }
    primary = {"classification": "accuracy", "spans": "micro_f1", "text": "exact_match"}
    return TaskSpec(
        name=data.task,
        kind=own.kind,
        prompt_prefix=own.prompt_prefix or f"{data.task}: ",
        folder="",
        labels=labels,
        price_usd_per_label=price_usd_per_label,
        price_source=SET_BY_USER,
        primary_metric=primary[own.kind],
        measure=measures[own.kind],
        check_target=checks[own.kind],
    )


def _check_name(name: str) -> None:
    if _is_of_the_paper(name):
        raise ValueError(
            f"TRAIN_FILE is set, but MIXTURE_OR_TASK_NAME = {name!r} is a task of the paper; give "
            "your task a name of its own, or leave TRAIN_FILE away."
        )
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(
            f"MIXTURE_OR_TASK_NAME = {name!r}; expected a letter, then letters, digits and "
            "underscores."
        )


def _is_of_the_paper(name: str) -> bool:
    try:
        get_task(name)
    except ValueError:
        return False
    return True


def _labels(data: DataConfig) -> tuple[str, ...]:
    """Classes or entity types: those named, those of a prepared store, or the train file's."""
    own = data.own
    if own.kind == "text":
        if own.labels:
            raise ValueError("TASK_LABELS are set, but TASK_KIND = 'text' has none; remove them.")
        return ()
    if data.token_store:
        labels = _labels_of_store(data)
    elif own.labels:
        labels = own.labels
    else:
        targets = _train_targets(data)
        labels = _classes(targets) if own.kind == "classification" else _no_types(targets)
    for label in labels:
        if not label or label != normalise(label):
            raise ValueError(
                f"The label {label!a} cannot be told from what a model writes; write it as "
                f"{normalise(label)!r}, in the files and in TASK_LABELS."
            )
        if own.kind == "spans" and set(label) & set("[]"):
            raise ValueError(
                f"The entity type {label!r} holds a bracket; name it without, since targets are "
                "written `entity [Type]`."
            )
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        raise ValueError(f"TASK_LABELS names {', '.join(map(repr, repeated))} more than once.")
    return labels


def _labels_of_store(data: DataConfig) -> tuple[str, ...]:
    """Those a prepared store was made with; its host need not have the files."""
    own, path = data.own, Path(data.token_store) / "manifest.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"The token store's {path} cannot be read: {error}.") from error
    labels, kind = tuple(facts.get("task_labels", own.labels)), facts.get("task_kind", own.kind)
    if kind != own.kind or own.labels not in ((), labels):
        raise ValueError(
            f"The token store {data.token_store} is of a task of kind {kind!r} with the labels "
            f"{labels}; TASK_KIND = {own.kind!r} and TASK_LABELS = {own.labels} do not fit. Take "
            "the store's, or set TOKEN_STORE to '' to prepare one."
        )
    return labels


def _train_targets(data: DataConfig) -> list[str]:
    columns = Columns(data.own.source_column, data.own.target_column)
    check = check_text if data.own.kind == "classification" else None
    read = read_own(data.own.train_file, data.on_bad_row, columns, check)
    return [row.target for row in read.rows]


def _classes(targets: list[str]) -> tuple[str, ...]:
    """Every target once, in alphabetical order."""
    counts = Counter(targets)
    if len(counts) < 2 or len(counts) > MAX_CLASSES:
        common = ", ".join(f"{label!r} ({count:,})" for label, count in counts.most_common(5))
        raise ValueError(
            f"The train file has {len(counts):,} different labels in {len(targets):,} rows; "
            f"expected 2 to {MAX_CLASSES}. The most frequent: {common or 'none'}. Is TARGET_COLUMN "
            "the right column? Free text is TASK_KIND = 'text'."
        )
    return tuple(sorted(counts))


def _no_types(targets: list[str]) -> NoReturn:
    """Tags are not taken from the file: text may stand in brackets as well."""
    tags = ", ".join(f"{tag!r} ({count:,})" for tag, count in tags_in(targets).most_common(50))
    raise ValueError(
        "TASK_KIND = 'spans' needs the entity types in TASK_LABELS. The train file has these "
        f"in brackets: {tags or 'none'}; targets are written `entity [Type] entity [Type]`."
    )
