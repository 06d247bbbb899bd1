"""One start of the annotator against a server on the loopback, as several test files make it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from chat_server import KEY, MODEL, ChatServer

from dora_jax.annotators.appended import AppendedRows, read_appended
from dora_jax.annotators.calls import AnswerCache, Calls, Spent
from dora_jax.annotators.chat import ChatClient, Endpoint
from dora_jax.annotators.llm import Annotator, Ended, Outputs
from dora_jax.annotators.pace import Patience
from dora_jax.annotators.prompts import Prompting
from dora_jax.annotators.token_prices import TokenPrices
from dora_jax.cost.prices import INPUT_TOKENS, OUTPUT_TOKENS, Price
from dora_jax.tasks.task import get_task

FEVER = get_task("fever")
PARAMETERS = {"temperature": 0.0, "max_tokens": 50}
PRICES = TokenPrices(
    Price(MODEL, INPUT_TOKENS, 3.0, "test", "2026"),
    Price(MODEL, OUTPUT_TOKENS, 15.0, "test", "2026"),
)
FAST = Patience(concurrency=8, attempts=5, first_wait_seconds=0.001, longest_wait_seconds=1.0)


class Labelled(NamedTuple):
    ended: Ended
    rows: list[dict[str, Any]]
    set_aside: list[dict[str, Any]]
    spent: Spent
    reports: list[str]


def verdict(text: str, messages: list[dict[str, str]]) -> str:
    return json.dumps({"label": gold(text)})


def gold(text: str) -> str:
    return FEVER.labels[len(text) % 2]


def claims(count: int) -> list[str]:
    return [f"Claim {i} is {'x' * (i % 7)} true." for i in range(count)]


def label(
    server: ChatServer,
    directory: Path,
    sources: Sequence[str],
    *,
    prompting: Prompting | None = None,
    endpoint: dict[str, Any] | None = None,
    structured: str = "auto",
    patience: Patience = FAST,
    budget_usd: float = 0.0,
    cache: str = "",
    parameters: dict[str, Any] = PARAMETERS,
    stopped: Callable[[Calls], bool] = lambda calls: False,
) -> Labelled:
    """One start of the annotator."""
    fields = {"model": MODEL, "base_url": server.base_url, "api_key": KEY, "timeout_seconds": 20}
    reports: list[str] = []
    with (
        AppendedRows(directory / "labels.jsonl") as labelled,
        AppendedRows(directory / "aside.jsonl") as aside,
        AppendedRows(directory / "calls.jsonl") as log,
        contextlib.closing(AnswerCache(cache)) as answers,
    ):
        calls = Calls(log, answers)

        async def run() -> Ended:
            limits = {"max_answer_bytes": 100_000}
            chosen = Endpoint(**{**fields, **limits, **(endpoint or {})})
            async with ChatClient(chosen, patience.concurrency) as client:
                annotator = Annotator(
                    client,
                    prompting or Prompting(FEVER),
                    parameters,
                    structured=structured,
                    prices=PRICES,
                    calls=calls,
                    outputs=Outputs(labelled, aside),
                    common={"annotator": MODEL},
                    patience=patience,
                    budget_usd=budget_usd,
                    stopped=lambda: stopped(calls),
                    report=reports.append,
                )
                return await annotator.label(sources, lambda count: None)

        ended = asyncio.run(run())
    files = (directory / "labels.jsonl", directory / "aside.jsonl")
    rows, set_aside = (read_appended(file)[0] for file in files)
    return Labelled(ended, rows, set_aside, calls.spent, reports)


def assert_spent_what_the_server_counted(spent: Spent, server: ChatServer) -> None:
    counted = (server.prompt_tokens, server.completion_tokens)
    assert (spent.prompt_tokens, spent.completion_tokens) == counted
    usd = (3.0 * server.prompt_tokens + 15.0 * server.completion_tokens) / 1e6
    assert spent.usd == pytest.approx(usd, rel=1e-9)


def answering_badly(bad: dict[str, tuple[str, ...]]) -> Callable[..., str]:
    """The n-th try of a text gets its n-th bad answer, and after those the right one."""

    def answer(text: str, messages: list[dict[str, str]]) -> str:
        answers, place = bad.get(text, ()), len(messages) // 2 - 1
        return answers[place] if place < len(answers) else verdict(text, messages)

    return answer
