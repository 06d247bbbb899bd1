"""From files to splits: reads a task's JSON lines, cuts validation off, chooses the labels.

Two layouts are known: the authors' files in the folder that DORA_DATA_DIR names
(`<task>/<task>_train_all.json`, `<task>/<task>_test_all.json`) and the bundled sample
(`train`, `unlabeled`, `validation` and `test.jsonl`). No TensorFlow here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.config import DataConfig, fingerprint
from dora_jax.tasks.task import TaskSpec

HOW_TO_SET_THE_FOLDER = (
    "Set DORA_DATA_DIR to the folder that holds the authors' task folders (a clone of "
    "github.com/jm-kang/Distill-or-Annotate), or leave it unset to use the bundled sample."
)


class Row(NamedTuple):
    """One example as text; `target` is "" where there is no label, and also where it is empty."""

    source: str
    target: str
    location: str  # "file:line", for messages


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a file held.

    Attributes:
        rows: the good rows, in file order.
        skipped: what was wrong with each row left out, with file and line.
        sha256: of the file's bytes.
    """

    rows: list[Row]
    skipped: list[str]
    sha256: str


class LoadedSplits(NamedTuple):
    """Rows by split (train holds the labelled ones), and a JSON-able account of their origin."""

    rows: dict[str, list[Row]]
    provenance: dict[str, Any]


def read_rows(
    path: Path,
    on_bad_row: str,
    required: Sequence[str] = ("source", "target"),
    check_target: Callable[[str], str | None] | None = None,
) -> Rows:
    """Reads JSON lines of {"source": text, "target": text}; empty lines hold no row.

    Args:
        path: the file.
        on_bad_row: "error" stops at the first bad row, "skip" leaves bad rows out and counts them.
        required: the fields a row must have; a target that is not required is not read.
        check_target: says what is wrong with a target, or None; without it any will do.

    Raises:
        ValueError: the file cannot be read, or a row is bad: where it is and what is wrong.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}). {HOW_TO_SET_THE_FOLDER}"
        ) from error
    rows: list[Row] = []
    skipped: list[str] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        location = f"{path}:{number}"
        try:
            rows.append(_parse_row(line, location, required, check_target))
        except ValueError as error:
            if on_bad_row == "error":
                raise ValueError(
                    f"{error} Mend the line, or set on_bad_row = 'skip' to leave such rows out "
                    "and count them."
                ) from error
            skipped.append(str(error))
    return Rows(rows, skipped, hashlib.sha256(content).hexdigest())


def _parse_row(
    line: bytes,
    location: str,
    required: Sequence[str],
    check_target: Callable[[str], str | None] | None,
) -> Row:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{location}: not UTF-8 ({error.reason} at byte {error.start})."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{location}: broken JSON ({error.msg} at column {error.colno})."
        ) from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise ValueError(f"{location}: broken JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise ValueError(
            f"{location}: expected an object with {' and '.join(map(repr, required))}, found "
            f"{type(fields).__name__}."
        )
    for field in required:
        _check_field(fields, field, location)
    if not fields["source"].strip():
        raise ValueError(f"{location}: 'source' is empty; there is nothing to label.")
    target = fields["target"] if "target" in required else ""
    complaint = check_target(target) if check_target else None
    if complaint:
        raise ValueError(f"{location}: {complaint}")
    return Row(fields["source"], target, location)


def _check_field(fields: dict[str, Any], field: str, location: str) -> None:
    if field not in fields:
        raise ValueError(
            f"{location}: field {field!r} is missing; found {', '.join(fields) or 'none'}."
        )
    value = fields[field]
    if not isinstance(value, str):
        raise ValueError(
            f"{location}: {field!r} must be text, found {type(value).__name__} {value!r}."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{location}: {field!r} holds half a surrogate pair at character {error.start}."
        ) from error


def load_splits(task: TaskSpec, data: DataConfig) -> LoadedSplits:
    """The rows of a run: labels in "train", text in "unlabeled", and "validation", "test".

    Rows that share a source all go to validation or none do. "unlabeled" holds each source
    once, and none that is in "train" or "validation": a text that was labelled is not
    unlabelled text. Texts that the published test split shares with train stay, and are counted.

    Args:
        task: names the folder and checks targets.
        data: which files, how many rows of each split, and how the labels are chosen.

    Raises:
        ValueError: an unreadable folder or file, a bad row, or more labels asked than there are.
    """
    files = _authors_files(task, data) if data.data_dir else _sample_files(task, data)
    if data.data_dir:
        train, validation = _cut_validation(files["train"].rows, data.validation_share)
        unlabeled: list[Row] = []
    else:
        train, validation = files["train"].rows, files["validation"].rows
        unlabeled = files["unlabeled"].rows
    labelled, rest = _choose_labels(train, data)
    pool = rest + unlabeled
    distinct = _distinct_sources(pool, known={row.source for row in labelled})
    rows = {
        "train": labelled,
        "unlabeled": _first(distinct, data.num_unlabeled, "num_unlabeled"),
        "validation": _first(validation, data.num_validation, "num_validation"),
        "test": _first(files["test"].rows, data.num_test, "num_test"),
    }
    if data.num_validation != 0 and not validation:
        raise ValueError("There are no validation rows; add rows or raise validation_share.")
    if data.num_test != 0 and not files["test"].rows:
        raise ValueError("There are no test rows; add rows to the test file or set num_test = 0.")
    seen = {row.source for split in ("train", "unlabeled") for row in rows[split]}
    provenance = {
        "origin": "authors' files" if data.data_dir else "bundled sample",
        "rows": {split: len(members) for split, members in rows.items()},
        "labelled_rows_available": len(train),
        "labelled_sources_repeated": len(labelled) - len({row.source for row in labelled}),
        "unlabeled_duplicates_dropped": len(pool) - len(distinct),
        "test_rows_also_in_train_or_unlabeled": sum(r.source in seen for r in rows["test"]),
    }
    return LoadedSplits(rows, provenance | _describe_files(files))


def _describe_files(files: dict[str, Rows]) -> dict[str, Any]:
    return {
        "source_files": {
            name: {"sha256": file.sha256, "rows": len(file.rows), "skipped": len(file.skipped)}
            for name, file in files.items()
        },
        "data_fingerprint": fingerprint({name: file.sha256 for name, file in files.items()}),
        "skipped_rows": [message for file in files.values() for message in file.skipped],
    }


def _authors_files(task: TaskSpec, data: DataConfig) -> dict[str, Rows]:
    folder = Path(data.data_dir) / task.folder
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder} with the files of task {task.name!r} "
            f"({task.folder}_train_all.json, {task.folder}_test_all.json). {HOW_TO_SET_THE_FOLDER}"
        )
    return {
        split: read_rows(
            folder / f"{task.folder}_{split}_all.json",
            data.on_bad_row,
            check_target=task.check_target,
        )
        for split in ("train", "test")
    }


def _sample_files(task: TaskSpec, data: DataConfig) -> dict[str, Rows]:
    folder = Path(str(resources.files("dora_jax.data"))) / "sample" / task.folder
    if not folder.is_dir():
        raise ValueError(f"No sample of task {task.name!r} is bundled. {HOW_TO_SET_THE_FOLDER}")
    files = {
        split: read_rows(folder / f"{split}.jsonl", data.on_bad_row, check_target=task.check_target)
        for split in ("train", "validation", "test")
    }
    path = folder / "unlabeled.jsonl"
    return files | {"unlabeled": read_rows(path, data.on_bad_row, required=("source",))}


def _cut_validation(rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Parts rows by the hash of their source, so that rows of one source stay together."""
    train: list[Row] = []
    validation: list[Row] = []
    for row in rows:
        digest = hashlib.sha256(row.source.encode()).digest()
        fraction = int.from_bytes(digest[:8], "big") / 2**64
        (validation if fraction < share else train).append(row)
    return train, validation


def _choose_labels(train: list[Row], data: DataConfig) -> tuple[list[Row], list[Row]]:
    """The labelled rows and the others.

    Drawn labels are the first of an order that the seed and each source's hash fix, so the
    labels of a smaller count are among those of a larger one.
    """
    if data.num_labels > len(train):
        raise ValueError(
            f"DataConfig.num_labels = {data.num_labels}, but there are {len(train)} labelled rows "
            "left for training; ask for so many or fewer."
        )

    def drawn(row: Row) -> bytes:
        return hashlib.sha256(f"{data.labels_seed}\n{row.source}".encode()).digest()

    order = train if data.labels_seed == -1 else sorted(train, key=drawn)
    return order[: data.num_labels], order[data.num_labels :]


def _distinct_sources(rows: list[Row], known: set[str]) -> list[Row]:
    """Each source that is not `known` once, without its label, in order of first appearance."""
    distinct: dict[str, Row] = {}
    for row in rows:
        if row.source not in known:
            distinct.setdefault(row.source, row._replace(target=""))
    return list(distinct.values())


def _first(rows: list[Row], count: int, name: str) -> list[Row]:
    if count < -1:
        raise ValueError(f"DataConfig.{name} = {count}; it must be 0 or more, or -1 for all rows.")
    return rows if count == -1 else rows[:count]
