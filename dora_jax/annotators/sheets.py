"""Sheets for people: what spreadsheets, Label Studio and Prodigy take in.

.csv, .tsv   a spreadsheet: id, source, label, annotator
.json        Label Studio's tasks; its labelling configuration is written beside them
.jsonl       Prodigy's stream, for ner.manual, choice or text_input
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

from dora_jax.annotators.answers import LabelledTask
from dora_jax.whole_files import write_whole

COLUMNS = ("id", "source", "label", "annotator")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
NO_ENTITIES = "NONE"  # an empty cell is one that nobody has filled in
# A spreadsheet takes a cell that begins so for a formula, which may start programs.
FORMULA_MARKS = ("=", "+", "-", "@", "\t", "\r")
# Before an id in a spreadsheet, which would take "12345678e9012345" for a number and round it.
ID_MARK = "id:"
_HINTS = {
    "classification": "Write one of the labels into the column label.",
    "spans": (
        "Write the entities into the column label, each with its type in brackets: "
        f"entity [Type] entity [Type]. Write {NO_ENTITIES} where there are none."
    ),
    "text": "Write your text into the column label.",
}


class Item(NamedTuple):
    """A text to label."""

    id: str
    source: str


def write_sheet(path: Path, task: LabelledTask, items: Sequence[Item]) -> list[Path]:
    """Writes a sheet, and what goes with it.

    Args:
        path: its ending says for which program.
        task: what is asked.
        items: the texts.

    Returns:
        the files written.

    Raises:
        ValueError: an ending that is not known.
    """
    kind = path.suffix.lower()
    if kind in DELIMITERS:
        content = _table(items, DELIMITERS[kind])
    elif kind == ".json":
        tasks = [{"data": {"id": item.id, "text": item.source}} for item in items]
        content = json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"
    elif kind == ".jsonl":
        rows = [json.dumps(_for_prodigy(task, item), ensure_ascii=False) for item in items]
        content = "\n".join([*rows, ""])
    else:
        raise ValueError(
            f"--output={path} does not say for which program; expected .csv or .tsv (a "
            "spreadsheet), .json (Label Studio) or .jsonl (Prodigy)."
        )
    write_whole(path, content.encode("utf-8-sig") if kind in DELIMITERS else content)
    written = [path, path.with_suffix(".instructions.txt")]
    write_whole(written[1], instructions(task))
    if kind == ".json":
        written.append(path.with_suffix(".label_studio.xml"))
        write_whole(written[2], label_studio_config(task))
    return written


def instructions(task: LabelledTask) -> str:
    """What the people are told."""
    labels = [f"  {label}" for label in task.labels]
    listed = ["", "Labels:", *labels] if labels else []
    return "\n".join([task.instruction, "", _HINTS[task.kind], *listed, ""])


def guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA_MARKS) else cell


def unguarded(cell: str) -> str:
    """The text of a cell that `guarded` may have made."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_MARKS) else cell


def _table(items: Sequence[Item], delimiter: str) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(COLUMNS)
    writer.writerows((f"{ID_MARK}{item.id}", guarded(item.source), "", "") for item in items)
    return text.getvalue()


def _for_prodigy(task: LabelledTask, item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {"text": item.source, "meta": {"id": item.id}}
    if task.kind == "classification":
        row["options"] = [{"id": label, "text": label} for label in task.labels]
    elif task.kind == "text":
        row["field_id"] = "user_input"
    return row


def label_studio_config(task: LabelledTask) -> str:
    """The labelling interface of a Label Studio project, with every label escaped."""
    text = '  <Text name="text" value="$text"/>'
    if task.kind == "spans":
        parts = ['  <Labels name="label" toName="text">']
        parts += [f"    <Label value={quoteattr(label)}/>" for label in task.labels]
        parts += ["  </Labels>", text]
    elif task.kind == "classification":
        parts = [text, '  <Choices name="label" toName="text" choice="single">']
        parts += [f"    <Choice value={quoteattr(label)}/>" for label in task.labels]
        parts += ["  </Choices>"]
    else:
        parts = [text, '  <TextArea name="label" toName="text" maxSubmissions="1"/>']
    return "\n".join(["<View>", *parts, "</View>", ""])
