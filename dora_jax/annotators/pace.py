"""When a server may be called: as often as the user allows, and not before the server wishes."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable

from dora_jax.annotators.chat import TryAgain


@dataclasses.dataclass(frozen=True)
class Patience:
    """How calls are paced, and asked again where the server or the network failed.

    Attributes:
        concurrency: calls at once.
        calls_per_minute: at most; 0: as many as there are answers for.
        tokens_per_minute: in and out, at most on average; 0: any number.
        attempts: of one call.
        first_wait_seconds: before the second attempt, at random up to it; doubled each time.
        longest_wait_seconds: of any; a server that asks for more is given up.
    """

    concurrency: int = 8
    calls_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    attempts: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 120.0


class Pace:
    """Lets calls begin one after the other.

    Args:
        patience: the user's pace.
        stopped: says that no call shall begin.
    """

    def __init__(self, patience: Patience, stopped: Callable[[], bool]) -> None:
        self._patience, self._stopped = patience, stopped
        self._not_before = self._next_turn = 0.0  # by the server's wish, and by the user's pace

    def wish(self, seconds: float) -> None:
        """The server asks all calls to wait so long."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def turn(self, tokens: int) -> None:
        """Waits until a call of so many tokens may begin.

        Raises:
            TryAgain: no call shall begin any more.
        """
        while not self._stopped():
            wait = max(self._not_before, self._next_turn) - time.monotonic()
            if wait <= 0:
                break
            await self.sleep(wait)
        if self._stopped():
            raise TryAgain("it was asked to stop")
        self._next_turn = time.monotonic()
        if self._patience.calls_per_minute:
            self._next_turn += 60.0 / self._patience.calls_per_minute
        self.correct(tokens)

    def correct(self, tokens: int) -> None:
        """Puts the next call off by what more tokens take; fewer than none let it begin earlier."""
        if self._patience.tokens_per_minute:
            self._next_turn += 60.0 * tokens / self._patience.tokens_per_minute

    async def sleep(self, seconds: float) -> None:
        """Sleeps, but not through a wish to stop."""
        end = time.monotonic() + seconds
        while not self._stopped() and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))
