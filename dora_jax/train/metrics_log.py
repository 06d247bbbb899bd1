"""Metrics of a training phase: `metrics.jsonl` and TensorBoard events, without TensorFlow.

TensorBoard's x-axis is a whole number, so there are two folders of events: over updates, and
over money, in hundredths of a cent.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

# protobuf makes these classes at run time, where pyright cannot see them.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from dora_jax.whole_files import write_whole

STEPS_PER_DOLLAR = 10_000


class MetricsLog:
    """Appends rows {"step": …, name: value, …} and mirrors them as TensorBoard scalars."""

    def __init__(self, directory: Path, resume_step: int) -> None:
        """Opens the log to go on after `resume_step`; rows beyond it are dropped.

        Those rows belong to updates that a crash undid and that will be done again.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        self._drop_rows_after(resume_step)
        self._rows: IO[str] = open(self._path, "a", encoding="utf-8")
        self._by_update = _Events(directory / "tensorboard")
        self._by_dollar = _Events(directory / "tensorboard_by_dollar")
        # Tells TensorBoard to forget what an undone part of the run has written. The money of
        # that part stays spent, so the other folder has nothing to forget.
        self._by_update.write(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row; `dollars` among the values is the other x-axis."""
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        self._rows.flush()
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = Summary(value=scalars)
        self._by_update.write(step=step, summary=summary)
        if "dollars" in values:
            place = round(values["dollars"] * STEPS_PER_DOLLAR)
            self._by_dollar.write(step=place, summary=summary)

    def close(self) -> None:
        """Closes all files, even where the disk is full."""
        with contextlib.ExitStack() as opened:
            for file in (self._rows, self._by_update, self._by_dollar):
                opened.callback(file.close)

    def _drop_rows_after(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue
            if row["step"] <= step:
                kept.append(line + "\n")
        write_whole(self._path, "".join(kept))


class _Events:
    """One file of TensorBoard events."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{os.getpid()}"
        self._file: IO[bytes] = open(directory / name, "ab")
        self._writer = RecordWriter(self._file)
        self.write(file_version="brain.Event:2")

    def write(self, **fields: object) -> None:
        event = Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        self._file.close()
