"""launch/run.py killed and stopped at chosen moments ends as if nothing had happened, bit for bit.

The moment is chosen by what lies on the disk: the process is paused, the moment is made sure of,
and only then it is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_run import (
    EVALUATED,
    TRAINED,
    assert_same_bits,
    final_params,
    manifest_of,
    read_rows,
    snapshot,
)
from whole_runs import SCRIPT, Place, end, start

from dora_jax.cost.ledger import Ledger
from dora_jax.launch import run
from dora_jax.launch.command_line import EXIT_ERROR

LIMIT_SECONDS = 30.0  # for saving after a signal: what the run promises
SHARDS_OF_FOUR = {"LABEL_BATCH_SIZE": "4", "LabelConfig.shard_examples": "4"}  # to stop between


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("resume"), 12, SHARDS_OF_FOUR)
    place.make_store()
    return place


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> Path:
    [(out, _)] = end(place.start("undisturbed"))
    assert "student, distill" in out
    return place.folder / "undisturbed"


def pause_at(process: subprocess.Popen[str], is_moment: Callable[[], bool]) -> None:
    """Stops the process while the moment lasts; where it has passed meanwhile, waits for more."""
    while process.poll() is None:
        if not is_moment():
            time.sleep(0.001)
            continue
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if is_moment():
            return
        process.send_signal(signal.SIGCONT)
    raise AssertionError(f"the run ended before the moment: {process.communicate()[1]}")


def assert_same_results(directory: Path, undisturbed: Path) -> None:
    for stage in TRAINED:
        outputs = manifest_of(directory, stage)["outputs"]
        assert outputs == manifest_of(undisturbed, stage)["outputs"]
        assert_same_bits(final_params(directory, stage), final_params(undisturbed, stage))
        rows = read_rows(directory / stage / "metrics.jsonl")
        logged = [row["step"] for row in rows if "loss" in row]
        assert logged == sorted(set(logged))
    shards = sorted((undisturbed / "label" / "soft_labels").glob("shard-*"))
    assert len(shards) == 12
    for file in [*shards, *(undisturbed / stage / "predictions.jsonl" for stage in EVALUATED)]:
        again = directory / file.relative_to(undisturbed)
        assert again.read_bytes() == file.read_bytes(), again
    assert not list(directory.rglob("*tmp*"))


# --- kill -9


def moments(directory: Path) -> list[tuple[str, Callable[[], bool]]]:
    """One in each kind of work, in the order in which they come."""

    def has(pattern: str) -> Callable[[], bool]:
        return lambda: any(directory.glob(pattern))

    def labelling() -> bool:
        shards = directory / "label" / "soft_labels"
        return (shards / "shard-00000.json").exists() and not (shards / "shard-00005.json").exists()

    return [
        ("pretrain-student", has("pretrain-student/checkpoints/[36]")),
        ("annotate", has("annotate/checkpoints/*orbax-checkpoint-tmp*")),
        ("teach", has("teach/best/*orbax-checkpoint-tmp*")),
        ("label", labelling),
        ("distill", has("distill/checkpoints/*orbax-checkpoint-tmp*")),
    ]


def test_kill_9_at_any_moment_changes_nothing(
    place: Place, undisturbed: Path, ended_at_last: list[subprocess.Popen[str]]
) -> None:
    directory = place.folder / "killed"
    began = time.monotonic()
    for stage, is_moment in moments(directory):
        [process] = place.start("killed")
        ended_at_last.append(process)
        pause_at(process, is_moment)
        assert "outputs" not in manifest_of(directory, stage)
        process.kill()
        process.communicate()
    end(place.start("killed"))
    wall_seconds = time.monotonic() - began
    assert_same_results(directory, undisturbed)

    rows = Ledger(directory / "ledger.jsonl").rows()
    once = Ledger(undisturbed / "ledger.jsonl").rows()
    assert sorted(row.stage for row in rows) == sorted(row.stage for row in once)
    [launch] = [row for row in rows if row.stage == "launch"]
    assert launch.restarts == len(moments(directory))
    billed_seconds = sum(sum(row.seconds.values()) for row in rows)
    # The meter writes every other second, on a busy machine a little later.
    assert wall_seconds - 4 * len(moments(directory)) <= billed_seconds <= wall_seconds


# --- SIGTERM and Ctrl-C


def test_signals_save_and_the_printed_command_goes_on(
    place: Place, undisturbed: Path, ended_at_last: list[subprocess.Popen[str]]
) -> None:
    directory = place.folder / "stopped"
    command = place.arguments("stopped")
    for number, stage in ((signal.SIGTERM, "pretrain-student"), (signal.SIGINT, "distill")):
        process = start(command)
        ended_at_last.append(process)
        pause_at(process, lambda stage=stage: any(directory.glob(f"{stage}/checkpoints/[36]")))
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        out, err = process.communicate(timeout=300)
        assert process.returncode == run.EXIT_INTERRUPTED, err
        assert time.monotonic() - began < LIMIT_SECONDS
        assert f"Stopped by {number.name}, after update" in out
        assert "the same signal again stops at once" in err
        saved = {int(path.name) for path in (directory / stage / "checkpoints").iterdir()}
        assert max(saved) == int(out.partition("after update ")[2].split()[0])
        python, script, *command = shlex.split(out.partition("To go on:\n")[2])
        assert (python, script) == ("python", str(SCRIPT))
    end([start(command)])
    assert_same_results(directory, undisturbed)


# --- A full disk


@pytest.fixture
def small_disk(place: Place) -> Iterator[Path]:
    """A file system of 32 MB for one run directory."""
    directory = place.folder / "full"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a file system of its own cannot be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def fill(file: Path) -> None:
    """Takes all the space there is."""
    with open(file, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_loses_nothing(
    place: Place, undisturbed: Path, small_disk: Path, ended_at_last: list[subprocess.Popen[str]]
) -> None:
    [process] = place.start(small_disk.name)
    ended_at_last.append(process)
    # A checkpoint of any update: this one looks seldom while other tests keep the cores busy, and
    # whatever comes after this phase's first updates needs the disk too.
    pause_at(process, lambda: any(small_disk.glob("teach/checkpoints/[369]")))
    finished = {
        stage: snapshot(small_disk / stage)
        for stage in ("pretrain-student", "annotate", "evaluate-annotate", "pretrain-teacher")
    }
    fill(small_disk / "filler")
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == EXIT_ERROR, err
    # In one piece, and not among the tracebacks of TensorStore's threads.
    told = "error: no space is left: .* free some space and run the same command again[.]\n"
    assert len(re.findall(told, err)) == 1, err
    assert "Event loop is closed" not in err
    assert {stage: snapshot(small_disk / stage) for stage in finished} == finished
    (small_disk / "filler").unlink()
    end(place.start(small_disk.name))
    assert_same_results(small_disk, undisturbed)
