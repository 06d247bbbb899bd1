"""One chat endpoint: its faults, its wishes, its lies, and what it must never learn or tell."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from annotating import (
    answering_badly,
    assert_spent_what_the_server_counted,
    claims,
    label,
    verdict,
)
from chat_server import KEY, MODEL, ChatServer

from dora_jax.annotators import pace as pace_module
from dora_jax.annotators.chat import AnnotatorRefused, Endpoint
from dora_jax.annotators.llm import Ended
from dora_jax.annotators.pace import Pace, Patience

STATUSES = ("408", "429", "500", "503")
BROKEN = ("timeout", "dropped", "malformed", "huge", "cut", "error event")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", STATUSES + BROKEN)
def test_a_passing_fault_costs_a_second_call_and_nothing_else(
    tmp_path: Path, fault: str, stream: bool
) -> None:
    sources = claims(3)
    faults = {sources[1]: (fault,)}
    with ChatServer(verdict, lambda text: faults.get(text, ())) as server:
        endpoint: dict[str, Any] = {"stream": stream}
        if fault == "timeout":  # no shorter: on a busy machine the other calls would run out too
            endpoint["timeout_seconds"] = 1.5
        found = label(server, tmp_path, sources, endpoint=endpoint)
    assert sorted(row["source"] for row in found.rows) == sorted(sources)
    assert len(server.requests) == 4
    assert server.asked == Counter(sources)
    assert_spent_what_the_server_counted(found.spent, server)
    lost = fault in BROKEN  # the server may have billed them
    assert found.spent.lost_calls == lost
    assert (found.spent.lost_usd_at_most > 0) == lost


def test_all_calls_wait_as_long_as_the_server_asks(tmp_path: Path) -> None:
    sources = claims(4)
    patience = Patience(1, 0.0, 0.0, 3, 0.0001, 1.0)
    fails = {sources[1]: ("429",)}
    with ChatServer(verdict, lambda text: fails.get(text, ()), retry_after=0.15) as server:
        label(server, tmp_path, sources, patience=patience)
    waits = [late - early for early, late in itertools.pairwise(server.arrivals)]
    assert len(waits) == 4
    assert waits[1] > 0.15


def test_a_server_that_asks_for_too_long_a_wait_is_left(tmp_path: Path) -> None:
    with ChatServer(verdict, lambda text: ("429",) * 9, retry_after=7200) as server:
        patience = Patience(1, 0.0, 0.0, 5, 0.0001, 1.0)
        found = label(server, tmp_path, claims(9), patience=patience)
    assert found.ended == Ended(9, "the server asks to wait 7,200 s")
    assert len(server.requests) == 1


def test_the_pace_is_kept(tmp_path: Path) -> None:
    with ChatServer(verdict) as server:
        label(server, tmp_path, claims(8), patience=Patience(8, 3000.0, 0.0, 3, 0.001, 1.0))
    assert server.arrivals[-1] - server.arrivals[0] > 0.9 * 7 * 0.02


def test_the_pace_in_tokens_is_kept(tmp_path: Path) -> None:
    with ChatServer(verdict) as server:
        label(server, tmp_path, claims(9), patience=Patience(8, 0.0, 300_000.0, 3, 0.001, 1.0))
    tokens = server.prompt_tokens + server.completion_tokens
    # 5,000 a second; the last call's own are paid by the next, and the first may arrive late.
    assert server.arrivals[-1] - server.arrivals[0] > 0.6 * tokens * 8 / 9 / 5_000


def test_the_pace_follows_what_calls_really_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(pace_module, "asyncio", SimpleNamespace(sleep=sleep))
    pace = Pace(Patience(calls_per_minute=60.0, tokens_per_minute=60.0), lambda: False)

    def begins(tokens: int) -> float:
        with pytest.raises(StopIteration):
            pace.turn(tokens).send(None)
        return now

    assert begins(5) == 100.0
    pace.correct(-2)  # it took 3: a second for each, and one for the call
    assert begins(5) == pytest.approx(104.0)
    pace.correct(1)
    assert begins(0) == pytest.approx(111.0)
    pace.wish(30.0)
    assert begins(0) == pytest.approx(141.0)
    assert begins(0) == pytest.approx(142.0)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ({"model": "no-such"}, "knows no model 'no-such'"),
        ({"api_key": "sk-wrong-key-987654321"}, "refused the key"),
    ],
)
def test_a_wrong_model_or_key_ends_at_the_first_call(
    tmp_path: Path, endpoint: dict[str, str], message: str
) -> None:
    with ChatServer(verdict) as server, pytest.raises(AnnotatorRefused, match=message) as caught:
        label(server, tmp_path, claims(50), endpoint=endpoint)
    assert len(server.requests) == 1
    assert "987654321" not in str(caught.value)


def test_the_key_is_in_no_file_no_message_and_no_representation(tmp_path: Path) -> None:
    """Though the server says it back in errors and in answers."""
    says_it = answering_badly({claim: (f"Your key is {KEY}",) * 2 for claim in claims(2)})
    with ChatServer(says_it, lambda text: ("500",)) as server:
        found = label(server, tmp_path, claims(3))
        endpoint = Endpoint(MODEL, server.base_url, KEY)
    assert len(found.set_aside) == 2
    assert "[key]" in found.set_aside[0]["answer"]
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY.encode() not in written
    assert KEY not in repr(endpoint) + repr(found.reports)


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with ChatServer(verdict) as other:
        moved_to = f"{other.base_url}/chat/completions"
        with (
            ChatServer(verdict, lambda text: ("307",), moved_to=moved_to) as server,
            pytest.raises(AnnotatorRefused, match="redirects are not followed"),
        ):
            label(server, tmp_path, claims(3))
    assert not other.requests


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    files = (tmp_path / "certificate.pem", tmp_path / "key.pem")
    making = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost"
    places = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", *files[:1], "-keyout", files[1]]
    subprocess.run([openssl, *making.split(), *places], check=True, capture_output=True)
    patience = Patience(1, 0.0, 0.0, 1, 0.001, 1.0)
    with ChatServer(verdict, certificate=files) as server:
        found = label(server, tmp_path, claims(12), patience=patience)
    assert "CERTIFICATE_VERIFY_FAILED" in found.ended.why_stopped
    assert not server.requests
    assert found.spent.lost_calls == 0  # nothing was sent


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "host:80", "http://example.org/v1", "https://me:secret@host/v1"]
)
def test_addresses_that_would_give_texts_or_keys_away_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--base_url") as caught:
        Endpoint(MODEL, url)
    assert "secret" not in str(caught.value)
