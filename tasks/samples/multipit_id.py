"""Makes the bundled MultiPIT_id sample: do two tweets say the same?

YES where both tell of one event. NO where one only feels
something about a name in the other, which its words tell; or where the second tells of another
event with some of the same names, or of the same event with one detail changed, which only
comparing tells.

    python -m dora_jax.tasks.samples.multipit_id --output dora_jax/data/sample/multipit_id
"""

from __future__ import annotations

import random

from dora_jax.tasks.samples.generator import Splits, choose, choose_other, command, draw_splits
from dora_jax.tasks.samples.multipit import fill, slots, surround
from dora_jax.tasks.samples.multipit_lexicon import EVENTS, REACTIONS

SEED = 20230713
SPLITS = {"train": 400, "validation": 100, "test": 250, "unlabeled": 800}
SHARE_OF_YES = 0.53

Tweets = tuple[str, str]


def make_rows(seed: int = SEED) -> Splits:
    """The rows of every split."""
    rng = random.Random(seed)

    def agree(event: str, filled: dict[str, str]) -> Tweets:
        saying = choose(EVENTS[event], rng)
        return saying.format(**filled), choose_other(EVENTS[event], saying, rng).format(**filled)

    def react(event: str, filled: dict[str, str]) -> Tweets:
        report = choose(EVENTS[event], rng).format(**filled)
        reaction = choose(REACTIONS, rng).format(choose(list(filled.values()), rng))
        return (report, reaction) if rng.random() < 0.5 else (reaction, report)

    def tell_another(event: str, filled: dict[str, str]) -> Tweets:
        related = [other for other in EVENTS if set(slots(other)) & set(filled)]
        other = choose_other(related, event, rng)
        first, second = choose(EVENTS[event], rng), choose(EVENTS[other], rng)
        return first.format(**filled), second.format(**fill(other, filled, rng))

    def change(event: str, filled: dict[str, str]) -> Tweets:
        changed = choose(slots(event), rng)
        kept = {slot: filler for slot, filler in filled.items() if slot != changed}
        anew = filled
        while anew == filled:
            anew = fill(event, kept, rng)
        first, second = choose(EVENTS[event], rng), choose(EVENTS[event], rng)
        return first.format(**filled), second.format(**anew)

    def draw(split: str) -> tuple[str, str]:
        event = choose(tuple(EVENTS), rng)
        filled = fill(event, {}, rng)
        same, way = rng.random() < SHARE_OF_YES, rng.random()
        if same:
            pair = agree(event, filled)
        else:
            pair = (react if way < 0.6 else tell_another if way < 0.85 else change)(event, filled)
        first, second = (surround(text, rng) for text in pair)
        return f"sentence1: {first} sentence2: {second}", "YES" if same else "NO"

    return draw_splits(SPLITS, draw)


if __name__ == "__main__":
    command("Makes the bundled MultiPIT_id sample.", make_rows, SEED)
