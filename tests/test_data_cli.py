"""launch/data.py: every figure it shows, against rows that can be counted by hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dora_jax.data.vocab import Vocabulary, train_sentencepiece
from dora_jax.launch import data
from dora_jax.tasks.task import get_task

ROOT = Path(data.__file__).resolve().parents[1]
NAMES = ("fever", "multipit_gen", "multipit_id", "nq", "stanceosaurus", "wlp")
PUBLISHED = os.environ.get("DORA_DATA_DIR", "")


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DORA_DATA_DIR", raising=False)


TRAIN = """text,team
mend my bike,repair
mend my bike,sales
where is my order of two bikes,sales
a bell please,sales
a bell please,sales
it squeaks,repair
"""
TEST = "text,team\nit squeaks,repair\na new one,sales\na lamp of mine,sales\n"
VALIDATION = "text,team\na bell please,sales\n"
TEXTS = "text\na lamp of mine\nit squeaks\nnew\nnew\n"
SETTINGS = """
include "run.gin"
MIXTURE_OR_TASK_NAME = "bikes"
SOURCE_COLUMN = "text"
TARGET_COLUMN = "team"
PRICE_USD_PER_LABEL = 0.5
NUM_LABELS = 4
TASK_FEATURE_LENGTHS = {"inputs": 6, "targets": 8}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A task of one's own: the lines above."""
    tables = {"train": TRAIN, "test": TEST, "validation": VALIDATION, "unlabeled": TEXTS}
    text = SETTINGS
    for name, table in tables.items():
        path = tmp_path / f"{name}.csv"
        path.write_text(table, encoding="utf-8")
        text += f'{name.upper()}_FILE = "{path}"\n'
    path = tmp_path / "bikes.gin"
    path.write_text(text, encoding="utf-8")
    return path


def facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert data.main([*arguments, "--json=-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_figure(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, f"--gin_file={run_file}")
    assert (found["task"], found["kind"], found["origin"]) == (
        "bikes", "classification", "user's own files",
    )  # fmt: skip
    assert found["splits"]["train"] == {
        "rows": 6, "repeated_sources": 2, "sources_with_different_targets": 1, "empty_targets": 0
    }  # fmt: skip
    assert [of_split["rows"] for of_split in found["splits"].values()] == [6, 4, 1, 3]
    assert found["labels"]["train"] == {"repair": 2, "sales": 4}
    assert found["labels"]["labelled"] == {"repair": 1, "sales": 3}
    assert found["labels"]["test"] == {"repair": 1, "sales": 2}
    # Four labels: three texts. "it squeaks" is left, from train and from the file, "new" once, the
    # lamp too; nothing that is in validation.
    assert found["run"] == {
        "labels_asked": 4, "labels": 4, "unlabeled_texts": 2 + 1, "validation_rows": 1,
        "test_rows": 3,
    }  # fmt: skip
    assert found["leaks"] == {
        "validation_rows_also_in_train": 1,
        "test_rows_also_in_train": 0,
        "test_rows_also_in_train_or_unlabeled": 2,
    }
    assert found["price"] == {
        "usd_per_label": 0.5, "usd_for_the_run": 2.0, "texts_in_all": 6, "usd_for_all_texts": 3.0,
        "source": "set by the user",
    }  # fmt: skip
    assert found["length_unit"] == "words"
    # "bikes: " and 2, 3, 3, 3, 3, 7 words
    assert found["lengths"]["train"]["input"] == {"p50": 4, "p90": 8, "p99": 8, "max": 8}
    assert found["examples"][0] == {"input": "bikes: mend my bike", "target": "repair"}
    assert len(found["examples"]) == 4
    assert set(found["source_files"]) == {"train", "test", "validation", "unlabeled"}


def test_with_a_vocabulary_lengths_are_tokens_and_examples_are_cut(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.model"
    train_sentencepiece([TRAIN, TEST], file, 300)
    vocabulary = Vocabulary.load(file, 100)
    texts = ["bikes: it squeaks", "bikes: a new one", "bikes: a lamp of mine"]
    lengths = sorted(len(ids) + 1 for ids in vocabulary.encode(texts))
    limit = lengths[1]  # a text of just this length is whole
    arguments = [
        f"--gin_file={run_file}",
        f"--gin.VOCABULARY='{file}'",
        f"--gin.TASK_FEATURE_LENGTHS={{'inputs': {limit}, 'targets': 8}}",
    ]
    found = facts(capsys, *arguments)
    assert found["length_unit"] == "tokens"
    assert found["lengths"]["test"]["input"] == {
        "p50": lengths[1], "p90": lengths[2], "p99": lengths[2], "max": lengths[2],
        "limit": limit, "truncated_rows": 1, "truncated_share": 1 / 3,
    }  # fmt: skip
    longest = "bikes: where is my order of two bikes"
    [ids] = vocabulary.encode([longest])
    shown = {example["input"] for example in found["examples"]}
    assert longest not in shown
    assert vocabulary.decode(ids[: limit - 1]) in shown
    assert data.main(arguments) == 0
    assert "33.3% / 0.0%" in capsys.readouterr().out


def test_a_label_that_the_vocabulary_cannot_write_is_told_before_money_is_spent(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.model"
    train_sentencepiece([TRAIN, TEST], file, 300)
    for table in tmp_path.glob("*.csv"):
        text = table.read_text(encoding="utf-8").replace("sales", "sa\u2581les")
        table.write_text(text, encoding="utf-8")
    assert data.main([f"--gin_file={run_file}", f"--gin.VOCABULARY='{file}'"]) == 2
    assert "'sa\u2581les' cannot be written in the vocabulary" in capsys.readouterr().err


def test_what_a_person_sees(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main([f"--gin_file={run_file}", "--gin.NUM_LABELS=9"]) == 0
    out = capsys.readouterr().out
    text = re.sub(r"\s+", " ", out)
    for part in (
        "bikes (classification), user's own files",
        "train 6 2 1 4 · 8 · 8 · 8 1 · 1 · 1 · 1 –",
        "repair 2 (33.3%) 0 (0.0%) 1 (33.3%)",
        "2 of the 3 test texts are also in the labelled (1) or unlabelled text",
        "1 of the 1 validation texts are also in train",
        "Texts that stand in train with different labels: 1.",
        "No validation row is of class 'repair': nothing tells how well it is found.",
        "NUM_LABELS asks for 9 labels; there are 6.",
        "The run buys 6 labels for $3.00 ($0.5 each: set by the user)",
        "To label all 6 texts would cost $3.00.",
        "bikes: mend my bike → repair",
    ):
        assert part in text
    assert "…" not in out


def test_what_is_missing_is_told(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = run_file.with_name("train.csv")
    header, first, *others = train.read_text().splitlines()
    train.write_text("\n".join([header, *others, first]))
    run_file.with_name("test.csv").write_text(header)
    assert data.main([f"--gin_file={run_file}"]) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "label labelled train validation" in text
    assert "repair 0 (0.0%) 2 (33.3%) 0 (0.0%)" in text
    assert "No labelled row is of class 'repair': nobody can learn it." in text
    assert "There are no test rows." in text
    assert "No test row" not in text


def test_json_goes_to_a_file_beside_the_tables(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.main([f"--gin_file={run_file}", f"--json={tmp_path}/facts.json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads((tmp_path / "facts.json").read_text()) == facts(
        capsys, f"--gin_file={run_file}"
    )
    assert "bikes" in shown


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main([f"--task={name}"]) == 0
    out = capsys.readouterr().out
    assert "bundled sample" in out
    assert get_task(name).prompt_prefix in out
    assert "NUM_LABELS asks" not in out  # the rehearsal's count, which the sample has


def test_labels_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    spans = facts(capsys, "--task=wlp")
    assert tuple(spans["labels"]["train"]) == get_task("wlp").labels
    texts = facts(capsys, "--task=nq")["labels"]["train"]
    assert len(texts) <= 10
    assert list(texts.values()) == sorted(texts.values(), reverse=True)
    assert facts(capsys, "--task=multipit")["task"] == "multipit_gen"


def test_skipped_rows_and_their_complaints(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = run_file.with_name("train.csv")
    train.write_text(train.read_text() + "a,b,c\na,b,c\n")
    assert data.main([f"--gin_file={run_file}"]) == 2
    assert "train.csv:8: expected 2 cells" in capsys.readouterr().err
    assert data.main([f"--gin_file={run_file}", "--gin.ON_BAD_ROW='skip'"]) == 0
    out = capsys.readouterr().out
    assert "2 bad rows are left out:" in out
    assert "found 3. (2 rows)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which data? Add --task=NAME"),
        (["--task=fevr"], "no task 'fevr'. Did you mean 'fever'"),
        (["--task=fever", "--gin_file=gin/wlp_distill.gin"], "is a run of the task 'wlp'"),
        (["--gin_file=gin/nowhere.gin"], "no run file gin/nowhere.gin"),
        (["--task=fever", "--jsn=-"], "no flag '--jsn=-'. Did you mean --json"),
        (["--task=fever", "--gin.VOCABULARY='nowhere.model'"], "nowhere.model cannot be read"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_script_needs_no_framework_and_shadows_nothing(tmp_path: Path) -> None:
    script = ROOT / "launch" / "data.py"
    command = [sys.executable, "-X", "importtime", str(script), "--task=nq", "--json=-"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout)["task"] == "nq"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rich" in imported
    assert not imported & {"jax", "flax", "tensorflow", "seqio", "torch", "tensorflow_datasets"}


# --- docs/data.md


@pytest.mark.skipif(not PUBLISHED, reason="DORA_DATA_DIR is not set: the page was not checked.")
@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_the_figures_of_the_real_files(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DORA_DATA_DIR", PUBLISHED)
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    found = facts(capsys, f"--task={name}")
    assert "\n".join(data_rows(found)) in page
    assert label_row(found) in page
    assert price_row(found) in page
    run_file = (ROOT / "gin" / f"{name}_distill.gin").read_text(encoding="utf-8")
    assert f"{found['run']['unlabeled_texts']:,} distinct texts" in run_file


def data_rows(found: dict[str, Any]) -> list[str]:
    """The lines of the page's table of rows and lengths for one task."""

    def percentiles(side: dict[str, int]) -> str:
        return " · ".join(str(side[key]) for key in ("p50", "p90", "p99", "max"))

    rows = []
    for split, of_split in found["splits"].items():
        lengths = found["lengths"][split]
        cells = (
            found["task"], split, f"{of_split['rows']:,}", f"{of_split['repeated_sources']:,}",
            f"{of_split['sources_with_different_targets']:,}", percentiles(lengths["input"]),
            percentiles(lengths["target"]),
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def label_row(found: dict[str, Any]) -> str:
    """The line of the page's table of labels: those of at least 8 %, of classes all."""
    counts = Counter(found["labels"]["train"])
    shares = [(label, count / counts.total()) for label, count in counts.most_common()]
    if found["kind"] == "spans":
        shown = [f"{label} {share:.0%}" for label, share in shares if share >= 0.08]
        text = " · ".join([*shown, f"{len(shares) - len(shown)} other types"])
    elif found["kind"] == "classification":
        text = " · ".join(f"{label} {share:.0%}" for label, share in shares)
    else:
        text = "free text"
    return f"| {found['task']} | {found['kind']} | {text} |"


def price_row(found: dict[str, Any]) -> str:
    """The line of the page's table of prices and leaks."""
    price, run, leaks = found["price"], found["run"], found["leaks"]
    assert run["labels"] == 1000
    cells = (
        found["task"], f"{price['usd_per_label']:g}", f"{price['usd_for_the_run']:,.2f}",
        f"{run['unlabeled_texts']:,}", f"{price['texts_in_all']:,}",
        f"{price['usd_for_all_texts']:,.2f}", f"{leaks['test_rows_also_in_train']:,}",
        f"{leaks['test_rows_also_in_train_or_unlabeled']:,}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"
