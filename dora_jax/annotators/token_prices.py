"""What a language model's tokens cost: before the first call, and afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dora_jax.annotators.calls import Spent
from dora_jax.annotators.chat import Usage
from dora_jax.annotators.prompts import Message, most_tokens
from dora_jax.cost.charging import LLM_LABELS as STAGE
from dora_jax.cost.ledger import Ledger, RunFacts, tokens_row
from dora_jax.cost.prices import Price

TOKENS_OF_A_PRICE = 1_000_000
_BYTES_A_TOKEN = 3.5  # of English and JSON in the usual vocabularies; only for the expectation
_EXPECTED_ANSWER_TOKENS = 60


@dataclasses.dataclass(frozen=True)
class TokenPrices:
    """USD for a million tokens, in and out."""

    input: Price
    output: Price

    def usd(self, usage: Usage) -> float:
        """What a call costs."""
        in_usd = usage.prompt_tokens * self.input.usd
        return (in_usd + usage.completion_tokens * self.output.usd) / TOKENS_OF_A_PRICE


class Estimate(NamedTuple):
    """Tokens and dollars before the first call.

    Attributes:
        texts: that will be asked about.
        expected: if each is asked once, of usual length.
        at_most: if each is asked twice and every answer is as long as it may be; calls whose
            answer is lost on the way, and asked again, come on top.
    """

    texts: int
    expected: Usage
    at_most: Usage
    expected_usd: float
    at_most_usd: float


def call_at_most(messages: Sequence[Message], parameters: dict[str, Any]) -> Usage:
    """A bound on what one call can be billed for."""
    return Usage(most_tokens(messages, parameters), max_answer_tokens(parameters))


def call_expected(messages: Sequence[Message], parameters: dict[str, Any]) -> Usage:
    """What one call usually takes."""
    tokens_in = round(most_tokens(messages, parameters) / _BYTES_A_TOKEN)
    return Usage(tokens_in, min(max_answer_tokens(parameters), _EXPECTED_ANSWER_TOKENS))


def max_answer_tokens(parameters: dict[str, Any]) -> int:
    """The limit that the request sets, under either of its names.

    Raises:
        ValueError: it sets none, so that no bound on its price is known.
    """
    for name in ("max_tokens", "max_completion_tokens"):
        limit = parameters.get(name)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            return limit
    raise ValueError(
        "The request's parameters set neither max_tokens nor max_completion_tokens; without a "
        "limit no call has a highest price. Add one to --parameters."
    )


def estimate(
    conversations: Iterable[Sequence[Message]],
    parameters: dict[str, Any],
    prices: TokenPrices,
    second_try_tokens: int,
) -> Estimate:
    """What asking would cost.

    Args:
        conversations: one a text.
        parameters: of every request.
        prices: of the model.
        second_try_tokens: that asking again can add to a prompt.
    """
    texts, most_in, expected = 0, 0, Usage(0, 0)
    for messages in conversations:
        likely = call_expected(messages, parameters)
        texts += 1
        expected = Usage(*map(sum, zip(expected, likely, strict=True)))
        most_in += 2 * most_tokens(messages, parameters) + second_try_tokens
    limit = max_answer_tokens(parameters)
    at_most = Usage(most_in, 2 * texts * limit)
    return Estimate(texts, expected, at_most, prices.usd(expected), prices.usd(at_most))


def enter(ledger: Ledger, facts: RunFacts, model: str, spent: Spent, prices: TokenPrices) -> None:
    """Adds to a ledger what was spent and is not in it yet: one row for each kind of token.

    Args:
        ledger: of the labels.
        facts: what its rows have in common.
        model: that was paid.
        spent: all there was so far; the rest is in the ledger's rows.
        prices: of today.
    """
    rows = [row for row in ledger.rows() if row.stage == STAGE]
    sides = (
        ("input", spent.prompt_tokens, prices.input),
        ("output", spent.completion_tokens, prices.output),
    )
    for side, tokens, price in sides:
        entered = [row for row in rows if row.unit == price.unit]
        new_tokens = tokens - sum(row.tokens for row in entered)
        new_calls = spent.calls - sum(row.examples for row in entered)
        if new_tokens:
            row_id = f"{STAGE}-{model}-{side}-{tokens}"
            row = tokens_row(facts, STAGE, row_id, new_tokens, price, strategy="llm")
            ledger.append(dataclasses.replace(row, examples=new_calls))
