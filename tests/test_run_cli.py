"""launch/run.py as a user meets it: what it prints, how it fails, how it stops."""

from __future__ import annotations

import errno
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from dora_jax import strategies
from dora_jax.launch import command_line, results, run, run_files, scale
from dora_jax.launch.gin_config import build
from dora_jax.launch.scale import GB, Machine
from dora_jax.metrics.scores import Scores
from dora_jax.stages.context import RunContext
from dora_jax.strategies import Result

SCRIPT = Path(run.__file__)
RUN_FILE = "--gin_file=gin/wlp_distill.gin"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data of the user's, and no settings of JAX that outlive a test."""
    monkeypatch.delenv("DORA_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "set_up_jax", lambda _: None)


def python(*arguments: str, script: Path = SCRIPT, options: tuple[str, ...] = ()) -> tuple:
    done = subprocess.run(
        [sys.executable, *options, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


# --- As a script


def test_the_scripts_own_folder_shadows_nothing(tmp_path: Path) -> None:
    """Beside the script lies a module of a library's name, which must not be imported."""
    script = tmp_path / "launch" / "run.py"
    script.parent.mkdir()
    for file in (SCRIPT, SCRIPT.with_name("as_script.py")):
        shutil.copy(file, script.parent)
    (script.parent / "argparse.py").write_text("raise SystemExit('shadowed')")
    status, out, err = python("--help", script=script)
    assert (status, err) == (0, "")
    assert "TRAIN_STEPS" in out


def test_help_is_complete() -> None:
    status, out, _ = python("--help")
    assert status == 0
    for setting in run_files.settings():
        assert f"  {setting.name} = {setting.default}\n      {setting.meaning}\n" in out
    assert "distill/TrainConfig" in out
    assert "--scale" in out
    assert out.count("python launch/run.py --gin_file=gin/wlp_distill.gin") == 3  # examples


def test_without_installation_it_says_how_to_install() -> None:
    status, _, err = python("--help", options=("-I", "-S"))
    assert status == 1
    assert "make run" in err
    assert "pip install -e ." in err
    assert "Traceback" not in err


def test_a_misspelled_name_stops_before_jax_is_imported() -> None:
    status, out, err = python(RUN_FILE, "--gin.TRAIN_STEP=1", options=("-X", "importtime"))
    assert (status, out) == (2, "")
    assert "error: --gin.TRAIN_STEP is no name of this run. Did you mean TRAIN_STEPS" in err
    assert "Traceback" not in err
    imported = [line.rpartition("|")[2].strip() for line in err.splitlines()]
    assert "gin" in imported
    assert "jax" not in imported


# --- In this process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which run? Add --gin_file=FILE: gin/"),
        (["--gin_fil=x"], "no flag '--gin_fil=x'. Did you mean --gin_file?"),
        (["gin/wlp_distill.gin"], "no flag 'gin/wlp_distill.gin'"),
        ([RUN_FILE, "--gin.SEED", "3"], "--gin.SEED has no value; write --gin.SEED=VALUE"),
        (["--gin_file=gin/wlp.gin"], "There is no run file gin/wlp.gin"),
        ([RUN_FILE, "--scale=rehearsal", "--gin.SEED='a'"], "a whole number"),
        (
            [RUN_FILE, "--scale=rehearsal", "--gin.MIXTURE_OR_TASK_NAME='wlq'"],
            "no task 'wlq'. Did you mean 'wlp'",
        ),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="SEED"):
        run.main([RUN_FILE, "--scale=rehearsal", "--gin.SEED='a'", "--debug"])


def attach(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(scale, "attached_machine", lambda: machine)


def test_paper_scale_on_a_small_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attach(monkeypatch, Machine("cpu", "cpu", 1, 16 * GB))
    monkeypatch.setattr(sys, "argv", ["launch/run.py"])
    given = [RUN_FILE, "--scale=paper", "--gin.MODEL_DIR='runs/x'"]
    assert run.main(given) == 2
    error = capsys.readouterr().err
    same = f"python launch/run.py {RUN_FILE} --gin.MODEL_DIR=\"'runs/x'\""
    assert f"{same} --scale=rehearsal\n" in error
    assert f"{same} --scale=paper\n" in error


def test_commands_name_the_program_that_was_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attach(monkeypatch, Machine("cpu", "cpu", 1, 16 * GB))
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/dora-jax", "run"])
    run.main([RUN_FILE, "--scale=paper"])
    assert f"here: dora-jax run {RUN_FILE} --scale=rehearsal" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["auto", "paper"])
def test_paper_scale_needs_real_data(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attach(monkeypatch, Machine("gpu", "NVIDIA H200", 8, 8 * 141 * GB))
    assert run.main([RUN_FILE, f"--scale={asked}"]) == 2
    out, error = capsys.readouterr()
    assert out.startswith("scale paper: ")
    assert "DORA_DATA_DIR" in error
    assert "TOKEN_STORE" in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_ends_and_says_how_to_go_on(
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def stopped(context: RunContext) -> list[Result]:
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_DFL  # the second one ends it at once
        context.stop.check()
        raise AssertionError("the request to stop was not seen")

    attach(monkeypatch, Machine("cpu", "cpu", 1, 16 * GB))
    monkeypatch.setattr(strategies, "run", stopped)
    monkeypatch.setattr(sys, "argv", ["launch/run.py"])
    before = signal.getsignal(number)
    directory = tmp_path / "the run"
    given = [RUN_FILE, f"--gin.MODEL_DIR='{directory}'"]
    assert run.main(given) == 75
    assert signal.getsignal(number) is before
    out, error = capsys.readouterr()
    assert out.startswith("scale rehearsal: no accelerator is attached")
    assert f"python launch/run.py {RUN_FILE} --gin.MODEL_DIR=\"'{directory}'\"\n" in out
    assert number.name in out
    record = directory / "config.gin"
    assert record.read_text(encoding="utf-8").startswith("# Scale rehearsal: no accelerator")
    config = build(record, "rehearsal").config
    assert config.model_dir == str(directory)
    assert not list(directory.glob("*.tmp"))


def test_the_whole_way_with_a_stand_in_for_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(strategies, "run", lambda context: [a_result("distill")])
    assert run.main([RUN_FILE, "--scale=rehearsal"]) == 0
    out = capsys.readouterr().out
    assert "student, distill" in out
    assert "Run directory: runs/wlp_distill-rehearsal" in out
    written = Path("runs/wlp_distill-rehearsal/config.gin").read_text(encoding="utf-8")
    assert run.main(["--gin_file=runs/wlp_distill-rehearsal/config.gin"]) == 0
    again = Path("runs/wlp_distill-rehearsal/config.gin").read_text(encoding="utf-8")
    assert "set by the run file" in capsys.readouterr().out
    assert again == written


def test_a_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/ledger.jsonl")

    def broken() -> int:
        raise OSError(errno.EIO, "Input/output error")

    assert command_line.exit_status(full, debug=False) == 2
    assert "ledger.jsonl" in capsys.readouterr().err
    with pytest.raises(OSError, match="Input/output"):
        command_line.exit_status(broken, debug=False)


@pytest.mark.parametrize(
    "argument",
    ["--gin.MODEL_DIR='runs/x y'", '--gin.VOCABULARY="it\'s"', "--gin.A='$HOME'", "--scale=auto"]
    + ["--gin.STRATEGIES=('annotate',)", "--gin.TEACHER=@t5_small/T5Config()", "a b", ""],
)
def test_commands_can_be_pasted_into_a_shell(argument: str) -> None:
    line = command_line.command(["python", "launch/run.py"], [argument])
    pasted = subprocess.run(
        ["bash", "-c", f'printf "%s\\n" {line}'],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nobody"},
    )
    assert pasted.stdout == f"python\nlaunch/run.py\n{argument}\n"
    assert shlex.split(line) == ["python", "launch/run.py", argument]


# --- The table


def a_result(name: str, **changes: object) -> Result:
    scores = Scores(
        examples=600,
        primary="micro_f1",
        strict={"micro_f1": 61.24, "macro_f1": 40.0},
        paper={"micro_f1": 70.16},
        intervals={"micro_f1": (58.04, 64.46)},
        notes={},
    )
    values: dict = {
        "name": name,
        "scores": scores,
        "labels": 1300,
        "label_dollars": 338.0,
        "compute_dollars": 1.5,
        "shared_dollars": 0.0,
        "device_hours": 0.8,
        "tokens_per_second": 4321.4,
        "tokens_per_dollar": 98765.4,
    }
    return Result(**{**values, **changes})


def table_text(*rows: Result, run_scale: str = "rehearsal") -> str:
    console = Console(width=results.WIDTH_OF_FILES, file=io.StringIO(), record=True)
    config = build("gin/wlp_distill.gin", run_scale).config
    console.print(results.results_table(rows, config))
    return console.export_text()


def test_the_table_holds_quality_and_costs() -> None:
    text = table_text(a_result("annotate"), a_result("teacher", tokens_per_dollar=None))
    for part in ("micro_f1 [95%]", "61.2 (58.0–64.5)", "70.2", "1,300", "338.00", "1.50"):
        assert part in text
    for part in ("339.50", "0.800", "4,321", "98,765", "student, annotate", "–"):
        assert part in text
    assert max(map(len, text.splitlines())) <= results.WIDTH_OF_FILES
    assert "…" not in text


def test_a_rehearsal_says_that_it_is_one() -> None:
    assert "rehearsal scale (small networks, no result of the paper's)" in table_text(a_result("x"))
    assert "paper scale (full size)" in table_text(a_result("x"), run_scale="paper")
