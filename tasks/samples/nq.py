"""Makes the bundled Natural Questions sample: questions on a made-up world and short answers.

The facts are few and each can be asked for in eight ways, of which two are kept for the test
split: it asks in other words what the labelled questions have asked. Who learns the facts, and
which words ask for which, can answer.

    python -m dora_jax.tasks.samples.nq --output dora_jax/data/sample/nq
"""

from __future__ import annotations

import random

from dora_jax.tasks.samples.generator import Splits, choose, command, draw_splits, shuffled
from dora_jax.tasks.samples.world import make_facts

SEED = 20230708
SPLITS = {"train": 400, "validation": 100, "test": 250, "unlabeled": 800}

# Ways to ask for the value of a relation; {} is the thing.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "profession": (
        "what does {} do for a living",
        "what is the profession of {}",
        "what was {}'s job",
        "{} is famous as a what",
        "what kind of work did {} do",
        "{} earned money as a",
        "which trade did {} learn",
        "as what did {} work",
    ),
    "birthplace": (
        "where was {} born",
        "what is the birthplace of {}",
        "in which town was {} born",
        "{} was born in which place",
        "what is the home town of {}",
        "where does {} come from",
        "where did {} grow up",
        "the town where {} was born",
    ),
    "director": (
        "who directed {}",
        "who was the director of {}",
        "{} was directed by",
        "who made the film {}",
        "name of the director of {}",
        "who is the film maker behind {}",
        "who shot {}",
        "whose film is {}",
    ),
    "film_genre": (
        "what genre is {}",
        "what kind of film is {}",
        "{} is what type of film",
        "which genre does {} belong to",
        "what sort of movie is {}",
        "genre of the film {}",
        "what category of film is {} in",
        "what is the movie {} classed as",
    ),
    "music_genre": (
        "what kind of music do {} play",
        "what style of music is played by {}",
        "{} play what music",
        "which music are {} known for",
        "what is the style of {}",
        "what sort of songs do {} play",
        "music style of the band {}",
        "what do {} perform",
    ),
    "home": (
        "where are {} from",
        "where did {} form",
        "which town are {} based in",
        "what is the home of {}",
        "in which town was the band {} formed",
        "where do {} live",
        "{} started out in which town",
        "the home town of {}",
    ),
    "product": (
        "what does {} make",
        "what does the company {} produce",
        "{} is a maker of what",
        "what are the products of {}",
        "which goods does {} sell",
        "what is made by {}",
        "what is {} known for making",
        "what can you buy from {}",
    ),
    "founder": (
        "who founded {}",
        "who started the company {}",
        "who is the founder of {}",
        "{} was founded by",
        "who set up {}",
        "by whom was {} started",
        "name of the person who founded {}",
        "who created {}",
    ),
    "country": (
        "which country is {} in",
        "what country is {} in",
        "in what country does {} lie",
        "{} belongs to which country",
        "{} is a town of which land",
        "the country where {} is found",
        "what country would you visit to see {}",
        "{} is found in which country",
    ),
    "river": (
        "which river flows through {}",
        "what river is {} on",
        "what is the name of the river in {}",
        "{} stands on which river",
        "the river that runs through {}",
        "on the banks of what river is {}",
        "what water runs past {}",
        "name the river at {}",
    ),
}

OPENINGS = ("", "", "so ", "tell me, ", "do you know ", "quiz: ")

# Which of a fact's eight questions a split may ask, once they are shuffled.
_ASKED = {"test": slice(0, 2), "validation": slice(2, 3)}
_ASKED_ELSEWHERE = slice(3, 8)


def make_rows(seed: int = SEED) -> Splits:
    """The rows of every split."""
    rng, facts = random.Random(seed), make_facts(seed)
    questions = {fact: shuffled(QUESTIONS[fact.relation], rng) for fact in facts}

    def draw(split: str) -> tuple[str, str]:
        fact = choose(facts, rng)
        question = choose(questions[fact][_ASKED.get(split, _ASKED_ELSEWHERE)], rng)
        return f"{choose(OPENINGS, rng)}{question.format(fact.thing)}?".lower(), fact.value

    return draw_splits(SPLITS, draw)


if __name__ == "__main__":
    command("Makes the bundled Natural Questions sample.", make_rows, SEED)
