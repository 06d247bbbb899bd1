"""Makes the bundled Stanceosaurus sample: rumours, and tweets that take a stance on them.

Words tell a stance, but not by themselves: what others are said to hold does not count ("they
all swear it is real , but it was debunked"), nor does the tweet that is answered, after [SEP].
A tweet is irrelevant where it chats of something else, though it may name the rumour's subject.

    python -m dora_jax.tasks.samples.stanceosaurus --output dora_jax/data/sample/stanceosaurus
"""

from __future__ import annotations

import random

from dora_jax.tasks.samples.generator import Grammar, Splits, choose, command, draw_splits
from dora_jax.tasks.samples.stanceosaurus_lexicon import GRAMMAR, RUMOURS, WORDS

SEED = 20230710
SPLITS = {"train": 400, "validation": 100, "test": 250, "unlabeled": 700}

SHARE_OF_HEARSAY, SHARE_OF_REPLIES = 0.25, 0.25


def make_rows(seed: int = SEED) -> Splits:
    """The rows of every split."""
    rng, grammar = random.Random(seed), Grammar(GRAMMAR, WORDS, zipf_offset=4)

    def write(stance: str, subject: str, event: str) -> str:
        text = grammar.expand(stance.upper(), rng)
        if stance in ("Supporting", "Refuting") and rng.random() < SHARE_OF_HEARSAY:
            others = "REFUTING" if stance == "Supporting" else "SUPPORTING"
            text = f"{grammar.expand(f'HEARSAY_{others}', rng)} , but {text}"
        return f"{grammar.expand('OPENING', rng)} {text.format(subject=subject, event=event)}"

    def draw(split: str) -> tuple[str, str]:
        subject, event = choose(RUMOURS, rng)
        stance = grammar.expand("STANCE", rng)
        tweet = write(stance, subject, event)
        if rng.random() < SHARE_OF_REPLIES:
            answered = stance if stance == "Irrelevant" else grammar.expand("STANCE", rng)
            tweet += f" [SEP] {write(answered, subject, event)}"
        row = f"claim: {subject} {event} tweet: {tweet} {grammar.expand('ENDING', rng)}"
        return " ".join(row.split()), stance

    return draw_splits(SPLITS, draw)


if __name__ == "__main__":
    command("Makes the bundled Stanceosaurus sample.", make_rows, SEED)
