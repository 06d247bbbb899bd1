"""Sweeps: what a file expands to, and that no run is lost, doubled or done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dora_jax.launch import sweep, sweep_plan
from dora_jax.launch.gin_config import Override
from dora_jax.launch.sweep_files import read_axes
from dora_jax.launch.sweep_plan import Plan
from dora_jax.launch.sweep_worker import Outcome, Worker
from dora_jax.run_records import read_runs
from dora_jax.sweeps import Axis, expand, labels_for

ROOT = Path(__file__).resolve().parents[1]
PARETO = ROOT / "gin" / "sweeps" / "wlp_pareto.gin"

# --- Expanding


def test_every_combination_is_a_run_with_a_name_of_its_own() -> None:
    axes = [Axis("NUM_LABELS", ("75", "600")), Axis("SEED", ("0", "1")), Axis("X", ("'a/b'",))]
    cells = expand(axes)
    assert [cell.overrides[:2] for cell in cells] == [
        (("NUM_LABELS", "75"), ("SEED", "0")),
        (("NUM_LABELS", "75"), ("SEED", "1")),
        (("NUM_LABELS", "600"), ("SEED", "0")),
        (("NUM_LABELS", "600"), ("SEED", "1")),
    ]
    assert len({cell.name for cell in cells}) == 4
    assert expand(axes[:2])[0].name == "num-labels-75_seed-0"
    # A value more leaves the names of the others.
    more = expand([Axis("NUM_LABELS", ("75", "300", "600")), *axes[1:]])
    assert {cell.name for cell in cells} < {cell.name for cell in more}


def test_values_that_look_alike_have_different_names() -> None:
    cells = expand([Axis("FILE", ("'a/b'", "'a-b'", "'a b'", "'" + "x" * 300 + "'"))])
    names = [cell.name for cell in cells]
    assert len(set(names)) == 4
    assert all(len(name) < 140 and "/" not in name and " " not in name for name in names)


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ([Axis("SEED", ())], "at least one"),
        ([Axis("SEED", ("0", "0"))], "each of them once"),
        ([Axis("SEED", ("0",)), Axis("SEED", ("1",))], "Two axes have one name"),
    ],
)
def test_axes_that_cannot_be_are_refused(axes: list[Axis], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        expand(axes)


def test_candidates_of_a_search_are_one_group() -> None:
    axes = [Axis("SEED", ("0", "1")), Axis("LEARNING_RATE", ("0.001", "0.003"), searched=True)]
    cells = expand(axes)
    assert [cell.group for cell in cells] == ["seed-0", "seed-0", "seed-1", "seed-1"]
    assert cells[1].searched == {"LEARNING_RATE": "0.003"}


def test_labels_for_a_share_of_a_budget() -> None:
    assert labels_for(0.25, 100.0, 0.26) == 96  # 24.96 USD
    for share, budget, price in ((0.0, 100, 1), (1.0, 100, 1), (0.5, -1, 1), (0.5, 1, 0)):
        with pytest.raises(ValueError, match="LABEL_SHARE"):
            labels_for(share, budget, price)
    with pytest.raises(ValueError, match="buys no label"):
        labels_for(0.1, 1.0, 0.26)


def write_sweep(directory: Path, axes: str, more: str = "") -> Path:
    """A sweep of the bundled sample's rehearsal."""
    file = directory / "sweep.gin"
    base = 'include "wlp_distill.gin"\ninclude "scale/rehearsal.gin"\n'
    model_dir = f'MODEL_DIR = "{directory / "runs"}"\n'
    file.write_text(f"# A sweep\n{base}{axes}\n{model_dir}{more}\n")
    return file


def test_axes_are_read_as_they_are_written(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path,
        "sweep/SEED = (0, 1)\n"
        "sweep/STUDENT = [@rehearsal_student/T5Config(), @t5_1_1_small/T5Config()]\n"
        'sweep/distill/OptimizerConfig.learning_rate = (1e-3,)\nsearch/SCHEDULE = ("linear",)\n'
        "sweep/SEED = (7,)",
    )
    assert read_axes(file) == [
        Axis("SEED", ("7",)),
        Axis("STUDENT", ("@rehearsal_student/T5Config()", "@t5_1_1_small/T5Config()")),
        Axis("distill/OptimizerConfig.learning_rate", ("0.001",)),
        Axis("SCHEDULE", ("'linear'",), searched=True),
    ]
    assert read_axes(file, [Override("sweep/SEED", "(3,)"), Override("SEED", "9")])[0] == Axis(
        "SEED", ("3",)
    )
    with pytest.raises(ValueError, match="line 4: sweep/SEED = 3; expected a tuple"):
        read_axes(write_sweep(tmp_path, "sweep/SEED = 3"))
    with pytest.raises(ValueError, match="has no axis"):
        read_axes(write_sweep(tmp_path, ""))


def test_the_pareto_sweep_shares_pretraining_and_vocabulary() -> None:
    plan = sweep_plan.make(PARETO, "rehearsal", [])
    base, *runs = plan.runs
    assert len(runs) == 4 * 2 * 2
    assert (base.name, base.config.strategies) == ("pretrain", ("pretrain",))
    assert base.config.data.num_labels == 600  # all text, and all words of the labels
    assert {run.config.shared_dir for run in plan.runs} == {f"{plan.directory}/shared"}
    for run in runs:
        assert run.needs == ("pretrain",)
        assert run.config.data.vocabulary == f"{base.directory}/prepare/tokens/vocabulary.model"
        assert run.config.teacher.weights == f"native:{base.directory}/pretrain-teacher"
        assert run.config.student.weights == f"native:{base.directory}/pretrain-student"
        assert run.config.student.network == base.config.student.network
    told = {(r.config.data.num_labels, r.config.seed, r.config.strategies) for r in runs}
    assert len(told) == 16


def test_a_mixture_divides_the_budget_between_labels_and_updates(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path,
        "sweep/LABEL_SHARE = (0.25, 0.75)",
        'BUDGET_USD = 40.0\nPRICE_USD_PER_DEVICE_HOUR = 90.0\nSTRATEGIES = ("distill",)',
    )
    plan = sweep_plan.make(file, "rehearsal", [], "cpu")
    _, little, much = plan.runs
    assert plan.budget_usd is None  # each has its own
    assert (little.config.data.num_labels, much.config.data.num_labels) == (38, 115)
    assert 0 < much.config.distill.train_steps < little.config.distill.train_steps
    assert much.config.teach.train_steps < little.config.teach.train_steps
    with pytest.raises(ValueError, match="needs --hardware"):
        sweep_plan.make(file, "rehearsal", [])


def test_a_sweep_is_quoted_with_shared_stages_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = 'PRICE_USD_PER_DEVICE_HOUR = 36.0\nSTRATEGIES = ("distill",)\n'
    file = write_sweep(tmp_path, "sweep/TRAIN_STEPS = (100, 200, 400)", more)
    base, *students = sweep_plan.quoted(sweep_plan.make(file, "rehearsal", []), "cpu")
    assert (base.labels, students[0].labels) == (0.0, pytest.approx(300 * 0.26))
    # The first pays the teacher; the others their own updates alone.
    assert students[0].compute > students[2].compute > students[1].compute > 0
    arguments = [f"--gin_file={file}", "--gin.BUDGET_USD=200"]
    assert sweep.main(arguments) == 2
    assert "--hardware=KIND:COUNT" in capsys.readouterr().err
    assert sweep.main([*arguments, "--hardware=cpu"]) == 3
    told = capsys.readouterr().err
    assert "($234.00 for labels, up to" in told and "the first 3 of its 4 runs" in told
    assert not (tmp_path / "runs").exists()
    assert sweep.main([f"--gin_file={file}", "--dry_run", "--hardware=cpu"]) == 0
    assert "quoted on cpu: $234.00 labels, up to $" in capsys.readouterr().out


def test_what_is_wrong_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(tmp_path, "sweep/NUM_LABELS = (75, 'many')")
    assert sweep.main([f"--gin_file={file}"]) == 2
    assert "NUM_LABELS" in capsys.readouterr().err
    file = write_sweep(tmp_path, "sweep/NUM_LABLES = (75,)")
    assert sweep.main([f"--gin_file={file}"]) == 2
    assert "Did you mean NUM_LABELS" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert sweep.main(["--gin_file=gin/wlp_distill.gin", "--scale=rehearsal"]) == 2
    assert "has no axis" in capsys.readouterr().err


def test_a_dry_run_shows_the_runs_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(tmp_path, "sweep/NUM_LABELS = (75, 150)")
    assert sweep.main([f"--gin_file={file}", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "runs/num-labels-150: NUM_LABELS = 150" in out
    assert "3 runs" in out
    assert not (tmp_path / "runs").exists()
    command = [f"--gin_file={file}", "--cluster=slurm", "--workers=4", "--dry_run"]
    assert sweep.main(command) == 0
    assert "--worker=" in capsys.readouterr().out


# --- Carrying out, with a program in the place of a run

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
