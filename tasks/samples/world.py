"""A small made-up world and what is true of it: what the FEVER and NQ samples speak of.

Nobody and nothing of it exists. A fact is (thing, relation, value); every thing of a kind has
one value of each of its kind's relations.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from dora_jax.tasks.samples.generator import choose


class Fact(NamedTuple):
    """`value` of `relation` holds for `thing`."""

    thing: str
    relation: str
    value: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


PEOPLE = _phrases(
    "Mira Tolan; Odan Okoru; Selka Marrow; Jorun Quist; Tavi Renfold; Bresa Ilvane; Kelmo Hadda;"
    " Anouk Szabel; Ristan Beskin; Ylva Dorrit"
)
FILMS = _phrases(
    "The Silver Orchard; Nine Quiet Doors; The Glass Ferry; Copper Skies; Salt and Thunder;"
    " The Paper Regiment"
)
BANDS = _phrases(
    "the Velvet Tractors; the Hollow Kites; the Rusty Comets; the Midnight Bakers; the Tin"
    " Parrots; the Polar Clerks"
)
COMPANIES = _phrases("Zentrix; Corvanta; Lumatek; Ferrobane; Quillstone; Norvex")
TOWNS = _words("Brindleford Castermoor Ulvenhal Kesselby Marrakand Thornwick Velmora Piresso")

PROFESSIONS = _words("painter surgeon farmer pilot chemist judge")
COUNTRIES = _words("Arvania Belmark Costova Drenland")
FILM_GENRES = _words("comedy western thriller musical")
MUSIC_GENRES = _words("jazz reggae punk folk opera")
PRODUCTS = _words("bicycles umbrellas pianos batteries chocolate")
RIVERS = _words("Lorne Tisk Avenna Bruma")

THINGS: dict[str, tuple[str, ...]] = {
    "person": PEOPLE,
    "film": FILMS,
    "band": BANDS,
    "company": COMPANIES,
    "town": TOWNS,
}

RELATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {"profession": PROFESSIONS, "birthplace": TOWNS},
    "film": {"director": PEOPLE, "film_genre": FILM_GENRES},
    "band": {"music_genre": MUSIC_GENRES, "home": TOWNS},
    "company": {"product": PRODUCTS, "founder": PEOPLE},
    "town": {"country": COUNTRIES, "river": RIVERS},
}

VALUES = {name: values for of_kind in RELATIONS.values() for name, values in of_kind.items()}


def make_facts(seed: int) -> list[Fact]:
    """Every fact of the world of that seed, kind by kind and thing by thing."""
    rng = random.Random(seed)
    return [
        Fact(thing, relation, choose(values, rng))
        for kind, things in THINGS.items()
        for thing in things
        for relation, values in RELATIONS[kind].items()
    ]


def kind_of(thing: str) -> str:
    """The kind a thing is of."""
    return next(kind for kind, things in THINGS.items() if thing in things)
