"""One run on many hosts: how its processes find each other, and what is said when one is lost.

On every host a small parent process starts the worker that computes. JAX ends a worker whose
peer is gone from C++, without a Python exception; the parent outlives it, says which host was
lost, and ends with a status by which a scheduler knows that the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from dora_jax.launch.command_line import EXIT_BUDGET, EXIT_INTERRUPTED, exit_status

HEARTBEAT_SECONDS = 15  # JAX's own 100 would let the other hosts cost money for so long
LEAVING_SECONDS = 2
JOINING_SECONDS = 300  # hosts of one job may start minutes apart

# The parent asks its worker to stop by this signal. The others are ignored there: a scheduler
# may send them to both, and the second of two would end the worker before it has saved.
STOP_SIGNAL = signal.SIGUSR1
_WORKER_OF = "DORA_JAX_WORKER_NAMES_FILE"
_KEPT_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1
# How a collective tells that a peer is gone: gloo, NCCL, gRPC.
_BROKEN = r"Gloo .* failed|NCCL|[Cc]onnection (closed|reset|refused)|[Ss]ocket closed|UNAVAILABLE"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a run on many hosts; every host gets the same command."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of many hosts, found as JAX finds them: SLURM, Kubernetes, Cloud TPU, Open MPI",
    )
    parser.add_argument(
        "--coordinator_address",
        metavar="HOST:PORT",
        help="instead of finding them: where the first host listens",
    )
    parser.add_argument("--num_processes", type=int, metavar="N", help="… how many hosts there are")
    parser.add_argument(
        "--process_id", type=int, metavar="I", help="… and which this one is, from 0"
    )


def wanted(flags: argparse.Namespace) -> bool:
    """Whether this is one host of many.

    Raises:
      ValueError: the explicit flags are not all there, or out of range.
    """
    names = ("coordinator_address", "num_processes", "process_id")
    given = [name for name in names if getattr(flags, name) is not None]
    if not given:
        return flags.distributed
    missing = [f"--{name}" for name in names if name not in given]
    if missing:
        raise ValueError(
            f"--{given[0]} needs {' and '.join(missing)} beside it; or give --distributed alone, "
            "which finds them where a scheduler started the hosts."
        )
    if not 0 <= flags.process_id < flags.num_processes:
        raise ValueError(
            f"--process_id={flags.process_id} with --num_processes={flags.num_processes}; "
            "expected 0 to one less than the number of processes."
        )
    if not re.fullmatch(r".+:\d+", flags.coordinator_address):
        raise ValueError(
            f"--coordinator_address={flags.coordinator_address}; expected HOST:PORT, such as "
            "node0:8476."
        )
    return True


def is_worker() -> bool:
    """Whether a parent has started this process to compute."""
    return _WORKER_OF in os.environ


# --- The worker


def join(flags: argparse.Namespace) -> None:
    """Finds the other hosts; returns when all are there.

    Raises:
      ValueError: they cannot be found, or do not come.
    """
    _die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    import jax

    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=flags.coordinator_address,
            num_processes=flags.num_processes,
            process_id=flags.process_id,
            initialization_timeout=JOINING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The hosts of this run did not find each other: {error}. Start the same command on "
            "each of them under SLURM, Kubernetes, Cloud TPU or Open MPI with --distributed, or "
            "name them with --coordinator_address=HOST:PORT --num_processes=N --process_id=I."
        ) from error
    names = _host_names()
    Path(os.environ[_WORKER_OF]).write_text("\n".join(names), encoding="utf-8")
    if jax.process_index() == 0:
        print(f"{len(names)} hosts: {', '.join(names)}", flush=True)


def _die_with_parent() -> None:
    """Linux kills the worker with its parent; elsewhere it ends at its next message."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _host_names() -> list[str]:
    """The name of every process's host, in the processes' order."""
    import numpy as np
    from jax.experimental import multihost_utils

    own = np.zeros(64, np.uint8)
    name = socket.gethostname().encode()[:64]
    own[: len(name)] = np.frombuffer(name, np.uint8)
    rows = multihost_utils.process_allgather(own)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def work(run: Callable[[], int], debug: bool) -> int:
    """Runs the worker's part, and leaves the others as its end demands.

    All hosts of a run that is done or stopped end together. One that fails ends at once: at its
    normal end JAX would wait for the others, which wait for it, and then abort them all without
    a word of which it was.

    Args:
      run: returns the exit status.
      debug: as `exit_status` takes it.
    """
    try:
        status = exit_status(lambda: _named_by_jax(run), debug)
    except Exception:
        traceback.print_exc()
        status = 1
    if status in (0, EXIT_BUDGET, EXIT_INTERRUPTED):
        return status
    import jax

    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:  # its end ends the others, who may be telling the same error
            time.sleep(LEAVING_SECONDS)
        os._exit(status)
    return status


def _named_by_jax(run: Callable[[], int]) -> int:
    """Where a computation breaks because a host is gone, waits for JAX to say which.

    The others' broken connections are felt at once, but which host is gone is known only when
    its heartbeats fail to come: then JAX writes it to stderr, and ends this process.
    """
    import jax

    try:
        return run()
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # JAX raises either
        if not re.search(_BROKEN, str(error)):
            raise
        sys.stderr.write(f"a computation over all hosts broke: {str(error).splitlines()[0]}\n")
        sys.stderr.flush()
        time.sleep(HEARTBEAT_SECONDS + 10)
        raise


# --- The parent


def supervise(program: Sequence[str]) -> int:
    """Starts the worker of this host and waits for it.

    Args:
      program: the command of the worker.

    Returns:
      The worker's own exit status where it ended by itself; 75, the same command goes on, where
      another host was lost; 128 + the signal where this worker was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        names_file = Path(folder) / "names"
        worker = subprocess.Popen(
            program,
            stderr=subprocess.PIPE,
            env=os.environ | {_WORKER_OF: str(names_file)},
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent alone
        )
        assert worker.stderr is not None
        last = _Tail(worker.stderr)
        with _handing_on_signals(worker) as asked:
            status = worker.wait()
        last.join(timeout=5)
        names = names_file.read_text(encoding="utf-8").split("\n") if names_file.exists() else []
    if status >= 0:
        return status
    if -status == STOP_SIGNAL and asked():  # it came before the worker could take it: nothing began
        return EXIT_INTERRUPTED
    told = last.text()
    lost = lost_processes(told)
    if lost:
        sys.stderr.write(f"error: {_lost_text(lost, names)}\n")
        return EXIT_INTERRUPTED
    if -status != signal.SIGABRT:
        by = "after the second signal" if asked() > 1 else "by the system (memory?) or by hand"
        sys.stderr.write(
            f"error: the worker of host {socket.gethostname()} was ended by "
            f"{signal.Signals(-status).name}, {by}. The last checkpoint is whole; the same command "
            "on all hosts goes on from it.\n"
        )
    return 128 - status


class _Tail(threading.Thread):
    """Hands on what a worker writes to stderr, and keeps the end of it."""

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._kept = b""
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._source.fileno(), _KEPT_BYTES):
            self._kept = (self._kept + chunk)[-_KEPT_BYTES:]
            with contextlib.suppress(OSError):
                os.write(2, chunk)

    def text(self) -> str:
        return self._kept.decode(errors="replace")


@contextlib.contextmanager
def _handing_on_signals(worker: subprocess.Popen[bytes]) -> Iterator[Callable[[], int]]:
    """The first SIGTERM or Ctrl-C asks the worker to save and end; the second kills it."""
    asked = 0

    def hand_on(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(STOP_SIGNAL if asked == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def lost_processes(told: str) -> list[int]:
    """Which processes a worker's last words name as gone; empty where they name none.

    Args:
      told: what JAX's coordination service wrote: a list of tasks, "1" or ".../task:1" a line,
        from the first process; or, where the first one itself is gone, that it does not answer.
    """
    listed = re.search(r"tasks are unhealthy[^\n]*\n(.*?)The tasks have", told, re.DOTALL)
    if listed:
        return sorted({int(task) for task in re.findall(r"\b(\d+)\s*$", listed[1], re.MULTILINE)})
    unanswered = re.search(r"coordination service|PollForError", told, re.IGNORECASE)
    return [0] if unanswered and re.search(r"UNAVAILABLE|[Ss]ocket closed", told) else []


def _lost_text(lost: Sequence[int], names: Sequence[str]) -> str:
    hosts = [
        f"{names[i]} (process {i} of {len(names)})" if i < len(names) else f"process {i}"
        for i in lost
    ]
    return (
        f"lost {' and '.join(hosts)}: it ended, was preempted, or cannot be reached any more. A "
        "run cannot go on without one of its hosts. The last checkpoint is whole: start the same "
        "command on all hosts again."
    )
