"""launch/annotate.py from its command line: files, receipt, ledger, kill -9, the key."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chat_server import KEY, MODEL, ChatServer

from dora_jax.annotators.appended import read_appended
from dora_jax.cost.ledger import Ledger
from dora_jax.cost.prices import INPUT_TOKENS, OUTPUT_TOKENS
from dora_jax.launch import annotate
from dora_jax.tasks.task import get_task

ROOT = Path(__file__).resolve().parents[1]
FEVER = get_task("fever")
ANSWERED = b'"finish_reason"'  # what a line of the log has where a call was answered
SAMPLE = ROOT / "dora_jax/data/sample/fever"
PRICES = ("--usd_per_million_input_tokens=3", "--usd_per_million_output_tokens=15")


def gold_of(split: str) -> dict[str, str]:
    rows = map(json.loads, (SAMPLE / f"{split}.jsonl").read_text().splitlines())
    return {row["source"]: row["target"] for row in rows}


VALIDATION = gold_of("validation")


def verdict(text: str, messages: list[dict[str, str]]) -> str:
    """Right on three quarters of the validation texts."""
    wrong = sorted(VALIDATION)[::4]
    if text in VALIDATION and text not in wrong:
        return json.dumps({"label": VALIDATION[text]})
    if text in wrong:
        return json.dumps({"label": next(c for c in FEVER.labels if c != VALIDATION[text])})
    return json.dumps({"label": FEVER.labels[len(text) % 2]})


@pytest.fixture(autouse=True)
def the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DORA_DATA_DIR", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def pool_file(directory: Path, count: int) -> Path:
    path = directory / "pool.jsonl"
    rows = ({"source": f"Claim {i}{'!' * (i % 3)}"} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags_of(server: ChatServer, directory: Path, count: int, *more: str) -> list[str]:
    return [
        "--task=fever",
        f"--model={MODEL}",
        f"--base_url={server.base_url}",
        f"--pool={pool_file(directory, count)}",
        f"--output={directory / 'labels.jsonl'}",
        *PRICES,
        *more,
    ]


def receipt_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "labels.receipt.json").read_text())


def test_labels_receipt_ledger_and_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatServer(verdict) as server:
        given = flags_of(server, tmp_path, 20, "--audit=40", "--shots=2", "--cache=")
        assert annotate.main(given) == 0
        assert annotate.main(given) == 0  # nothing is left
    assert len(server.requests) == 60
    receipt, spent = receipt_of(tmp_path), receipt_of(tmp_path)["spent"]
    counted = (server.prompt_tokens, server.completion_tokens)
    assert (spent["prompt_tokens"], spent["completion_tokens"]) == counted
    rows = Ledger(tmp_path / "labels.ledger.jsonl").rows()
    assert [(row.unit, row.tokens, row.examples) for row in rows] == [
        ("million input tokens", counted[0], 60),
        ("million output tokens", counted[1], 60),
    ]
    assert sum(row.dollars for row in rows) == pytest.approx(spent["usd"])
    assert receipt["rows"] == {"labelled": 20, "set_aside": 0, "missing": 0}
    assert receipt["usd"] + receipt["audit"]["usd"] == pytest.approx(spent["usd"])
    assert receipt["usd_per_label"] == pytest.approx(receipt["usd"] / 20)
    assert receipt["human_labels_shown"] == 2
    labels, _ = read_appended(tmp_path / "labels.audit.jsonl")
    right = sum(row["target"] == VALIDATION[row["source"]] for row in labels)
    assert 20 < right < 40
    assert receipt["audit"]["error_rate"] == pytest.approx(1 - right / 40)
    out = capsys.readouterr()
    written = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert KEY not in out.out + out.err
    assert KEY.encode() not in written


def test_a_dry_run_calls_nobody_and_bounds_what_is_paid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatServer(verdict) as server:
        given = flags_of(server, tmp_path, 10)
        assert annotate.main([*given, "--dry_run"]) == 0
        told = capsys.readouterr().out
        assert not server.requests
        assert not list(tmp_path.glob("labels*"))
        assert annotate.main(given) == 0
    assert capsys.readouterr().out.startswith(told)
    assert "$3 a million tokens in, $15 out (set by the user" in told
    receipt = receipt_of(tmp_path)
    at_most = receipt["estimate_of_last_start"]["at_most"]
    assert f"${at_most['usd']:,.4f}" in told
    assert receipt["spent"]["prompt_tokens"] < at_most["prompt_tokens"]
    assert receipt["spent"]["usd"] < at_most["usd"]


def test_the_budget_ends_a_start_with_a_status_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatServer(verdict) as server:
        given = flags_of(server, tmp_path, 40, "--max_tokens=50")
        assert annotate.main([*given, "--budget_usd=0.02"]) == 75
        assert "could exceed the budget of 0.02 USD" in capsys.readouterr().out
        first = receipt_of(tmp_path)
        assert 0 < first["rows"]["labelled"] < 40
        assert first["spent"]["usd"] <= 0.02
        # All is labelled, but the audit is not paid any more: no half of it is reported.
        paid = first["spent"]["usd"] * 40 / first["rows"]["labelled"]
        audit = [*given, "--audit=40", f"--budget_usd={1.3 * paid}"]
        assert annotate.main(audit) == 75
        assert receipt_of(tmp_path)["rows"]["labelled"] == 40
        assert receipt_of(tmp_path)["audit"] is None
    rows = Ledger(tmp_path / "labels.ledger.jsonl").rows()
    assert len(rows) == 4
    assert sum(row.dollars for row in rows) == pytest.approx(receipt_of(tmp_path)["spent"]["usd"])


def test_kill_9_in_the_middle_asks_nothing_again_that_was_answered(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def slow_verdict(text: str, messages: list[dict[str, str]]) -> str:
        time.sleep(0.02)
        return verdict(text, messages)

    with ChatServer(slow_verdict) as server:
        given = flags_of(server, tmp_path, 120, "--concurrency=4", "--cache=")
        program = [sys.executable, str(ROOT / "launch/annotate.py"), *given]
        process = subprocess.Popen(
            program, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        log = tmp_path / "labels.calls.jsonl"
        deadline = time.monotonic() + 60
        while not log.exists() or log.read_bytes().count(ANSWERED) < 40:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = log.read_bytes()
        rows = [json.loads(line) for line in content[: content.rfind(b"\n")].splitlines()]
        ended = {row["call"] for row in rows if "call" in row}
        under_way = {row["begun"] for row in rows if "begun" in row} - ended
        assert len(ended) < 110
        assert annotate.main(given) == 0
    labels, _ = read_appended(tmp_path / "labels.jsonl")
    assert Counter(row["source"] for row in labels) == Counter(set(server.asked))
    assert len(labels) == 120
    # Only what was under way at the kill could be asked twice: its answer never arrived.
    again = sum(server.asked.values()) - 120
    spent = receipt_of(tmp_path)["spent"]
    assert spent["calls"] == 120
    assert again <= spent["killed_calls"] == spent["lost_calls"] <= 4
    # They may have been billed: what the server counted lies between the two sums.
    billed = (3.0 * server.prompt_tokens + 15.0 * server.completion_tokens) / 1e6
    assert spent["usd"] - 1e-9 <= billed <= spent["usd"] + spent["lost_usd_at_most"] + 1e-9
    assert spent["killed_calls"] == len(under_way) > 0
    assert "under way when the program was killed" in capfd.readouterr().out


def test_ctrl_c_lets_calls_end_and_keeps_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answered, handler = itertools.count(1), signal.getsignal(signal.SIGINT)

    def interrupting(text: str, messages: list[dict[str, str]]) -> str:
        if next(answered) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return verdict(text, messages)

    with ChatServer(interrupting) as server:
        given = flags_of(server, tmp_path, 40, "--concurrency=2")
        assert annotate.main(given) == 75
        rows, _ = read_appended(tmp_path / "labels.jsonl")
        assert 6 <= len(rows) == len(server.requests) < 12  # every answer became a label
        assert annotate.main(given) == 0
    assert "The same command goes on" in capfd.readouterr().out
    assert sum(server.asked.values()) == 40
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--model=", "Who labels?"),
        ("--output=labels.csv", "ends in .jsonl"),
        ("--base_url=http://example.org/v1", "not encrypted"),
        ("--parameters={", "no JSON"),
        ('--parameters={"model": "x"}', "without the fields"),
        ('--parameters={"max_tokens": null}', "highest price"),
        ("--audit=5000", "validation texts"),
        ("--shots=-1", "0 or more"),
        ("--concurrency=0", "greater than 0"),
        ("--usd_per_million_input_tokens=-1", "no price per million input tokens"),
        ("--usd_per_million_input_tokens=0.0000005", "a price of one token"),
        ("--tokens_per_minute=-1", "0 or more"),
        ("--pool=missing.jsonl", "missing.jsonl"),
    ],
)
def test_bad_flags_are_told_before_any_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str, message: str
) -> None:
    with ChatServer(verdict) as server:
        assert annotate.main([*flags_of(server, tmp_path, 3), changed]) == 2
        assert not server.requests
    assert message in capsys.readouterr().err


def test_another_prompt_is_not_mixed_into_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatServer(verdict) as server:
        given = flags_of(server, tmp_path, 3)
        assert annotate.main(given) == 0
        assert annotate.main([*given, "--shots=2"]) == 2
    assert "another prompt" in capsys.readouterr().err
    assert len(server.requests) == 3


def test_a_second_pool_is_added_to_the_first_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatServer(verdict) as server:
        given = flags_of(server, tmp_path, 6)
        assert annotate.main(given) == 0
        assert "not in this pool" not in capsys.readouterr().out
        flags_of(server, tmp_path, 2)  # the pool's file has two of the six now
        assert annotate.main(given) == 0
    assert "4 texts of earlier starts are not in this pool" in capsys.readouterr().out
    assert receipt_of(tmp_path)["rows"]["labelled"] == 6


def test_bad_rows_of_a_pool_are_refused_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        *("--task=fever", "--dry_run", "--model=m", *PRICES, f"--pool={tmp_path / 'pool.jsonl'}"),
        f"--output={tmp_path / 'labels.jsonl'}",
    ]
    rows = ['{"source": "One."}', '{"source": "  "}', '{"text": "x"}', '{"source": "One."}']
    (tmp_path / "pool.jsonl").write_text("\n".join(rows))
    assert annotate.main(given) == 2
    said = capsys.readouterr().err
    assert "pool.jsonl:2: 'source' is empty" in said
    assert "pool.jsonl:3: field 'source' is missing" in said
    assert 'set ON_BAD_ROW = "skip"' in said
    assert annotate.main([*given, "--gin.ON_BAD_ROW='skip'"]) == 0
    said = capsys.readouterr()
    assert "2 bad rows are left out" in said.err
    assert said.out.startswith("1 texts for m")  # two are one and the same


def test_a_server_that_is_not_there_is_told_soon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatServer(verdict) as server:
        given = flags_of(server, tmp_path, 40, "--attempts=2")
    assert annotate.main(given) == 75  # the server has gone
    said = capsys.readouterr()
    assert "a call failed and is tried again: no connection" in said.err
    assert "Stopped: the server cannot be reached: no connection" in said.out
    assert receipt_of(tmp_path)["spent"]["lost_calls"] == 0


def test_prices_of_ones_own_book_hold_and_old_ones_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = tmp_path / "book.json"
    entry = {"item": "priced", "kind": "on-demand", "usd": 2.0, "source": "a list"}
    flags = ["--task=fever", "--dry_run", "--model=priced", f"--output={tmp_path / 'labels.jsonl'}"]
    for date, old in (("2020-05", True), ("2999", False)):
        sides = [{**entry, "unit": unit, "date": date} for unit in (INPUT_TOKENS, OUTPUT_TOKENS)]
        book.write_text(json.dumps({"version": 1, "date": "2026", "entries": sides}))
        assert annotate.main([*flags, f"--gin.PRICE_BOOK='{book}'"]) == 0
        said = capsys.readouterr().out
        assert f"$2 a million tokens in, $2 out (a list, {date})" in said
        assert ("over a year old" in said) == old


def test_a_refused_key_is_told_without_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-refused-0123456789")
    with ChatServer(verdict) as server:
        assert annotate.main(flags_of(server, tmp_path, 3)) == 2
    out = capsys.readouterr()
    assert "refused the key" in out.err
    assert "0123456789" not in out.out + out.err
