"""The run files of the paper's six tasks: what they say, and that each runs to its end."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from tiny_run import tiny_stages

from dora_jax.config import RunConfig
from dora_jax.launch import run, run_files
from dora_jax.launch.gin_config import Override, build
from dora_jax.tasks.task import get_task

TASKS = ("fever", "multipit_gen", "multipit_id", "nq", "stanceosaurus", "wlp")
# Few updates and rows, and a vocabulary that few rows allow; lengths of targets are the recipe's.
# Its networks take a minute a task to compile, and are trained by `make run` and by CI on the real
# WLP files. Where shapes are alike tasks share compiled programs.
SHORTENED = {
    "TEACHER_PRETRAIN_STEPS": 2,
    "STUDENT_PRETRAIN_STEPS": 2,
    "TEACHER_TRAIN_STEPS": 2,
    "ANNOTATE_TRAIN_STEPS": 2,
    "TRAIN_STEPS": 2,
    "PRETRAIN_WARMUP_STEPS": 0,
    "WARMUP_STEPS": 0,
    "EVAL_STEPS": 0,
    "VOCABULARY_PIECES": 500,
    "VOCAB_SIZE": 768,
    "NUM_UNLABELED": 100,
    "NUM_VALIDATION": 8,
    "NUM_TEST": 16,
    "LABEL_BATCH_SIZE": 100,
    "BOOTSTRAP_RESAMPLES": 20,
}


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DORA_DATA_DIR", raising=False)


def config_of(task: str, scale: str, kind: str = "distill", *given: Override) -> RunConfig:
    return build(f"gin/{task}_{kind}.gin", scale, given).config


# --- What the files say


@pytest.mark.parametrize("task", TASKS)
def test_tasks_differ_in_data_and_length_of_distillation_alone(task: str) -> None:
    wlp, config = config_of("wlp", "paper"), config_of(task, "paper")
    assert config.data.task == task
    assert config.data.num_labels == 1000
    assert config == dataclasses.replace(
        wlp,
        model_dir=config.model_dir,
        data=dataclasses.replace(
            wlp.data,
            task=task,
            source_length=config.data.source_length,
            target_length=config.data.target_length,
            labels_seed=0 if task == "multipit_id" else -1,
        ),
        distill=dataclasses.replace(wlp.distill, train_steps=config.distill.train_steps),
    )


@pytest.mark.parametrize("task", TASKS)
def test_headers_and_comments_are_true(task: str) -> None:
    text = (run_files.GIN_FOLDER / f"{task}_distill.gin").read_text("utf-8")
    annotate = (run_files.GIN_FOLDER / f"{task}_annotate.gin").read_text("utf-8")
    dollars = f"{1000 * get_task(task).price_usd_per_label:g} for 1,000 labels at "
    for header in (text, annotate):
        assert f"{dollars}{get_task(task).price_usd_per_label:g};" in header
    found = re.search(
        r"TRAIN_STEPS = (\d+)  # (\d+) epochs of (?:the )?([\d,]+) distinct texts", text
    )
    assert found
    steps, epochs, texts = found.groups()
    updates = int(epochs) * int(texts.replace(",", "")) / 32
    assert abs(int(steps) - updates) <= 0.5
    assert int(epochs) == 50


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scale", run_files.SCALES)
def test_annotate_is_distill_without_a_teacher(task: str, scale: str) -> None:
    distill, annotate = (config_of(task, scale, kind) for kind in ("distill", "annotate"))
    assert distill.strategies == ("annotate", "distill")
    assert annotate == dataclasses.replace(
        distill, strategies=("annotate",), model_dir=annotate.model_dir
    )


@pytest.mark.parametrize("task", TASKS)
def test_lengths_are_the_samples_or_the_corpus(task: str) -> None:
    paper, sample = config_of(task, "paper").data, config_of(task, "rehearsal").data
    own = config_of(task, "rehearsal", "distill", Override("DATA_DIR", "'/corpora'")).data
    assert (own.source_length, own.target_length) == (paper.source_length, paper.target_length)
    assert (own.num_labels, own.vocabulary_pieces) == (1000, 4000)
    assert sample.num_labels == 300
    assert run_files.sample_file(task)
    assert (sample.source_length, sample.target_length) != (512, 128)  # of run.gin


def test_stanceosaurus_reads_512_tokens() -> None:
    assert config_of("stanceosaurus", "paper").data.source_length == 512


def test_a_task_without_a_recipe_of_its_own_takes_the_common_one() -> None:
    assert run_files.sample_file("no_such_task") is None


# --- That they run


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_cheaply", "one_device")
@pytest.mark.parametrize("task", TASKS)
def test_the_rehearsal_runs_to_its_end(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "set_up_jax", lambda _: None)
    lengths = {"inputs": 96, "targets": config_of(task, "rehearsal").data.target_length}
    settings = SHORTENED | {
        "MODEL_DIR": repr(str(tmp_path / task)),
        "TASK_FEATURE_LENGTHS": lengths,
    }
    given = [*tiny_stages(), *(f"--gin.{name}={value}" for name, value in settings.items())]
    status = run.main([f"--gin_file=gin/{task}_distill.gin", "--scale=rehearsal", *given])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert f"{task} from the bundled sample: rows train 300" in out
    for model in ("teacher", "annotate", "distill"):
        scores = json.loads((tmp_path / task / f"evaluate-{model}" / "scores.json").read_text())
        assert scores["examples"] == 16
        assert scores["primary"] in scores["strict"]
        assert scores["paper"]
    price = get_task(task).price_usd_per_label
    rows = [
        json.loads(line)
        for line in (tmp_path / task / "ledger.jsonl").read_text().split("\n")
        if line
    ]
    assert [row["dollars"] for row in rows if row["stage"] == "labels"] == [
        pytest.approx(300 * price)
    ]
