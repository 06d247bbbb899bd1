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
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_run import (
    EVALUATED,
    NETWORK,
    TRAINED,
    assert_same_bits,
    final_params,
    manifest_of,
    read_rows,
    snapshot,
    write_tiny_store,
)

from dora_jax.cost.ledger import Ledger
from dora_jax.launch import gin_config, run
from dora_jax.launch.command_line import EXIT_ERROR

SCRIPT = Path(run.__file__)
RUN_FILE = "gin/wlp_distill.gin"
LIMIT_SECONDS = 30.0  # for saving after a signal: what the run promises
SETTINGS = {
    "NUM_LABELS": "24",
    "TASK_FEATURE_LENGTHS": "{'inputs': 24, 'targets': 24}",
    "VOCABULARY_PIECES": "310",
    "DataConfig.extra_ids": "10",
    "VOCAB_SIZE": "320",
    "TEACHER_PRETRAIN_STEPS": "12",
    "STUDENT_PRETRAIN_STEPS": "12",
    "TEACHER_TRAIN_STEPS": "12",
    "ANNOTATE_TRAIN_STEPS": "12",
    "TRAIN_STEPS": "12",
    "PRETRAIN_BATCH_SIZE": "8",
    "BATCH_SIZE": "8",
    "DROPOUT_RATE": "0.1",
    "EVAL_STEPS": "4",
    "CHECKPOINT_STEPS": "3",
    "LABEL_BATCH_SIZE": "4",
    "LabelConfig.shard_examples": "4",
    "TOP_K": "8",
    "VALIDATION_EXAMPLES": "8",
    "BOOTSTRAP_RESAMPLES": "20",
} | {
    f"rehearsal_{model}/T5Config.{field}": str(getattr(NETWORK, field))
    for model in ("teacher", "student")
    for field in ("emb_dim", "num_heads", "num_encoder_layers", "num_decoder_layers")
    + ("head_dim", "mlp_dim")
}


class Place(NamedTuple):
    """Where the runs of this file work: the token store and the compiled programs."""

    folder: Path

    def arguments(self, name: str) -> list[str]:
        settings = SETTINGS | {
            "TOKEN_STORE": f"'{self.folder / 'tokens'}'",
            "MODEL_DIR": f"'{self.folder / name}'",
        }
        return [
            f"--gin_file={RUN_FILE}",
            "--scale=rehearsal",
            f"--compilation_cache={self.folder / 'compiled'}",
            *(f"--gin.{key}={value}" for key, value in settings.items()),
        ]

    def start(self, name: str) -> subprocess.Popen[str]:
        return start([str(SCRIPT), *self.arguments(name)])


def start(command: list[str]) -> subprocess.Popen[str]:
    # Both runs compared have the same flags; optimising would only take longer.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment.pop("DORA_DATA_DIR", None)
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def end(process: subprocess.Popen[str]) -> str:
    """Waits for a run that nothing disturbs, and returns what it printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("resume"))
    overrides = [
        gin_config.Override(key, value)
        for key, _, value in (
            argument.removeprefix("--gin.").partition("=")
            for argument in place.arguments("any")
            if argument.startswith("--gin.")
        )
    ]
    data = gin_config.build(RUN_FILE, "rehearsal", overrides).config.data
    write_tiny_store(data, place.folder / "tokens")
    return place


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> Path:
    out = end(place.start("undisturbed"))
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


@pytest.fixture
def ended_at_last() -> Iterator[list[subprocess.Popen[str]]]:
    """Takes processes that must not outlive a test that fails."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


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
        process = place.start("killed")
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
    command = [str(SCRIPT), *place.arguments("stopped")]
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
        python, *command = shlex.split(out.partition("To go on:\n")[2])
        assert python == "python"
    end(start(command))
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


def test_a_full_disk_ends_the_run_and_loses_nothing(
    place: Place, undisturbed: Path, small_disk: Path, ended_at_last: list[subprocess.Popen[str]]
) -> None:
    process = place.start(small_disk.name)
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
