"""JSON lines that grow as answers come, survive a kill, and belong to one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

SECONDS_BETWEEN_SYNCS = 1.0  # what a failure of the machine's power can cost; a kill costs nothing


class AppendedRows:
    """A file of rows, locked for this process. Use as a context manager.

    Attributes:
        rows: those found when it was opened; a torn last line is cut off and not among them.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            ValueError: it cannot be written, is in use, or a line in it is no row.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(path, "ab+")
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}.") from error
        try:
            self.rows = self._open()
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def _open(self) -> list[dict[str, Any]]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"Another process writes {self.path}. Wait for it, or name another --output."
            ) from error
        rows, whole = read_appended(self.path)
        self._file.truncate(whole)
        return rows

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row; it outlives this process from now on."""
        self._file.write(json.dumps(row, ensure_ascii=True, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced > SECONDS_BETWEEN_SYNCS:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> AppendedRows:
        return self

    def __exit__(self, *exception: object) -> None:
        self._sync()
        self._file.close()


def read_appended(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of such a file, and how many of its bytes they are: a torn last line is none.

    Raises:
        ValueError: a line that is whole is no row.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}:{number} is no row of JSON ({error}). Rows are only ever appended; mend "
                "the line, or move the file away to begin anew."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number} is no row: expected an object, found {row!r:.60}.")
        rows.append(row)
    return rows, whole
