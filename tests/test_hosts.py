"""What a run on many hosts does, as far as one process shows it; the rest is test_hosts_runs.py."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from whole_runs import free_port

from dora_jax.data import loader, packing
from dora_jax.data.packing import Share
from dora_jax.data.soft_labels import SoftRow
from dora_jax.launch import hosts as launch_hosts
from dora_jax.parallel import hosts, partitioning
from dora_jax.parallel.mesh import AXES, make_mesh, own_shards
from dora_jax.stopping import Interrupted, StopRequest

# --- One process: each function is its own argument


def test_alone_a_process_decides_and_raises_by_itself() -> None:
    assert hosts.count() == 1
    assert hosts.is_first()
    assert hosts.from_first(lambda: (1, "two")) == (1, "two")
    assert hosts.any_of(True)
    assert not hosts.any_of(False)
    with pytest.raises(KeyError):
        hosts.on_first(lambda: {}["missing"])
    poll = hosts.Poll(make_mesh())
    assert [poll.any_of(flag) for flag in (False, True)] == [False, True]


def test_a_stop_elsewhere_stops_here() -> None:
    asked: list[bool] = []

    def any_host(flag: bool) -> bool:
        asked.append(flag)
        return len(asked) == 2

    stop = StopRequest(any_host)
    stop.check()
    with pytest.raises(Interrupted, match="a stop on another host"):
        stop.check()
    assert asked == [False, False]
    own = StopRequest()
    own.check()
    own.ask("SIGTERM")
    with pytest.raises(Interrupted, match="SIGTERM"):
        own.check()


# --- Two processes agree


@pytest.mark.multihost
def test_two_processes_agree_on_everything(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / str(i)).mkdir()
    worker = [sys.executable, str(Path(__file__).with_name("agreeing_worker.py"))]
    address = f"127.0.0.1:{free_port()}"
    processes = [subprocess.Popen([*worker, address, str(i), str(tmp_path)]) for i in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"told-{i}.json").read_text()) for i in range(2))
    assert (first.pop("first"), second.pop("first")) == (True, False)
    [kind, here, _], [_, there, _] = first.pop("not shared"), second.pop("not shared")
    assert kind == "ValueError"
    assert "is not the same folder on all 2 hosts; here it is that of the first one" in here
    assert "here it is not that of the first one" in there
    assert first == second
    assert first == {
        "count": 2,
        "of the first": {"who": 0, "text": "µ" * 5000},
        "no value": None,
        "value error": ["ValueError", "of 0", None],
        "full disk": ["OSError", "[Errno 28] of 0: 'a file'", errno.ENOSPC],
        "one of them": True,
        "none of them": False,
        "poll": [False, False, True, False],
        "fetched": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "begun": None,
        "finished": {"who": 0},
        "found": {"who": 0},
        "other settings": "ValueError",
        "shared": [],
    }


# --- Which rows are a host's


class Device:
    """Stands in for a device of some host."""

    def __init__(self, process_index: int) -> None:
        self.process_index = process_index


def mesh_of(processes: list[int], fsdp: int, tensor: int) -> Mesh:
    """A mesh over devices of these processes, as far as own_shards looks at it."""
    devices = np.array([Device(i) for i in processes], object).reshape(-1, fsdp, tensor)
    mesh = object.__new__(FakeMesh)
    mesh.devices, mesh.shape = devices, dict(zip(AXES, devices.shape, strict=True))
    return mesh  # pyright: ignore[reportReturnType]


class FakeMesh:
    """What own_shards asks of a mesh; JAX's own takes devices that are there."""

    devices: np.ndarray
    shape: dict[str, int]


@pytest.mark.parametrize(
    ("processes", "fsdp", "tensor", "process", "own"),
    [
        ([0, 0, 1, 1], 1, 1, 1, range(2, 4)),
        ([0, 0, 1, 1], 4, 1, 0, range(0, 2)),
        ([0, 0, 1, 1], 1, 2, 1, range(1, 2)),
        ([0, 0, 1, 1], 1, 4, 1, range(0, 1)),  # both hosts hold the same rows
        ([0, 1, 2, 3], 2, 2, 2, range(1, 2)),
    ],
)
def test_a_host_makes_the_rows_its_devices_hold(
    monkeypatch: pytest.MonkeyPatch,
    processes: list[int],
    fsdp: int,
    tensor: int,
    process: int,
    own: range,
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: process)
    assert own_shards(mesh_of(processes, fsdp, tensor)) == own


def test_rows_that_do_not_follow_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(ValueError, match=r"Process 0 holds the pieces \[0, 2\]"):
        own_shards(mesh_of([0, 1, 0, 1], 1, 1))


def soft_row(length: int) -> SoftRow:
    ids = np.arange(length * 2, dtype=np.int32).reshape(length, 2)
    logits, logz = np.full((length, 2), -1, np.float16), np.full((length, 1), 0.5, np.float32)
    return SoftRow(np.arange(length, dtype=np.int32), ids, logits, logz, logz[:, 0])


class Mixed:
    """Examples of 2 to 8 tokens; the odd ones carry soft labels."""

    def __len__(self) -> int:
        return 20

    def example(self, index: int, epoch: int) -> packing.Example:
        tokens = np.full(2 + index % 7, 5 + index, np.int32)
        return packing.Example(tokens, tokens[:2], soft_row(2) if index % 2 else None)


def made(share: Share) -> loader.PackedLoader:
    # Eight rows for seven short examples, so that some hosts' rows hold nothing at all.
    return loader.PackedLoader(
        Mixed(), batch_size=7, source_length=9, target_length=9, seed=1, row_multiple=8, share=share
    )


def test_the_hosts_shares_are_the_whole_batch() -> None:
    whole, shares = made(Share()), [made(Share(range(i, i + 2), 8)) for i in range(0, 8, 2)]
    empty = 0
    for step in range(4):
        expected, parts = whole.batch(step), [share.batch(step) for share in shares]
        for field, value in expected.batch._asdict().items():
            pieces = [getattr(part.batch, field) for part in parts]
            np.testing.assert_array_equal(np.concatenate(pieces), value, err_msg=field)
            assert all(piece.dtype == value.dtype for piece in pieces)
        empty += sum(not part.batch.weights_BT.any() for part in parts)
        for part in parts:  # counts are those of the run, not of the host
            assert (part.num_rows, part.tokens) == (expected.num_rows, expected.tokens)
            assert part.padding_tokens == expected.padding_tokens
    assert empty > 0


def test_rows_that_cannot_be_shared_equally_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8 rows cannot be divided into 3"):
        made(Share(range(1), 3))


def test_rows_and_whole_arrays_lie_as_batches_do() -> None:
    mesh = make_mesh(fsdp=2, tensor=2)
    rows = {"tokens_BS": np.arange(32).reshape(8, 4), "none": None}
    placed = partitioning.place_rows(rows, 8, mesh)
    sharding = partitioning.batch_sharding(mesh)
    again = partitioning.place(rows["tokens_BS"], sharding)
    for array in (placed["tokens_BS"], again):
        assert array.sharding == sharding
        np.testing.assert_array_equal(array, rows["tokens_BS"])


# --- The parent of a worker


def supervise(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    """A parent in a process of its own, whose worker runs some Python."""
    worker = tmp_path / "worker.py"
    worker.write_text(code, encoding="utf-8")
    parent = (
        "import sys; from dora_jax.launch.hosts import supervise; "
        f"sys.exit(supervise([{sys.executable!r}, {str(worker)!r}]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


WRITE_NAMES = """
import os, pathlib, sys
pathlib.Path(os.environ["DORA_JAX_WORKER_NAMES_FILE"]).write_text("node-a\\nnode-b")
"""
UNHEALTHY = """
sys.stderr.write('''E1 The following tasks are unhealthy (stopped sending heartbeats):
1
The tasks have crashed. Check the task logs for an earlier error 17
''')
os.abort()
"""


def test_a_worker_that_jax_aborts_has_its_cause_named(tmp_path: Path) -> None:
    process = supervise(tmp_path, WRITE_NAMES + UNHEALTHY)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "error: lost node-b (process 1 of 2): it ended" in err
    assert "tasks are unhealthy" in err  # JAX's own words are handed on


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("raise SystemExit(2)", 2, ""),
        ("raise SystemExit(75)", 75, ""),
        ("import os; os.kill(os.getpid(), 9)", 137, "was ended by SIGKILL, by the system"),
    ],
)
def test_a_workers_own_end_is_the_parents(
    tmp_path: Path, code: str, status: int, told: str
) -> None:
    process = supervise(tmp_path, code)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert told in err
    assert bool(err) == bool(told)


WAITING = """
import signal, time
def stop(number, frame):
    raise SystemExit(75)
signal.signal(signal.SIGUSR1, stop)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_signal_to_the_parent_asks_the_worker_to_save(tmp_path: Path) -> None:
    process = supervise(tmp_path, WAITING)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "")


def test_a_signal_before_the_worker_takes_it_loses_nothing(tmp_path: Path) -> None:
    process = supervise(tmp_path, 'import time; print("ready", flush=True); time.sleep(60)')
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "")


def test_a_second_signal_kills_the_worker(tmp_path: Path) -> None:
    process = supervise(
        tmp_path, WAITING.replace("raise SystemExit(75)", "print('saving', flush=True)")
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "after the second signal" in err


def is_running(process: Path) -> bool:
    """Whether there is a process in /proc that is no zombie."""
    try:
        return " Z " not in (process / "stat").read_text().rpartition(")")[2][:4]
    except OSError:  # it ended meanwhile
        return False


def test_a_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    code = "from dora_jax.launch import hosts\nhosts._die_with_parent()\nimport os, time\n"
    process = supervise(tmp_path, code + "print(os.getpid(), flush=True)\ntime.sleep(60)")
    assert process.stdout is not None
    worker = Path("/proc") / process.stdout.readline().strip()
    process.kill()
    process.wait()  # communicate() would wait for the worker, which holds the same pipe
    until = time.monotonic() + 10
    try:
        while is_running(worker):
            assert time.monotonic() < until
            os.sched_yield()
    finally:
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize(
    ("told", "lost"),
    [
        ("tasks are unhealthy (stopped):\n1\n3\nThe tasks have crashed.", [1, 3]),
        ("tasks are unhealthy:\n/job:jax_worker/replica:0/task:2\nThe tasks have crashed.", [2]),
        (
            "UNAVAILABLE: Failed to send RPC to coordination service. RPC: PollForError",
            [0],
        ),
        ("ValueError: 12 unhealthy things", []),
        ("RESOURCE_EXHAUSTED: out of memory", []),
    ],
)
def test_the_lost_host_is_read_from_what_jax_says(told: str, lost: list[int]) -> None:
    assert launch_hosts.lost_processes(told) == lost


def test_hosts_are_joined_only_where_asked_for() -> None:
    def wanted(*arguments: str) -> bool:
        parser = argparse.ArgumentParser()
        launch_hosts.add_flags(parser)
        return launch_hosts.wanted(parser.parse_args(arguments))

    assert not wanted()
    assert wanted("--distributed")
    assert wanted("--coordinator_address=a:1", "--num_processes=2", "--process_id=0")
