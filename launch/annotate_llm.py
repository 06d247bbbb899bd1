"""The half of launch/annotate.py that asks language models."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dora_jax.annotators.appended import AppendedRows
from dora_jax.annotators.calls import KILLED, AnswerCache, Calls
from dora_jax.annotators.chat import ChatClient, Endpoint
from dora_jax.annotators.llm import Annotator, Ended, Outputs, row_ids
from dora_jax.annotators.prompts import Prompting
from dora_jax.annotators.receipt import LabelFiles, audited, make_receipt, predictions
from dora_jax.annotators.token_prices import Estimate, TokenPrices, enter, estimate
from dora_jax.config import RunConfig
from dora_jax.cost.ledger import Ledger, RunFacts, code_version
from dora_jax.cost.prices import PriceBook
from dora_jax.fingerprints import fingerprint
from dora_jax.launch import annotate_settings as settings
from dora_jax.launch.annotate_settings import Texts
from dora_jax.launch.command_line import EXIT_INTERRUPTED
from dora_jax.stopping import StopRequest
from dora_jax.tasks.rows import Row
from dora_jax.tasks.task import TaskSpec
from dora_jax.whole_files import write_json

_SECOND_TRY_TOKENS = 2000 + 400  # what prompts.second_try can add


def annotate(flags: argparse.Namespace, task: TaskSpec, config: RunConfig) -> int:
    """Labels the pool. Returns the exit status."""
    files = LabelFiles.beside(Path(flags.output))
    endpoint, parameters = settings.endpoint(flags), settings.parameters(flags)
    prices = settings.prices(flags, PriceBook.of_user(config.cost.price_book))
    task = settings.with_instruction(task, flags.instruction_file)
    texts = settings.texts(flags, task, config.data)
    prompting = Prompting(
        task, texts.labelled, shots=flags.shots, seed=flags.seed, nearest=flags.nearest
    )
    asked = [*texts.pool, *(row.source for row in texts.audit)]
    estimated = _estimate(files, prompting, asked, parameters, prices)
    print(f"{_told(estimated, flags.model)}\n{_priced(prices)}", flush=True)
    if flags.dry_run:
        return 0
    _require_client()
    with (
        contextlib.closing(AnswerCache(flags.cache)) as cache,
        _asked_to_stop() as stop,
        AppendedRows(files.calls) as log,
    ):
        calls = Calls(log, cache)
        session = _Session(flags, task, endpoint, parameters, prices, prompting, calls, stop)
        return session.carry_out(files, texts, estimated)


class _Session:
    """One start of the program: the pool's labels, then the audit's, then the receipt."""

    def __init__(
        self,
        flags: argparse.Namespace,
        task: TaskSpec,
        endpoint: Endpoint,
        parameters: dict[str, Any],
        prices: TokenPrices,
        prompting: Prompting,
        calls: Calls,
        stop: StopRequest,
    ) -> None:
        self._flags, self._task = flags, task
        self._endpoint, self._parameters = endpoint, parameters
        self._prices, self._prompting, self._calls, self._stop = prices, prompting, calls, stop
        self._annotator = {
            "model": endpoint.model,
            "base_url": endpoint.base_url,
            "parameters": parameters,
            "shots": {"count": flags.shots, "nearest": flags.nearest, "seed": flags.seed},
            "instruction": task.instruction,
        }
        self._common = {
            "annotator": f"llm:{endpoint.model}",
            "prompt": fingerprint([self._annotator, prompting.fingerprint]),
        }

    def carry_out(self, files: LabelFiles, texts: Texts, estimated: Estimate) -> int:
        """All that is left to do. Returns the exit status."""
        task = self._task
        sources = [row.source for row in texts.audit]
        audit_ended = Ended(len(sources), "")
        try:
            ended = self._label("label", files.labelled, files.set_aside, texts.pool)
            if sources and not ended.why_stopped:
                audit_ended = self._label("audit", files.audit, files.audit_set_aside, sources)
        finally:  # what was paid is told and entered, however it ends
            facts = RunFacts(files.labelled.name, "", code_version(), ())
            ledger = Ledger(files.ledger)
            enter(ledger, facts, self._endpoint.model, self._calls.spent, self._prices)
        why_stopped = ended.why_stopped or audit_ended.why_stopped
        labelled, set_aside = _rows(files.labelled), _rows(files.set_aside)
        receipt = make_receipt(
            task=task.name,
            annotator={**self._annotator, **self._common},
            prices=self._prices,
            labelled=labelled,
            set_aside=set_aside,
            missing=ended.missing,
            spent=self._calls.spent,
            estimated=estimated,
            shown=row_ids([shot.source for shot in self._prompting.used]),
            audit=_audit(files, task, texts.audit) if sources and not audit_ended.missing else None,
            why_stopped=why_stopped,
        )
        write_json(files.receipt, receipt)
        others = {row["source"] for row in (*labelled, *set_aside)} - {*texts.pool}
        print("\n".join(_summary(receipt, files, len(others))), flush=True)
        if ended.missing or audit_ended.missing:
            print(f"Stopped: {why_stopped or 'some calls failed'}. The same command goes on.")
            return EXIT_INTERRUPTED
        return 0

    def _label(self, name: str, labelled: Path, set_aside: Path, sources: Sequence[str]) -> Ended:
        from tqdm import tqdm

        with (
            AppendedRows(labelled) as labelled_rows,
            AppendedRows(set_aside) as set_aside_rows,
            tqdm(total=len(sources), desc=name, unit="text", disable=None) as bar,
        ):
            outputs = Outputs(labelled_rows, set_aside_rows)
            for file in outputs:
                _refuse_others(file, self._common)

            def progress(count: int) -> None:
                bar.set_postfix_str(f"${self._calls.spent.usd:,.4f}", refresh=False)
                bar.update(count)

            async def work() -> Ended:
                async with ChatClient(self._endpoint, self._flags.concurrency) as client:
                    annotator = Annotator(
                        client,
                        self._prompting,
                        self._parameters,
                        structured=self._flags.structured,
                        prices=self._prices,
                        calls=self._calls,
                        outputs=outputs,
                        common=self._common,
                        patience=settings.patience(self._flags),
                        budget_usd=self._flags.budget_usd,
                        stopped=lambda: bool(self._stop.reason),
                        report=lambda line: tqdm.write(line, file=sys.stderr),
                    )
                    return await annotator.label(sources, progress)

            return asyncio.run(work())


def _refuse_others(file: AppendedRows, common: dict[str, Any]) -> None:
    """One file of labels has one annotator and one prompt."""
    for row in file.rows:
        if row.get("prompt") != common["prompt"]:
            raise ValueError(
                f"{file.path} holds labels of {row.get('annotator')} by another prompt or other "
                "parameters. Name another --output, or give the flags of the first start."
            )


# --- What the user is told


def _estimate(
    files: LabelFiles,
    prompting: Prompting,
    sources: Sequence[str],
    parameters: dict[str, Any],
    prices: TokenPrices,
) -> Estimate:
    """Of what is not done yet; it goes through all texts, so that all shown examples are known."""
    done = {
        row["source"]
        for file in (files.labelled, files.set_aside, files.audit, files.audit_set_aside)
        for row in _rows(file)
    }
    conversations = {source: prompting.messages(source) for source in dict.fromkeys(sources)}
    left = [messages for source, messages in conversations.items() if source not in done]
    return estimate(left, parameters, prices, _SECOND_TRY_TOKENS)


def _told(estimated: Estimate, model: str) -> str:
    expected, at_most = estimated.expected, estimated.at_most
    return (
        f"{estimated.texts:,} texts for {model}: about {expected.prompt_tokens:,} tokens in and "
        f"{expected.completion_tokens:,} out, ${estimated.expected_usd:,.4f}; at most "
        f"{at_most.prompt_tokens:,} in and {at_most.completion_tokens:,} out, "
        f"${estimated.at_most_usd:,.4f}, if each is asked twice"
    )


def _priced(prices: TokenPrices) -> str:
    """The prices, whose they are, and whether they can still be relied on."""
    input, output = prices.input, prices.output
    said = "; ".join(sorted({f"{price.source}, {price.date}" for price in (input, output)}))
    line = f"prices: ${input.usd:g} a million tokens in, ${output.usd:g} out ({said})"
    today = datetime.datetime.now(datetime.UTC).date()
    if input.is_stale(today) or output.is_stale(today):
        line += (
            "\nwarning: these prices are over a year old; look them up and give them with "
            "--usd_per_million_input_tokens and --usd_per_million_output_tokens"
        )
    return line


def _audit(files: LabelFiles, task: TaskSpec, rows: Sequence[Row]) -> dict[str, Any]:
    labelled, set_aside = _rows(files.audit), _rows(files.audit_set_aside)
    sources = [row.source for row in rows]
    guesses = predictions(row_ids(sources), labelled)
    scores = task.score([row.target for row in rows], guesses, sources, resamples=2000)
    return audited(scores, labelled, set_aside)


def _summary(receipt: dict[str, Any], files: LabelFiles, others: int) -> Iterator[str]:
    rows, spent, before = receipt["rows"], receipt["spent"], receipt["estimate_of_last_start"]
    if others:
        yield f"{others:,} texts of earlier starts are not in this pool; they count as well"
    yield (
        f"{rows['labelled']:,} labelled, {rows['set_aside']:,} set aside, "
        f"{rows['missing']:,} missing: {files.labelled}"
    )
    yield (
        f"{spent['calls']:,} calls, {spent['prompt_tokens']:,} tokens in and "
        f"{spent['completion_tokens']:,} out: ${spent['usd']:,.4f} in all (this start expected "
        f"${before['expected']['usd']:,.4f}, at most ${before['at_most']['usd']:,.4f})"
    )
    if spent["uncounted_calls"]:
        yield f"{spent['uncounted_calls']:,} calls without a count of tokens; bounds stand in"
    if spent["lost_calls"]:
        killed = spent["killed_calls"]
        which = f" ({killed:,} {KILLED})" if killed else ""
        yield (
            f"{spent['lost_calls']:,} calls whose answer was lost{which}; if the server bills "
            f"them, at most ${spent['lost_usd_at_most']:,.4f} more"
        )
    if spent["reused_answers"]:
        reused_usd = spent["reused_usd"]
        yield f"{spent['reused_answers']:,} answers from the cache, once ${reused_usd:,.4f}"
    if receipt["usd_per_label"] is not None:
        yield f"${receipt['usd_per_label']:.6f} a label"
    if audit := receipt["audit"]:
        low, high = audit["interval"]
        yield (
            f"audit on {audit['rows']:,} human-labelled texts: {audit['metric']} "
            f"{audit['value']:.1f} ({low:.1f}–{high:.1f})"
        )
    yield f"receipt: {files.receipt}"


def _rows(path: Path) -> list[dict[str, Any]]:
    from dora_jax.annotators.appended import read_appended

    return read_appended(path)[0] if path.exists() else []


def _require_client() -> None:
    missing = [n for n in ("openai", "httpx2", "tenacity") if importlib.util.find_spec(n) is None]
    if missing:
        raise ValueError(
            f"Asking a language model needs {', '.join(missing)}; install it with "
            "`pip install 'dora_jax[llm]'`."
        )


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[StopRequest]:
    """The first Ctrl-C or SIGTERM lets the calls under way end; the second ends at once."""
    stop = StopRequest()

    def ask(number: int, _: FrameType | None) -> None:
        stop.ask(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
        os.write(2, b"\nno new calls; waiting for those under way\n")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
