"""How claims of the bundled FEVER sample are worded.

{0} is the thing that a claim is about, {1} what it says of the thing. In `STATEMENTS` and
`KIND_STATEMENTS` {was} is a verb of `AFFIRMED` or `DENIED`.
"""

from __future__ import annotations


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


STATEMENTS: dict[str, tuple[str, ...]] = {
    "profession": (
        "{0} {was} a {1}.",
        "{0} {was} known as a {1}.",
        "The career of {0} {was} that of a {1}.",
        "By trade {0} {was} a {1}.",
        "{0} {was} often hired as a {1}.",
        "{0} {was} trained as a {1}.",
    ),
    "birthplace": (
        "{0} {was} born in {1}.",
        "{0} {was} a native of {1}.",
        "{0} {was} raised in {1}.",
        "The birthplace of {0} {was} {1}.",
        "{1} {was} where {0} grew up.",
        "{0} {was} a child in {1}.",
    ),
    "director": (
        "{0} {was} directed by {1}.",
        "{1} {was} the director of {0}.",
        "{0} {was} a film by {1}.",
        "The director of {0} {was} {1}.",
        "{0} {was} made by {1}.",
        "{0} {was} shot by {1}.",
    ),
    "film_genre": (
        "{0} {was} a {1}.",
        "{0} {was} a {1} film.",
        "{0} {was} reviewed as a {1}.",
        "The film {0} {was} a {1}.",
        "{0} {was} sold as a {1}.",
        "The genre of {0} {was} {1}.",
    ),
    "music_genre": (
        "The music of {0} {was} {1}.",
        "{1} {was} what {0} played.",
        "The songs by {0} {was} {1}.",
        "The first record of {0} {was} {1}.",
        "The style of {0} {was} {1}.",
        "{1} {was} the style of {0}.",
    ),
    "home": (
        "The home of {0} {was} {1}.",
        "{1} {was} where {0} formed.",
        "{1} {was} the home of {0}.",
        "The base of {0} {was} {1}.",
        "The first town of {0} {was} {1}.",
        "{1} {was} where {0} met.",
    ),
    "product": (
        "{0} {was} a maker of {1}.",
        "The main product of {0} {was} {1}.",
        "{0} {was} in the business of {1}.",
        "{0} {was} a seller of {1}.",
        "The company {0} {was} known for {1}.",
        "{0} {was} paid for {1}.",
    ),
    "founder": (
        "{0} {was} founded by {1}.",
        "{1} {was} the founder of {0}.",
        "The founder of {0} {was} {1}.",
        "{0} {was} set up by {1}.",
        "{0} {was} started by {1}.",
        "The first owner of {0} {was} {1}.",
    ),
    "country": (
        "{0} {was} in {1}.",
        "{0} {was} a town in {1}.",
        "{0} {was} part of {1}.",
        "The country of {0} {was} {1}.",
        "{1} {was} the country of {0}.",
        "{0} {was} found in {1}.",
    ),
    "river": (
        "{0} {was} on the {1}.",
        "The river of {0} {was} the {1}.",
        "{0} {was} built on the {1}.",
        "The {1} {was} the river of {0}.",
        "The water of {0} {was} that of the {1}.",
        "{0} {was} near the {1}.",
    ),
}

KIND_STATEMENTS = (
    "{0} {was} {1}.",
    "{0} {was} described as {1}.",
    "{0} {was} the name of {1}.",
    "{0} {was} called {1}.",
)

KINDS: dict[str, tuple[str, ...]] = {
    "person": _phrases("a person; a human being; somebody; an adult"),
    "film": _phrases("a film; a movie; a motion picture; a work for the screen"),
    "band": _phrases("a band; a music group; a group of musicians; an ensemble"),
    "company": _phrases("a company; a business; a firm; an enterprise"),
    "town": _phrases("a town; a place; a settlement; a municipality"),
}

# What nothing of this world is.
NONSENSE = _phrases("a frog; a spoon; an onion; a walrus; a blanket; a cactus; a teapot; a carrot")

AFFIRMED = _phrases("was; is")
DENIED = _phrases("was never; is not; refused to be; failed to be; has nothing to do with being")
