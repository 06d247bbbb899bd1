"""What the flags of launch/annotate.py say about a language model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.annotators.chat import Endpoint
from dora_jax.annotators.llm import row_ids
from dora_jax.annotators.pace import Patience
from dora_jax.annotators.prompts import Shot
from dora_jax.annotators.token_prices import TokenPrices
from dora_jax.config import DataConfig
from dora_jax.cost.prices import INPUT_TOKENS, OUTPUT_TOKENS, Price, PriceBook, user_price
from dora_jax.fingerprints import fingerprint
from dora_jax.tasks.rows import UNLABELLED, Row, read_rows
from dora_jax.tasks.sources import load_splits
from dora_jax.tasks.task import TaskSpec

PUBLIC_SERVER = "https://api.openai.com/v1"


class Texts(NamedTuple):
    """What is labelled, what prompts may show, and what the labels are checked by."""

    pool: list[str]
    labelled: list[Shot]
    audit: list[Row]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a language model."""
    group = parser.add_argument_group("a language model")
    add = group.add_argument
    add("--model", metavar="NAME", help="as the server names it")
    add("--base_url", metavar="URL", help=f"of the server (OPENAI_BASE_URL, {PUBLIC_SERVER})")
    add(
        "--key_variable",
        metavar="NAME",
        default="OPENAI_API_KEY",
        help="the environment variable that holds the key (default: %(default)s)",
    )
    add("--dry_run", action="store_true", help="tokens and dollars at most, without a call")
    add("--budget_usd", type=float, default=0.0, help="no call begins that could exceed it")
    add("--shots", type=int, default=0, help="labelled examples a prompt shows (default: 0)")
    add("--nearest", action="store_true", help="show those most like the text, not drawn ones")
    add("--audit", type=int, default=0, metavar="N", help="label N validation texts too: errors")
    add("--instruction_file", metavar="FILE", help="in place of the task's own instruction")
    add("--max_tokens", type=int, default=512, help="of an answer (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="default: %(default)s")
    add(
        "--parameters",
        metavar="JSON",
        default="{}",
        help="other fields of each request; null leaves one out: "
        '\'{"max_tokens": null, "max_completion_tokens": 512}\'',
    )
    add("--structured", choices=("auto", "on", "off"), default="auto", help="bind to a schema")
    add("--stream", action="store_true", help="have answers sent piece by piece")
    add("--concurrency", type=int, default=8, help="calls at once (default: %(default)s)")
    add("--calls_per_minute", type=float, default=0.0, help="at most; 0: no limit of ours")
    add("--tokens_per_minute", type=float, default=0.0, help="in and out, on average; 0: no limit")
    add("--attempts", type=int, default=6, help="of a call that fails (default: %(default)s)")
    add("--timeout", type=float, default=120.0, help="of a call, seconds (default: %(default)s)")
    add("--usd_per_million_input_tokens", type=float, default=-1.0, help="-1: of the price book")
    add("--usd_per_million_output_tokens", type=float, default=-1.0, help="-1: of the price book")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    add(
        "--cache",
        metavar="FILE",
        default=str(cache / "dora_jax" / "answers.sqlite"),
        help="answers of all outputs; empty for none (default: %(default)s)",
    )


def endpoint(flags: argparse.Namespace) -> Endpoint:
    """The server that is asked, and its key from the environment."""
    url = flags.base_url or os.environ.get("OPENAI_BASE_URL") or PUBLIC_SERVER
    key = os.environ.get(flags.key_variable, "").strip()
    endpoint = Endpoint(flags.model, url, key, flags.stream, flags.timeout)
    if url.startswith("https:") and not key and not flags.dry_run:
        raise ValueError(
            f"The environment variable {flags.key_variable} holds no key for {url}. Set it, or "
            "name the one that does with --key_variable."
        )
    for name in ("concurrency", "attempts", "timeout", "max_tokens"):
        if getattr(flags, name) <= 0:
            raise ValueError(f"--{name}={getattr(flags, name)}; it must be greater than 0.")
    for name in ("shots", "audit", "budget_usd", "calls_per_minute", "tokens_per_minute"):
        if not getattr(flags, name) >= 0:
            raise ValueError(f"--{name}={getattr(flags, name)}; it must be 0 or more.")
    return endpoint


def patience(flags: argparse.Namespace) -> Patience:
    """Pace and repetition."""
    return Patience(
        flags.concurrency, flags.calls_per_minute, flags.tokens_per_minute, flags.attempts
    )


def parameters(flags: argparse.Namespace) -> dict[str, Any]:
    """The fields of every request beside model and messages."""
    try:
        others = json.loads(flags.parameters)
    except ValueError as error:
        raise ValueError(f"--parameters is no JSON: {error}.") from error
    taken = {"model", "messages", "stream", "stream_options", "response_format", "n", "tools"}
    if not isinstance(others, dict) or taken & set(others):
        raise ValueError(
            f"--parameters={flags.parameters}; expected an object without the fields "
            f"{', '.join(sorted(taken))}."
        )
    given = {"temperature": flags.temperature, "max_tokens": flags.max_tokens, **others}
    return {name: value for name, value in given.items() if value is not None}


def prices(flags: argparse.Namespace, book: PriceBook) -> TokenPrices:
    """Of the model's tokens: those given, else of the price book."""

    def price(usd: float, unit: str) -> Price:
        if usd != -1.0:
            return dataclasses.replace(user_price(usd, unit), item=flags.model)
        try:
            return book.token_price(flags.model, unit)
        except ValueError as error:
            raise ValueError(
                f"{error} Or give it: --usd_per_million_input_tokens=… and "
                "--usd_per_million_output_tokens=…, 0 for a model of your own."
            ) from error

    return TokenPrices(
        price(flags.usd_per_million_input_tokens, INPUT_TOKENS),
        price(flags.usd_per_million_output_tokens, OUTPUT_TOKENS),
    )


def with_instruction(task: TaskSpec, file: str | None) -> TaskSpec:
    """The task with the instruction of a file; itself where none is named."""
    if file is None:
        return task
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--instruction_file={file} cannot be read: {error}.") from error
    return dataclasses.replace(task, instruction=text)


def texts_of(pool: str, data: DataConfig) -> list[str]:
    """The texts of a file; bad rows are refused, or left out and counted, as ON_BAD_ROW says."""
    found = read_rows(Path(pool), data.on_bad_row, UNLABELLED)
    if found.skipped:
        first = found.skipped[0]
        print(
            f"{pool}: {len(found.skipped):,} bad rows are left out, the first "
            f"{first.location}: {first.complaint}",
            file=sys.stderr,
        )
    return [row.source for row in found.rows]


def texts(flags: argparse.Namespace, task: TaskSpec, data: DataConfig) -> Texts:
    """The pool is the run's unlabelled text where no file is named."""
    rows = load_splits(task, data).rows
    pool = texts_of(flags.pool, data) if flags.pool else [row.source for row in rows["unlabeled"]]
    if not pool:
        raise ValueError("There is no text to label; name a file of texts with --pool.")
    if flags.shots and not rows["train"]:
        raise ValueError(f"--shots={flags.shots}, but there is no labelled text to show.")
    validation = rows["validation"]
    if flags.audit > len(validation):
        raise ValueError(
            f"--audit={flags.audit}, but the task has {len(validation)} validation texts."
        )
    order = row_ids([row.source for row in validation])  # hashes: an order that means nothing
    chosen = sorted(range(len(validation)), key=lambda i: fingerprint([flags.seed, order[i]]))
    return Texts(
        pool,
        [Shot(row.source, row.target) for row in rows["train"]],
        [validation[i] for i in chosen[: flags.audit]],
    )
