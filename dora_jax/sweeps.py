"""From axes to runs: every combination of their values, with a name that stays the same."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

_MAX_NAME = 120  # characters, of the 255 that file systems take


class Axis(NamedTuple):
    """What a sweep varies.

    Attributes:
      name: of a setting, as `--gin.NAME` has it.
      values: as gin texts.
      searched: of its values the best on validation is kept, and the others are billed to it.
    """

    name: str
    values: tuple[str, ...]
    searched: bool = False


class Cell(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its directory.
      overrides: (name, gin text) of each axis.
      group: equal for the candidates of one search; their name without what is searched.
      searched: name → gin text of the searched axes.
    """

    name: str
    overrides: tuple[tuple[str, str], ...]
    group: str
    searched: dict[str, str]


def expand(axes: Sequence[Axis]) -> list[Cell]:
    """Every combination, the last axis fastest.

    A run keeps its name when values are added to any axis, so that a sweep can be enlarged.

    Raises:
      ValueError: an axis has no values, or one of them twice, or two axes have one name.
    """
    for axis in axes:
        if not axis.values or len(set(axis.values)) < len(axis.values):
            raise ValueError(
                f"The axis {axis.name} has the values ({', '.join(axis.values)}); expected at "
                "least one, and each of them once."
            )
    if len({axis.name for axis in axes}) < len(axes):
        raise ValueError(f"Two axes have one name: {', '.join(axis.name for axis in axes)}.")
    cells = []
    for values in itertools.product(*(axis.values for axis in axes)):
        pairs = list(zip(axes, values, strict=True))
        cells.append(
            Cell(
                name=_name([(axis.name, value) for axis, value in pairs]),
                overrides=tuple((axis.name, value) for axis, value in pairs),
                group=_name([(axis.name, value) for axis, value in pairs if not axis.searched]),
                searched={axis.name: value for axis, value in pairs if axis.searched},
            )
        )
    return cells


def _name(pairs: Sequence[tuple[str, str]]) -> str:
    """Readable, a single word, and another one for other values."""
    readable = "_".join(f"{_word(name).lower()}-{_word(value)}" for name, value in pairs) or "run"
    exact = "\n".join(f"{name}={value}" for name, value in pairs)
    # What was left out of a value may be all that tells it from another one.
    lossless = all(re.fullmatch(r"[\w.]+", value) for _, value in pairs)
    if lossless and len(readable) <= _MAX_NAME:
        return readable
    return f"{readable[:_MAX_NAME]}-{hashlib.sha256(exact.encode()).hexdigest()[:6]}"


def _word(text: str) -> str:
    text = text.removeprefix("@").replace("/T5Config()", "")
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "none"


def labels_for(share: float, budget_usd: float, usd_per_label: float) -> int:
    """How many labels a share of a budget buys; the rest is for compute.

    Raises:
      ValueError: it buys none, or the share is none.
    """
    if not 0 < share < 1:
        raise ValueError(f"LABEL_SHARE = {share}; expected a share of the budget, in (0, 1).")
    if budget_usd <= 0 or usd_per_label <= 0:
        raise ValueError(
            f"LABEL_SHARE divides a budget between labels and compute, but BUDGET_USD is "
            f"{budget_usd:g} and a label costs {usd_per_label:g}; set both above 0."
        )
    labels = math.floor(share * budget_usd / usd_per_label)
    if labels < 1:
        raise ValueError(
            f"LABEL_SHARE = {share} of ${budget_usd:,.2f} buys no label at ${usd_per_label:,.3f}."
        )
    return labels
