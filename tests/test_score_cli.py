"""launch/score.py as a user meets it: one JSON object, comparisons, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dora_jax.launch import score

SCRIPT = Path(score.__file__)
ROWS = [
    ("Water is wet.", "SUPPORTS", "SUPPORTS"),
    ("Fire is cold.", "REFUTES", "SUPPORTS"),
    ("Snow is white.", "SUPPORTS", "supports"),
    ("Snow is white.", "SUPPORTS", "I do not know"),
]


def write(path: Path, rows: list[tuple[str, str, str]]) -> str:
    names = ("source", "target", "prediction")
    lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def result_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert score.main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert score.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    assert score.main(["--task=fever", f"--predictions={file}", "--resamples=200"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["task"], result["examples"], result["primary"]) == ("fever", 4, "accuracy")
    # The answer that names no class is wrong, and by the paper a REFUTES, which is wrong too.
    assert result["strict"]["accuracy"] == result["paper"]["accuracy"] == 50.0
    assert result["strict"]["macro_f1"] == pytest.approx(100 * (2 * 2 / (3 + 3) + 0) / 2)
    assert set(result["intervals"]) == {*result["strict"], "paper/accuracy"}
    assert result["confusion"]["SUPPORTS"]["(no class)"] == result["notes"]["unparsable"] == 1
    assert result["bootstrap"] == {"resamples": 200, "confidence": 0.95, "seed": 0}
    assert "against" not in result
    assert "note: 1 of 4 predictions" in captured.err


def test_flags_of_the_bootstrap_do_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.jsonl", [(f"claim {i}", *ROWS[i % 3][1:]) for i in range(60)])
    same = ("--task=fever", f"--predictions={file}")
    usual = result_of(capsys, *same)
    assert result_of(capsys, *same) == usual
    narrow = result_of(capsys, *same, "--confidence=0.5")["intervals"]["accuracy"]
    low, high = usual["intervals"]["accuracy"]
    assert low < narrow[0] < narrow[1] < high
    few = [
        result_of(capsys, *same, "--resamples=20", f"--seed={seed}")["intervals"] for seed in (1, 2)
    ]
    assert few[0] != few[1]
    assert result_of(capsys, *same, "--resamples=0")["intervals"] == {}


def test_against_matches_rows_by_source_and_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.jsonl", ROWS)
    better = [(source, target, target) for source, target, _ in ROWS]
    b = write(tmp_path / "b.jsonl", better[::-1])
    same = ("--task=fever", "--resamples=100")
    result = result_of(capsys, *same, f"--predictions={a}", f"--against={b}")
    against = result["against"]
    assert against["predictions"] == b
    assert against["strict"]["accuracy"] == against["paper"]["accuracy"] == 100.0
    difference = against["differences"]["accuracy"]
    assert difference["difference"] == -50.0
    assert difference["interval"][0] <= -50.0 <= difference["interval"][1] <= 0.0
    assert set(difference) == {"difference", "interval", "p_value"}
    assert "paper/accuracy" in against["differences"]
    # The same predictions in another order: repeated rows are taken in their order.
    shuffled = write(tmp_path / "c.jsonl", [ROWS[2], ROWS[1], ROWS[3], ROWS[0]])
    result = result_of(capsys, *same, f"--predictions={a}", f"--against={shuffled}")
    differences = result["against"]["differences"].values()
    assert all(d["interval"] == [0.0, 0.0] and d["difference"] == 0.0 for d in differences)


def test_against_other_examples_is_refused_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.jsonl", ROWS)
    flipped = [ROWS[0], (ROWS[1][0], "SUPPORTS", "SUPPORTS"), *ROWS[2:]]
    b = write(tmp_path / "b.jsonl", flipped)
    message = error_of(capsys, "--task=fever", f"--predictions={a}", f"--against={b}")
    assert f"{a}:2 (source 'Fire is cold.', target 'REFUTES') has no counterpart in {b}" in message
    for longer, shorter in ((a, ROWS[:3]), (a, ROWS[1:])):
        part = write(tmp_path / "part.jsonl", shorter)
        for pair in ((longer, part), (part, longer)):
            message = error_of(
                capsys, "--task=fever", f"--predictions={pair[0]}", f"--against={pair[1]}"
            )
            assert f"{a}:" in message and f"no counterpart in {part}" in message


def test_every_task_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("Add DNA", "Add [Action] DNA [Reagent]", ""), ("a", "", "")]
    spans = write(tmp_path / "wlp.jsonl", rows)
    result = result_of(capsys, "--task=wlp", f"--predictions={spans}", "--resamples=5")
    assert result["strict"]["micro_f1"] == 0.0 and result["notes"]["gold_entities"] == 2
    table = tmp_path / "nq.csv"
    table.write_text('source,target,prediction\n"who, when?",The 1st,"1st, maybe"\n', "utf-8")
    result = result_of(capsys, "--task=nq", f"--predictions={table}", "--resamples=5")
    assert result["strict"] == {"exact_match": 0.0, "f1": pytest.approx(100 * 2 / 3)}
    texts = write(tmp_path / "gen.jsonl", [("a b", "a b", "a c")])
    flags = ("--task=multipit_gen", f"--predictions={texts}", "--resamples=5")
    result = result_of(capsys, *flags, f"--scorer_model={tmp_path / 'none'}")
    assert set(result["strict"]) == {"self_bleu"}
    assert "there is no folder" in result["remarks"][0]


def test_a_task_of_ones_own_is_read_from_its_run_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "train.jsonl", [("a", "spam", ""), ("b", "ham", "")])
    run_file = tmp_path / "mine.gin"
    run_file.write_text(
        "include 'run.gin'\n"
        "MIXTURE_OR_TASK_NAME = 'mail'\n"
        f"TRAIN_FILE = '{train}'\nTEST_FILE = '{train}'\n"
        "TASK_KIND = 'classification'\nPRICE_USD_PER_LABEL = 0.1\n"
    )
    file = write(tmp_path / "a.jsonl", [("c", "spam", "spam"), ("d", "ham", "spam")])
    flags = (f"--gin_file={run_file}", f"--predictions={file}", "--resamples=5")
    result = result_of(capsys, *flags)
    assert (result["task"], result["strict"]["accuracy"]) == ("mail", 50.0)
    assert set(result["confusion"]) == {"spam", "ham"}


def test_bad_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    good = '{"source": "a", "target": "SUPPORTS", "prediction": "x"}'
    lines = [
        good,
        "{",
        '{"source": "a", "target": "SUPPORT", "prediction": ""}',
        '{"source": "a", "target": "SUPPORTS"}',
        '{"source": "a", "target": "SUPPORTS", "prediction": null}',
        "",
        '["a"]',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    message = error_of(capsys, "--task=fever", f"--predictions={path}")
    for number, complaint in (
        (2, "broken JSON"),
        (3, "'SUPPORT' is not known; did you mean 'SUPPORTS'"),
        (4, "'prediction' is missing"),
        (5, "'prediction' must be text, found NoneType"),
        (7, "expected an object"),
    ):
        assert re.search(f"bad.jsonl:{number}: .*{complaint}", message), (number, message)
    assert "bad.jsonl:1:" not in message and message.count("broken JSON") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name --predictions=FILE and either --task=NAME"),
        (("--task=fever",), "Name --predictions=FILE and either --task=NAME"),
        (("--task=fver", "--predictions=FILE"), "Did you mean 'fever'"),
        (("--task=fever", "--predictions=none.jsonl"), "none.jsonl cannot be read"),
        (("--task=fever", "--predictions=EMPTY"), "holds no rows"),
        (("--task=fever", "--predictions=FILE", "--resamples=-1"), "resamples = -1"),
        (("--task=fever", "--predictions=FILE", "--confidence=95"), "must lie in (0, 1)"),
        (
            ("--task=fever", "--predictions=FILE", "--against=FILE", "--resamples=0"),
            "resamples = 0",
        ),
        (("--task=fever", "--predictions=FILE", "--scorer_model=x"), "fever needs no encoder"),
        (
            ("--task=fever", "--predictions=FILE", "--gin.SEED=1"),
            "--gin.SEED needs the run file it changes",
        ),
        (("--task=fever", "--predictions=FILE", "--gin_file=x.gin"), "either --task=NAME"),
        (("--task=fever", "--prediction=FILE"), "no flag '--prediction=FILE'. Did you mean"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "empty.jsonl").touch()
    given = [
        a.replace("FILE", file).replace("EMPTY", str(tmp_path / "empty.jsonl")) for a in arguments
    ]
    assert message in error_of(capsys, *given).replace(file, "FILE")


def test_it_starts_at_once_and_without_frameworks(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    heavy = "{'tensorflow', 'torch', 'transformers', 'jax', 'seqio'}"
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['score.py', '--task=fever', '--predictions={file}']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        f"    print(end.code, sorted({heavy} & set(sys.modules)), file=sys.stderr)\n"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert json.loads(done.stdout)["examples"] == 4
    after = os.times()  # processor time, which a busy machine hardly changes
    assert after.children_user - before.children_user < 2.0


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        score.main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "python launch/score.py --task=wlp --predictions=" in out and "--against" in out
