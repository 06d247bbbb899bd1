"""Sweeps: what a file expands to, what is shared, and what it is expected to cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_file import write_sweep

from dora_jax.launch import sweep, sweep_plan
from dora_jax.launch.gin_config import Override
from dora_jax.launch.sweep_files import read_axes
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
        "sweep/LABEL_SHARE = (0.25, 0.5)",
        'BUDGET_USD = 40.0\nPRICE_USD_PER_DEVICE_HOUR = 90.0\nSTRATEGIES = ("distill",)\n'
        "TRAIN_STEPS = 9000\nTEACHER_TRAIN_STEPS = 9000",
    )
    plan = sweep_plan.make(file, "rehearsal", [], "cpu")
    _, little, much = plan.runs
    assert plan.budget_usd is None  # each has its own
    assert (little.config.data.num_labels, much.config.data.num_labels) == (38, 76)
    assert 0 < much.config.distill.train_steps < little.config.distill.train_steps
    assert much.config.teach.train_steps < little.config.teach.train_steps
    for run, bill in zip((little, much), sweep_plan.quoted(plan, "cpu")[1:], strict=True):
        # Quoted alone, pretraining included, it takes all of the budget that is not kept back.
        pretraining = sweep_plan.quoted(plan._replace(runs=plan.runs[:1]), "cpu")[0].compute
        beside = 8.5 / 3600 * 90  # that run's own start and preparation
        assert 35.1 < bill.total + pretraining - beside <= 0.88 * 40.0, run.name
    with pytest.raises(ValueError, match="needs --hardware"):
        sweep_plan.make(file, "rehearsal", [])
    many = Override("sweep/LABEL_SHARE", "(0.8,)")
    with pytest.raises(ValueError, match=r"label-share-0.8: 123 labels cost \$31.98 of .* 12%"):
        sweep_plan.make(file, "rehearsal", [many], "cpu")


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
    file = write_sweep(tmp_path, "sweep/NUM_LABELS = (75, 99999)")
    assert sweep.main([f"--gin_file={file}", "--dry_run"]) == 2
    assert "DataConfig.num_labels = 99999" in capsys.readouterr().err


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
