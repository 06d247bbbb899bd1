"""The Pareto sweep for real, with tiny networks: killed in the middle, it buys the same."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny_run import tiny_stages

from dora_jax.cost.ledger import LedgerRow
from dora_jax.run_folders import find_runs, paid_rows, read_folder
from dora_jax.run_records import RunRecord, read_runs

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def command(directory: Path) -> list[str]:
    updates = ("TEACHER_PRETRAIN", "STUDENT_PRETRAIN", "TEACHER_TRAIN", "ANNOTATE_TRAIN", "TRAIN")
    few = {f"{name}_STEPS": 3 for name in updates}
    few |= {"NUM_UNLABELED": 20, "NUM_VALIDATION": 8, "NUM_TEST": 8, "BOOTSTRAP_RESAMPLES": 10}
    few |= {"VOCABULARY_PIECES": 900, "EVAL_STEPS": 2, "CHECKPOINT_STEPS": 1}
    few |= {"PRICE_USD_PER_DEVICE_HOUR": 36.0, "sweep/NUM_LABELS": "(40,80)"}
    few |= {"sweep/SEED": "(0,)"}
    return [
        sys.executable,
        "launch/sweep.py",
        "--gin_file=gin/sweeps/wlp_pareto.gin",
        f"--gin.MODEL_DIR='{directory}'",
        f"--compilation_cache={directory.parent / 'compiled'}",
        *tiny_stages(),
        *(f"--gin.{name}={value}" for name, value in few.items()),
    ]


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(directory), cwd=ROOT, stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT
    )


def end(sweep: subprocess.Popen[str]) -> str:
    out, _ = sweep.communicate(timeout=600)
    assert sweep.returncode == 0, out
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sweeps") / "undisturbed"
    end(start(directory))
    return directory


def rows(directory: Path) -> list[LedgerRow]:
    return [row for _, row in paid_rows(read_folder(path) for path in find_runs(directory))]


def stages_of(directory: Path) -> Counter[str]:
    """How often each stage was billed, wherever it lies."""
    return Counter(row.stage for row in rows(directory) if row.stage != "launch")


def results(directory: Path) -> dict[tuple[str, str], RunRecord]:
    return {(record.name, record.strategy): record for record in read_runs(directory)}


def kill_with_its_run(sweep: subprocess.Popen[str]) -> str:
    """SIGKILL to a sweep and to the run it is at; returns which run that was."""
    children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children")
    while sweep.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(OSError):  # the child has just ended
            for pid in children.read_text().split():
                told = Path(f"/proc/{pid}/cmdline").read_text()
                run = Path(told.partition("--gin_file=")[2].partition("\0")[0]).parent
                # It is at work on its data or its updates; others will have to go on from there.
                if run.name != "pretrain" and (run / "prepare").exists():
                    for victim in (sweep.pid, int(pid)):
                        os.kill(victim, signal.SIGKILL)
                    sweep.communicate()
                    return run.name
    raise AssertionError(f"the sweep ended before it could be killed: {sweep.communicate()[0]}")


def test_two_at_once_of_which_one_is_killed_buy_what_one_alone_does(
    undisturbed: Path, ended_at_last: list[subprocess.Popen[str]]
) -> None:
    directory = undisturbed.with_name("disturbed")
    sweeps = [start(directory), start(directory)]
    ended_at_last += sweeps
    killed = kill_with_its_run(sweeps[0])
    told = [end(sweeps[1]), end(start(directory))]
    starts = {
        log.parent.name: log.read_text().count("scale rehearsal:")
        for log in directory.glob("*/sweep.log")
    }
    assert len(starts) == 1 + 2 * 2, told
    assert {name for name, count in starts.items() if count > 1} <= {killed}, told
    expected, found = results(undisturbed), results(directory)
    assert {key for key in found if key[1] in ("annotate", "distill")} == {
        key for key in expected if key[1] in ("annotate", "distill")
    }
    for key, record in found.items():
        same = expected[key]
        assert (record.status, record.value) == ("finished", same.value)
        assert (record.labels, record.label_dollars) == (same.labels, same.label_dollars)
        assert (record.steps, {*record.dollars_by_stage}) == (same.steps, {*same.dollars_by_stage})
        if record.name == killed:
            assert record.tokens >= same.tokens  # what was lost is done, and paid, again
        else:
            assert record.tokens == same.tokens
    assert stages_of(directory) == stages_of(undisturbed)


def test_the_bill_is_divided_and_finished_runs_are_left_alone(undisturbed: Path) -> None:
    records = read_runs(undisturbed)
    assert len([r for r in records if r.strategy in ("annotate", "distill")]) == 2 * 2
    assert len(list(undisturbed.glob("shared/teach-*"))) == 2
    paid = rows(undisturbed)
    assert [row.stage for row in paid].count("labels") == 4
    between = sum(row.dollars for row in paid if row.stage in ("launch", "labels"))
    dollars = sum(row.dollars for row in paid)
    assert sum(record.amortised_dollars for record in records) + between == pytest.approx(dollars)
    assert "begun" not in end(start(undisturbed))
    assert sum(row.dollars for row in rows(undisturbed)) == pytest.approx(dollars)
