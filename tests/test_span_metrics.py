"""Span metrics against hand counts, definitions and known properties; the bootstrap."""

from __future__ import annotations

import functools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from metric_references import precision_recall_f1

from dora_jax.metrics.bootstrap import bootstrap_intervals, paired_bootstrap
from dora_jax.metrics.precision_recall import micro_macro
from dora_jax.metrics.scores import Scores
from dora_jax.metrics.spans import (
    measure_spans,
    paper_statistics,
    parse_entities,
    span_statistics,
)

TYPES = ("Action", "Reagent", "Location")
PAPER_TYPES = ("AMOUNT", "ACTION", "REAGENT", "LOCATION")


def strict(targets: list[str], predictions: list[str]) -> dict[str, float]:
    return averages(span_statistics(targets, predictions, TYPES))


def averages(statistics_NC: np.ndarray) -> dict[str, float]:
    counts_RL3 = statistics_NC.sum(axis=0).reshape(1, -1, 3)
    return {name: float(value[0]) for name, value in micro_macro(counts_RL3).items()}


def paper(targets: list[str], predictions: list[str]) -> tuple[dict[str, float], int]:
    """The metrics of the authors' script, and how many gold entities its parser keeps."""
    statistics_NC = paper_statistics(targets, predictions, PAPER_TYPES)
    return averages(statistics_NC), int(statistics_NC[:, 2::3].sum())


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("", []),
        ("Add [Action] lysis buffer [Reagent]", [("Add", "Action"), ("lysis buffer", "Reagent")]),
        ("Add[Action]  tube [Location] ", [("Add", "Action"), ("tube", "Location")]),
        ("[viral] fraction [Reagent]", [("[viral] fraction", "Reagent")]),
        ("T-75 [Act [Location]", [("T-75 [Act", "Location")]),
        ("Add [Action] [6.2] [Location]", [("Add", "Action"), ("[6.2]", "Location")]),
        ("Add [Action] the rest", [("Add", "Action")]),
        ("[Action] [Action]", [("", "Action"), ("", "Action")]),
        ("Add [action]", []),
        ("Q5® Kit™ [Reagent]", [("Q5® KitTM", "Reagent")]),
    ],
)
def test_parse(text: str, entities: list[tuple[str, str]]) -> None:
    assert parse_entities(text, TYPES) == entities


def test_strict_counts_pairs_as_a_multiset() -> None:
    # Gold has 4 pairs. Predicted: "tube" twice where the gold has it once, one wrong type.
    gold = "Add [Action] DNA [Reagent] tube [Location] wash [Reagent]"
    predicted = "Add [Action] tube [Location] tube [Location] wash [Action] DNA [Reagent]"
    metrics = strict([gold], [predicted])
    assert metrics["micro_precision"] == pytest.approx(100 * 3 / 5)
    assert metrics["micro_recall"] == pytest.approx(100 * 3 / 4)
    assert metrics["micro_f1"] == pytest.approx(100 * 6 / 9)
    # Action 1 of 2 predicted and 1 gold; Reagent 1 of 1 and 2; Location 1 of 2 and 1.
    assert metrics["macro_precision"] == pytest.approx(100 * (1 / 2 + 1 + 1 / 2) / 3)
    assert metrics["macro_recall"] == pytest.approx(100 * (1 + 1 / 2 + 1) / 3)
    assert metrics["macro_f1"] == pytest.approx(100 * (2 / 3 + 2 / 3 + 2 / 3) / 3)


def test_strict_order_and_normal_form_do_not_matter() -> None:
    gold = "10 µL [Reagent] tube [Location]"  # U+00B5; NFKC writes U+03BC
    assert strict([gold], ["tube [Location] 10 \u03bcL [Reagent]"])["micro_f1"] == 100.0
    assert strict([gold], ["tube [Location] 10 uL [Reagent]"])["micro_f1"] == 50.0


def test_nothing_predicted_where_nothing_is_costs_nothing() -> None:
    one = strict(["Add [Action]"], ["Add [Action]"])
    assert strict(["Add [Action]", ""], ["Add [Action]", ""]) == one
    assert one["micro_f1"] == one["macro_f1"] == 100.0
    assert strict(["Add [Action]", ""], ["Add [Action]", "Add [Action]"])["micro_precision"] == 50.0
    assert set(strict(["", ""], ["", ""]).values()) == {0.0}
    assert set(strict(["Add [Action]"], [""]).values()) == {0.0}


def test_strict_agrees_with_its_definition_on_one_entity_each() -> None:
    rng = random.Random(0)
    gold = rng.choices(TYPES, weights=(5, 3, 1), k=200)
    guess = [g if rng.random() < 0.6 else rng.choice(TYPES) for g in gold]
    ours = strict([f"x [{g}]" for g in gold], [f"x [{g}]" for g in guess])
    for average in ("micro", "macro"):
        expected = precision_recall_f1(gold, guess, TYPES, average)
        mine = [ours[f"{average}_{name}"] / 100 for name in ("precision", "recall", "f1")]
        assert mine == pytest.approx(expected, abs=1e-12)


def test_paper_scorer_keeps_the_flaws_of_the_script() -> None:
    # "lysis buffer" is kept as "lysis"; "Add" and "tube" both become "", so "tube" replaces "Add".
    gold = "Add [Action] lysis buffer [Reagent] tube [Location]"
    metrics, kept = paper([gold], [gold])
    assert (metrics["micro_f1"], kept) == (100.0, 2)
    # Another last word and spurious entities are not charged; a missing one counts as AMOUNT.
    metrics, _ = paper([gold], ["lysis mix [Reagent] a b [Action]"])
    assert metrics["micro_f1"] == 50.0
    assert metrics["micro_precision"] == metrics["micro_recall"] == 50.0
    metrics, _ = paper(["1 mL [Amount] x y z [Action]"], [""])
    assert metrics["micro_f1"] == 50.0
    # Case is ignored, also that of the tag; the slice of a leading tag is the script's own.
    assert paper(["a b [ACTION]"], ["a b [action]"])[0]["micro_f1"] == 100.0
    assert paper(["[Action] a b"], [""])[1] == 1


def test_paper_macro_is_over_the_classes_seen() -> None:
    rng = random.Random(1)
    # AMOUNT is never gold and LOCATION never predicted: both are classes of the average.
    gold = rng.choices(("ACTION", "REAGENT", "LOCATION"), k=100)
    guess = rng.choices(("AMOUNT", "ACTION", "REAGENT"), k=100)
    ours, _ = paper(
        [f"x y [{g}]" for g in gold],
        ["" if g == "AMOUNT" else f"x y [{g}]" for g in guess],
    )
    expected = precision_recall_f1(gold, guess, PAPER_TYPES, "macro")
    mine = [ours[f"macro_{name}"] / 100 for name in ("precision", "recall", "f1")]
    assert mine == pytest.approx(expected, abs=1e-12)
    # A class that neither has is none of the average.
    alone, _ = paper(["x y [ACTION]"], ["x y [ACTION]"])
    assert alone["macro_f1"] == 100.0


def test_empty_predictions_score_9_25_by_the_paper_on_the_real_test_set() -> None:
    from dora_jax.tasks.task import get_task

    path = Path(os.environ.get("DORA_DATA_DIR", "")) / "wlp" / "wlp_test_all.json"
    if not path.is_file():
        pytest.skip("DORA_DATA_DIR does not name the authors' files: real WLP not scored")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    targets, sources = [r["target"] for r in rows], [r["source"] for r in rows]
    scores = get_task("wlp").score(targets, [""] * len(rows), sources, resamples=10)
    assert scores.paper["micro_f1"] == pytest.approx(100 * 959 / 10368)
    assert scores.notes["paper_gold_entities"] == 10368
    assert scores.notes["gold_entities"] == 23993
    assert scores.value == 0.0


def test_scores_of_a_task() -> None:
    targets = ["Add [Action] DNA [Reagent]", "", "tube [Location]"]
    predictions = ["Add [Action] RNA [Reagent]", "", "tube [Location]"]
    measure = functools.partial(measure_spans, entity_types=TYPES, paper_types=PAPER_TYPES)
    scores = measure(targets, predictions, ["Add DNA.", "Note.", "tube"]).scores(resamples=200)
    assert scores.examples == 3
    assert scores.value == scores.strict["micro_f1"] == pytest.approx(100 * 4 / 6)
    assert (scores.strict["f1/Action"], scores.strict["f1/Reagent"]) == (100.0, 0.0)
    low, high = scores.interval
    assert 0.0 <= low < scores.value < high <= 100.0
    assert scores.notes["predicted_not_in_source"] == 1
    assert scores.notes["examples_without_gold"] == 1
    unknown = measure(targets, predictions, [""] * 3)
    assert unknown.notes["predicted_not_in_source"] == 0
    assert json.loads(json.dumps(scores.to_json()))["intervals"]["micro_f1"] == [low, high]


def test_bad_calls_say_what_is_wrong() -> None:
    measure = functools.partial(measure_spans, entity_types=TYPES, paper_types=PAPER_TYPES)
    with pytest.raises(ValueError, match="2 targets, 1 predictions and 2 sources"):
        measure(["", ""], [""], ["", ""])
    with pytest.raises(ValueError, match="at least one"):
        measure([], [], [])
    with pytest.raises(ValueError, match="'f1' is not among the strict metrics: micro_f1"):
        Scores(1, "f1", {"micro_f1": 0.0}, {}, {}, {})
    accuracy = {"accuracy": np.zeros(1)}
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        bootstrap_intervals(np.zeros((0, 3)), lambda _: accuracy)
    with pytest.raises(ValueError, match="same examples"):
        paired_bootstrap(np.zeros((2, 1)), np.zeros((3, 1)), lambda _: accuracy)


# --- the bootstrap -------------------------------------------------------------------------


def mean_of_first(totals_RC: np.ndarray) -> dict[str, np.ndarray]:
    return {"accuracy": 100.0 * totals_RC[:, 0] / totals_RC[:, 1]}


def hits(right: np.ndarray) -> np.ndarray:
    return np.stack([right, np.ones_like(right)], axis=1).astype(np.float64)


def test_interval_is_that_of_the_normal_approximation() -> None:
    right = np.arange(1000) % 10 < 7
    low, high = bootstrap_intervals(hits(right), mean_of_first, resamples=4000)["accuracy"]
    half = 100 * 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert low == pytest.approx(70 - half, abs=0.2)
    assert high == pytest.approx(70 + half, abs=0.2)


def test_interval_shrinks_with_examples_and_grows_with_confidence() -> None:
    def width(examples: int, confidence: float) -> float:
        right = np.arange(examples) % 2 == 0
        low, high = bootstrap_intervals(
            hits(right), mean_of_first, resamples=2000, confidence=confidence
        )["accuracy"]
        return high - low

    assert width(1600, 0.95) == pytest.approx(width(400, 0.95) / 2, rel=0.1)
    assert width(400, 0.99) > 1.2 * width(400, 0.95)


def test_bootstrap_is_seeded() -> None:
    right = np.arange(100) % 3 == 0
    first, again, other = (
        bootstrap_intervals(hits(right), mean_of_first, resamples=300, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_paired_bootstrap_sees_a_small_steady_gain() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(1000) < 0.5
    better = base | (rng.random(1000) < 0.04)
    result = paired_bootstrap(hits(better), hits(base), mean_of_first, resamples=2000)["accuracy"]
    assert result.difference == pytest.approx(100 * (better.mean() - base.mean()))
    assert result.interval[0] > 0
    assert result.p_value < 0.01
    # Unpaired, the same gain drowns: the two intervals overlap.
    low_better, _ = bootstrap_intervals(hits(better), mean_of_first, resamples=500)["accuracy"]
    _, high_base = bootstrap_intervals(hits(base), mean_of_first, resamples=500)["accuracy"]
    assert low_better < high_base


def test_paired_bootstrap_of_equals_and_of_chance() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.permutation(500) < 250, rng.permutation(500) < 250
    same = paired_bootstrap(hits(a), hits(a), mean_of_first, resamples=100)
    assert same == {"accuracy": (0.0, (0.0, 0.0), 1.0)}
    p_values = []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        a, b = draw.random(300) < 0.5, draw.random(300) < 0.5
        result = paired_bootstrap(hits(a), hits(b), mean_of_first, resamples=300)["accuracy"]
        p_values.append(result.p_value)
    assert 0.25 < np.mean(p_values) < 0.75
    assert sum(p < 0.1 for p in p_values) <= 5
