"""What the generators of the samples share: random draws, derivations, files, a command line.

Draws use `Random.random` alone, the one method whose stream Python promises to keep: the same
seed gives the same bytes on every Python.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dora_jax.whole_files import write_whole

T = TypeVar("T")
Splits = dict[str, list[dict[str, str]]]

_WEIGHT = re.compile(r" @([0-9.]+)$")
_SYMBOL = re.compile(r"<([A-Z_]+)>")


def choose(items: Sequence[T], rng: random.Random) -> T:
    """One of the items, each as likely as the others."""
    return items[int(rng.random() * len(items))]


def choose_other(items: Sequence[T], unwanted: T, rng: random.Random) -> T:
    """One of the items that is not `unwanted`."""
    return choose([item for item in items if item != unwanted], rng)


def shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    """The items in random order."""
    keys = [rng.random() for _ in items]
    return [item for _, item in sorted(zip(keys, items, strict=True), key=lambda pair: pair[0])]


class Grammar:
    """Rules and word lists with their cumulative weights.

    A rule is text with `<SYMBOL>`s to expand; `@3` at its end gives it three times the weight of
    its neighbours.

    Args:
        rules: for each symbol its rules.
        words: for each further symbol its words, the frequent ones first.
        zipf_offset: word r of a list has the weight 1 / (r + offset): flatter than Zipf's own
            law, by which the head of a list would make up half of the text.
    """

    def __init__(
        self,
        rules: Mapping[str, Sequence[str]],
        words: Mapping[str, Sequence[str]],
        zipf_offset: float,
    ) -> None:
        self._choices: dict[str, tuple[list[str], list[float]]] = {}
        for symbol, members in words.items():
            weights = [1.0 / (rank + zipf_offset) for rank in range(len(members))]
            self._choices[symbol] = (list(members), list(itertools.accumulate(weights)))
        for symbol, members in rules.items():
            marks = [_WEIGHT.search(rule) for rule in members]
            texts = [_WEIGHT.sub("", rule) for rule in members]
            weights = [float(mark[1]) if mark else 1.0 for mark in marks]
            self._choices[symbol] = (texts, list(itertools.accumulate(weights)))

    def expand(self, symbol: str, rng: random.Random) -> str:
        """One random derivation of `symbol`."""
        texts, cumulative = self._choices[symbol]
        text = texts[bisect.bisect(cumulative, rng.random() * cumulative[-1])]
        return _SYMBOL.sub(lambda match: self.expand(match[1], rng), text)


def draw_splits(counts: Mapping[str, int], draw: Callable[[str], tuple[str, str] | None]) -> Splits:
    """Rows of every split; no source stands twice, in one split or in two.

    Args:
        counts: rows by split; those of "unlabeled" get no target.
        draw: (source, target) of a split; None where the draw is to be repeated.
    """
    seen: set[str] = set()
    splits: Splits = {}
    for split, count in counts.items():
        rows = splits.setdefault(split, [])
        while len(rows) < count:
            drawn = draw(split)
            if drawn is None or drawn[0] in seen:
                continue
            source, target = drawn
            seen.add(source)
            labelled = {"source": source, "target": target}
            rows.append({"source": source} if split == "unlabeled" else labelled)
    return splits


def write_splits(folder: Path, splits: Splits) -> None:
    """Writes `<split>.jsonl` for every split; a file is complete or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(folder / f"{split}.jsonl", text)


def command(description: str, make_rows: Callable[[int], Splits], seed: int) -> None:
    """The command line of a generator."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="folder for the .jsonl files")
    parser.add_argument("--seed", type=int, default=seed)
    arguments = parser.parse_args()
    write_splits(arguments.output, make_rows(arguments.seed))
