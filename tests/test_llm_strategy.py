"""Students on a language model's labels: what a run learns from, pays, records and refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_run import NETWORK, ROWS, TRAIN, manifest_of, open_run, sentences, tiny_config

from dora_jax import strategies
from dora_jax.annotators.calls import Spent
from dora_jax.annotators.llm import row_ids
from dora_jax.annotators.receipt import LabelFiles, make_receipt
from dora_jax.annotators.token_prices import TokenPrices, estimate
from dora_jax.config import LlmConfig, RunConfig
from dora_jax.cost.ledger import LedgerRow
from dora_jax.cost.prices import INPUT_TOKENS, OUTPUT_TOKENS, Price
from dora_jax.run_records import RunRecord, read_runs
from dora_jax.shapes import EOS_ID
from dora_jax.stages.llm_labels import llm_labels, with_human
from dora_jax.stages.prepare import prepare
from dora_jax.stages.uncertainty import uncertainty_of

pytestmark = pytest.mark.usefixtures("compiled_cheaply", "one_device")
PRICES = TokenPrices(
    Price("made-up-1", INPUT_TOKENS, 3.0, "test", "2026"),
    Price("made-up-1", OUTPUT_TOKENS, 15.0, "test", "2026"),
)
TOKENS = {"prompt_tokens": 200, "completion_tokens": 20}
ROW_USD = (200 * 3.0 + 20 * 15.0) / 1e6


def write_labels(directory: Path, *, leak: bool = False, **changes: Any) -> Path:
    """Labels of all unlabelled sentences of the tiny store, and their receipt."""
    directory.mkdir(parents=True, exist_ok=True)
    sources, targets = sentences("unlabeled", ROWS["unlabeled"])
    if leak:
        sources, targets = [*sources, sentences("test", 1)[0][0]], [*targets, targets[0]]
    ids = row_ids(sources)
    rows = [
        {"id": row_id, "source": source, "target": target, "usd": ROW_USD, **TOKENS}
        for row_id, source, target in zip(ids, sources, targets, strict=True)
    ]
    files = LabelFiles.beside(directory / "labels.jsonl")
    files.labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    aside = [{**rows[0], "id": "aside"}] * 2  # paid as well, and of no use
    receipt = make_receipt(
        task="wlp",
        annotator={"model": "made-up-1"},
        prices=PRICES,
        labelled=rows,
        set_aside=aside,
        missing=0,
        spent=Spent(),
        estimated=estimate([], {"max_tokens": 5}, PRICES, 0),
        shown=row_ids([*sentences("train", 2)[0], "a text of nobody's"]),
        audit={"rows": 8, "metric": "micro_f1", "value": 75.0, "error_rate": 0.25},
        why_stopped="",
    )
    files.receipt.write_text(json.dumps({**receipt, **changes}))
    return files.labelled


def llm_config(directory: Path, labels: Path, wanted: tuple[str, ...], **llm: Any) -> RunConfig:
    config = LlmConfig(**{"labels": str(labels), "train": TRAIN, **llm})
    return tiny_config(directory, strategies=wanted, llm=config)


class Finished(NamedTuple):
    directory: Path
    rows: list[LedgerRow]
    records: dict[str, RunRecord]
    results: list[strategies.Result]
    lines: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("llm") / "run"
    labels = write_labels(directory.with_name("labels"))
    config = llm_config(directory, labels, ("llm", "llm_human"), num_labels=12)
    lines: list[str] = []
    with open_run(config, report=lines.append) as context:
        results = strategies.run(context)
        rows = context.ledger.rows()
    records = {record.strategy: record for record in read_runs(directory)}
    return Finished(directory, rows, records, results, lines)


def test_half_of_the_labels_cost_half_of_what_all_did(finished: Finished) -> None:
    """Answers that were set aside are paid by those of use: 26 calls for 24 labels."""
    bought = {
        row.unit: row
        for row in finished.rows
        if row.stage == "llm-labels" and row.unit in (INPUT_TOKENS, OUTPUT_TOKENS)
    }
    assert bought[INPUT_TOKENS].tokens == 26 * 200 // 2
    assert bought[OUTPUT_TOKENS].tokens == 26 * 20 // 2
    assert {row.examples for row in bought.values()} == {12}
    paid = sum(row.dollars for row in bought.values())
    assert paid == pytest.approx(13 * ROW_USD)
    assert {row.price_source for row in bought.values()} == {"test"}


def test_each_result_pays_for_its_own_kinds_of_labels(finished: Finished) -> None:
    alone, both = finished.records["llm"], finished.records["llm_human"]
    assert alone.llm_dollars == both.llm_dollars == pytest.approx(13 * ROW_USD)
    assert alone.labels == 3  # those that prompts showed
    assert alone.label_dollars == pytest.approx(3 * 0.26)
    assert both.labels == ROWS["train"]
    assert both.label_dollars == pytest.approx(ROWS["train"] * 0.26)
    assert alone.llm_labels == both.llm_labels == 12
    assert alone.epochs == TRAIN.train_steps * TRAIN.batch_size / 12
    assert alone.value is not None
    assert [result.name for result in finished.results] == ["llm", "llm_human"]
    assert finished.results[0].label_dollars == pytest.approx(3 * 0.26 + 13 * ROW_USD)


def test_the_record_says_whose_labels_they_are_and_how_good(finished: Finished) -> None:
    outputs = manifest_of(finished.directory, "llm-labels")["outputs"]
    assert outputs["model"] == "made-up-1"
    assert outputs["audit"]["error_rate"] == 0.25
    assert any("75.0 on 8 audited texts" in line for line in finished.lines)


def test_shown_labels_that_the_run_has_not_bought_are_told(finished: Finished) -> None:
    """Two of the three that prompts showed are the run's own."""
    (told,) = [line for line in finished.lines if "not bought" in line]
    assert "showed 1 human labels" in told
    assert f"NUM_LABELS={ROWS['train']}" in told


def test_the_same_command_again_buys_and_trains_nothing(finished: Finished) -> None:
    labels = finished.directory.with_name("labels") / "labels.jsonl"
    config = llm_config(finished.directory, labels, ("llm", "llm_human"), num_labels=12)
    with open_run(config) as context:
        strategies.run(context)
        again = [row for row in context.ledger.rows() if row.stage != "launch"]
    assert again == [row for row in finished.rows if row.stage != "launch"]


def test_labels_are_tokenised_as_prepare_does(tmp_path: Path) -> None:
    """The sentences of the unlabelled split, labelled, are its own tokens."""
    labels = write_labels(tmp_path / "labels")
    with open_run(llm_config(tmp_path / "run", labels, ("llm",))) as context:
        store = prepare(context)
        found = llm_labels(context, store)
        both = with_human(store, found)
    split = store.examples("unlabeled")
    known = {bytes(split.source(i)) for i in range(len(split))}
    assert {bytes(found.examples.source(i)) for i in range(len(found.examples))} == known
    targets = sorted(sentences("unlabeled", ROWS["unlabeled"])[1])
    texts = sorted(store.vocabulary.decode(found.examples.target(i).tolist()) for i in range(24))
    # As long as the run's targets may be, and ended.
    assert all(target.startswith(text) for text, target in zip(texts, targets, strict=True))
    assert {len(found.examples.target(i)) for i in range(24)} == {24}
    assert {int(found.examples.target(i)[-1]) for i in range(24)} == {EOS_ID}
    assert len(both.examples) == ROWS["unlabeled"] + ROWS["train"]
    human = store.examples("train")
    assert bytes(both.examples.target(24)) == bytes(human.target(0))


def test_fewer_labels_are_among_more_and_test_texts_are_left_out(tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels", leak=True)
    seen: list[set[bytes]] = []
    lines: list[str] = []
    for count in (5, 10, -1):
        config = llm_config(tmp_path / f"run{count}", labels, ("llm",), num_labels=count)
        with open_run(config, report=lines.append) as context:
            found = llm_labels(context, prepare(context)).examples
        seen.append({bytes(found.source(i)) for i in range(len(found))})
    assert [len(sources) for sources in seen] == [5, 10, 24]
    assert seen[0] < seen[1] < seen[2]
    assert sum("1 texts are left out" in line for line in lines) == 3


def test_labels_that_prompts_showed_are_bought_for_llm_alone(tmp_path: Path) -> None:
    """llm_human has them among its own."""
    labels = write_labels(tmp_path / "labels")
    for wanted, bought in ((("llm_human",), 0), (("llm_human", "llm"), 1), (("llm",), 1)):
        directory = tmp_path / "-".join(wanted)
        with open_run(llm_config(directory, labels, wanted)) as context:
            llm_labels(context, prepare(context))
            rows = context.ledger.rows()
        assert [row.examples for row in rows if row.stage == "llm-shots"] == [3] * bought


@pytest.mark.parametrize(
    ("changes", "llm", "message"),
    [
        ({"task": "fever"}, {}, "LLM_LABELS are of the task 'fever'"),
        ({"rows": {"labelled": 99}}, {}, "its receipt speaks of 99"),
        ({"rows": {"labelled": 0}}, {}, "nothing to learn from"),
        ({}, {"num_labels": 500}, "NUM_LLM_LABELS = 500"),
        ({"rows": None}, {}, "cannot be read"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_any_training(
    tmp_path: Path, changes: dict[str, Any], llm: dict[str, Any], message: str
) -> None:
    labels = write_labels(tmp_path / "labels", **changes)
    config = llm_config(tmp_path / "run", labels, ("llm",), **llm)
    with open_run(config) as context, pytest.raises(ValueError, match=message):
        strategies.run(context)
    assert not (tmp_path / "run" / "pretrain-student").exists()


def test_a_label_that_is_none_of_the_task_is_refused(tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels")
    labels.write_text(labels.read_text().replace("[Action]", "[Acting]", 1))
    with (
        open_run(llm_config(tmp_path / "run", labels, ("llm",))) as context,
        pytest.raises(ValueError, match=r"labels.jsonl:1: the tag \[Acting\] is not known"),
    ):
        strategies.run(context)


def test_the_budget_holds_for_a_language_models_labels_too(tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels")
    config = llm_config(tmp_path / "run", labels, ("llm",))
    config = dataclasses.replace(config, cost=dataclasses.replace(config.cost, budget_usd=0.01))
    with open_run(config) as context, pytest.raises(ValueError, match="lower NUM_LLM_LABELS"):
        strategies.run(context)


def test_settings_that_cannot_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LlmConfig.labels is not set"):
        tiny_config(tmp_path, strategies=("llm",))
    with pytest.raises(ValueError, match='name "distill" beside it'):
        tiny_config(tmp_path, strategies=("llm_distill",), llm=LlmConfig(labels="x"))
    with pytest.raises(ValueError, match="human_share"):
        LlmConfig(human_share=1.0)


@pytest.mark.slow
def test_a_models_uncertainty_does_not_depend_on_the_batch(finished: Finished) -> None:
    """The mean surprise at its own answers: above 0, and a matter of the text alone."""
    prompts = [f"wlp: {text}" for text in sentences("test", 5)[0]]
    stage = str(finished.directory / "llm")
    together, alone = (uncertainty_of(stage, prompts, size) for size in (4, 1))
    backwards = uncertainty_of(stage, prompts[::-1], 4)[::-1]
    assert all(value > 0 for value in together)
    assert len(set(together)) > 1
    assert together == pytest.approx(alone, abs=1e-4)
    assert together == pytest.approx(backwards, abs=1e-4)


@pytest.mark.slow
def test_all_three_sources_in_one_run(tmp_path: Path) -> None:
    """llm_distill learns from the teacher and the soft labels of distill, paid once."""
    labels = write_labels(tmp_path / "labels")
    config = llm_config(tmp_path / "run", labels, ("distill", "llm_distill"))
    with open_run(config) as context:
        results = {result.name: result for result in strategies.run(context)}
        rows = context.ledger.rows()
    assert set(results) == {"teacher", "distill", "llm_distill"}
    assert sum(row.stage == "label" for row in rows) == 1
    assert results["llm_distill"].label_dollars > results["distill"].label_dollars
    gold = manifest_of(tmp_path / "run", "llm_distill")["settings"]["gold"]
    assert gold != manifest_of(tmp_path / "run", "llm-labels")["settings"]["labels"]
    assert NETWORK.vocab_size == 320
