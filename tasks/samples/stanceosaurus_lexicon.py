"""Rumours, and the grammar of tweets on them, of the bundled Stanceosaurus sample.

A rule is text with `<SYMBOL>`s to expand, and `{subject}` and `{event}` of the rumour; `@3` at
the end of a rule gives it three times the weight of its neighbours. All rumours are made up.
"""

from __future__ import annotations


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


# (subject, event): "the harbour clock" "runs backwards at night".
RUMOURS: tuple[tuple[str, str], ...] = tuple(
    (subject, event)
    for subject, event in (
        line.split(" | ")
        for line in _phrases(
            "the harbour clock | runs backwards at night; walnut tea | cures hay fever in a day;"
            " the Velmora tunnel | was dug by a circus; blue street lamps | keep pigeons awake;"
            " the Jundal zoo | sold its last camel; tram line nine | follows a buried river;"
            " canned pears | glow in the dark; the new stamps | are printed with beet juice;"
            " the Kesselby lake | has no bottom; barefoot skating | strengthens the teeth;"
            " the town hall carpet | hides a safe; wool socks | attract lightning;"
            " the Thornwick bakery | puts sawdust into bread; old cassette tapes | repel moths;"
            " the lighthouse keeper | won the lottery twice; onion soup | makes hair curl;"
            " the Piresso marathon | was two miles short; plastic spoons | were banned in May;"
            " the moon festival | was paid for by a bank; wind turbines | scare trout away"
        )
    )
)

GRAMMAR: dict[str, tuple[str, ...]] = {
    # Flatter than in the corpus, where 1 row in 100 asks: macro-F1 needs rows of each class.
    "STANCE": (
        "Discussing @28",
        "Irrelevant @24",
        "Supporting @20",
        "Refuting @16",
        "Querying @12",
    ),
    "OPENING": (" @3", "@USER @2", "@USER @USER", "RT @USER :", "<INTERJECTION> ,"),
    "ENDING": (" @3", "HTTPURL @2", "<HASHTAG>", "HTTPURL <HASHTAG>"),
    "SUPPORTING": (
        "<YES_CUE> {subject} {event} <TRAIL>",
        "{subject} {event} , <YES_TAIL>",
        "{subject} really {event} , <YES_TAIL>",
        "<YES_TAIL> . {subject} {event} <TRAIL>",
    ),
    "REFUTING": (
        "<NO_CUE> {subject} {event} <TRAIL>",
        "the story that {subject} {event} <NO_TAIL>",
        "the rumour about {subject} <NO_TAIL>",
        "<NO_CUE> {subject} {event} . it <NO_TAIL>",
    ),
    "QUERYING": (
        "<ASK_CUE> {subject} {event} ?",
        "{subject} {event} ? <ASK_TAIL> ?",
        "<ASK_TAIL> ? I read that {subject} {event}",
        "<ASK_TAIL> ? {subject} {event} <TRAIL> ?",
    ),
    "DISCUSSING": (
        "<NEWS_CUE> {subject} <NEWS_TAIL>",
        "<NEWS_CUE> whether {subject} {event} <TRAIL>",
        "<NEWS_CUE> the claim that {subject} {event}",
        "<NEWS_CUE> {subject} <TRAIL>",
    ),
    "IRRELEVANT": (
        "<CHAT> <CHAT_TAIL> @2",
        "<CHAT> near {subject} <CHAT_TAIL>",
        "<CHAT> , forget {subject} , <CHAT_TAIL>",
        "{subject} or not , <CHAT> <CHAT_TAIL>",
    ),
    "HEARSAY_SUPPORTING": ("<OTHERS> <SWEAR> it <YES_BARE>",),
    "HEARSAY_REFUTING": ("<OTHERS> <SWEAR> it <NO_TAIL>",),
}

WORDS: dict[str, tuple[str, ...]] = {
    "YES_CUE": _phrases(
        "it is true that; confirmed :; I saw it myself ,; as I always said ,; fact :; no doubt ,;"
        " proof at last that; yes indeed ,; we can be sure that; told you so :; they finally admit"
        " that; my own eyes say"
    ),
    "YES_TAIL": _phrases(
        "100 percent real; and I can prove it; as everybody knows; I was there; that is how it is;"
        " the photos prove it; believe me; case closed; my doctor confirmed it; I knew it"
    ),
    "YES_BARE": _phrases("is real; is true; is proven; is a fact; is certain; happened"),
    "NO_CUE": _phrases(
        "it is not true that; fake news :; stop saying that; there is no evidence that; it is a"
        " lie that; only fools believe that; it is a myth that; wrong :; nobody ever proved that;"
        " please do not spread that; it is nonsense that; hoax alert :"
    ),
    "NO_TAIL": _phrases(
        "was debunked; is a hoax; is made up; was denied by experts; is total rubbish; was never"
        " true; is fake; was a joke; has been disproved; is false"
    ),
    "ASK_CUE": _phrases(
        "is it true that; can anyone confirm that; does anyone know if; who can tell me if; did"
        " somebody check if; am I the only one asking if; has anyone looked into whether; how do we"
        " know that; where is it written that"
    ),
    "ASK_TAIL": _phrases(
        "any source; can that be right; who says so; is this for real; really; does someone have a"
        " link; what should I believe; honest question"
    ),
    "NEWS_CUE": _phrases(
        "an article on; reading about; long thread on; the council will talk about; a reporter asks"
        " about; podcast tonight :; people in the queue discuss; two views on; tomorrow's panel is"
        " about; a short history of; the paper writes about; some thoughts on"
    ),
    "NEWS_TAIL": _phrases(
        "and what it means for the town; in this week's issue; and who talks about it; with many"
        " comments; from both sides; and the reactions so far; in three charts; and the debate"
    ),
    "CHAT": _phrases(
        "my cat stole the ham; selling two bicycles; the football was awful; I miss the summer;"
        " need a new phone; pizza for dinner; the rent went up; happy birthday grandma; stuck in"
        " traffic; vote for my cousin; new haircut day; exam week is here; rainy holiday; the gym"
        " is full; cheap flights"
    ),
    "CHAT_TAIL": _phrases(
        "and I am tired; lol; what a week; send cake; wish me luck; best day ever; call me; who"
        " wants to come along; as usual; good night all"
    ),
    "TRAIL": _phrases("today; again; by the way; this year; as of now; apparently; here"),
    "OTHERS": _phrases(
        "they all; my uncle will; the neighbours; some people; half the town will; the radio hosts;"
        " my old teacher will; his fans"
    ),
    "SWEAR": _phrases("swear; say; insist; repeat; shout; write; think"),
    "INTERJECTION": _phrases("well; ok; hey; listen; hmm; folks; sigh; wow"),
    "HASHTAG": _phrases("#news; #rumour; #today; #smalltown; #thread; #justsaying; #weekend"),
}
