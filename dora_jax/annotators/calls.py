"""What was asked, answered and paid: a log of every call, and a cache beyond one output file.

Each answer is in the log before anything is made of it, and each call before it begins. So a run
that was killed finds there what was answered, asks none of it again, and knows what it has spent,
and at most.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.annotators.appended import AppendedRows
from dora_jax.annotators.chat import Endpoint, Usage
from dora_jax.annotators.prompts import Message
from dora_jax.fingerprints import fingerprint

KILLED = "under way when the program was killed"


class Answer(NamedTuple):
    """A reply and its price; `counted` says that the tokens are the server's, and no bound."""

    text: str
    finish_reason: str
    usage: Usage
    counted: bool
    usd: float


class Spent(NamedTuple):
    """Sums over calls.

    Attributes:
        calls: answered by the server, in all sessions of this output file.
        prompt_tokens, completion_tokens, usd: of these calls.
        uncounted_calls: of them, those whose tokens the server did not tell: bounds stand in.
        reused_…: answers taken from the cache, and what they once cost.
        lost_calls, lost_usd_at_most: whose answer never came; they may have been billed.
        killed_calls: of the lost ones, those under way when the program was killed.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    uncounted_calls: int = 0
    reused_answers: int = 0
    reused_prompt_tokens: int = 0
    reused_completion_tokens: int = 0
    reused_usd: float = 0.0
    lost_calls: int = 0
    lost_usd_at_most: float = 0.0
    killed_calls: int = 0


def key_of(endpoint: Endpoint, messages: Sequence[Message], parameters: dict[str, Any]) -> str:
    """What an answer is kept under: model, address, conversation and parameters, never the key."""
    return fingerprint([endpoint.model, endpoint.base_url, list(messages), parameters])


class AnswerCache:
    """Answers of all runs on this machine, in one SQLite file. "" for the path keeps nothing."""

    def __init__(self, path: str) -> None:
        try:
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=60)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise ValueError(
                f"--cache={path} cannot be used: {error}. Name another file, or none: --cache="
            ) from error

    def get(self, key: str) -> Answer | None:
        """The answer kept under a key."""
        found = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,))
        row = found.fetchone()
        return None if row is None else _answer(json.loads(row[0]))

    def put(self, key: str, answer: Answer) -> None:
        """Keeps an answer; the first under a key stays."""
        row = (key, json.dumps(_as_row(answer)))
        self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", row)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


class Calls:
    """The log of an output file, before the cache."""

    def __init__(self, log: AppendedRows, cache: AnswerCache) -> None:
        self._log, self._cache = log, cache
        self._answers: dict[str, Answer] = {}
        self.spent = Spent()
        under_way: dict[int, dict[str, Any]] = {}
        for row in log.rows:
            self._count(row)
            if "text" in row:
                self._answers[row["key"]] = _answer(row)
            if "begun" in row:
                under_way[row["begun"]] = row
            under_way.pop(row.get("call", -1), None)
        self._begun = len(log.rows)  # no call of an earlier start has a number above it
        for number, row in under_way.items():
            self.lost(row["key"], KILLED, row["usd_at_most"], number)

    def find(self, key: str) -> Answer | None:
        """The answer to this very question, if it was ever given."""
        if key in self._answers:
            return self._answers[key]
        answer = self._cache.get(key)
        if answer is not None:
            self._write({"key": key, "reused": True, **_as_row(answer)})
            self._answers[key] = answer
        return answer

    def begin(self, key: str, usd_at_most: float) -> int:
        """Records that a call begins. Returns its number, for the record of how it ended."""
        self._begun += 1
        self._write({"key": key, "begun": self._begun, "usd_at_most": usd_at_most})
        return self._begun

    def paid(self, key: str, answer: Answer, call: int) -> None:
        """Records an answer of the server's."""
        self._write({"key": key, **_as_row(answer), "call": call})
        self._answers[key] = answer
        self._cache.put(key, answer)

    def lost(self, key: str, what: str, usd_at_most: float, call: int) -> None:
        """Records a call that may have been billed and whose answer never came."""
        self._write({"key": key, "lost": what, "usd_at_most": usd_at_most, "call": call})

    def unbilled(self, key: str, call: int) -> None:
        """Records a call that the server refused, or that never reached it."""
        self._write({"key": key, "unbilled": True, "call": call})

    def _write(self, row: dict[str, Any]) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._log.append({**row, "at": now})
        self._count(row)

    def _count(self, row: dict[str, Any]) -> None:
        spent = self.spent
        if "begun" in row or "unbilled" in row:
            return
        if "lost" in row:
            self.spent = spent._replace(
                lost_calls=spent.lost_calls + 1,
                lost_usd_at_most=spent.lost_usd_at_most + row["usd_at_most"],
                killed_calls=spent.killed_calls + (row["lost"] == KILLED),
            )
        elif row.get("reused"):
            answer = _answer(row)
            self.spent = spent._replace(
                reused_answers=spent.reused_answers + 1,
                reused_prompt_tokens=spent.reused_prompt_tokens + answer.usage.prompt_tokens,
                reused_completion_tokens=spent.reused_completion_tokens
                + answer.usage.completion_tokens,
                reused_usd=spent.reused_usd + answer.usd,
            )
        else:
            answer = _answer(row)
            self.spent = spent._replace(
                calls=spent.calls + 1,
                prompt_tokens=spent.prompt_tokens + answer.usage.prompt_tokens,
                completion_tokens=spent.completion_tokens + answer.usage.completion_tokens,
                usd=spent.usd + answer.usd,
                uncounted_calls=spent.uncounted_calls + (not answer.counted),
            )


def _as_row(answer: Answer) -> dict[str, Any]:
    return answer._asdict() | {"usage": answer.usage._asdict()}


def _answer(row: dict[str, Any]) -> Answer:
    fields = {name: row[name] for name in Answer._fields}
    return Answer(**{**fields, "usage": Usage(**row["usage"])})
