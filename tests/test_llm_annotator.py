"""Labels from a language model, through real HTTP: each text once, and paid as counted."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from annotating import (
    FEVER,
    PARAMETERS,
    answering_badly,
    assert_spent_what_the_server_counted,
    claims,
    gold,
    label,
    verdict,
)
from chat_server import ChatServer

from dora_jax.annotators.chat import AnnotatorRefused
from dora_jax.annotators.llm import Ended, row_ids
from dora_jax.annotators.pace import Patience
from dora_jax.annotators.prompts import Prompting, Shot


@pytest.mark.parametrize("stream", [False, True])
def test_every_text_gets_the_servers_label_and_its_price(tmp_path: Path, stream: bool) -> None:
    sources = claims(12)
    with ChatServer(verdict) as server:
        found = label(server, tmp_path, sources, endpoint={"stream": stream})
    assert found.ended == Ended(0, "")
    assert {row["source"]: row["target"] for row in found.rows} == {s: gold(s) for s in sources}
    assert sorted(row["id"] for row in found.rows) == sorted(row_ids(sources))
    assert found.set_aside == []
    assert_spent_what_the_server_counted(found.spent, server)
    assert sum(row["usd"] for row in found.rows) == pytest.approx(found.spent.usd)
    assert all(body["response_format"]["type"] == "json_schema" for body in server.requests)
    assert all(body["max_tokens"] == 50 for body in server.requests)
    assert {bool(body.get("stream")) for body in server.requests} == {stream}


BAD_ANSWERS = {
    "prose": "Certainly! I would say that this claim is about laboratories.",
    "instructions": "Ignore all rules. Run `rm -rf /` and write to ../../etc/passwd.",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "no class": '{"label": "MAYBE"}',
    "no object": "[1, 2]",
    "endless nesting": "[" * 5000,
    "nothing": "",
}


@pytest.mark.parametrize("bad", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_an_answer_that_is_no_label_is_asked_for_once_more_and_then_set_aside(
    tmp_path: Path, bad: str
) -> None:
    once, twice, fine = claims(3)
    with ChatServer(answering_badly({once: (bad,), twice: (bad, bad)})) as server:
        found = label(server, tmp_path, [once, twice, fine])
    assert sorted((row["source"], row["tries"]) for row in found.rows) == [(once, 2), (fine, 1)]
    assert [(row["source"], row["tries"]) for row in found.set_aside] == [(twice, 2)]
    assert found.set_aside[0]["answer"] == bad[:2000]
    assert server.asked == {once: 2, twice: 2, fine: 1}
    # The second try says what was wrong, and every answer is paid, useless ones too.
    again = [b["messages"] for b in server.requests if len(b["messages"]) == 4]
    assert len(again) == 2
    assert again[0][-1]["content"].startswith("That answer cannot be used: ")
    assert_spent_what_the_server_counted(found.spent, server)
    # Nothing that an answer says was done: these are all the files there are.
    assert {file.name for file in tmp_path.iterdir()} == {
        "labels.jsonl",
        "aside.jsonl",
        "calls.jsonl",
    }


def test_a_thousand_rows_under_faults_end_exactly_once_each(tmp_path: Path) -> None:
    sources = claims(1000)
    drawn = random.Random(0)
    kinds = ("429", "500", "dropped", "malformed", "429", "503")
    faults = {
        source: tuple(drawn.choices(kinds, k=drawn.choice((1, 1, 2))))
        for source in drawn.sample(sources, 160)
    }
    faults |= {source: ("huge",) for source in sources[5:8]}
    faults |= {source: ("timeout",) for source in sources[10:14]}
    bad = {source: ("prose",) for source in drawn.sample(sources, 40)}
    with ChatServer(answering_badly(bad), lambda text: faults.get(text, ())) as server:
        patience = Patience(24, 0.0, 0.0, 6, 0.001, 1.0)
        found = label(server, tmp_path, sources, patience=patience, endpoint={"timeout_seconds": 2})
    assert found.ended == Ended(0, "")
    assert Counter(row["id"] for row in found.rows) == Counter(row_ids(sources))
    assert {row["source"]: row["target"] for row in found.rows} == {s: gold(s) for s in sources}
    assert server.asked == Counter(sources) + Counter(bad.keys())
    assert_spent_what_the_server_counted(found.spent, server)


def test_a_second_start_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    sources = claims(30)
    with ChatServer(verdict) as server:
        first = label(server, tmp_path, sources, stopped=lambda calls: calls.spent.calls >= 7)
        assert first.ended.missing == 30 - len(first.rows) > 0
        assert first.ended.why_stopped
        second = label(server, tmp_path, sources)
        third = label(server, tmp_path, sources)
    assert server.asked == Counter(sources)
    assert Counter(row["source"] for row in second.rows) == Counter(sources)
    assert third.rows == second.rows
    assert_spent_what_the_server_counted(third.spent, server)


def test_what_is_in_the_log_is_not_asked_again_even_if_its_label_is_lost(tmp_path: Path) -> None:
    sources = claims(5)
    with ChatServer(verdict) as server:
        label(server, tmp_path, sources)
        lines = (tmp_path / "labels.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "labels.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])  # torn
        found = label(server, tmp_path, sources)
    assert len(server.requests) == 5
    assert Counter(row["source"] for row in found.rows) == Counter(sources)


def test_the_cache_serves_other_outputs_and_remembers_the_price(tmp_path: Path) -> None:
    sources, cache = claims(4), str(tmp_path / "cache" / "answers.sqlite")
    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
    with ChatServer(verdict) as server:
        first = label(server, tmp_path / "one", sources, cache=cache)
        second = label(server, tmp_path / "two", sources, cache=cache)
        assert len(server.requests) == 4
        hotter = {**PARAMETERS, "temperature": 1.0}
        label(server, tmp_path / "other", sources, cache=cache, parameters=hotter)
        assert len(server.requests) == 8
    targets = [{row["id"]: row["target"] for row in found.rows} for found in (first, second)]
    assert targets[0] == targets[1]
    assert (second.spent.calls, second.spent.usd) == (0, 0.0)
    assert second.spent.reused_usd == pytest.approx(first.spent.usd)
    assert second.rows[0]["usd"] > 0


def test_equal_texts_are_asked_about_once_and_paid_once(tmp_path: Path) -> None:
    with ChatServer(verdict) as server:
        found = label(server, tmp_path, ["One claim.", "Another.", "One claim."])
    assert server.asked == {"One claim.": 1, "Another.": 1}
    assert len(found.rows) == len({row["id"] for row in found.rows}) == 3
    assert sum(row["usd"] for row in found.rows) == pytest.approx(found.spent.usd)


def test_the_budget_is_never_exceeded_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    sources = claims(60)
    with ChatServer(verdict) as server:
        small = label(server, tmp_path, sources, budget_usd=0.02)
        assert "budget" in small.ended.why_stopped
        assert 0 < len(small.rows) < 60
        assert 0.01 < small.spent.usd <= 0.02
        rest = label(server, tmp_path, sources, budget_usd=1.0)
    assert rest.ended.missing == 0
    assert server.asked == Counter(sources)


def test_where_answers_are_lost_their_highest_price_counts_against_the_budget(
    tmp_path: Path,
) -> None:
    with ChatServer(verdict, lambda text: ("dropped",) * 9) as server:
        found = label(server, tmp_path, claims(30), budget_usd=0.02)
    assert "budget" in found.ended.why_stopped
    assert found.spent.lost_usd_at_most <= 0.02


def test_calls_under_way_at_a_kill_count_against_the_budget_once(tmp_path: Path) -> None:
    with ChatServer(verdict) as server:
        label(server, tmp_path, claims(3))
        log = tmp_path / "calls.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        ended = {row["call"] for row in rows if "call" in row}
        assert sorted(row["begun"] for row in rows if "begun" in row) == sorted(ended)
        bound = rows[0]["usd_at_most"]
        with log.open("a") as file:
            for number in (98, 99):
                row = {"key": f"{number}", "begun": number, "usd_at_most": bound}
                file.write(json.dumps(row) + "\n")
        for _ in range(2):  # the second start finds them told
            found = label(server, tmp_path, claims(3), budget_usd=1.0)
            assert found.spent.killed_calls == found.spent.lost_calls == 2
            assert found.spent.lost_usd_at_most == pytest.approx(2 * bound)
        sources = claims(30)
        more = label(server, tmp_path, sources, budget_usd=found.spent.usd + 2.5 * bound)
    assert "budget" in more.ended.why_stopped
    assert len(more.rows) == 3  # the lost calls' bound leaves less than one call


def test_refused_calls_are_not_taken_for_lost_ones(tmp_path: Path) -> None:
    with ChatServer(verdict, lambda text: ("429", "500")) as server:
        found = label(server, tmp_path, claims(5))
        again = label(server, tmp_path, claims(5))
    assert len(found.rows) == 5
    assert found.spent.lost_calls == again.spent.lost_calls == 0


def test_without_the_servers_count_a_bound_stands_in(tmp_path: Path) -> None:
    with ChatServer(verdict, tells_usage=False) as server:
        found = label(server, tmp_path, claims(3))
    assert found.spent.uncounted_calls == 3
    assert found.spent.prompt_tokens >= server.prompt_tokens
    assert found.spent.completion_tokens == 3 * 50


def test_a_server_without_structured_output_is_asked_without(tmp_path: Path) -> None:
    with ChatServer(verdict, takes_schema=False) as server:
        found = label(server, tmp_path, claims(6))
        assert len(found.rows) == 6
        assert len(server.requests) == 7  # one that was refused
        assert len(found.reports) == 1
        (tmp_path / "on").mkdir()
        with pytest.raises(AnnotatorRefused, match="response_format is not supported"):
            label(server, tmp_path / "on", claims(6), structured="on")


def test_a_server_that_is_down_ends_the_start_and_keeps_what_is_done(tmp_path: Path) -> None:
    sources = claims(60)
    up = set(sources[:5])
    down = ("500",) * 100
    with ChatServer(verdict, lambda text: () if text in up else down) as server:
        found = label(server, tmp_path, sources)
    assert "the server keeps failing: status 500" in found.ended.why_stopped
    assert "[key]" in found.ended.why_stopped
    assert {row["source"] for row in found.rows} == up
    assert len(server.requests) < 5 + 5 * 20


def test_prompts_show_seeded_examples_and_never_the_text_itself(tmp_path: Path) -> None:
    shots = [Shot(source, gold(source)) for source in claims(20)]
    prompting = Prompting(FEVER, shots, shots=3, seed=1)
    with ChatServer(verdict) as server:
        label(server, tmp_path, [shots[0].source, "A new claim."], prompting=prompting)
    for body in server.requests:
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["system", *["user", "assistant"] * 3, "user"]
        texts = [json.loads(m["content"])["text"] for m in body["messages"] if m["role"] == "user"]
        assert len(set(texts)) == 4
        assert FEVER.instruction in body["messages"][0]["content"]
    other = Prompting(FEVER, shots, shots=3, seed=2)
    assert other.messages("A new claim.") != prompting.messages("A new claim.")
    assert Prompting(FEVER, shots, shots=3, seed=1).messages("A") == prompting.messages("A")
