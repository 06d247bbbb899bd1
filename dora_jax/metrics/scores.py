"""What scoring a set of predictions yields, whatever the task."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics of one set of predictions, always both ways of counting.

    Attributes:
        examples: how many examples were scored.
        primary: the key of `strict` a run selects and reports by.
        strict: metric name → value in percent, 0 to 100; our definition.
        paper: the same as the authors' published script computes it, flaws included.
        intervals: metric name of `strict` → (low, high) in percent.
        notes: counts that explain the metrics.
    """

    examples: int
    primary: str
    strict: dict[str, float]
    paper: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    notes: dict[str, int | float]

    def __post_init__(self) -> None:
        if self.primary not in self.strict:
            raise ValueError(
                f"Scores.primary = {self.primary!r} is not among the strict metrics: "
                f"{', '.join(self.strict)}."
            )

    @property
    def value(self) -> float:
        """The primary metric, in percent."""
        return self.strict[self.primary]

    @property
    def interval(self) -> tuple[float, float]:
        """The confidence interval of the primary metric, in percent."""
        return self.intervals[self.primary]

    def to_json(self) -> dict[str, Any]:
        """The plain-JSON form: every field, intervals as lists."""
        plain = dataclasses.asdict(self)
        plain["intervals"] = {name: list(ends) for name, ends in self.intervals.items()}
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Scores:
        """The scores that `to_json` gave."""
        intervals = {name: (low, high) for name, (low, high) in plain["intervals"].items()}
        return cls(**{**plain, "intervals": intervals})
