"""How a run is asked to stop, and how it says that it did."""

from __future__ import annotations


class StopRequest:
    """Set by a signal handler, read between updates and batches."""

    def __init__(self) -> None:
        self.reason = ""

    def ask(self, reason: str) -> None:
        """Asks the run to save what it has and end."""
        self.reason = reason

    def check(self) -> None:
        """Raises `Interrupted` if a stop was asked for; for places with nothing to save."""
        if self.reason:
            raise Interrupted(self.reason)


class Interrupted(Exception):
    """The run was asked to stop; all that is done is saved, the same command goes on."""
