"""How a run is asked to stop, and how it says that it did."""

from __future__ import annotations

from collections.abc import Callable

ELSEWHERE = "a stop on another host"


class StopRequest:
    """Set by a signal handler, read between updates and batches.

    Args:
      any_host: of many hosts, whether the flag is set on one of them. All hosts must stop at one
        place: whoever went on alone would wait for the others for ever.
    """

    def __init__(self, any_host: Callable[[bool], bool] = bool) -> None:
        self.reason = ""
        self._any_host = any_host

    def ask(self, reason: str) -> None:
        """Asks the run to save what it has and end."""
        self.reason = reason

    def check(self) -> None:
        """Raises `Interrupted` if a stop was asked for; for places with nothing to save.

        All hosts call it at the same places.
        """
        if self._any_host(bool(self.reason)):
            raise Interrupted(self.reason or ELSEWHERE)


class Interrupted(Exception):
    """The run was asked to stop; all that is done is saved, the same command goes on."""
