"""From a file to rows: JSON lines, CSV and TSV; and what is wrong with a row, and where."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import difflib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TABLES = {".csv": ",", ".tsv": "\t"}
MAX_COMPLAINTS_SHOWN = 20


class Row(NamedTuple):
    """One example as text; `target` is "" where there is no label, and also where it is empty."""

    source: str
    target: str
    location: str  # "file:line", for messages


class BadRow(NamedTuple):
    """A row that cannot be used, and why."""

    location: str
    complaint: str


class Columns(NamedTuple):
    """The fields of a row that are read; without a `target` they are texts without labels."""

    source: str = "source"
    target: str | None = "target"

    @property
    def names(self) -> tuple[str, ...]:
        """One or two names."""
        return (self.source,) if self.target is None else (self.source, self.target)


LABELLED = Columns()
UNLABELLED = Columns(target=None)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a file held.

    Attributes:
        rows: the good rows, in file order.
        skipped: the rows left out.
        sha256: of the file's bytes.
    """

    rows: list[Row]
    skipped: list[BadRow]
    sha256: str


TargetCheck = Callable[[str], str | None]
Record = tuple[str, dict[str, Any]]  # location and fields


def read_rows(
    path: Path,
    on_bad_row: str,
    columns: Columns = LABELLED,
    check_target: TargetCheck | None = None,
    if_unreadable: str = "",
) -> Rows:
    """Reads a file of rows: a table if its name ends in .csv or .tsv, else JSON lines.

    Empty lines, and rows of a table that have no text at all, hold no row.

    Args:
        path: the file.
        on_bad_row: "error" refuses a file with bad rows, "skip" leaves them out.
        columns: which fields hold the text and its label.
        check_target: says what is wrong with a target, or None; without it any will do.
        if_unreadable: what to do about a file that cannot be read, for the message.

    Raises:
        ValueError: the file cannot be read, a table has no such column, or rows are bad: all
            that is wrong, how often, and where it first is.
    """
    content = _content(path, if_unreadable)
    if path.suffix.lower() in TABLES:
        records = _table(content, path, columns)
    else:
        records = _json_lines(content, path, columns)
    rows: list[Row] = []
    bad: list[BadRow] = []
    for record in records:
        row = record if isinstance(record, BadRow) else _row(record, columns, check_target)
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            rows.append(row)
    if bad and on_bad_row == "error":
        raise ValueError(_refusal(path, bad))
    return Rows(rows, bad, hashlib.sha256(content).hexdigest())


def list_complaints(bad: Sequence[BadRow]) -> list[str]:
    """One line for each thing that is wrong: where first, what, in how many rows."""
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    for location, complaint in bad:
        first.setdefault(complaint, location)
        counts[complaint] = counts.get(complaint, 0) + 1
    order = sorted(counts, key=lambda complaint: -counts[complaint])
    lines = [
        f"{first[complaint]}: {complaint}"
        + (f" ({counts[complaint]:,} rows)" if counts[complaint] > 1 else "")
        for complaint in order[:MAX_COMPLAINTS_SHOWN]
    ]
    if len(order) > MAX_COMPLAINTS_SHOWN:
        lines.append(f"… and {len(order) - MAX_COMPLAINTS_SHOWN:,} other complaints")
    return lines


def _refusal(path: Path, bad: Sequence[BadRow]) -> str:
    way_out = 'set ON_BAD_ROW = "skip" to leave such rows out and count them.'
    lines = list_complaints(bad)
    if len(bad) == 1:
        return f"{lines[0]} Mend the row, or {way_out}"
    listed = "\n".join(f"  {line}" for line in lines)
    return f"{path} has {len(bad):,} bad rows:\n{listed}\nMend them, or {way_out}"


def _content(path: Path, if_unreadable: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). {if_unreadable}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ValueError(
            f"{path} is no UTF-8 text, but a workbook or in UTF-16; save it again as UTF-8 (Excel: "
            "CSV UTF-8)."
        )
    return content.removeprefix(codecs.BOM_UTF8)


def _row(record: Record, columns: Columns, check_target: TargetCheck | None) -> Row | BadRow:
    location, fields = record
    for name in columns.names:
        complaint = _complaint_about(fields, name)
        if complaint:
            return BadRow(location, complaint)
    source = fields[columns.source]
    if not source.strip():
        return BadRow(location, f"{columns.source!r} is empty; there is nothing to label.")
    target = "" if columns.target is None else fields[columns.target]
    complaint = check_target(target) if check_target else None
    return BadRow(location, complaint) if complaint else Row(source, target, location)


def _complaint_about(fields: dict[str, Any], name: str) -> str | None:
    if name not in fields:
        return f"field {name!r} is missing; found {', '.join(fields) or 'none'}."
    value = fields[name]
    if not isinstance(value, str):
        return f"{name!r} must be text, found {type(value).__name__} {value!r}."
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{name!r} holds half a surrogate pair at character {error.start}."
    return None


# --- JSON lines


def _json_lines(content: bytes, path: Path, columns: Columns) -> Iterator[Record | BadRow]:
    # Not splitlines: text may hold U+2028 and its like as they are.
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield _json_record(line, f"{path}:{number}", columns)


def _json_record(line: bytes, location: str, columns: Columns) -> Record | BadRow:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(location, f"not UTF-8 ({error.reason} at byte {error.start}).")
    except json.JSONDecodeError as error:
        wrong = error.msg.removesuffix(" at")  # some end so, and the place follows
        return BadRow(location, f"broken JSON ({wrong} at column {error.colno}).")
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        return BadRow(location, f"broken JSON ({error}).")
    if not isinstance(fields, dict):
        expected = " and ".join(map(repr, columns.names))
        found = type(fields).__name__
        return BadRow(location, f"expected an object with {expected}, found {found}.")
    return location, fields


# --- CSV and TSV


def _table(content: bytes, path: Path, columns: Columns) -> Iterator[Record | BadRow]:
    text = content.decode("utf-8", errors="surrogateescape")
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_delimiter(text, path, columns), strict=True
    )
    header: list[str] | None = None
    while True:
        location = f"{path}:{reader.line_num + 1}"
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            break
        except csv.Error as error:
            _refuse_open_quote(error, location)
            yield BadRow(
                location,
                f"broken quoting ({error}); a quotation mark inside a quoted cell is doubled.",
            )
            continue
        if not any(cells):
            continue
        if header is None:
            header = cells
            _check_header(header, location, columns)
        else:
            yield _table_record(cells, header, location)
    if header is None:
        raise ValueError(f"{path} is empty; its first row must name the columns.")


def _delimiter(text: str, path: Path, columns: Columns) -> str:
    """A .csv may be parted by semicolons, as Excel writes it where the comma is in numbers, or
    by tabs, as it pastes it."""
    usual = TABLES[path.suffix.lower()]
    first_line = io.StringIO(text, newline="").readline()
    for delimiter in (usual, ";", "\t"):
        if set(columns.names) <= {name.strip(' "\r\n') for name in first_line.split(delimiter)}:
            return delimiter
    return usual


def _check_header(header: list[str], location: str, columns: Columns) -> None:
    for name in columns.names:
        if header.count(name) > 1:
            raise ValueError(f"{location}: {header.count(name)} columns have the name {name!r}.")
        if name not in header:
            close = difflib.get_close_matches(name, header, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{location}: there is no column {name!r}; the first row names "
                f"{', '.join(map(repr, header))}.{hint}"
            )


def _table_record(cells: list[str], header: list[str], location: str) -> Record | BadRow:
    if len(cells) != len(header):
        return BadRow(
            location, f"expected {len(header)} cells, as the first row has, found {len(cells)}."
        )
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return BadRow(location, "not UTF-8; save the table as UTF-8 (Excel: CSV UTF-8).")
    return location, dict(zip(header, cells, strict=True))


def _refuse_open_quote(error: csv.Error, location: str) -> None:
    """Even where bad rows are skipped: what follows the mark would be lost with its row."""
    if "unexpected end of data" in str(error) or "field larger" in str(error):
        raise ValueError(
            f"{location}: a quotation mark of this row is never closed, or a cell has more than "
            f"{csv.field_size_limit():,} characters. A quotation mark inside a quoted cell is "
            "doubled."
        ) from error
