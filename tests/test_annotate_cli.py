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
from dora_jax.launch import annotate
from dora_jax.tasks.task import get_task

ROOT = Path(__file__).resolve().parents[1]
FEVER = get_task("fever")
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
    assert told == capsys.readouterr().out.splitlines(keepends=True)[0]
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


def test_kill_9_in_the_middle_asks_nothing_again_that_was_answered(tmp_path: Path) -> None:
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
        while not log.exists() or log.read_bytes().count(b"\n") < 40:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        answered = log.read_bytes().count(b"\n")
        assert answered < 110
        assert annotate.main(given) == 0
    rows, _ = read_appended(tmp_path / "labels.jsonl")
    assert Counter(row["source"] for row in rows) == Counter(set(server.asked))
    assert len(rows) == 120
    # Only what was under way at the kill could be asked twice: its answer never arrived.
    assert sum(server.asked.values()) <= 120 + 4
    assert receipt_of(tmp_path)["spent"]["calls"] == 120


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


def test_a_refused_key_is_told_without_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-refused-0123456789")
    with ChatServer(verdict) as server:
        assert annotate.main(flags_of(server, tmp_path, 3)) == 2
    out = capsys.readouterr()
    assert "refused the key" in out.err
    assert "0123456789" not in out.out + out.err
