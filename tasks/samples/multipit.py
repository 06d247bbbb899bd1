"""Makes the bundled MultiPIT_gen sample: tweets, and the same said in other words.

In the test split the target is the source, as in the authors' test file: BERT-iBLEU compares a
paraphrase with what was paraphrased.

    python -m dora_jax.tasks.samples.multipit --output dora_jax/data/sample/multipit
"""

from __future__ import annotations

import random
import re

from dora_jax.tasks.samples.generator import Splits, choose, choose_other, command, draw_splits
from dora_jax.tasks.samples.multipit_lexicon import ENDINGS, EVENTS, FILLERS, OPENINGS

SEED = 20230711
SPLITS = {"train": 400, "validation": 100, "test": 250, "unlabeled": 800}

_SLOT = re.compile(r"\{(\w+)\}")


def slots(event: str) -> list[str]:
    """The slots that every saying of an event has, sorted."""
    return sorted(_SLOT.findall(EVENTS[event][0]))


def fill(event: str, known: dict[str, str], rng: random.Random) -> dict[str, str]:
    """A filling of each slot of an event: the known one, or one that no other slot has."""
    filled: dict[str, str] = {}
    for slot in slots(event):
        taken = {**known, **filled}.values()
        free = [filler for filler in FILLERS[slot.rstrip("2")] if filler not in taken]
        filled[slot] = known[slot] if slot in known else choose(free, rng)
    return filled


def surround(text: str, rng: random.Random) -> str:
    """A text with what tweets have around it."""
    return choose(OPENINGS, rng) + text + choose(ENDINGS, rng)


def make_rows(seed: int = SEED) -> Splits:
    """The rows of every split."""
    rng = random.Random(seed)

    def draw(split: str) -> tuple[str, str]:
        event = choose(tuple(EVENTS), rng)
        filled = fill(event, {}, rng)
        saying = choose(EVENTS[event], rng)
        other = choose_other(EVENTS[event], saying, rng)
        source = surround(saying.format(**filled), rng)
        return source, source if split == "test" else other.format(**filled)

    return draw_splits(SPLITS, draw)


if __name__ == "__main__":
    command("Makes the bundled MultiPIT_gen sample.", make_rows, SEED)
