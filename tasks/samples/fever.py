"""Makes the bundled FEVER sample: claims on a made-up world, true or false.

What is false is so in one of three ways, as in the corpus: a thing is called what nothing is
("Mira Tolan is a spoon"), something true is denied, or another value stands in the place of the
true one. The first two show in the words, though true claims deny, too ("is not a spoon"); the
third asks for the facts. These are few, and each can be stated in six ways, of which one is kept
for the test split.

    python -m dora_jax.tasks.samples.fever --output dora_jax/data/sample/fever
"""

from __future__ import annotations

import random

from dora_jax.tasks.samples.fever_lexicon import (
    AFFIRMED,
    DENIED,
    KIND_STATEMENTS,
    KINDS,
    NONSENSE,
    STATEMENTS,
)
from dora_jax.tasks.samples.generator import (
    Splits,
    choose,
    choose_other,
    command,
    draw_splits,
    shuffled,
)
from dora_jax.tasks.samples.world import VALUES, kind_of, make_facts

SEED = 20230709
SPLITS = {"train": 400, "validation": 100, "test": 250, "unlabeled": 800}

# Which of a fact's six statements a split may make, once they are shuffled.
_STATED = {"test": slice(0, 1), "validation": slice(1, 2)}
_STATED_ELSEWHERE = slice(2, 6)


def make_rows(seed: int = SEED) -> Splits:
    """The rows of every split."""
    rng, facts = random.Random(seed), make_facts(seed)
    statements = {fact: shuffled(STATEMENTS[fact.relation], rng) for fact in facts}

    def state(true: bool, verbs: tuple[str, ...], split: str) -> str:
        """A fact, or what a thing is; if not true, with another value than the true one."""
        fact = choose(facts, rng)
        if rng.random() < 0.25:
            kind = kind_of(fact.thing)
            said = choose(KINDS[kind if true else choose_other(tuple(KINDS), kind, rng)], rng)
            statement = choose(KIND_STATEMENTS, rng)
        else:
            values = VALUES[fact.relation]
            said = fact.value if true else choose_other(values, fact.value, rng)
            statement = choose(statements[fact][_STATED.get(split, _STATED_ELSEWHERE)], rng)
        return statement.format(fact.thing, said, was=choose(verbs, rng))

    def call(verbs: tuple[str, ...]) -> str:
        thing, said = choose(facts, rng).thing, choose(NONSENSE, rng)
        return choose(KIND_STATEMENTS, rng).format(thing, said, was=choose(verbs, rng))

    def draw(split: str) -> tuple[str, str]:
        supported, way = rng.random() < 0.5, rng.random()
        if supported:
            claim = call(DENIED) if way < 0.06 else state(True, AFFIRMED, split)
        elif way < 0.45:
            claim = call(AFFIRMED)
        else:
            denied = way < 0.9
            claim = state(denied, DENIED if denied else AFFIRMED, split)
        return claim[0].upper() + claim[1:], "SUPPORTS" if supported else "REFUTES"

    return draw_splits(SPLITS, draw)


if __name__ == "__main__":
    command("Makes the bundled FEVER sample.", make_rows, SEED)
