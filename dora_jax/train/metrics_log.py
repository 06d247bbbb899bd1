"""Metrics of a training phase: `metrics.jsonl` and TensorBoard events, without TensorFlow."""

from __future__ import annotations

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
        events = directory / "tensorboard"
        events.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{os.getpid()}"
        self._events: IO[bytes] = open(events / name, "ab")
        self._event_writer = RecordWriter(self._events)
        self._write_event(file_version="brain.Event:2")
        # Tells TensorBoard to forget what an undone part of the run has written.
        start = SessionLog(status=SessionLog.START)
        self._write_event(step=resume_step + 1, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        self._rows.flush()
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write_event(step=step, summary=Summary(value=scalars))
        self._events.flush()

    def close(self) -> None:
        with self._rows, self._events:  # closes both, even where the disk is full
            pass

    def _write_event(self, **fields: object) -> None:
        event = Event(wall_time=time.time(), **fields)
        self._event_writer.write(event.SerializeToString())

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
