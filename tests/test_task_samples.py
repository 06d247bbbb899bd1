"""The bundled samples of five tasks: reproducible, true to their worlds, learnable, not trivial."""

from __future__ import annotations

import importlib
import json
import random
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from dora_jax.tasks.samples import fever, nq
from dora_jax.tasks.samples.fever_lexicon import DENIED, KINDS, NONSENSE
from dora_jax.tasks.samples.generator import (
    Grammar,
    Splits,
    choose,
    choose_other,
    draw_splits,
    shuffled,
    write_splits,
)
from dora_jax.tasks.samples.multipit_lexicon import ENDINGS, EVENTS, FILLERS, OPENINGS
from dora_jax.tasks.samples.nq import QUESTIONS
from dora_jax.tasks.samples.world import RELATIONS, THINGS, VALUES, make_facts
from dora_jax.tasks.task import get_task

TASKS = ("fever", "multipit_gen", "multipit_id", "nq", "stanceosaurus")
CLASSIFICATION = ("fever", "multipit_id", "stanceosaurus")
LABELLED = ("train", "validation", "test")
NUM_LABELS = 300  # of a rehearsal


def generator(task: str):  # noqa: ANN201 (a module)
    return importlib.import_module(f"dora_jax.tasks.samples.{get_task(task).folder}")


def bundled(task: str) -> Path:
    return Path(str(resources.files("dora_jax.data"))) / "sample" / get_task(task).folder


@pytest.fixture(scope="module")
def samples() -> dict[str, Splits]:
    return {
        task: {
            path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            for path in bundled(task).iterdir()
        }
        for task in TASKS
    }


# --- Every sample


@pytest.mark.parametrize("task", TASKS)
def test_the_generator_makes_the_bundled_bytes(task: str, tmp_path: Path) -> None:
    write_splits(tmp_path, generator(task).make_rows())
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in bundled(task).iterdir()}
    assert sum(map(len, made.values())) < 300_000


@pytest.mark.parametrize("task", TASKS)
def test_another_seed_makes_other_rows(task: str, samples: dict[str, Splits]) -> None:
    assert generator(task).make_rows(1)["test"] != samples[task]["test"]


@pytest.mark.parametrize("task", TASKS)
def test_counts_fields_and_no_source_twice(task: str, samples: dict[str, Splits]) -> None:
    rows = samples[task]
    assert {split: len(rows[split]) for split in rows} == generator(task).SPLITS
    assert all(set(row) == {"source", "target"} for split in LABELLED for row in rows[split])
    assert all(set(row) == {"source"} for row in rows["unlabeled"])
    sources = [row["source"] for split in rows for row in rows[split]]
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("task", TASKS)
def test_targets_are_legal_and_no_mark_is_left(task: str, samples: dict[str, Splits]) -> None:
    spec = get_task(task)
    for row in (row for split in LABELLED for row in samples[task][split]):
        assert spec.check_target(row["target"]) is None
    for row in (row for split in samples[task].values() for row in split):
        text = " ".join(row.values())
        assert not set("{}<>|~") & set(text)
        assert "  " not in text
        assert text.strip() == text
        assert text.isascii()


@pytest.mark.parametrize("task", CLASSIFICATION)
def test_every_class_is_in_every_split(task: str, samples: dict[str, Splits]) -> None:
    for split in LABELLED:
        counts = Counter(row["target"] for row in samples[task][split])
        assert set(counts) == set(get_task(task).labels)
        assert max(counts.values()) <= 0.6 * counts.total()
        assert min(counts.values()) >= 0.08 * counts.total()


def bag_of_words_accuracy(rows: Splits) -> float:
    """Of a multinomial logistic regression on the words of 300 labelled rows."""
    labels = sorted({row["target"] for row in rows["train"]})
    train, test = rows["train"][:NUM_LABELS], rows["test"]
    bags = [set(re.findall(r"[^\s.]+", row["source"].lower())) for row in train + test]
    index = {word: i for i, word in enumerate(sorted(set().union(*bags[:NUM_LABELS])))}
    words = np.zeros((len(bags), len(index) + 1))
    words[:, -1] = 1.0
    for i, bag in enumerate(bags):
        words[i, [index[word] for word in bag if word in index]] = 1.0
    gold = np.array([labels.index(row["target"]) for row in train + test])
    one_hot, weights = np.eye(len(labels))[gold], np.zeros((len(index) + 1, len(labels)))
    known, asked = words[:NUM_LABELS], words[NUM_LABELS:]
    for _ in range(1000):
        odds = np.exp(known @ weights)
        error = odds / odds.sum(axis=1, keepdims=True) - one_hot[:NUM_LABELS]
        weights -= 0.4 / NUM_LABELS * (known.T @ error + weights)
    return float(np.mean((asked @ weights).argmax(axis=1) == gold[NUM_LABELS:]))


@pytest.mark.parametrize("task", CLASSIFICATION)
def test_words_alone_tell_much_and_not_all(task: str, samples: dict[str, Splits]) -> None:
    targets = Counter(row["target"] for row in samples[task]["test"])
    majority = max(targets.values()) / targets.total()
    assert majority + 0.1 < bag_of_words_accuracy(samples[task]) < 0.93


# --- The made-up world


def test_no_name_of_the_world_is_part_of_another() -> None:
    names = [name.lower() for things in THINGS.values() for name in things]
    assert len(set(names)) == len(names)
    assert not [(a, b) for a in names for b in names if a != b and a in b]


def test_every_thing_has_one_value_of_each_relation() -> None:
    facts = make_facts(3)
    expected = [(t, r) for kind in THINGS for t in THINGS[kind] for r in RELATIONS[kind]]
    assert [(fact.thing, fact.relation) for fact in facts] == expected
    assert all(fact.value in VALUES[fact.relation] for fact in facts)
    assert make_facts(4) != facts == make_facts(3)


def thing_in(text: str) -> tuple[str, str]:
    """(kind, thing) that a text is about: things that are values of others count last."""
    found = [(k, t) for k in THINGS for t in THINGS[k] if t.lower() in text.lower()]
    order = ("film", "band", "company", "person", "town")
    return min(found, key=lambda pair: order.index(pair[0]))


# --- FEVER


def judged(claim: str) -> str:
    """SUPPORTS or REFUTES, from the facts and the words of a claim."""
    kind, thing = thing_in(claim)
    rest = re.sub(re.escape(thing), "", claim, flags=re.IGNORECASE)
    said_kinds = {k for k, names in KINDS.items() if any(rest.endswith(f" {n}.") for n in names)}
    if any(f" {noun}." in rest for noun in NONSENSE):
        true = False
    elif said_kinds:
        true = said_kinds == {kind}
    else:
        values = {v for values in VALUES.values() for v in values if v.lower() in rest.lower()}
        assert len(values) == 1, claim
        true = values <= {fact.value for fact in make_facts(fever.SEED) if fact.thing == thing}
    denied = any(f" {verb} " in claim for verb in DENIED)
    return "SUPPORTS" if true != denied else "REFUTES"


def test_fever_labels_follow_from_the_facts(samples: dict[str, Splits]) -> None:
    rows = [row for split in LABELLED for row in samples["fever"][split]]
    assert [row for row in rows if judged(row["source"]) != row["target"]] == []


# --- Natural Questions


def asked(question: str) -> tuple[str, str, str]:
    """(thing, relation, wording) of a question; a longer wording fits before a shorter one."""
    kind, thing = thing_in(question)
    wordings = [(len(w), r, w) for r in RELATIONS[kind] for w in QUESTIONS[r]]
    fitting = [
        (length, relation, wording)
        for length, relation, wording in wordings
        if question.endswith(wording.format(thing).lower() + "?")
    ]
    _, relation, wording = max(fitting)
    return thing, relation, wording


def test_nq_answers_are_the_facts(samples: dict[str, Splits]) -> None:
    value_of = {(fact.thing, fact.relation): fact.value for fact in make_facts(nq.SEED)}
    for row in (row for split in LABELLED for row in samples["nq"][split]):
        thing, relation, _ = asked(row["source"])
        assert row["target"] == value_of[thing, relation], row


def test_nq_asks_for_labelled_facts_in_other_words(samples: dict[str, Splits]) -> None:
    rows = samples["nq"]
    elsewhere = {asked(row["source"]) for row in rows["train"] + rows["unlabeled"]}
    assert not elsewhere & {asked(row["source"]) for row in rows["test"]}
    known = {asked(row["source"])[:2] for row in rows["train"][:NUM_LABELS]}
    askable = np.mean([asked(row["source"])[:2] in known for row in rows["test"]])
    assert 0.9 < askable < 1.0


def test_nq_is_not_answered_by_one_answer(samples: dict[str, Splits]) -> None:
    """The commonest answer is that of few facts, and asked for no more than chance makes it."""
    facts, test = make_facts(nq.SEED), samples["nq"]["test"]
    of_facts = Counter(fact.value for fact in facts).most_common(1)[0][1] / len(facts)
    assert of_facts < 0.1
    of_questions = Counter(row["target"] for row in test).most_common(1)[0][1] / len(test)
    standard_error = (of_facts * (1 - of_facts) / len(test)) ** 0.5
    assert of_questions < of_facts + 2 * standard_error


# --- MultiPIT


def told(text: str) -> set[tuple[str, ...]]:
    """Every (event, slot, filling, …) that a tweet may tell of."""
    for opening in filter(None, OPENINGS):
        text = text.removeprefix(opening)
    for ending in filter(None, ENDINGS):
        text = text.removesuffix(ending)
    found = set()
    for event, sayings in EVENTS.items():
        for saying in sayings:
            pattern = re.sub(
                r"\\\{(\w+?)(2?)\\\}",
                lambda m: f"(?P<{m[1]}{m[2]}>{'|'.join(FILLERS[m[1]])})",
                re.escape(saying),
            )
            if match := re.fullmatch(pattern, text):
                found.add((event, *map(str, sorted(match.groupdict().items()))))
    return found


def test_multipit_id_says_yes_where_both_tell_the_same(samples: dict[str, Splits]) -> None:
    compared = Counter()
    for row in samples["multipit_id"]["train"] + samples["multipit_id"]["test"]:
        first, second = row["source"].removeprefix("sentence1: ").split(" sentence2: ")
        events, other_events = told(first), told(second)
        assert (row["target"] == "YES") == bool(events & other_events), row
        assert events or other_events
        compared[bool(events and other_events), row["target"]] += 1
    assert compared[True, "NO"] > 50  # only comparing tells these from YES
    assert compared[False, "NO"] > 100


def test_multipit_gen_says_the_same_in_other_words(samples: dict[str, Splits]) -> None:
    rows = samples["multipit_gen"]
    for row in rows["train"] + rows["validation"]:
        assert told(row["source"]) & told(row["target"]), row
        assert row["target"] not in row["source"]
    assert all(row["target"] == row["source"] for row in rows["test"])


def test_every_saying_of_an_event_has_the_same_slots() -> None:
    for event, sayings in EVENTS.items():
        slots = {tuple(sorted(re.findall(r"\{(\w+)\}", saying))) for saying in sayings}
        assert len(slots) == 1, event
        assert len(set(sayings)) == len(sayings) == 6


# --- Stanceosaurus


def test_stances_are_those_of_the_tweet_and_not_of_others(samples: dict[str, Splits]) -> None:
    words = importlib.import_module("dora_jax.tasks.samples.stanceosaurus_lexicon").WORDS
    cues = {"Supporting": words["YES_BARE"], "Refuting": words["NO_TAIL"]}
    hearsay = Counter()
    for row in (row for split in LABELLED for row in samples["stanceosaurus"][split]):
        claim, _, rest = row["source"].removeprefix("claim: ").partition(" tweet: ")
        tweet = rest.partition(" [SEP] ")[0]
        assert (row["target"] == "Querying") == ("?" in tweet), row
        others, but, _ = tweet.partition(" , but ")
        if but:
            said = [stance for stance in cues if others.endswith(cues[stance])]
            assert said in (["Supporting"], ["Refuting"])
            assert {row["target"], *said} == {"Supporting", "Refuting"}, row
            hearsay[row["target"]] += 1
        if row["target"] in ("Supporting", "Querying"):
            assert claim in tweet.replace(" really ", " "), row
    assert min(hearsay["Supporting"], hearsay["Refuting"]) > 20


# --- The generators' own means


def test_draws_are_fair_and_repeat() -> None:
    rng = random.Random(5)
    drawn = Counter(choose("abc", rng) for _ in range(3000))
    assert set(drawn) == set("abc")
    assert min(drawn.values()) > 900
    assert {choose_other("abc", "b", rng) for _ in range(50)} == {"a", "c"}
    orders = {tuple(shuffled("abc", rng)) for _ in range(200)}
    assert len(orders) == 6


def test_a_grammar_expands_by_weight() -> None:
    rules = {"S": ("<W> x @3", "y @USER"), "W": ("v",)}
    grammar = Grammar(rules, {"N": ("n",)}, zipf_offset=1)
    rng = random.Random(5)
    drawn = Counter(grammar.expand("S", rng) for _ in range(4000))
    assert set(drawn) == {"v x", "y @USER"}
    assert drawn["v x"] == pytest.approx(3000, abs=120)


def test_splits_share_no_source_and_skip_refused_draws() -> None:
    numbers = iter([1, 1, 2, None, 2, 3])

    def draw(split: str) -> tuple[str, str] | None:
        number = next(numbers)
        return None if number is None else (f"{number}", split)

    assert draw_splits({"train": 2, "unlabeled": 1}, draw) == {
        "train": [{"source": "1", "target": "train"}, {"source": "2", "target": "train"}],
        "unlabeled": [{"source": "3"}],
    }
