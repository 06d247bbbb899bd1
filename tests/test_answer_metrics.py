"""SQuAD's exact match and F1: hand cases, the official definition, and where strict differs."""

from __future__ import annotations

import random

import pytest
from metric_references import squad

from dora_jax.metrics.answers import mean_token_f1, measure_answers, normalise_answer


def both(target: str, prediction: str) -> dict[str, float]:
    return measure_answers([target], [prediction], [""]).metrics()


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Beatles", "beatles"),
        ("  an  Apple, a day! ", "apple day"),
        ("U.S.A.", "usa"),
        ("1,979", "1979"),
        ("theatre", "theatre"),
        ("The", ""),
        ("Beyoncé", "beyoncé"),
        ("rock-n-roll's", "rocknrolls"),
        ("a-b the_c", "ab thec"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


def test_hand_counts() -> None:
    # "mary j blige" against "mary blige": 2 common of 3 and 2 words.
    metrics = both("Mary J. Blige", "the Mary Blige")
    assert metrics["exact_match"] == 0.0
    assert metrics["f1"] == metrics["paper/f1"] == pytest.approx(100 * 4 / 5)
    # Repeated words count as often as both have them: 2 common of 2 and 4.
    assert both("new new york york", "new new")["f1"] == pytest.approx(100 * 2 * 2 / 6)
    assert both("2008", "In 2008")["exact_match"] == 0.0
    assert both("2008", "2008.")["exact_match"] == 100.0


def test_means_and_notes() -> None:
    measured = measure_answers(["1979", "Paris", "x y"], ["1979", "", "x"], ["", "", ""])
    metrics = measured.metrics()
    assert metrics["exact_match"] == pytest.approx(100 / 3)
    assert metrics["f1"] == pytest.approx(100 * (1 + 0 + 2 / 3) / 3)
    assert measured.notes == {"empty_predictions": 1}
    assert mean_token_f1(["1979", "Paris", "x y"], ["1979", "", "x"]) == metrics["f1"]


def test_where_strict_differs_from_the_official_script() -> None:
    # T5's vocabulary can write neither a ligature nor a no-break space.
    assert both("of\ufb01ce", "office")["exact_match"] == 100.0
    assert both("of\ufb01ce", "office")["paper/exact_match"] == 0.0
    # Both are "" after normalisation: an exact match, of which v1.1 says F1 = 0.
    metrics = both("The", "the.")
    assert (metrics["exact_match"], metrics["f1"]) == (100.0, 100.0)
    assert (metrics["paper/exact_match"], metrics["paper/f1"]) == (100.0, 0.0)


def test_paper_agrees_with_the_official_definition() -> None:
    rng = random.Random(0)
    words = ["the", "The", "a", "an", "Paris", "paris.", "J.", "1,979", "U.S.", "é", "-", "\u2122"]
    targets = [" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(500)]
    predictions = [" ".join(rng.choices(words, k=rng.randint(0, 5))) for _ in range(500)]
    metrics = measure_answers(targets, predictions, [""] * 500).metrics()
    pairs = [squad(t, p) for t, p in zip(targets, predictions, strict=True)]
    exact, f1 = (sum(values) / 5 for values in zip(*pairs, strict=True))
    assert metrics["paper/exact_match"] == pytest.approx(exact, abs=1e-9)
    assert metrics["paper/f1"] == pytest.approx(f1, abs=1e-9)
    assert metrics["f1"] >= f1
