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
        intervals: metric name of `strict`, or of `paper` after "paper/" → (low, high) in percent.
        notes: counts that explain the metrics.
        confusion: gold class → predicted class → examples; empty where there are no classes.
        remarks: sentences for the user, such as what could not be computed.
    """

    examples: int
    primary: str
    strict: dict[str, float]
    paper: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    notes: dict[str, int | float]
    confusion: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

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
        """The plain-JSON form: every field, intervals and remarks as lists."""
        intervals = {name: list(ends) for name, ends in self.intervals.items()}
        changed = {"intervals": intervals, "remarks": list(self.remarks)}
        return dataclasses.asdict(self) | changed

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Scores:
        """The scores that `to_json` gave, also that of a version without the last two fields."""
        intervals = {name: (low, high) for name, (low, high) in plain["intervals"].items()}
        remarks = tuple(plain.get("remarks", ()))
        return cls(**{**plain, "intervals": intervals, "remarks": remarks})
