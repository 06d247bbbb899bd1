"""The bundled WLP sample: reproducible, well formed, and hard in the ways it claims."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from importlib import resources
from pathlib import Path

import pytest

from dora_jax.metrics.spans import normalise, parse_entities
from dora_jax.tasks.samples.generator import write_splits
from dora_jax.tasks.samples.wlp import SPLITS, finish, inflect, make_rows, split_marks
from dora_jax.tasks.samples.wlp_grammar import GRAMMAR
from dora_jax.tasks.samples.wlp_lexicon import LEXICON
from dora_jax.tasks.wlp import ENTITY_TYPES, WLP

Rows = dict[str, list[dict[str, str]]]
LABELLED = ("train", "validation", "test")


def bundled() -> Path:
    return Path(str(resources.files("dora_jax.data"))) / "sample" / "wlp"


@pytest.fixture(scope="module")
def rows() -> Rows:
    return {
        split: [
            json.loads(line)
            for line in (bundled() / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for split in SPLITS
    }


def test_the_generator_makes_the_bundled_bytes(tmp_path: Path) -> None:
    write_splits(tmp_path, make_rows())
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(made) == {f"{split}.jsonl" for split in SPLITS}
    for name, content in made.items():
        assert content == (bundled() / name).read_bytes(), name


def test_another_seed_makes_other_rows(rows: Rows) -> None:
    assert make_rows(seed=1)["test"] != rows["test"]


def test_counts_fields_and_no_source_twice(rows: Rows) -> None:
    assert {split: len(rows[split]) for split in rows} == SPLITS
    assert all(set(row) == {"source", "target"} for split in LABELLED for row in rows[split])
    assert all(set(row) == {"source"} for row in rows["unlabeled"])
    sources = [row["source"] for split in rows for row in rows[split]]
    assert len(set(sources)) == len(sources)


def test_entities_stand_in_the_source_in_order(rows: Rows) -> None:
    for row in (row for split in LABELLED for row in rows[split]):
        assert WLP.check_target(row["target"]) is None
        source, position = normalise(row["source"]), 0
        for entity, _ in parse_entities(row["target"], ENTITY_TYPES):
            found = source.find(entity, position)
            assert found >= 0, row
            position = found + len(entity)


def test_no_mark_of_the_grammar_is_left(rows: Rows) -> None:
    for row in (row for split in rows for row in rows[split]):
        assert not set("{}<>|~@[]") & set(row["source"]), row
        assert "  " not in row["source"]


def test_lengths_empty_targets_and_types(rows: Rows) -> None:
    words = sorted(len(row["source"].split()) for split in rows for row in rows[split])
    assert 9 <= words[len(words) // 2] <= 14
    assert words[-1] <= 30
    targets = [row["target"] for split in LABELLED for row in rows[split]]
    assert 0.01 < sum(not target for target in targets) / len(targets) < 0.04
    for split in LABELLED:
        counts = Counter(
            kind for row in rows[split] for _, kind in parse_entities(row["target"], ENTITY_TYPES)
        )
        assert set(counts) == set(ENTITY_TYPES)


def words_of(rows: list[dict[str, str]]) -> list[str]:
    return [word.strip(".,:()").lower() for row in rows for word in row["source"].split()]


def test_a_few_hundred_labels_do_not_cover_the_words(rows: Rows) -> None:
    test_words = set(words_of(rows["test"]))
    unseen_in_labels = test_words - set(words_of(rows["train"][:300]))
    unseen_in_text = test_words - set(words_of(rows["unlabeled"]))
    assert len(unseen_in_labels) / len(test_words) > 0.3
    assert len(unseen_in_text) / len(test_words) < 0.1


def test_a_word_list_of_300_labels_does_not_solve_it(rows: Rows) -> None:
    """Even given the gold spans, looking each up among 300 labels is right for under 70 %."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows["train"][:300]:
        for entity, kind in parse_entities(row["target"], ENTITY_TYPES):
            seen[entity.lower()][kind] += 1
    pairs = [p for row in rows["test"] for p in parse_entities(row["target"], ENTITY_TYPES)]
    right = sum(
        entity.lower() in seen and seen[entity.lower()].most_common(1)[0][0] == kind
        for entity, kind in pairs
    )
    assert right / len(pairs) < 0.7


def test_types_depend_on_context(rows: Rows) -> None:
    types: dict[str, set[str]] = defaultdict(set)
    for split in LABELLED:
        for row in rows[split]:
            for entity, kind in parse_entities(row["target"], ENTITY_TYPES):
                types[entity.lower()].add(kind)
    assert types["plate"] == {"Action", "Location"}
    assert types["wash"] == {"Action", "Method", "Reagent"}
    assert types["spin"] == {"Action", "Method"}
    assert types["50 ml"] >= {"Amount", "Size"}
    assert types["filter"] == {"Action", "Device", "Location"}
    assert types["seal"] == {"Action", "Seal"}


def test_grammar_is_closed_and_uses_all_it_has() -> None:
    used = {"SENTENCE"}
    for rules in GRAMMAR.values():
        for rule in rules:
            used.update(re.findall(r"<(\w+)>", rule))
            assert set(re.findall(r"\|([\w-]+)\}", rule)) <= set(ENTITY_TYPES), rule
    assert used == set(GRAMMAR) | set(LEXICON)
    assert not set(GRAMMAR) & set(LEXICON)


def test_spelling() -> None:
    assert [inflect(verb, "ed") for verb in ("wash", "dry", "incubate", "spin", "transfer")] == [
        "washed", "dried", "incubated", "spun", "transferred",
    ]  # fmt: skip
    assert [inflect(verb, "ing") for verb in ("mix", "tap", "shake", "dry")] == [
        "mixing", "tapping", "shaking", "drying",
    ]  # fmt: skip
    marked = finish(" {add|Action}  to a {empty|Modifier} {dish|Location} , then {<3>|Time} .")
    assert marked == "{Add|Action} to an {empty|Modifier} {dish|Location}, then {<3>|Time}."
    assert finish("two {dishs|Location}") == "Two {dishes|Location}"
    assert split_marks("{Add|Action} it to {the dish|Location}.") == (
        "Add it to the dish.",
        "Add [Action] the dish [Location]",
    )
