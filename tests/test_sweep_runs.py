"""The Pareto sweep for real, with tiny networks: killed in the middle, it ends with one bill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import tiny_stages

from dora_jax.cost.ledger import read_ledger
from dora_jax.run_records import read_runs

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def command(directory: Path) -> list[str]:
    updates = ("TEACHER_PRETRAIN", "STUDENT_PRETRAIN", "TEACHER_TRAIN", "ANNOTATE_TRAIN", "TRAIN")
    few = {f"{name}_STEPS": 3 for name in updates}
    few |= {"NUM_UNLABELED": 20, "NUM_VALIDATION": 8, "NUM_TEST": 8, "BOOTSTRAP_RESAMPLES": 10}
    few |= {"VOCABULARY_PIECES": 900, "EVAL_STEPS": 2, "CHECKPOINT_STEPS": 1}
    few |= {"PRICE_USD_PER_DEVICE_HOUR": 36.0, "sweep/NUM_LABELS": "(40,80)"}
    return [
        sys.executable,
        "launch/sweep.py",
        "--gin_file=gin/sweeps/wlp_pareto.gin",
        f"--gin.MODEL_DIR='{directory}'",
        f"--compilation_cache={directory.parent / 'compiled'}",
        *tiny_stages(),
        *(f"--gin.{name}={value}" for name, value in few.items()),
    ]


def paid(directory: Path) -> float:
    receipts = [*directory.glob("*/ledger.jsonl"), *directory.glob("shared/*/ledger.jsonl")]
    return sum(row.dollars for path in receipts for row in read_ledger(path))


def test_a_killed_sweep_goes_on_and_ends_with_one_bill(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = subprocess.Popen(
        command(runs), cwd=ROOT, stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT
    )
    assert first.stdout
    lines = []
    for line in first.stdout:
        lines.append(line)
        if "finished" in line and "distill" in line:
            break
    os.kill(first.pid, signal.SIGKILL)
    first.stdout.close()
    first.wait()
    assert len(lines) > 3, lines
    done = {r.directory / r.strategy: r for r in read_runs(runs) if r.status == "finished"}
    began = time.monotonic()
    ended = subprocess.run(command(runs), cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert time.monotonic() - began > 1
    records = read_runs(runs)
    students = [r for r in records if r.strategy in ("annotate", "distill")]
    assert len(students) == 2 * 2 * 2
    assert {r.status for r in records} == {"finished"}
    again = {r.directory / r.strategy: r for r in records}
    for key, before in done.items():  # nothing finished was done, or paid, twice
        assert again[key].compute_dollars == pytest.approx(before.compute_dollars, abs=0.05)
        assert again[key].value == before.value
    # Each shared stage was worked on by one run, and its dollars are divided among its users.
    teachers = list(runs.glob("shared/teach-*"))
    assert len(teachers) == 2 * 2
    stages = [row.stage for path in runs.glob("*/ledger.jsonl") for row in read_ledger(path)]
    between = sum(
        row.dollars
        for path in runs.glob("*/ledger.jsonl")
        for row in read_ledger(path)
        if row.stage in ("launch", "labels")
    )
    assert stages.count("labels") == 8
    divided = sum(record.amortised_dollars for record in records)
    assert divided + between == pytest.approx(paid(runs))

    third = subprocess.run(command(runs), cwd=ROOT, capture_output=True, text=True, check=False)
    assert third.returncode == 0
    assert "begun" not in third.stdout
    assert paid(runs) == pytest.approx(divided + between)
