"""Makes the bundled WLP sample: lab-protocol sentences with their gold entities.

The sentences come from a grammar and a lexicon of our own, so that the sample can be
shipped with the package. Same seed, same bytes, on every Python.

    python -m dora_jax.tasks.samples.wlp --output dora_jax/data/sample/wlp
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import os
import random
import re
from pathlib import Path

from dora_jax.tasks.samples.wlp_grammar import GRAMMAR
from dora_jax.tasks.samples.wlp_lexicon import LEXICON

SEED = 20230707
SPLITS = {"train": 600, "validation": 200, "test": 600, "unlabeled": 2600}
MAX_WORDS = 30

# A flatter law than Zipf's own: the head of a list should not make up half of the text.
_ZIPF_OFFSET = 4

_SYMBOL = re.compile(r"<([A-Z_]+)>")
_SPAN = re.compile(r"\{([^{}|]*)\|([A-Za-z-]*)\}")
_INFLECTED = re.compile(r"([\w-]+)~(ed|ing)")
_IRREGULAR = {
    "spin": "spun", "freeze": "frozen", "shake": "shaken", "withdraw": "withdrawn", "put": "put",
    "keep": "kept", "hold": "held", "bleed": "bled", "set": "set", "make": "made", "lay": "laid",
    "grind": "ground", "spread": "spread", "read": "read", "fit": "fit",
}  # fmt: skip
_DOUBLED = re.compile(
    r"(spin|tap|cap|wrap|plug|drip|blot|skim|transfer|scrub|dip|spot|set|put|swab)$"
)


class Grammar:
    """Rules and word lists with their cumulative weights.

    Draws use `Random.random` alone, the one method whose stream Python promises to keep.
    """

    def __init__(self) -> None:
        self._choices: dict[str, tuple[list[str], list[float]]] = {}
        for symbol, words in LEXICON.items():
            weights = [1.0 / (rank + _ZIPF_OFFSET) for rank in range(len(words))]
            self._choices[symbol] = (list(words), list(itertools.accumulate(weights)))
        for symbol, rules in GRAMMAR.items():
            parts = [rule.rpartition(" @") for rule in rules]
            texts = [text if mark else weight for text, mark, weight in parts]
            weights = [float(weight) if mark else 1.0 for _, mark, weight in parts]
            self._choices[symbol] = (texts, list(itertools.accumulate(weights)))

    def expand(self, symbol: str, rng: random.Random) -> str:
        """One random derivation of `symbol`: text with `{entity|Type}` marks."""
        texts, cumulative = self._choices[symbol]
        text = texts[bisect.bisect(cumulative, rng.random() * cumulative[-1])]
        return _SYMBOL.sub(lambda match: self.expand(match[1], rng), text)


def inflect(verb: str, ending: str) -> str:
    """`verb` as past participle ("ed") or gerund ("ing")."""
    if ending == "ed" and verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if _DOUBLED.search(verb):
        return verb + verb[-1] + ending
    if verb.endswith("e"):
        return verb[:-1] + ending
    if ending == "ed" and re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ied"
    return verb + ending


def finish(marked: str) -> str:
    """Spelling of a derivation: endings, plurals, articles, spaces, the capital letter."""
    text = _INFLECTED.sub(lambda match: inflect(match[1], match[2]), marked)
    text = re.sub(r"(sh|ch|x|ss)s\b", r"\1es", text)
    text = re.sub(r"([^aeiou])ys\b", r"\1ies", text)
    text = re.sub(r"\b([Aa]) (?=\{?(?:[aeio]|un[^i]|OD))", r"\1n ", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([.,])", r"\1", text)
    return re.sub(r"^(\{?)([a-z])", lambda match: match[1] + match[2].upper(), text)


def split_marks(marked: str) -> tuple[str, str]:
    """The plain sentence and its target, `entity [Type] entity [Type]`, in reading order."""
    source = _SPAN.sub(r"\1", marked)
    target = " ".join(f"{entity} [{kind}]" for entity, kind in _SPAN.findall(marked))
    return source, target


def make_rows(seed: int = SEED) -> dict[str, list[dict[str, str]]]:
    """The rows of every split; no source stands twice, in one split or in two."""
    rng, grammar = random.Random(seed), Grammar()
    seen: set[str] = set()
    splits: dict[str, list[dict[str, str]]] = {}
    for split, count in SPLITS.items():
        rows = splits.setdefault(split, [])
        while len(rows) < count:
            source, target = split_marks(finish(grammar.expand("SENTENCE", rng)))
            if source in seen or len(source.split()) > MAX_WORDS:
                continue
            seen.add(source)
            labelled = {"source": source, "target": target}
            rows.append({"source": source} if split == "unlabeled" else labelled)
    return splits


def write_sample(folder: Path, seed: int = SEED) -> None:
    """Writes `<split>.jsonl` for every split; a file is complete or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in make_rows(seed).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        aside = folder / f"{split}.jsonl.tmp"
        aside.write_bytes(text.encode())
        os.replace(aside, folder / f"{split}.jsonl")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Makes the bundled WLP sample.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the .jsonl files")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    write_sample(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
