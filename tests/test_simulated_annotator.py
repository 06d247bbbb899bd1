"""The simulated annotator: gold labels, stated errors, and no other model's name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dora_jax.annotators.appended import read_appended
from dora_jax.launch import annotate, sweep_plan
from dora_jax.metrics.spans import parse_entities
from dora_jax.tasks.samples.annotator import (
    MODEL,
    SimulatedAnnotator,
    expected_f1,
    gold_targets,
    with_errors,
)
from dora_jax.tasks.wlp import ENTITY_TYPES, WLP

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "dora_jax/data/sample/wlp"
UNKNOWN = "This sentence is none of the sample's."


@pytest.fixture(scope="module")
def gold() -> dict[str, str]:
    return gold_targets()


def rows_of(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (SAMPLE / f"{split}.jsonl").read_text().splitlines()]


def as_target(entities: list[dict[str, str]]) -> str:
    return " ".join(f"{entity['text']} [{entity['type']}]" for entity in entities)


def test_it_knows_the_gold_of_every_text_of_the_sample(gold: dict[str, str]) -> None:
    for split in ("train", "validation", "test"):
        assert all(gold[row["source"]] == row["target"] for row in rows_of(split))
    unlabelled = [row["source"] for row in rows_of("unlabeled")]
    assert len(unlabelled) == 2600
    assert all(WLP.check_target(gold[source]) is None for source in unlabelled)
    assert sum(bool(gold[source]) for source in unlabelled) > 2500


def test_its_errors_are_as_many_as_stated_and_of_both_kinds(gold: dict[str, str]) -> None:
    wanted = [Counter(parse_entities(target, ENTITY_TYPES)) for target in gold.values()]
    given = [
        Counter((entity["text"], entity["type"]) for entity in with_errors(text, target, 0.15, 0))
        for text, target in gold.items()
    ]
    entities, listed = (sum(each.total() for each in side) for side in (wanted, given))
    right = sum((a & b).total() for a, b in zip(wanted, given, strict=True))
    assert entities > 10_000
    assert 1 - listed / entities == pytest.approx(0.075, abs=0.007)  # dropped
    assert (listed - right) / entities == pytest.approx(0.075, abs=0.007)  # mistyped
    assert expected_f1(0.15) == pytest.approx(88.31, abs=0.01)  # 2 · 0.85 / 1.925
    assert 100 * 2 * right / (entities + listed) == pytest.approx(expected_f1(0.15), abs=0.7)


def test_its_errors_belong_to_text_and_seed(gold: dict[str, str]) -> None:
    source = max(gold, key=lambda text: len(gold[text]))
    target = gold[source]
    assert as_target(with_errors(source, target, 0.0, 3)) == target
    assert with_errors(source, target, 0.5, 3) == with_errors(source, target, 0.5, 3)
    assert with_errors(source, target, 0.5, 3) != with_errors(source, target, 0.5, 4)
    wrong = with_errors(source, target, 1.0, 3)
    pairs = {(entity["text"], entity["type"]) for entity in wrong}
    assert not pairs & set(parse_entities(target, ENTITY_TYPES))


@pytest.fixture
def clean_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("DORA_DATA_DIR", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("clean_home")
def test_labels_bought_from_it_bear_its_name_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gold: dict[str, str]
) -> None:
    pool, output = tmp_path / "pool.jsonl", tmp_path / "labels.jsonl"
    sources = [row["source"] for row in rows_of("unlabeled")[:15]]
    texts = [*sources, UNKNOWN]
    pool.write_text("".join(json.dumps({"source": text}) + "\n" for text in texts))
    given = ["--task=wlp", "--shots=2", "--audit=5", f"--pool={pool}", f"--output={output}"]
    given += ["--usd_per_million_input_tokens=0.5", "--usd_per_million_output_tokens=1.5"]
    with SimulatedAnnotator(0, 0.0, 0) as server:
        given.append(f"--base_url={server.base_url}")
        assert annotate.main([*given, f"--model={MODEL}"]) == 0
        told = capsys.readouterr().out
        other = f"--output={tmp_path / 'other.jsonl'}"
        assert annotate.main([*given, other, "--model=gpt-4o-mini"]) == 2
    assert "the only model is 'simulated'" in capsys.readouterr().err
    rows, _ = read_appended(output)
    assert {row["source"]: row["target"] for row in rows} == {s: gold[s] for s in sources}
    assert {row["annotator"] for row in rows} == {f"llm:{MODEL}"}
    assert "micro_f1 100.0" in told
    aside, _ = read_appended(tmp_path / "labels.set_aside.jsonl")
    assert [row["source"] for row in aside] == [UNKNOWN]
    assert "none of WLP's bundled sample" in aside[0]["complaint"]


def test_a_sweep_over_its_labels_has_no_run_twice() -> None:
    """Who learns from one kind of labels alone is run once for all numbers of the other."""
    path = ROOT / "gin/sweeps/wlp_llm.gin"
    runs = sweep_plan.make(path, "rehearsal", []).runs
    places = Counter(run.config.strategies for run in runs)
    assert places == {("pretrain",): 1, ("annotate",): 3, ("llm",): 3, ("llm_human",): 9}
    labels = {
        strategy: sorted(
            {
                (run.config.data.num_labels, run.config.llm.num_labels)[strategy == "llm"]
                for run in runs
                if run.config.strategies == (strategy,)
            }
        )
        for strategy in ("annotate", "llm")
    }
    assert labels == {"annotate": [75, 200, 600], "llm": [150, 600, 2400]}
