"""`launch/ledger.py`: what it lists, for people and for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import DISTILL_SECONDS, write_run

from dora_jax.config import LlmConfig
from dora_jax.cost.charging import LLM_LABELS
from dora_jax.cost.ledger import Ledger, RunFacts
from dora_jax.cost.ledger_rows import tokens_row
from dora_jax.cost.prices import INPUT_TOKENS, OUTPUT_TOKENS, user_price
from dora_jax.launch import ledger

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("prepare", "pretrain-teacher", "teach", "evaluate-teacher", "label")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of annotate, two students of one teacher, and a run that failed."""
    for seed, value in ((0, 20.0), (1, 24.0)):
        write_run(tmp_path / f"a{seed}", ("annotate",), seed=seed, values={"annotate": value})
    shared = {"shared": tmp_path / "shared", "shared_stages": SHARED}
    values = {"distill": 30.0, "teacher": 40.0}
    write_run(tmp_path / "d0", values=values, **shared)
    own = {name: s for name, s in DISTILL_SECONDS.items() if name not in SHARED}
    write_run(tmp_path / "d1", values=values, seconds=own, seed=1, **shared)
    write_run(tmp_path / "e[red]", ("annotate",), status="failed", labels=7)
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert ledger.main(arguments) == 0
    return capsys.readouterr().out


def test_seeds_are_one_line_with_mean_and_deviation(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = listed(capsys, f"--runs={runs}")
    (annotate,) = [line for line in out.splitlines() if "a0 and 1 more" in line]
    assert "micro_f1 22.0 ± 2.8" in annotate
    assert "28.20 ± 0.00" in annotate  # 25 for labels, 320 seconds at a cent
    (distill,) = [
        line for line in out.splitlines() if "d0 and 1 more" in line and "distill" in line
    ]
    assert "14.20 ± 0.00" in distill
    assert "9.2000" in distill  # 10 USD of shared stages, divided by two
    assert "e[red], annotate: failed: told so" in out
    # 2 × 3.20 + 3.20 of annotating, 14.30 and 4.20 of distilling: the teacher is paid once
    assert "Paid for 5 runs, shared stages once: $28.1000 compute, $101.75 labels" in out
    assert "a0 and 1 more" not in listed(capsys, f"--runs={runs}", "--each")


def test_csv_and_json_have_every_result_and_field(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = list(csv.DictReader(io.StringIO(listed(capsys, f"--runs={runs}", "--csv=-"))))
    assert [(row["name"], row["strategy"]) for row in rows] == [
        ("a0", "annotate"),
        ("a1", "annotate"),
        ("d0", "teacher"),
        ("d0", "distill"),
        ("d1", "teacher"),
        ("d1", "distill"),
        ("e[red]", "annotate"),
    ]
    assert float(rows[0]["dollars"]) == pytest.approx(28.2)
    assert json.loads(rows[0]["interval"]) == [18.0, 22.0]
    assert (rows[6]["value"], rows[6]["status"]) == ("", "failed")
    file = tmp_path / "out.json"
    assert ledger.main([f"--runs={runs}", f"--json={file}"]) == 0
    content = json.loads(file.read_text())
    assert len(content["results"]) == 7
    assert content["totals"]["compute_dollars"] == pytest.approx(28.10)
    assert content["totals"]["runs"] == 5
    (group,) = [g for g in content["groups"] if g["names"] == ["a0", "a1"]]
    assert group["standard_deviation"] == pytest.approx(8**0.5)
    assert group["seeds"] == [0, 1]


def test_receipts_are_priced_anew_and_stay_as_they_were(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (runs / "a0" / "ledger.jsonl").read_bytes()
    entries = [
        {"item": item, "unit": unit, "kind": "on-demand", "usd": usd, "source": "s", "date": "2026"}
        for item, unit, usd in (("cpu", "host", 180.0), ("wlp", "label", 0.5))
    ]
    book = tmp_path / "book.json"
    book.write_text(json.dumps({"version": 1, "date": "2026-11-21", "entries": entries}))
    out = listed(capsys, f"--runs={runs}", f"--reprice={book}", "--json=-")
    first = json.loads(out)["results"][0]
    assert (first["label_dollars"], first["compute_dollars"]) == pytest.approx((50.0, 32.0))
    assert (runs / "a0" / "ledger.jsonl").read_bytes() == before


def test_labels_of_a_language_model_have_columns_and_keep_the_users_price(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs" / "a", ("annotate",), values={"annotate": 20.0})
    without = listed(capsys, f"--runs={run.parent}")
    assert "$ LLM" not in without and "LLM labels" not in without
    llm = write_run(
        tmp_path / "runs" / "b",
        ("llm",),
        seconds={"prepare": 100, "pretrain-student": 100, "llm": 100, "evaluate-llm": 20},
        values={"llm": 30.0},
        llm=LlmConfig(labels="labels.jsonl"),
    )
    ledger_of_run, facts = Ledger(llm / "ledger.jsonl"), RunFacts("b", "rehearsal", "v1")
    for unit, tokens, usd, model in (
        (INPUT_TOKENS, 2_000_000, 0.5, "own"),
        (OUTPUT_TOKENS, 1_000_000, 1.5, "own"),
    ):
        price = dataclasses.replace(user_price(usd, unit), item=model)
        ledger_of_run.append(tokens_row(facts, LLM_LABELS, f"{unit}-1", tokens, price))
    out = listed(capsys, f"--runs={run.parent}")
    assert "$ LLM" in out
    assert "2.5000" in next(line for line in out.splitlines() if line.split()[:1] == ["b"])
    assert "$2.5000 language models" in out

    entries = [
        {"item": item, "unit": unit, "kind": "on-demand", "usd": usd, "source": "s", "date": "2026"}
        for item, unit, usd in (("cpu", "host", 180.0), ("wlp", "label", 0.5))
    ]
    book = tmp_path / "book.json"
    book.write_text(json.dumps({"version": 1, "date": "2026-11-21", "entries": entries}))
    again = json.loads(listed(capsys, f"--runs={run.parent}", f"--reprice={book}", "--json=-"))
    assert again["totals"]["llm_dollars"] == pytest.approx(2.5)  # no book knows this model


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--runs=nowhere"], "There is no folder nowhere"),
        (["--runs=."], "There is no run in or below"),
        (["--csv=-", "--json=-"], "both print"),
        (["--runs=.", "--reprice=no.json"], "There is no price book no.json"),
        (["--run=."], "There is no flag '--run=.'. Did you mean --runs"),
        (["--runs=.", "--csv=missing/x.csv"], "cannot be written"),
        (["--gin.SEED=1"], "only listed"),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ledger.main(arguments) == 2
    assert told in capsys.readouterr().err


def test_it_starts_without_jax() -> None:
    code = "import sys; import dora_jax.launch.ledger; print('jax' in sys.modules)"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_a_search_is_billed_in_a_column_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, best_value in (("low", 40.0), ("high", 50.0)):
        run = write_run(
            tmp_path / name, ("annotate",), values={"annotate": 20.0}, best_value=best_value
        )
        searched = {"cell": "cell", "searched": {"LEARNING_RATE": name}}
        (run / "sweep.json").write_text(json.dumps(searched))
    out = listed(capsys, f"--runs={tmp_path}")
    assert "$ search" in out
    (high,) = [line for line in out.splitlines() if " high " in line]
    # 25 for labels; preparing, pretraining and training twice: 320 seconds each at a cent
    assert high.split()[-8:-2] == ["31.40", "25.00", "3.20", "3.2000", "3.2000", "0.178"]
    (low,) = [line for line in out.splitlines() if " low " in line]
    assert low.rstrip().endswith("not chosen")
    assert "$6.4000 compute, $25.00 labels" in out
    content = json.loads(listed(capsys, f"--runs={tmp_path}", "--json=-"))
    assert [(g["names"], g["chosen"], g["search_dollars"]) for g in content["groups"]] == [
        (["high"], True, 3.2),
        (["low"], False, 0.0),
    ]
    assert [r["searched"] for r in content["results"]] == [
        {"LEARNING_RATE": "high"},
        {"LEARNING_RATE": "low"},
    ]
