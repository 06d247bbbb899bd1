"""The files of launch/predict.py: rows to predict, and predictions that survive a kill."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dora_jax.whole_files import write_json

_SHOWN = 5  # bad rows that an error quotes


class InputRows(NamedTuple):
    """What a file of JSON lines holds."""

    rows: list[dict[str, Any]]
    bad: list[str]  # what is wrong with each row left out, with its number
    sha256: str  # of the file


def read_inputs(path: Path, skip_bad: bool) -> InputRows:
    """Reads rows with a text "source" and whatever else.

    Args:
      skip_bad: leave bad rows out instead of refusing the file.

    Raises:
      ValueError: no such file, a row that is bad, or no row at all.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"--inputs={path} cannot be read: {error.strerror}.") from error
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    rows, bad = [], []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if isinstance(row, str):
            bad.append(f"row {number}: {row}")
        else:
            rows.append(row)
    if bad and not skip_bad:
        more = f"\n  … and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
        raise ValueError(
            f"{len(bad):,} of the {len(lines):,} rows of {path} are bad:\n  "
            + "\n  ".join(bad[:_SHOWN])
            + f"{more}\nMend them, or leave them out with --on_bad_row=skip."
        )
    if not rows:
        raise ValueError(f"{path} holds no row to predict.")
    return InputRows(rows, bad, hashlib.sha256(content).hexdigest())


def _parse(line: bytes) -> dict[str, Any] | str:
    """The row, or what is wrong with it."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return f"byte {error.start} is no UTF-8"
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg} at character {error.pos}" if line.strip() else "it is empty"
    except (ValueError, RecursionError) as error:  # endless numbers, endless nesting
        return f"no JSON: {error}"
    if not isinstance(row, dict):
        return f'expected an object with a text "source", found {type(row).__name__}'
    if not isinstance(row.get("source"), str):
        found = type(row["source"]).__name__ if "source" in row else f"the keys {list(row)}"
        return f'expected a text under "source", found {found}'
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half a surrogate pair, which is no character"
    return row


class Predictions:
    """A file of predictions that grows in order, and appears when all are there.

    Until then the rows are in `<name>.partial`, and the settings they were made with in
    `<name>.partial.json`. After a kill the finished rows count, a torn last one does not. Use as
    a context manager.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Starts the file, or goes on with one of the same settings.

        Raises:
          ValueError: `path` is there already, cannot be written, is being written by another
            process, or was begun with other settings.
        """
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._settings_path = path.with_name(f"{path.name}.partial.json")
        if path.exists():
            raise ValueError(f"--outputs={path} is there already; remove it or name another.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(self._partial, "ab+")
        except OSError as error:
            raise ValueError(f"--outputs={path} cannot be written: {error.strerror}.") from error
        try:
            self._lock()
            self.done = self._go_on(settings)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"Another process writes {self._path}. Wait for it, or name other --outputs."
            ) from error

    def _go_on(self, settings: dict[str, Any]) -> int:
        """Checks the settings, cuts off a torn row, and returns the number of whole ones."""
        self._file.seek(0)
        content = self._file.read()
        if content:
            self._refuse_others(settings)
        else:
            write_json(self._settings_path, settings)
        self._file.truncate(content.rfind(b"\n") + 1)
        return content.count(b"\n")

    def _refuse_others(self, settings: dict[str, Any]) -> None:
        before = {}
        if self._settings_path.is_file():
            before = json.loads(self._settings_path.read_text(encoding="utf-8"))
        names = sorted({*before, *settings})
        differences = [
            f"{name}: then {before.get(name)}, now {settings.get(name)}"
            for name in names
            if before.get(name) != settings.get(name)
        ]
        if differences:
            raise ValueError(
                f"{self._partial} was begun with other settings. {'; '.join(differences)}. "
                "Remove that file to begin anew, or name other --outputs."
            )

    def append(self, rows: Sequence[dict[str, Any]], predictions: Sequence[str]) -> None:
        """Adds the next rows, each with its prediction; they are on disk on return."""
        for row, prediction in zip(rows, predictions, strict=True):
            line = json.dumps({**row, "prediction": prediction}, ensure_ascii=False)
            self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done += len(rows)

    def finish(self) -> None:
        """Gives the file its name."""
        os.replace(self._partial, self._path)
        self._settings_path.unlink()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.done:
            self._partial.unlink()
            self._settings_path.unlink()
        self._file.close()
