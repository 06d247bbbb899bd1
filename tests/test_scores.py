"""From measurements to scores: families, intervals, comparison, and their JSON."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from dora_jax.metrics.answers import measure_answers
from dora_jax.metrics.classification import measure_classification
from dora_jax.metrics.measurement import Measurement, compare
from dora_jax.metrics.scores import Scores
from dora_jax.metrics.spans import measure_spans
from dora_jax.tasks.task import get_task

LABELS = ("No", "Yes")


def classes(rows: int, seed: int, quality: float) -> Measurement:
    rng = np.random.default_rng(seed)
    gold = np.random.default_rng(0).integers(2, size=rows)
    guess = np.where(rng.random(rows) < quality, gold, 1 - gold)
    return measure_classification(
        [LABELS[g] for g in gold], [LABELS[p] for p in guess], [""] * rows, labels=LABELS
    )


def test_families_are_told_apart_and_both_have_intervals() -> None:
    scores = classes(200, 1, 0.8).scores(resamples=300)
    assert set(scores.intervals) == {*scores.strict, *(f"paper/{name}" for name in scores.paper)}
    assert not any("paper" in name for name in (*scores.strict, *scores.paper))
    for name, (low, high) in scores.intervals.items():
        family = scores.paper if name.startswith("paper/") else scores.strict
        assert 0.0 <= low <= family[name.removeprefix("paper/")] <= high <= 100.0
    # A binary task without junk: both ways count alike, on the same resamples.
    assert scores.intervals["accuracy"] == scores.intervals["paper/accuracy"]


def test_spans_have_an_interval_for_every_metric() -> None:
    gold = ["Add [Action] DNA [Reagent]", "Mix [Action]", "tube [Reagent]"] * 20
    guess = ["Add [Action] RNA [Reagent]", "Mix [Action]", ""] * 20
    scores = measure_spans(
        gold,
        guess,
        [""] * 60,
        entity_types=("Action", "Reagent", "Time"),
        paper_types=("AMOUNT", "ACTION", "REAGENT"),
    ).scores(resamples=200)
    assert set(scores.intervals) == {*scores.strict, *(f"paper/{name}" for name in scores.paper)}
    assert "f1/Action" in scores.intervals and "f1/Time" not in scores.strict


def test_no_resamples_no_intervals() -> None:
    measured = classes(50, 1, 0.8)
    assert measured.scores(resamples=0).intervals == {}
    assert measured.scores(resamples=0).strict == measured.scores(resamples=10).strict
    with pytest.raises(ValueError, match="resamples = -1"):
        measured.scores(resamples=-1)


def test_intervals_are_seeded() -> None:
    measured = classes(100, 1, 0.7)
    first, again, other = (measured.scores(resamples=100, seed=s).intervals for s in (1, 1, 2))
    assert first == again != other


def test_json_holds_everything_and_an_older_one_loads() -> None:
    scores = measure_classification(["No", "Yes"], ["?", "Yes"], ["", ""], labels=LABELS).scores(
        resamples=10
    )
    assert scores.confusion and scores.remarks
    plain = json.loads(json.dumps(scores.to_json()))
    assert Scores.from_json(plain) == scores
    del plain["confusion"], plain["remarks"]
    older = Scores.from_json(plain)
    assert (older.strict, older.confusion, older.remarks) == (scores.strict, {}, ())


def test_comparison_is_a_minus_b_for_every_metric() -> None:
    better, worse = classes(400, 1, 0.9), classes(400, 2, 0.7)
    differences = compare(better, worse, resamples=500)
    assert set(differences) == set(better.metrics())
    for name, paired in differences.items():
        expected = better.metrics()[name] - worse.metrics()[name]
        assert paired.difference == pytest.approx(expected, abs=1e-9)
    assert differences["accuracy"].interval[0] > 0 and differences["accuracy"].p_value < 0.01
    turned = compare(worse, better, resamples=500)["accuracy"]
    low, high = differences["accuracy"].interval
    assert turned.interval == pytest.approx((-high, -low))
    assert compare(better, better, resamples=50)["macro_f1"] == (0.0, (0.0, 0.0), 1.0)


def test_comparison_takes_the_metrics_that_both_have() -> None:
    types = ("Action", "Reagent")

    def spans(guess: str) -> Measurement:
        return measure_spans(
            ["Add [Action]"], [guess], [""], entity_types=types, paper_types=("ACTION",)
        )

    one, two = spans("Add [Action]"), spans("DNA [Reagent]")
    for differences in (compare(one, two, resamples=10), compare(two, one, resamples=10)):
        assert "f1/Action" in differences and "f1/Reagent" not in differences
    with pytest.raises(ValueError, match="same examples"):
        compare(classes(10, 1, 0.5), classes(11, 1, 0.5), resamples=10)


@pytest.mark.parametrize("name", ["wlp", "fever", "stanceosaurus", "multipit_id", "nq"])
def test_the_gold_answers_of_every_task_are_perfect(name: str) -> None:
    task = get_task(name)
    targets = {
        "classification": list(task.labels),
        "spans": [f"some words [{label}]" for label in task.labels],
        "text": ["some words", "1979"],
    }[task.kind]
    sources = ["asked"] * len(targets)
    scores = task.score(targets, targets, sources, resamples=10)
    assert scores.primary == task.primary_metric
    assert scores.value == scores.paper[scores.primary] == 100.0
    assert task.selection_value(targets, targets, sources) == 100.0
    assert task.selection_value(targets, ["?"] * len(targets), sources) == 0.0


def test_ten_thousand_resamples_of_five_thousand_rows_take_about_a_second() -> None:
    measured = measure_answers(["x"] * 5_000, ["x", "y"] * 2_500, [""] * 5_000)
    began = time.process_time()
    measured.scores(resamples=2_000)
    seconds = 5 * (time.process_time() - began)
    assert seconds < 8.0, f"{seconds:.1f} s of CPU; 0.6 s on a quiet machine"
