"""Class metrics against hand counts and the definitions, and the authors' arithmetic."""

from __future__ import annotations

import random

import numpy as np
import pytest
from metric_references import authors_classes, authors_macro, precision_recall_f1

from dora_jax.metrics.classification import UNPARSABLE, measure_classification, parse_class
from dora_jax.tasks.task import get_task

LABELS = ("No", "Yes", "Maybe")
NAMES = ("precision", "recall", "f1")

# As the authors' script numbers them.
AUTHORS = {
    "fever": {"SUPPORTS": 1, "REFUTES": 0},
    "multipit_id": {"YES": 1, "NO": 0},
    "stanceosaurus": {
        "IRRELEVANT": 0,
        "SUPPORTING": 1,
        "REFUTING": 2,
        "DISCUSSING": 3,
        "QUERYING": 4,
    },
}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Yes", "Yes"),
        (" yes\n", "Yes"),
        ("ＹＥＳ", "Yes"),  # NFKC
        ("Yes.", None),
        ("Yes Yes", None),
        ("", None),
        ("Nope", None),
    ],
)
def test_answers_are_read_without_regard_to_case_and_spaces(answer: str, label: str | None) -> None:
    assert parse_class(answer, LABELS) == label


def test_labels_that_differ_in_case_alone_are_told_apart() -> None:
    assert parse_class("US", ("us", "US")) == "US"
    assert parse_class("us", ("us", "US")) == "us"
    assert parse_class("Us", ("us", "US")) is None


def test_hand_counts() -> None:
    gold = ["Yes", "Yes", "Yes", "No", "No"]
    guess = ["Yes", "No", "perhaps", "No", "Yes"]
    measured = measure_classification(gold, guess, [""] * 5, labels=LABELS)
    metrics = measured.metrics()
    # Right: one Yes, one No. "perhaps" is a prediction of nothing.
    assert metrics["accuracy"] == pytest.approx(100 * 2 / 5)
    assert metrics["micro_precision"] == pytest.approx(100 * 2 / 4)
    assert metrics["micro_recall"] == pytest.approx(100 * 2 / 5)
    # Yes: 1 of 2 predicted, 1 of 3 gold, F1 2/5; No: 1 of 2, 1 of 2, F1 1/2; Maybe: 0.
    assert metrics["f1/Yes"] == pytest.approx(100 * 2 / 5)
    assert metrics["macro_precision"] == pytest.approx(100 * (1 / 2 + 1 / 2) / 3)
    assert metrics["macro_recall"] == pytest.approx(100 * (1 / 3 + 1 / 2) / 3)
    assert metrics["macro_f1"] == pytest.approx(100 * (2 / 5 + 1 / 2) / 3)
    # Paper: "perhaps" is a No, and no one has seen Maybe. No: 1 of 3, 1 of 2, F1 2/5.
    assert metrics["paper/accuracy"] == pytest.approx(100 * 2 / 5)
    assert metrics["paper/macro_precision"] == pytest.approx(100 * (1 / 2 + 1 / 3) / 2)
    assert metrics["paper/macro_f1"] == pytest.approx(100 * (2 / 5 + 2 / 5) / 2)
    assert measured.notes == {"unparsable": 1}
    assert "1 of 5 predictions" in measured.remarks[0] and "'perhaps' (1)" in measured.remarks[0]
    assert measured.confusion == {
        "No": {"No": 1, "Yes": 1, "Maybe": 0, UNPARSABLE: 0},
        "Yes": {"No": 1, "Yes": 1, "Maybe": 0, UNPARSABLE: 1},
        "Maybe": {"No": 0, "Yes": 0, "Maybe": 0, UNPARSABLE: 0},
    }


def test_an_unparsable_answer_is_wrong_where_the_paper_may_call_it_right() -> None:
    metrics = measure_classification(["No"], ["?"], [""], labels=LABELS).metrics()
    assert (metrics["accuracy"], metrics["paper/accuracy"]) == (0.0, 100.0)


@pytest.mark.parametrize("name", AUTHORS)
@pytest.mark.parametrize("seed", range(5))
def test_both_ways_agree_with_their_definitions(name: str, seed: int) -> None:
    task, rng = get_task(name), random.Random(seed)
    weights = range(len(task.labels), 0, -1)
    gold = rng.choices(task.labels[seed % 2 :], weights=weights[seed % 2 :], k=200)
    junk = ["", "none of these", task.labels[-1].lower(), f" {task.labels[0]} "]
    guess = [rng.choice([g, g, *task.labels, *junk]) for g in gold]
    metrics = task.measure(gold, guess, [""] * 200).metrics()

    parsed = [parse_class(answer, task.labels) or "?" for answer in guess]
    right = sum(g == p for g, p in zip(gold, parsed, strict=True))
    assert metrics["accuracy"] == pytest.approx(100 * right / 200, abs=1e-9)
    for average in ("micro", "macro"):
        expected = precision_recall_f1(gold, parsed, task.labels, average)
        ours = [metrics[f"{average}_{metric}"] / 100 for metric in NAMES]
        assert ours == pytest.approx(expected, abs=1e-11)

    paper = {k.removeprefix("paper/"): v for k, v in metrics.items() if k.startswith("paper/")}
    numbers, answers = (authors_classes(texts, AUTHORS[name]) for texts in (gold, guess))
    hits = 100 * np.mean(np.array(numbers) == np.array(answers))
    if name == "stanceosaurus":
        expected = authors_macro(numbers, answers)
        assert [paper[f"macro_{metric}"] / 100 for metric in NAMES] == pytest.approx(
            expected, abs=1e-11
        )
        assert [paper[f"micro_{metric}"] for metric in NAMES] == pytest.approx([hits] * 3, abs=1e-9)
        assert len(paper) == 6
    else:
        assert paper == {"accuracy": pytest.approx(hits, abs=1e-9)}


def test_an_unknown_gold_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"example 1 is 'Perhaps', .* No, Yes, Maybe"):
        measure_classification(["No", "Perhaps"], ["No", "No"], ["", ""], labels=LABELS)
    with pytest.raises(ValueError, match="1 targets, 2 predictions and 1 sources"):
        measure_classification(["No"], ["No", "No"], [""], labels=LABELS)
    with pytest.raises(ValueError, match="at least one"):
        measure_classification([], [], [], labels=LABELS)


def test_a_class_that_never_occurs_in_a_resample_divides_by_nothing() -> None:
    measured = measure_classification(["No", "Yes"], ["Yes", "Yes"], ["", ""], labels=LABELS)
    intervals = measured.scores(resamples=200).intervals
    assert np.isfinite(list(intervals.values())).all()
    assert intervals["accuracy"] == (0.0, 100.0)
