"""From files to splits: finds a task's files, cuts validation off, chooses the labels.

Three layouts are known: the files of a task of the user's own, named one by one; the
authors' files in the folder that DORA_DATA_DIR names (`<task>/<task>_train_all.json`,
`<task>/<task>_test_all.json`); and the bundled sample (`train`, `unlabeled`, `validation` and
`test.jsonl`). No TensorFlow here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.config import DataConfig, fingerprint
from dora_jax.tasks.rows import TABLES, UNLABELLED, Columns, Row, Rows, list_complaints, read_rows
from dora_jax.tasks.task import TaskSpec

HOW_TO_SET_THE_FOLDER = (
    "Set DORA_DATA_DIR to the folder that holds the authors' task folders (a clone of "
    "github.com/jm-kang/Distill-or-Annotate), or leave it unset to use the bundled sample."
)
OWN_FILE_ENDINGS = (*TABLES, ".jsonl", ".json")


class Pools(NamedTuple):
    """Every row of a task's files, before any is chosen.

    `unlabeled` holds the rows of a separate file only; the train rows that are not chosen to
    be labelled join them later. `origin` says in words which of the layouts it was.
    """

    train: list[Row]
    unlabeled: list[Row]
    validation: list[Row]
    test: list[Row]
    files: dict[str, Rows]
    origin: str


class LoadedSplits(NamedTuple):
    """Rows by split (train holds the labelled ones), and a JSON-able account of their origin."""

    rows: dict[str, list[Row]]
    provenance: dict[str, Any]


def read_pools(task: TaskSpec, data: DataConfig) -> Pools:
    """Reads and checks a task's files, and cuts validation off train where it has no file.

    Rows that share a source are then all cut off or none is.

    Raises:
        ValueError: an unreadable folder or file, or bad rows.
    """
    if data.own.train_file:
        origin, files = "user's own files", _own_files(task, data)
    elif data.data_dir:
        origin, files = "authors' files", _authors_files(task, data)
    else:
        origin, files = "bundled sample", _sample_files(task, data)
    if "validation" in files:
        train, validation = files["train"].rows, files["validation"].rows
    else:
        train, validation = _cut_validation(files["train"].rows, data.validation_share)
    unlabeled = files["unlabeled"].rows if "unlabeled" in files else []
    return Pools(train, unlabeled, validation, files["test"].rows, files, origin)


def load_splits(task: TaskSpec, data: DataConfig) -> LoadedSplits:
    """The rows of a run: labels in "train", text in "unlabeled", and "validation", "test".

    "unlabeled" holds each source once, and none that is in "train" or "validation": a text
    that was labelled is not unlabelled text. Texts that "test" shares with the others stay,
    and are counted.

    Args:
        task: names the folder and checks targets.
        data: which files, how many rows of each split, and how the labels are chosen.

    Raises:
        ValueError: an unreadable folder or file, bad rows, or more labels asked than there are.
    """
    pools = read_pools(task, data)
    labelled, rest = _choose_labels(pools.train, data)
    pool = rest + pools.unlabeled
    known = {row.source for row in (*labelled, *pools.validation)}
    distinct = distinct_sources(pool, known)
    rows = {
        "train": labelled,
        "unlabeled": _first(distinct, data.num_unlabeled, "num_unlabeled"),
        "validation": _first(pools.validation, data.num_validation, "num_validation"),
        "test": _first(pools.test, data.num_test, "num_test"),
    }
    if data.num_validation != 0 and not pools.validation:
        raise ValueError("There are no validation rows; add rows or raise validation_share.")
    if data.num_test != 0 and not pools.test:
        raise ValueError("There are no test rows; add rows to the test file or set num_test = 0.")
    provenance = {
        "origin": pools.origin,
        "rows": {split: len(members) for split, members in rows.items()},
        "label_counts": _label_counts(task, rows),
        "labelled_rows_available": len(pools.train),
        "labelled_sources_repeated": len(labelled) - len({row.source for row in labelled}),
        "unlabeled_duplicates_dropped": len(pool) - len(distinct),
        **count_leaks(rows),
    }
    return LoadedSplits(rows, provenance | describe_files(pools.files))


def count_leaks(rows: dict[str, list[Row]]) -> dict[str, int]:
    """Rows of the splits that judge a model whose source, to the letter, it was trained on."""
    train, unlabeled = ({row.source for row in rows[name]} for name in ("train", "unlabeled"))
    validation, test = rows["validation"], rows["test"]
    return {
        "validation_rows_also_in_train": sum(row.source in train for row in validation),
        "test_rows_also_in_train": sum(row.source in train for row in test),
        "test_rows_also_in_train_or_unlabeled": sum(
            row.source in train or row.source in unlabeled for row in test
        ),
    }


def _label_counts(task: TaskSpec, rows: dict[str, list[Row]]) -> dict[str, dict[str, int]]:
    """Class → rows, for each split that has labels; nothing for other kinds of task."""
    if task.kind != "classification":
        return {}
    counts = {s: Counter(r.target for r in rows[s]) for s in ("train", "validation", "test")}
    return {split: {label: of[label] for label in task.labels} for split, of in counts.items()}


def describe_files(files: dict[str, Rows]) -> dict[str, Any]:
    """Which bytes a task was read from, and what was left out of them."""
    skipped = [bad for file in files.values() for bad in file.skipped]
    return {
        "source_files": {
            name: {"sha256": file.sha256, "rows": len(file.rows), "skipped": len(file.skipped)}
            for name, file in files.items()
        },
        "data_fingerprint": fingerprint({name: file.sha256 for name, file in files.items()}),
        "skipped_rows": [f"{bad.location}: {bad.complaint}" for bad in skipped],
        "skipped_summary": list_complaints(skipped),
    }


# --- The three layouts


def _own_files(task: TaskSpec, data: DataConfig) -> dict[str, Rows]:
    own = data.own
    columns = Columns(own.source_column, own.target_column)
    named = {"train": own.train_file, "test": own.test_file, "validation": own.validation_file}
    files = {
        split: read_own(file, data.on_bad_row, columns, task.check_target)
        for split, file in named.items()
        if file
    }
    if own.unlabeled_file:
        texts = Columns(own.source_column, None)
        files["unlabeled"] = read_own(own.unlabeled_file, data.on_bad_row, texts)
    return files


def read_own(file: str, on_bad_row: str, columns: Columns, check_target: Any | None = None) -> Rows:
    """`read_rows` of a file that the user named; only endings that say how to read it will do."""
    path = Path(file)
    if path.suffix.lower() not in OWN_FILE_ENDINGS:
        raise ValueError(
            f"{path} does not say how to read it; expected a name that ends in "
            f"{', '.join(OWN_FILE_ENDINGS)}. A spreadsheet can be saved as CSV UTF-8."
        )
    return read_rows(
        path,
        on_bad_row,
        columns,
        check_target,
        if_unreadable=f"Name a file as it is seen from {Path.cwd()}.",
    )


def _authors_files(task: TaskSpec, data: DataConfig) -> dict[str, Rows]:
    folder = Path(data.data_dir) / task.folder
    names = {
        split: f"{task.folder}_{published}_all.json"
        for split, published in (("train", "train"), ("test", task.test_split))
    }
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder} with the files of task {task.name!r} "
            f"({', '.join(names.values())}). {HOW_TO_SET_THE_FOLDER}"
        )
    return {
        split: read_rows(
            folder / name,
            data.on_bad_row,
            check_target=task.check_target,
            if_unreadable=HOW_TO_SET_THE_FOLDER,
        )
        for split, name in names.items()
    }


def _sample_files(task: TaskSpec, data: DataConfig) -> dict[str, Rows]:
    folder = Path(str(resources.files("dora_jax.data"))) / "sample" / task.folder
    if not folder.is_dir():
        raise ValueError(f"No sample of task {task.name!r} is bundled. {HOW_TO_SET_THE_FOLDER}")
    files = {
        split: read_rows(folder / f"{split}.jsonl", data.on_bad_row, check_target=task.check_target)
        for split in ("train", "validation", "test")
    }
    return files | {"unlabeled": read_rows(folder / "unlabeled.jsonl", data.on_bad_row, UNLABELLED)}


# --- Which rows


def _cut_validation(rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Parts rows by the hash of their source, so that rows of one source stay together."""
    train: list[Row] = []
    validation: list[Row] = []
    for row in rows:
        digest = hashlib.sha256(row.source.encode()).digest()
        fraction = int.from_bytes(digest[:8], "big") / 2**64
        (validation if fraction < share else train).append(row)
    return train, validation


def order_of_labels(train: list[Row], seed: int) -> list[Row]:
    """The order in which rows get labels: that of the file for -1, else drawn.

    A drawn order follows from the seed and the hash of each source alone, so the labels of a
    smaller count are among those of a larger one.
    """

    def drawn(row: Row) -> bytes:
        return hashlib.sha256(f"{seed}\n{row.source}".encode()).digest()

    return train if seed == -1 else sorted(train, key=drawn)


def _choose_labels(train: list[Row], data: DataConfig) -> tuple[list[Row], list[Row]]:
    """The labelled rows and the others.

    Raises:
        ValueError: more are asked for than there are.
    """
    count = len(train) if data.num_labels == -1 else data.num_labels
    if count > len(train):
        raise ValueError(
            f"DataConfig.num_labels = {count}, but there are {len(train)} labelled rows left for "
            "training; ask for so many or fewer, or for -1, which takes them all."
        )
    order = order_of_labels(train, data.labels_seed)
    return order[:count], order[count:]


def distinct_sources(rows: list[Row], known: set[str]) -> list[Row]:
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
