"""Sheets that come back from people: every label checked against its text and its task."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.annotators.answers import LabelledTask, UnusableAnswer, read_answer, write_spans
from dora_jax.annotators.sheets import (
    COLUMNS,
    DELIMITERS,
    FORMULA_MARKS,
    ID_MARK,
    NO_ENTITIES,
    unguarded,
)
from dora_jax.metrics.classification import parse_class
from dora_jax.metrics.text import normalise


class Given(NamedTuple):
    """What one person gave one text; `target` None: nothing yet."""

    location: str
    id: str
    source: str
    annotator: str
    target: str | None


class Imported(NamedTuple):
    """The good labels, id of a text → annotator → target; the bad ones; and those not given."""

    labels: dict[str, dict[str, str]]
    complaints: list[str]
    unlabelled: int


class _Bad(ValueError):
    pass


def import_sheets(
    paths: Sequence[Path], task: LabelledTask, sources: Mapping[str, str]
) -> Imported:
    """Reads sheets of one or more people and checks every row.

    Args:
        paths: of sheets, as `sheets.write_sheet` wrote and a program gave them back.
        task: whose rules hold.
        sources: id → text, of all texts that may have been asked about.

    Raises:
        ValueError: a file cannot be read, or is none of the known forms.
    """
    labels: dict[str, dict[str, str]] = {}
    complaints: list[str] = []
    unlabelled = 0
    for path in paths:
        for given in _read(path, task):
            if isinstance(given, str):
                complaints.append(given)
                continue
            try:
                _check(given, task, sources, labels)
            except (_Bad, UnusableAnswer) as error:
                complaints.append(f"{given.location}: {error}")
                continue
            if given.target is None:
                unlabelled += 1
            else:
                labels.setdefault(given.id, {})[given.annotator] = given.target
    return Imported(labels, complaints, unlabelled)


def _check(
    given: Given, task: LabelledTask, sources: Mapping[str, str], labels: Mapping[str, Any]
) -> None:
    if given.id not in sources:
        raise _Bad(f"the id {given.id[:40]!r} is that of no text of the pool")
    source = sources[given.id]
    if normalise(given.source) != normalise(source):
        raise _Bad(
            f"the text of {given.id} was changed: {given.source[:60]!r} in place of {source[:60]!r}"
        )
    if given.target is None:
        return
    if complaint := task.check_target(given.target):
        raise _Bad(complaint)
    if task.kind == "spans" and given.target:
        read_answer(task, source, given.target)
    before = labels.get(given.id, {}).get(given.annotator)
    if before is not None and before != given.target:
        raise _Bad(
            f"{given.annotator!r} gave {given.id} two labels, {before[:40]!r} and "
            f"{given.target[:40]!r}"
        )


def _read(path: Path, task: LabelledTask) -> Iterator[Given | str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"--import_file={path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text; save it as CSV UTF-8.") from error
    kind = path.suffix.lower()
    if kind in DELIMITERS:
        yield from _from_table(text, path, task)
    elif kind == ".json":
        records = _json(text, path)
        if not isinstance(records, list):
            raise ValueError(f"{path}: expected a list of tasks, found {type(records).__name__}.")
        for number, record in enumerate(records, 1):
            yield from _from_record(record, f"{path}:{number}", task, _from_label_studio)
    elif kind == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield from _from_line(line, f"{path}:{number}", task)
    else:
        raise ValueError(
            f"--import_file={path}; expected .csv or .tsv (a spreadsheet), .json (Label Studio) "
            "or .jsonl (Prodigy)."
        )


def _json(text: str, where: Path | str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is broken JSON: {error}.") from error


# --- Spreadsheets


def _from_table(text: str, path: Path, task: LabelledTask) -> Iterator[Given | str]:
    first = text.partition("\n")[0]  # four plain names, parted as the program liked
    delimiter = max((",", ";", "\t"), key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}; its first row names "
            f"{', '.join(reader.fieldnames or ()) or 'nothing'}."
        )
    try:
        for row in reader:
            yield _from_cells(row, f"{path}:{reader.line_num}", path.stem, task)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: broken quoting ({error}).") from error


def _from_cells(
    row: Mapping[str, str | None], location: str, person: str, task: LabelledTask
) -> Given | str:
    cells = {name: (row[name] or "").strip() for name in COLUMNS}
    label, annotator = unguarded(cells["label"]), cells["annotator"] or person
    # Amounts may begin with a sign ("-80°C [Temperature]"); their text decides about them.
    if cells["label"].startswith(("=", "@")) or cells["annotator"].startswith(FORMULA_MARKS):
        return f"{location}: a cell begins as a formula does: {(label or annotator)[:40]!r}"
    target: str | None = label or None
    if task.kind == "spans" and label == NO_ENTITIES:
        target = ""
    elif task.kind == "classification" and label:
        target = parse_class(label, task.labels) or label
    elif label:
        target = " ".join(label.split())
    row_id = cells["id"].removeprefix(ID_MARK)
    return Given(location, row_id, unguarded(cells["source"]), annotator, target)


# --- Label Studio and Prodigy

_Reader = Callable[[dict[str, Any], str, LabelledTask], Iterator[Given]]


def _from_record(
    record: Any, location: str, task: LabelledTask, read: _Reader
) -> Iterator[Given | str]:
    try:
        yield from read(record, location, task)
    except _Bad as error:
        yield f"{location}: {error}"
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        yield f"{location}: not of the form that was expected ({type(error).__name__}: {error})"


def _from_line(line: str, location: str, task: LabelledTask) -> Iterator[Given | str]:
    """One broken line hides no mistake in the others."""
    try:
        record = _json(line, location)
    except ValueError as error:
        yield str(error)
    else:
        yield from _from_record(record, location, task, _from_prodigy)


def _from_label_studio(
    record: dict[str, Any], location: str, task: LabelledTask
) -> Iterator[Given]:
    source, row_id = str(record["data"]["text"]), str(record["data"]["id"])
    for annotation in record.get("annotations", []):
        person = annotation.get("completed_by", "")
        person = person.get("email", person.get("id", "")) if isinstance(person, dict) else person
        values = [result["value"] for result in annotation["result"]]
        if annotation.get("was_cancelled"):
            target = None
        elif task.kind == "spans":
            spans = [(v["start"], v["end"], v["labels"][0], v.get("text")) for v in values]
            target = _spans(source, spans)
        elif task.kind == "classification":
            target = values[0]["choices"][0] if values else None
        else:
            target = " ".join(values[0]["text"][0].split()) if values else None
        yield Given(location, row_id, source, f"label-studio:{person}", target)


def _from_prodigy(record: dict[str, Any], location: str, task: LabelledTask) -> Iterator[Given]:
    source, row_id = str(record["text"]), str(record["meta"]["id"])
    person = record.get("_annotator_id") or record.get("_session_id") or "prodigy"
    answered = record.get("answer") == "accept"
    target: str | None = None
    if answered and task.kind == "spans":
        spans = [(s["start"], s["end"], s["label"], None) for s in record.get("spans", [])]
        target = _spans(source, spans)
    elif answered and task.kind == "classification":
        target = record["accept"][0] if record.get("accept") else None
    elif answered:
        target = " ".join(record["user_input"].split()) or None
    yield Given(location, row_id, source, str(person), target)


def _spans(source: str, spans: Sequence[tuple[int, int, str, str | None]]) -> str:
    """Character offsets as a target: each must lie in the text, hold its words, and not overlap."""
    end_before = 0
    pairs = []
    for start, end, kind, text in sorted(spans, key=lambda span: span[:2]):
        if text is not None:
            start, end = _in_characters(source, start, end, text)
        if not 0 <= start < end <= len(source):
            raise _Bad(f"the span {start}–{end} is not in the text of {len(source)} characters")
        if text is not None and text != source[start:end]:
            raise _Bad(f"the span {start}–{end} is {source[start:end]!r}, not {text[:40]!r}")
        if start < end_before:
            raise _Bad(f"the span {start}–{end} overlaps the one before it")
        if not source[start:end].strip():
            raise _Bad(f"the span {start}–{end} is empty")
        end_before = end
        pairs.append((" ".join(source[start:end].split()), kind))
    return write_spans(pairs)


def _in_characters(source: str, start: int, end: int, text: str) -> tuple[int, int]:
    """Offsets of a browser in characters, where they only so give the span's own text.

    Browsers count a character beyond the first 65,536, such as an emoji or 𝛼, as two.
    """
    if source[start:end] == text:
        return start, end
    units = source.encode("utf-16-le")
    before, inside = (
        part.decode("utf-16-le", "replace")
        for part in (units[: 2 * start], units[2 * start : 2 * end])
    )
    return (len(before), len(before) + len(inside)) if inside == text else (start, end)
