"""Labels from a language model: many texts, each asked about until it has one answer.

A text ends as labelled, as set aside (two answers that are no label, or a request that the
server refuses), or as missing (the server failed too often, or the money ended); only missing
ones are asked about again by the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from dora_jax.annotators.answers import UnusableAnswer, read_answer
from dora_jax.annotators.appended import AppendedRows
from dora_jax.annotators.calls import Answer, Calls, key_of
from dora_jax.annotators.chat import (
    AnnotatorRefused,
    ChatClient,
    Reply,
    TextRefused,
    TryAgain,
)
from dora_jax.annotators.pace import Pace, Patience
from dora_jax.annotators.prompts import Message, Prompting, second_try, structured_output
from dora_jax.annotators.token_prices import TokenPrices, call_at_most, call_expected

TRIES = 2  # of an answer: one that is no label is asked for again
# So many texts given up one after the other mean that the server is down; so many requests
# refused before any was answered, that it takes none of this form.
GIVEN_UP_IN_A_ROW = 10
REFUSED_AT_FIRST = 3


class Outputs(NamedTuple):
    """Where texts end: each once, in one of the two."""

    labelled: AppendedRows
    set_aside: AppendedRows

    def ids(self) -> set[str]:
        """The texts that ended before."""
        return {row["id"] for file in self for row in file.rows}


class Ended(NamedTuple):
    """How a start ended; `why_stopped` is "" where it went through all texts."""

    missing: int
    why_stopped: str


class _OutOfMoney(Exception):
    pass


def row_ids(sources: Sequence[str]) -> list[str]:
    """An id for each text, from its content: the same in any order and any file.

    The second of two equal texts has "-2" at its end.
    """
    seen: Counter[str] = Counter()
    ids = []
    for source in sources:
        digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


class Annotator:
    """Asks a language model for labels.

    Args:
        client: of the endpoint.
        prompting: what is asked.
        parameters: of every request: limit of tokens, temperature and the like.
        structured: "on" binds the server to the answer's schema, "off" does not, "auto" does
            where the first request shows that the server takes it.
        prices: of the model.
        calls: the log of what was paid.
        outputs: of labelled texts, and of those set aside.
        common: fields that every output row gets.
        patience: pace and repetition.
        budget_usd: no call begins that could exceed it; 0: there is none.
        stopped: says that no call shall begin.
        report: takes lines for the user.
    """

    def __init__(
        self,
        client: ChatClient,
        prompting: Prompting,
        parameters: dict[str, Any],
        *,
        structured: str,
        prices: TokenPrices,
        calls: Calls,
        outputs: Outputs,
        common: dict[str, Any],
        patience: Patience,
        budget_usd: float,
        stopped: Callable[[], bool],
        report: Callable[[str], None],
    ) -> None:
        self._client, self._prompting, self._prices = client, prompting, prices
        self._parameters, self._structured = dict(parameters), structured
        if structured != "off":
            self._parameters["response_format"] = structured_output(prompting.task)
        self._calls, self._outputs, self._common = calls, outputs, common
        self._patience, self._stopped, self._report = patience, stopped, report
        self._budget_usd, self._reserved_usd, self._in_flight = budget_usd, 0.0, 0
        self._call_ended = asyncio.Condition()
        self._pace = Pace(patience, stopped)
        self._failure_told = self._answered = False
        self._given_up_in_a_row = self._refused_at_first = 0
        self._why_stopped = ""
        self._refused: AnnotatorRefused | None = None

    async def label(self, sources: Sequence[str], progress: Callable[[int], None]) -> Ended:
        """Asks about every text that has not ended yet.

        Args:
            sources: all texts; equal ones are asked about once.
            progress: told how many texts have just ended.

        Raises:
            AnnotatorRefused: the server refuses key, model or address.
        """
        ended = self._outputs.ids()
        ids_of: defaultdict[str, list[str]] = defaultdict(list)
        for source, row_id in zip(sources, row_ids(sources), strict=True):
            if row_id in ended:
                progress(1)
            else:
                ids_of[source].append(row_id)
        waiting = list(ids_of)[::-1]

        async def work(most: float = float("inf")) -> None:
            while waiting and most > 0 and not self._why_stopped:
                source = waiting.pop()
                if await self._ends(source, ids_of[source]):
                    progress(len(ids_of.pop(source)))
                most -= 1

        await work(most=1)  # shows whether key, model and form are right, before many are asked
        await asyncio.gather(*(work() for _ in range(self._patience.concurrency)))
        if self._refused:
            raise self._refused
        return Ended(sum(map(len, ids_of.values())), self._why_stopped)

    async def _ends(self, source: str, ids: Sequence[str]) -> bool:
        """Whether the text has ended; if not, it is asked about by the next start."""
        try:
            await self._one(source, ids)
        except _OutOfMoney:
            self._why_stopped = f"the next call could exceed the budget of {self._budget_usd:g} USD"
        except AnnotatorRefused as error:
            self._refused, self._why_stopped = error, str(error)
        except TryAgain as error:
            self._given_up_in_a_row += 1
            if self._stopped():
                self._why_stopped = "it was asked to stop"
            elif not (error.reached or self._answered):
                self._why_stopped = f"the server cannot be reached: {error}"
            elif self._given_up_in_a_row >= GIVEN_UP_IN_A_ROW:
                self._why_stopped = f"the server keeps failing: {error}"
        else:
            return True
        return False

    async def _one(self, source: str, ids: Sequence[str]) -> None:
        messages = self._prompting.messages(source)
        answers: list[Answer] = []
        complaint = ""
        while len(answers) < TRIES:
            try:
                answers.append(await self._answer(messages))
            except TextRefused as error:
                self._mind_refusal(error)
                complaint = f"the server refuses the request: {error}"
                break
            self._given_up_in_a_row = 0
            try:
                target = self._target(source, answers[-1])
            except UnusableAnswer as error:
                complaint = str(error)
                messages = second_try(messages, answers[-1].text, complaint)
                continue
            self._write(self._outputs.labelled, source, ids, answers, {"target": target})
            return
        last = {"complaint": complaint, "answer": answers[-1].text[:2000] if answers else ""}
        self._write(self._outputs.set_aside, source, ids, answers, last)

    def _target(self, source: str, answer: Answer) -> str:
        if answer.finish_reason == "length":
            raise UnusableAnswer("the answer was cut off at its limit of tokens")
        if answer.finish_reason in ("content_filter", "refusal"):
            raise UnusableAnswer(f"there is no answer ({answer.finish_reason})")
        return read_answer(self._prompting.task, source, answer.text)

    def _write(
        self,
        file: AppendedRows,
        source: str,
        ids: Sequence[str],
        answers: Sequence[Answer],
        fields: dict[str, str],
    ) -> None:
        for i, row_id in enumerate(ids):
            paid = [] if i else answers  # equal texts are paid once
            file.append(
                {
                    "id": row_id,
                    "source": source,
                    **fields,
                    **self._common,
                    "tries": len(answers),
                    "prompt_tokens": sum(answer.usage.prompt_tokens for answer in paid),
                    "completion_tokens": sum(answer.usage.completion_tokens for answer in paid),
                    "usd": sum(answer.usd for answer in paid),
                }
            )

    def _mind_refusal(self, error: TextRefused) -> None:
        """Before any answer, a refusal is hardly about the text: that one is not set aside."""
        if self._calls.spent.calls or self._calls.spent.reused_answers:
            return
        self._refused_at_first += 1
        if self._refused_at_first >= REFUSED_AT_FIRST:
            raise AnnotatorRefused(
                f"The server refused the first {REFUSED_AT_FIRST} requests: {error}. Check "
                "--parameters: some models take no temperature, or max_completion_tokens in place "
                "of max_tokens."
            )
        raise TryAgain(str(error))

    async def _answer(self, messages: Sequence[Message]) -> Answer:
        try:
            answer = await self._known_or_asked(messages, self._parameters)
        except TextRefused:
            if self._structured != "auto":
                raise
            plain = {k: v for k, v in self._parameters.items() if k != "response_format"}
            answer = await self._known_or_asked(messages, plain)
            self._parameters = plain
            self._report("the server takes no structured output; it is asked without")
        if self._structured == "auto":
            self._structured = "on" if "response_format" in self._parameters else "off"
        return answer

    async def _known_or_asked(
        self, messages: Sequence[Message], parameters: dict[str, Any]
    ) -> Answer:
        key = key_of(self._client.endpoint, messages, parameters)
        return self._calls.find(key) or await self._ask(key, messages, parameters)

    async def _ask(
        self, key: str, messages: Sequence[Message], parameters: dict[str, Any]
    ) -> Answer:
        """Calls until there is an answer."""
        # Imported here because only those who ask have it installed.
        from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

        patience, at_most = self._patience, call_at_most(messages, parameters)
        expected_tokens = sum(call_expected(messages, parameters))
        bound_usd, longest = self._prices.usd(at_most), patience.longest_wait_seconds
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TryAgain),
            stop=self._gives_up,
            wait=wait_random_exponential(patience.first_wait_seconds, longest),
            sleep=self._pace.sleep,
            before_sleep=self._tell_failure,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                await self._pace.turn(expected_tokens)
                async with self._reserved(bound_usd):
                    reply, call = await self._called(key, messages, parameters, bound_usd)
                    usage = reply.usage or at_most
                    usd = self._prices.usd(usage)
                    counted = reply.usage is not None
                    answer = Answer(reply.text, reply.finish_reason, usage, counted, usd)
                    self._calls.paid(key, answer, call)
                    self._pace.correct(sum(usage) - expected_tokens)
                return answer
        raise AssertionError("the last attempt raises")

    async def _called(
        self, key: str, messages: Sequence[Message], parameters: dict[str, Any], bound_usd: float
    ) -> tuple[Reply, int]:
        """One call, in the log before it begins and however it ends. Returns its number too."""
        call = self._calls.begin(key, bound_usd)
        try:
            reply = await self._client.ask(messages, parameters)
        except TryAgain as error:
            self._mind_wish(error.after_seconds)
            if error.maybe_billed:
                self._calls.lost(key, str(error), bound_usd, call)
            else:
                self._calls.unbilled(key, call)
            raise
        except (TextRefused, AnnotatorRefused):
            self._calls.unbilled(key, call)
            raise
        except BaseException as error:
            # Cancelled, or a fault of ours: nobody knows what was billed.
            self._calls.lost(key, type(error).__name__, bound_usd, call)
            raise
        self._answered = True
        return reply, call

    def _mind_wish(self, seconds: float) -> None:
        """Has all calls wait as long as the server asks, or none begin where that is too long."""
        if seconds > self._patience.longest_wait_seconds:
            self._why_stopped = f"the server asks to wait {seconds:,.0f} s"
        else:
            self._pace.wish(seconds)

    def _tell_failure(self, state: Any) -> None:
        """Says what the first failure was: nobody should wait and not know for what."""
        if not self._failure_told:
            self._failure_told = True
            self._report(f"a call failed and is tried again: {state.outcome.exception()}")

    def _gives_up(self, state: Any) -> bool:
        last = state.attempt_number >= self._patience.attempts
        return last or self._stopped() or bool(self._why_stopped)

    @contextlib.asynccontextmanager
    async def _reserved(self, usd: float) -> AsyncIterator[None]:
        """Holds a call's highest price back while it is under way."""
        async with self._call_ended:
            while self._budget_usd and self._committed_usd() + usd > self._budget_usd:
                if not self._in_flight:
                    raise _OutOfMoney
                await self._call_ended.wait()
            self._reserved_usd += usd
            self._in_flight += 1
        try:
            yield
        finally:
            self._reserved_usd -= usd
            self._in_flight -= 1
            async with self._call_ended:
                self._call_ended.notify_all()

    def _committed_usd(self) -> float:
        spent = self._calls.spent
        return spent.usd + spent.lost_usd_at_most + max(self._reserved_usd, 0.0)
