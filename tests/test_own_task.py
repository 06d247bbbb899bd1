"""A task of the user's own, from settings alone: kinds, labels, refusals, and the docs page."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import read_rows, tiny_stages

from dora_jax.config import DataConfig, OwnTaskConfig, RunConfig
from dora_jax.launch import data, run
from dora_jax.launch.gin_config import Override, build
from dora_jax.tasks.own import task_of
from dora_jax.tasks.samples import helpdesk
from dora_jax.tasks.sources import load_splits
from dora_jax.tasks.task import get_task

ROOT = Path(run.__file__).resolve().parents[1]
RUN_FILE = "gin/my_task_distill.gin"
PAGE = (ROOT / "docs" / "own_task.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _in_a_folder_with_the_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DORA_DATA_DIR", raising=False)
    monkeypatch.setattr(run, "set_up_jax", lambda _: None)
    shutil.copytree(ROOT / "docs" / "own_task", tmp_path / "docs" / "own_task")
    monkeypatch.chdir(tmp_path)


def table(name: str, *rows: str, header: str = "source,target") -> str:
    Path(name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return name


def own(train: str, test: str = "", **settings: Any) -> DataConfig:
    fields = {"train_file": train, "test_file": test or train, **settings}
    return DataConfig(task="mine", own=OwnTaskConfig(**fields), num_labels=2)


def config_of(**overrides: str) -> RunConfig:
    given = [Override(name, value) for name, value in overrides.items()]
    return build(RUN_FILE, "rehearsal", given).config


# --- Kinds and labels


def test_classes_are_those_of_the_train_file() -> None:
    task = task_of(own(table("t.csv", "a,yes", "b,no", "c,yes")), 0.25)
    assert (task.name, task.kind, task.labels) == ("mine", "classification", ("no", "yes"))
    assert (task.price_usd_per_label, task.price_source) == (0.25, "set by the user")
    assert task.prompt_prefix == "mine: "
    scores = task.score(["yes", "no"], ["yes", "maybe"], ["a", "b"], resamples=10)
    assert scores.primary == "accuracy"
    assert (scores.strict["accuracy"], scores.notes["unparsable"]) == (50.0, 1)


def test_labels_of_the_test_file_that_train_lacks_are_listed_with_counts() -> None:
    train = table("t.csv", "a,yes", "b,no", "c,yes")
    test = table("e.csv", "d,yes", "e,Yes", "f,Yes", "g,other")
    data = own(train, test, prompt_prefix="ask: ")
    task = task_of(data, 0.0)
    assert task.prompt_prefix == "ask: "
    with pytest.raises(ValueError, match="e.csv has 3 bad rows") as caught:
        load_splits(task, data)
    assert re.search(
        r"e\.csv:3: the label 'Yes' .*did you mean 'yes'.* \(2 rows\)\n", str(caught.value)
    )
    assert "e.csv:5: the label 'other'" in str(caught.value)


def test_named_labels_find_the_misspelled_ones_of_the_train_file() -> None:
    data = own(table("t.csv", "a,yes", "b,no", "c,yse"), labels=("yes", "no"))
    task = task_of(data, 0.0)
    assert task.labels == ("yes", "no")
    with pytest.raises(
        ValueError, match=r"t\.csv:4: the label 'yse' is not known; did you mean 'yes'"
    ):
        load_splits(task, data)


def test_spans() -> None:
    data = own(table("t.tsv", "mix it\tmix [Act]", "x\t", header="source\ttarget"), kind="spans")
    with pytest.raises(ValueError, match=r"types in TASK_LABELS.*'Act' \(1\)"):
        task_of(data, 0.0)
    task = task_of(
        dataclasses.replace(data, own=dataclasses.replace(data.own, labels=("Act", "Thing"))), 0.0
    )
    assert [task.check_target(t) for t in ("", "mix [Act] it [Thing]")] == [None, None]
    assert "did you mean [Thing]" in str(task.check_target("it [Thingg]"))
    scores = task.score(["mix [Act] it [Thing]"], ["mix [Act]"], ["mix it"], resamples=10)
    assert scores.strict["micro_recall"] == 50.0
    assert scores.value == pytest.approx(200 / 3)


@pytest.mark.parametrize("wrong", ["Gene3", "Größen", "gene1"])
def test_types_may_hold_digits_and_any_letters(wrong: str) -> None:
    data = own("t.csv", kind="spans", labels=("Gene1", "Größe"))
    check = task_of(data, 0.0).check_target
    assert check("BRCA [Gene1] 5 [6.2] cm [Größe]") is None
    assert f"the tag [{wrong}] is not known; did you mean" in str(check(f"x [{wrong}] y [Gene1]"))


def test_text() -> None:
    data = own(table("t.csv", "who?,the one", "when?,"), kind="text")
    task = task_of(data, 0.0)
    assert (task.labels, task.primary_metric) == ((), "exact_match")
    assert task.score(["the one"], ["The One."], ["who?"], resamples=10).value == 100.0
    with pytest.raises(ValueError, match=r"t\.csv:3: the target is empty"):
        load_splits(task, data)


def test_json_lines() -> None:
    lines = [{"q": f"text {i}", "a": "yes" if i % 2 else "no", "note": i} for i in range(40)]
    Path("t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = own("t.jsonl", source_column="q", target_column="a")
    loaded = load_splits(task_of(data, 0.0), data)
    assert [row.source for row in loaded.rows["test"]] == [line["q"] for line in lines]
    assert loaded.provenance["origin"] == "user's own files"


def test_tasks_of_the_paper_stay_what_they_are() -> None:
    assert task_of(DataConfig(task="fever")) is get_task("fever")


MANY = [f"{i},label {i}" for i in range(300)]
REFUSALS = {
    "nothing to score": (lambda: own("t.csv", test_file=""), "not TEST_FILE: name labelled rows"),
    "a name of the paper": (
        lambda: dataclasses.replace(own("t.csv"), task="wlp"),
        "MIXTURE_OR_TASK_NAME = 'wlp' is a task of the paper",
    ),
    "a name SeqIO refuses": (
        lambda: dataclasses.replace(own("t.csv"), task="my task"),
        "'my task'; expected a letter",
    ),
    "no train file": (
        lambda: DataConfig(own=OwnTaskConfig(test_file="t.csv")),
        "TEST_FILE = 't.csv', but TRAIN_FILE is not set",
    ),
    "labels for text": (lambda: own("t.csv", kind="text", labels=("a",)), "'text' has none"),
    "a label twice": (lambda: own("t.csv", labels=("a", "b", "a")), "'a' more than once"),
    "a label with two spaces": (lambda: own("t.csv", labels=("a", "b  c")), "write it as 'b c'"),
    "a label that only looks like another": (
        lambda: own("t.csv", labels=("a", "fu\u0308r")),
        r"label 'fu\\u0308r' cannot .* write it as 'für'",
    ),
    "one column for both": (
        lambda: own("t.csv", source_column="target"),
        "SOURCE_COLUMN and TARGET_COLUMN are both 'target'",
    ),
    "a type with a bracket": (
        lambda: own("t.csv", kind="spans", labels=("A", "B[1]")),
        r"'B\[1\]' holds a bracket",
    ),
    "one class": (lambda: own(table("t.csv", "a,x", "b,x")), r"1 different labels.*'x' \(2\)"),
    "no class": (lambda: own(table("t.csv", *MANY)), "300 different labels.*right column"),
    "an empty class": (lambda: own(table("t.csv", "a,x", "b,")), "t.csv:3: the target is empty"),
    "no such file": (lambda: own("nowhere.csv"), "nowhere.csv cannot be read .*as it is seen from"),
    "a spreadsheet": (lambda: own("t.xlsx"), "t.xlsx does not say how to read it.*saved as CSV"),
    "no such column": (
        lambda: own(table("t.csv", "a,x"), source_column="sorce"),
        "no column 'sorce'.*Did you mean 'source'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_settings_that_do_not_fit_are_refused(name: str) -> None:
    make, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        task_of(make(), 0.0)


def test_a_price_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--gin_file={RUN_FILE}", "--scale=rehearsal", "--gin.PRICE_USD_PER_LABEL=-1"]
    assert run.main(given) == 2
    assert "what a label of 'my_task' costs; give the price" in capsys.readouterr().err


# --- A prepared token store stands for the files


def store_of(folder: str, **facts: object) -> str:
    Path(folder).mkdir()
    (Path(folder) / "manifest.json").write_text(json.dumps(facts))
    return folder


def test_labels_come_from_a_prepared_store() -> None:
    store = store_of("tokens", task_kind="classification", task_labels=["b", "a"])
    data = dataclasses.replace(own("nowhere.csv"), token_store=store)
    assert task_of(data, 0.0).labels == ("b", "a")
    assert config_of(TOKEN_STORE="'tokens'", TRAIN_FILE="'nowhere.csv'").data.own.train_file


def test_a_store_of_another_kind_or_other_labels_is_refused() -> None:
    store = store_of("tokens", task_kind="spans", task_labels=["A"])
    for settings in ({"kind": "classification"}, {"kind": "spans", "labels": ("A", "B")}):
        data = dataclasses.replace(own("nowhere.csv", **settings), token_store=store)
        with pytest.raises(ValueError, match=r"of kind 'spans' with the labels \('A',\)"):
            task_of(data, 0.0)


# --- gin


@pytest.mark.parametrize("scale", ["paper", "rehearsal"])
def test_what_a_run_file_says_of_the_data_holds_at_every_scale(
    scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DORA_DATA_DIR", "/corpora")  # is of the paper's tasks
    config = build(RUN_FILE, scale).config
    assert (config.data.num_labels, config.data.data_dir) == (-1, "")
    assert (config.data.source_length, config.data.target_length) == (48, 8)
    assert config.data.vocabulary_pieces == 600
    assert config.model_dir == f"runs/my_task_distill-{scale}"
    given = [Override("NUM_LABELS", "7"), Override("TASK_KIND", "'text'")]
    changed = build(RUN_FILE, scale, given).config
    assert (changed.data.num_labels, changed.data.own.kind) == (7, "text")


def test_a_run_knows_its_files_by_their_bytes() -> None:
    before = config_of().data.own
    path = Path(before.train_file)
    original = path.read_bytes()
    path.write_bytes(original.replace(b"repair", b"sales", 1))
    assert config_of().data.own.files_fingerprint != before.files_fingerprint
    path.write_bytes(original)
    assert config_of().data.own == before
    assert len(before.files_fingerprint) == 16


def test_a_missing_file_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--gin_file={RUN_FILE}", "--scale=rehearsal", "--gin.TEST_FILE='tset.csv'"]
    assert run.main(given) == 2
    error = capsys.readouterr().err
    assert "tset.csv cannot be read (No such file or directory), a file of your own task" in error
    assert run.main([*given[:2], "--gin.TASK_KIND='classes'"]) == 2
    assert "OwnTaskConfig.kind = 'classes' is not known; choose one of" in capsys.readouterr().err


# --- The page


def test_the_example_is_what_its_generator_makes(tmp_path: Path) -> None:
    helpdesk.write_tables(tmp_path / "made", helpdesk.make_rows())
    for split in ("train", "test", "unlabeled"):
        made = (tmp_path / "made" / f"{split}.csv").read_bytes()
        assert made == (ROOT / "docs" / "own_task" / f"{split}.csv").read_bytes()


def test_the_page_shows_the_lines_of_the_run_file() -> None:
    shown = PAGE.partition("<!-- the same lines as in gin/my_task_distill.gin -->")[2]
    lines = re.findall(r"^    ([A-Z_]+ = .*)$", shown, re.MULTILINE)
    assert len(lines) == 8
    written = (ROOT / RUN_FILE).read_text(encoding="utf-8").splitlines()
    assert [line for line in written if line in lines] == lines


COUNTS = {
    "VOCAB_SIZE": 768,
    "TEACHER_PRETRAIN_STEPS": 2,
    "STUDENT_PRETRAIN_STEPS": 2,
    "TEACHER_TRAIN_STEPS": 2,
    "ANNOTATE_TRAIN_STEPS": 2,
    "TRAIN_STEPS": 2,
    "NUM_TEST": 20,
    "NUM_UNLABELED": 40,
    "VALIDATION_EXAMPLES": 8,
    "BOOTSTRAP_RESAMPLES": 20,
}
SHORT = [
    "--scale=rehearsal",
    *tiny_stages(),
    *(f"--gin.{name}={value}" for name, value in COUNTS.items()),
]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_cheaply", "one_device")
def test_every_command_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As written, in the page's order, but for a short training."""
    shutil.copytree(ROOT / "gin", tmp_path / "gin")
    commands = re.findall(r"^    ((?:cp|python) .*)$", PAGE, re.MULTILINE)
    assert len(commands) == 4
    outputs = []
    for command in commands:
        program, *words = shlex.split(command)
        if program == "cp":
            shutil.copy(*words)
        elif words[0] == "launch/data.py":
            assert data.main(words[1:]) == 0
        else:
            monkeypatch.setattr("sys.argv", words)
            shorter = [] if len(outputs) == 2 else ["--gin.STRATEGIES=('annotate',)"]
            assert run.main([*words[1:], *SHORT, *shorter]) == 0
        outputs.append(capsys.readouterr().out)
    # What the page says that the overview says.
    promised = re.findall(r"^    ((?:The run buys|To label all).*)$", PAGE, re.MULTILINE)
    shown = re.sub(r"\s+", " ", outputs[1])
    assert len(promised) == 2
    assert all(line in shown for line in promised)
    assert "my_task, rehearsal scale" in outputs[2]
    directory = Path("runs/my_task-rehearsal")
    [labels] = [r for r in read_rows(directory / "ledger.jsonl") if r["stage"] == "labels"]
    assert (labels["examples"], labels["dollars"]) == (202, pytest.approx(60.60))
    predictions = read_rows(directory / "evaluate-distill" / "predictions.jsonl")
    with open("docs/own_task/test.csv", encoding="utf-8") as file:
        assert predictions[0]["source"] in file.read()
    facts = json.loads((directory / "prepare" / "tokens" / "manifest.json").read_text())
    assert facts["task_labels"] == ["account", "billing", "delivery", "repair"]
    assert set(facts["source_files"]) == {"train", "test", "unlabeled"}
    [fewer] = [
        r for r in read_rows(Path("runs/my_task-100/ledger.jsonl")) if r["stage"] == "labels"
    ]
    assert fewer["examples"] == 100

    # The same command finds all done; with another row it refuses to mix.
    again = ["--gin_file=my_task.gin", *SHORT]
    assert run.main(again) == 0
    with open("docs/own_task/train.csv", "a", encoding="utf-8") as file:
        file.write("241,my parcel is late,delivery\n")
    assert run.main(again) == 2
    assert "data.own.files_fingerprint" in capsys.readouterr().err
