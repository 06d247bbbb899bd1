"""Real processes on the loopback: the run of one process, lost hosts, warnings, other meshes.

A run takes a minute and its processes both cores, so all of this is marked slow; what one process
can show of it stands in test_hosts.py.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import assert_same_bits, final_params, manifest_of, read_rows
from whole_runs import OF_HOSTS, Place, end

from dora_jax.cost.ledger import Ledger
from dora_jax.launch.command_line import EXIT_ERROR, EXIT_INTERRUPTED

pytestmark = [pytest.mark.slow, pytest.mark.multihost]
LIMIT_SECONDS = 60.0  # for the others to end when a host is lost
SAVING_SECONDS = 30.0  # for all to save after a warning
TRAINED = ("pretrain-student", "pretrain-teacher", "teach", "distill")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("hosts"), 8, OF_HOSTS)
    place.make_store()
    return place


@pytest.fixture(scope="module")
def alone(place: Place) -> Path:
    """A run of one process with one device."""
    end(place.start("alone"))
    return place.folder / "alone"


@pytest.fixture(scope="module")
def together(place: Place) -> Path:
    """A run of two processes with a device each."""
    first, second = end(place.start("together", processes=2))
    assert "student, distill" in first[0]
    assert "student, distill" not in second[0]
    return place.folder / "together"


def loss_curve(stage: Path) -> dict[int, float]:
    """The loss of every logged update, by step."""
    return {row["step"]: row["loss"] for row in read_rows(stage / "metrics.jsonl") if "loss" in row}


def assert_same_run(one: Path, other: Path) -> None:
    """The same losses, scores, labels and parameters, up to the order of sums."""
    for stage in TRAINED:
        one_curve, other_curve = loss_curve(one / stage), loss_curve(other / stage)
        common = sorted({*one_curve} & {*other_curve})  # a stopped run logs its last update later
        assert len(common) >= 5, (one_curve, other_curve)
        np.testing.assert_allclose(
            [one_curve[step] for step in common], [other_curve[step] for step in common], rtol=1e-5
        )
        params = [final_params(run, stage) for run in (one, other)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *params)
    for file in ("evaluate-distill/predictions.jsonl", "evaluate-teacher/scores.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
    tokens = [manifest_of(run, "label")["outputs"]["tokens"] for run in (one, other)]
    assert tokens[0] == tokens[1] > 0


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a parent of ours has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def wait_for(directory: Path, pattern: str, processes: list[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + 240
    while not any(directory.glob(pattern)):
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_processes_give_the_result_of_one(alone: Path, together: Path) -> None:
    assert_same_run(alone, together)
    rows = Ledger(together / "ledger.jsonl").rows()
    assert {row.devices_held for row in rows if row.devices_held} == {2}
    stages = [row.stage for row in rows]
    assert len(stages) == len(set(stages))


def test_four_processes_that_share_parameters_give_the_result_of_one(
    place: Place, alone: Path
) -> None:
    end(place.start("four", processes=4, FSDP="2", TENSOR="2"))
    assert_same_run(alone, place.folder / "four")


@pytest.mark.parametrize("victim", [1, 0])
def test_a_lost_host_is_named_and_a_restart_goes_on(
    place: Place, together: Path, ended_at_last: list[subprocess.Popen[str]], victim: int
) -> None:
    directory = place.folder / f"lost-{victim}"
    processes = place.start(directory.name, processes=2)
    ended_at_last += processes
    wait_for(directory, "teach/checkpoints/3", processes)
    [worker] = workers(processes[victim])
    subprocess.run(["kill", "-KILL", str(worker)], check=True)
    began = time.monotonic()
    told = [process.communicate(timeout=120)[1] for process in processes]
    assert time.monotonic() - began < LIMIT_SECONDS
    assert processes[victim].returncode == 128 + signal.SIGKILL, told[victim]
    assert "was ended by SIGKILL" in told[victim]
    other = 1 - victim
    assert processes[other].returncode == EXIT_INTERRUPTED, told[other]
    assert f"(process {victim} of 2): it ended, was preempted" in told[other]
    end(place.start(directory.name, processes=2))
    for stage in TRAINED:
        assert_same_bits(final_params(directory, stage), final_params(together, stage))


@pytest.mark.parametrize("victim", [1, 0])
def test_a_host_that_fails_alone_tells_why(place: Place, victim: int) -> None:
    directory = place.folder / f"failed-{victim}"
    wrong = {"TOKEN_STORE": "'/nowhere'"}
    processes = place.start(directory.name, processes=2, settings_of={victim: wrong})
    began = time.monotonic()
    told = [process.communicate(timeout=120)[1] for process in processes]
    assert time.monotonic() - began < LIMIT_SECONDS
    assert processes[victim].returncode == EXIT_ERROR, told[victim]
    assert "error: The token store /nowhere is not a folder" in told[victim]
    assert processes[1 - victim].returncode == EXIT_INTERRUPTED, told[1 - victim]
    assert f"(process {victim} of 2): it ended" in told[1 - victim]


def test_a_warning_to_one_host_saves_on_all(
    place: Place, together: Path, ended_at_last: list[subprocess.Popen[str]]
) -> None:
    directory = place.folder / "warned"
    processes = place.start(directory.name, processes=2)
    ended_at_last += processes
    wait_for(directory, "teach/checkpoints/3", processes)
    processes[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    told = end(processes, EXIT_INTERRUPTED)
    assert time.monotonic() - began < SAVING_SECONDS
    out = told[0][0]
    assert "Stopped by a stop on another host, after update" in out
    saved = {int(path.name) for path in (directory / "teach" / "checkpoints").iterdir()}
    assert max(saved) == int(out.partition("after update ")[2].split()[0])
    end(place.start(directory.name, processes=2))
    for stage in TRAINED:
        assert_same_bits(final_params(directory, stage), final_params(together, stage))


def test_a_run_goes_on_with_other_devices(place: Place, alone: Path) -> None:
    """Eight devices of two processes, then four of one, then one."""
    for stop_at, processes, devices in ((3, 2, 4), (6, 1, 4)):
        started = place.start("resharded", processes, devices, FSDP="-1")
        wait_for(place.folder / "resharded", f"teach/checkpoints/{stop_at}", started)
        started[0].send_signal(signal.SIGTERM)
        for process in started:
            process.communicate(timeout=120)
    end(place.start("resharded", FSDP="-1"))
    assert_same_run(alone, place.folder / "resharded")
