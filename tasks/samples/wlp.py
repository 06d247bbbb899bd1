"""Makes the bundled WLP sample: lab-protocol sentences with their gold entities.

The sentences come from a grammar and a lexicon of our own, so that the sample can be
shipped with the package. Same seed, same bytes, on every Python.

    python -m dora_jax.tasks.samples.wlp --output dora_jax/data/sample/wlp
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from dora_jax.tasks.samples.generator import Grammar, Splits, command, draw_splits
from dora_jax.tasks.samples.wlp_grammar import GRAMMAR
from dora_jax.tasks.samples.wlp_lexicon import LEXICON

SEED = 20230707
SPLITS = {"train": 600, "validation": 200, "test": 600, "unlabeled": 2600}
MAX_WORDS = 30

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


def make_rows(seed: int = SEED, splits: Mapping[str, int] = SPLITS) -> Splits:
    """The rows of every split; how they are split does not change them."""
    rng, grammar = random.Random(seed), Grammar(GRAMMAR, LEXICON, zipf_offset=4)

    def draw(split: str) -> tuple[str, str] | None:
        source, target = split_marks(finish(grammar.expand("SENTENCE", rng)))
        return (source, target) if len(source.split()) <= MAX_WORDS else None

    return draw_splits(splits, draw)


if __name__ == "__main__":
    command("Makes the bundled WLP sample.", make_rows, SEED)
