"""Carrying a sweep out: no run is lost, doubled or done twice, and none spends too much."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_file import write_sweep
from synthetic_runs import write_run

from dora_jax.launch import sweep_plan
from dora_jax.launch.gin_config import Override
from dora_jax.launch.sweep_budget import grant, own_cap
from dora_jax.launch.sweep_plan import Plan, PlannedRun
from dora_jax.launch.sweep_worker import Outcome, Worker
from dora_jax.run_records import read_runs

ROOT = Path(__file__).resolve().parents[1]

# A program in the place of a run.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
file = Path(sys.argv[1].removeprefix("--gin_file="))
run = file.parent
cap = [float(a.partition("=")[2]) for a in sys.argv if "BUDGET_USD" in a]
with open(run.parent / "begun.txt", "a") as begun:
    begun.write(run.name + "\\n")
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
wait = run.parent / ("wait-" + run.name)
while wait.exists() and not stopped:
    time.sleep(0.02)
if stopped:
    sys.exit(75)
if (run.parent / ("fail-" + run.name)).exists():
    print("error: it broke")
    sys.exit(2)
sys.path.insert(0, TESTS)
from synthetic_runs import write_run
import shutil, tempfile
strategies = ("pretrain",) if run.name == "pretrain" else ("annotate",)
made = Path(tempfile.mkdtemp()) / run.name
seconds = {"prepare": 100, "annotate": 100}
values = {"annotate": 20.0} if strategies == ("annotate",) else None
status = "budget" if cap and cap[0] < 27 else "finished"
write_run(made, strategies, seconds=seconds, values=values, status=status)
for path in made.iterdir():
    if path.name != "config.gin":
        path.rename(run / path.name)
sys.exit(3 if status == "budget" else 0)
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    file = tmp_path / "fake_run.py"
    file.write_text(FAKE.replace("TESTS", repr(str(ROOT / "tests"))))
    return (sys.executable, str(file))


def plan_of(directory: Path, *overrides: Override) -> Plan:
    file = write_sweep(directory, "sweep/NUM_LABELS = (75, 150, 300)")
    return sweep_plan.make(file, "rehearsal", overrides)


def begun(plan: Plan) -> list[str]:
    return (plan.directory / "begun.txt").read_text().split()


NAMES = ["pretrain", "num-labels-75", "num-labels-150", "num-labels-300"]


def test_each_run_is_carried_out_once(tmp_path: Path, program: tuple[str, ...]) -> None:
    plan = plan_of(tmp_path)
    assert set(Worker(plan, "", 0, program).work().values()) == {Outcome.FINISHED}
    assert begun(plan) == NAMES
    # The same command again finds all of them finished.
    assert set(Worker(plan, "", 0, program).work().values()) == {Outcome.FINISHED}
    assert begun(plan) == NAMES
    assert [r.status for r in read_runs(plan.directory)] == ["finished"] * 4


def test_a_failed_run_harms_no_other_and_is_tried_again(
    tmp_path: Path, program: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path)
    plan.directory.mkdir()
    fails = plan.directory / "fail-num-labels-75"
    fails.touch()
    outcomes = Worker(plan, "", 0, program).work()
    assert [outcomes[name].value for name in NAMES] == ["finished", "failed", *["finished"] * 2]
    assert "num-labels-75: failed: status 2: error: it broke" in capsys.readouterr().out
    fails.unlink()
    assert set(Worker(plan, "", 0, program).work().values()) == {Outcome.FINISHED}
    assert begun(plan) == [*NAMES, "num-labels-75"]


def test_without_pretraining_nothing_that_needs_it_begins(
    tmp_path: Path, program: tuple[str, ...]
) -> None:
    plan = plan_of(tmp_path)
    plan.directory.mkdir()
    (plan.directory / "fail-pretrain").touch()
    outcomes = Worker(plan, "", 0, program).work()
    assert set(outcomes.values()) == {Outcome.FAILED}
    assert begun(plan) == ["pretrain"]


def test_other_settings_in_the_same_place_are_refused(
    tmp_path: Path, program: tuple[str, ...]
) -> None:
    plan = plan_of(tmp_path)
    Worker(plan, "", 0, program).work()
    changed = plan_of(tmp_path, Override("TRAIN_STEPS", "7"))
    with pytest.raises(ValueError, match="distill.train_steps: 400 there, 7 now"):
        Worker(changed, "", 0, program).work()
    dearer = plan_of(tmp_path, Override("PRICE_USD_PER_LABEL", "7.0"))
    Worker(dearer, "", 0, program).work()
    assert begun(plan) == NAMES


def test_a_sweep_stops_at_its_budget(tmp_path: Path, program: tuple[str, ...]) -> None:
    # Each run buys labels for 25 USD and computes for 2.
    plan = plan_of(tmp_path, Override("BUDGET_USD", "60.0"))
    assert plan.budget_usd == 60.0
    outcomes = Worker(plan, "", 0, program).work()
    told = [outcomes[name].value for name in NAMES]
    assert told == ["finished", "finished", *["ended by the budget"] * 2]


WORKER = """
import sys
from pathlib import Path
from dora_jax.launch import sweep_plan
from dora_jax.launch.sweep_worker import Worker
plan = sweep_plan.make(Path(sys.argv[1]), "rehearsal", [])
print("ready", flush=True)
sys.stdin.readline()
outcomes = Worker(plan, "", 0, sys.argv[2:]).work()
print(sorted({o.value for o in outcomes.values()}), len(outcomes), flush=True)
"""


def start(plan: Plan, program: tuple[str, ...]) -> subprocess.Popen[str]:
    """A sweep in a process of its own, which waits for a line before it works."""
    file = plan.directory.parent / "sweep.gin"
    command = [sys.executable, "-c", WORKER, str(file), *program]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert worker.stdout and worker.stdout.readline() == "ready\n"
    return worker


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_sweeps_in_one_folder_divide_the_runs(tmp_path: Path, program: tuple[str, ...]) -> None:
    plan = plan_of(tmp_path)
    workers = [start(plan, program) for _ in range(2)]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        out, _ = worker.communicate(timeout=120)
        assert out.splitlines()[-1] == "['finished'] 4"
    assert sorted(begun(plan)) == sorted(NAMES)


def test_a_killed_sweep_goes_on_and_its_orphan_is_waited_for(
    tmp_path: Path, program: tuple[str, ...]
) -> None:
    plan = plan_of(tmp_path)
    plan.directory.mkdir()
    wait = plan.directory / "wait-num-labels-150"
    wait.touch()
    first = start(plan, program)
    assert first.stdin
    first.stdin.write("go\n")
    first.stdin.flush()
    wait_until(lambda: (plan.directory / "begun.txt").exists() and "num-labels-150" in begun(plan))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    worker = Worker(plan, "", 0, program)
    # The run goes on without its sweep; nobody else may work on it meanwhile.
    assert not worker._take(plan.runs[2])
    wait.unlink()
    assert set(worker.work().values()) == {Outcome.FINISHED}
    assert sorted(begun(plan)) == sorted(NAMES)


def test_a_stop_lets_the_run_at_work_save(tmp_path: Path, program: tuple[str, ...]) -> None:
    plan = plan_of(tmp_path)
    plan.directory.mkdir()
    (plan.directory / "wait-num-labels-75").touch()
    worker = Worker(plan, "", 0, program)

    class StopSoon(dict[str, Outcome]):
        def __setitem__(self, name: str, outcome: Outcome) -> None:
            super().__setitem__(name, outcome)
            if name == "pretrain":
                worker.stop("SIGTERM")

    worker.outcomes = StopSoon()
    outcomes = worker.work()
    assert outcomes == {"pretrain": Outcome.FINISHED}
    assert begun(plan) == ["pretrain"]


# --- What a run may spend


def test_a_budget_of_its_own_pays_for_pretraining_too(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path,
        'sweep/STRATEGIES = (("annotate",), ("distill",))\nsweep/BUDGET_USD = (50.0,)',
    )
    plan = sweep_plan.make(file, "rehearsal", [])
    base, annotate, distill = plan.runs
    seconds = {"prepare": 100, "pretrain-teacher": 200, "pretrain-student": 150}
    write_run(base.directory, ("pretrain",), seconds=seconds)
    assert own_cap(plan, base) is None
    assert own_cap(plan, annotate) == pytest.approx(50 - 1.50)
    assert own_cap(plan, distill) == pytest.approx(50 - 3.50)


def alone(plan: Plan, run: PlannedRun) -> float | None:
    """What a run may spend where nobody else is at work."""
    return grant(plan, run, {}, lambda _: True, lambda _: False)


def test_a_search_buys_its_labels_once(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path,
        "sweep/SEED = (0, 1)\nsearch/LEARNING_RATE = (1e-3, 3e-3)",
        'STRATEGIES = ("annotate",)\nBUDGET_USD = 200.0\nPRICE_USD_PER_DEVICE_HOUR = 1.0',
    )
    plan = sweep_plan.make(file, "rehearsal", [])
    bills = sweep_plan.quoted(plan, "cpu")
    assert [bill.labels for bill in bills] == pytest.approx([0, 78, 0, 78, 0])  # 300 at 0.26
    _, first, second, other, _ = plan.runs
    write_run(first.directory, ("annotate",), seconds={"annotate": 100}, labels=100)
    searched = {"cell": first.group, "searched": first.searched}
    (first.directory / "sweep.json").write_text(json.dumps(searched))
    # The labels, 25 USD, are this search's own; for another seed they are bought again.
    assert alone(plan, second) == pytest.approx(200 - 1.0)
    assert alone(plan, other) == pytest.approx(200 - 26.0)


def test_workers_at_once_never_have_more_than_there_is(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Override("BUDGET_USD", "60.0"))
    _, first, second, third = plan.runs
    bills = {run.name: usd for run, usd in zip(plan.runs, (0.0, 5.0, 10.0, 30.0), strict=True)}
    held: list[str] = []

    def given(run: PlannedRun, bills: dict[str, float]) -> float | None:
        return grant(plan, run, bills, lambda run: run in (second, third), lambda r: r.name in held)

    # Alone a worker may spend all; another one waits for what it leaves.
    assert given(first, {}) == 60.0
    held.append(first.name)
    assert given(second, bills) is None
    write_run(first.directory, ("annotate",), seconds={"annotate": 100}, labels=36)  # 9 and 1 USD
    assert given(second, bills) is None
    held.clear()
    # Fifty are left, divided as the quotes are: 10 of 40 to the one, then all to the other.
    assert given(second, bills) == pytest.approx(12.5)
    held.append(second.name)
    assert given(third, bills) == pytest.approx(37.5)
    held.append(third.name)
    # What they have spent of it is theirs, too, and what they have not is still held.
    write_run(third.directory, ("annotate",), seconds={"annotate": 500}, labels=20)  # 5 and 5 USD
    assert given(first, bills) is None
    held.remove(third.name)
    assert given(third, bills) == pytest.approx(37.5)
