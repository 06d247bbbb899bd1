"""What a page says, free of how it looks: plain texts and numbers, never markup."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture and its numbers.

    Attributes:
      name: of its files, such as "pareto".
      title, description: what it shows; the description is read out in place of the picture.
      spec: Vega-Lite, with its data in it.
      rows: the numbers, as they go into the CSV file.
    """

    name: str
    title: str
    description: str
    spec: Mapping[str, Any]
    rows: Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Table:
    """Texts in rows; columns named in `numbers` are set to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()
    folded: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
    """An example of the test split with what models made of it: (model, prediction, right)."""

    source: str
    target: str
    predictions: Sequence[tuple[str, str, bool]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is left out.

    Where it moves with the budget, its sentence and the rows of its table are those of
    `Budgets.answers`, by its name.
    """

    name: str
    title: str
    texts: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[Sample] = ()
    by_budget: bool = False


@dataclasses.dataclass(frozen=True)
class Budgets:
    """The answer for every budget that can be chosen, computed beforehand.

    Attributes:
      answers: by ascending budget: {"usd", "text", "verdict", "near": texts, "rows": {"plans"
        and names of sections: rows of texts}, "texts": {names of sections: a sentence}}.
      columns: of the plans.
      first: which of them is shown at first.
    """

    answers: Sequence[Mapping[str, Any]]
    columns: Sequence[str]
    first: int


@dataclasses.dataclass(frozen=True)
class Page:
    """The whole.

    Attributes:
      title: of the page.
      mark: what a reader must not overlook, such as that it is a rehearsal; "" for nothing.
      facts: (name, text) beside the title.
      budgets: None where no plan can be made.
      sections: in order.
      footer: how it was made.
      figure_files: whether figures/ beside the page has every figure too.
    """

    title: str
    mark: str
    facts: Sequence[tuple[str, str]]
    budgets: Budgets | None
    sections: Sequence[Section]
    footer: str
    figure_files: bool = False

    @property
    def figures(self) -> list[Figure]:
        """All figures of the sections."""
        return [figure for section in self.sections for figure in section.figures]
