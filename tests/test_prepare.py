"""*prepare*: SeqIO's tokens are the engine's tokens, nothing is lost, and truncation is counted."""

import dataclasses
import json
import os
from typing import Any

import numpy as np
import pytest

from dora_jax.config import DataConfig
from dora_jax.data.token_store import SPLITS, TokenStore
from dora_jax.data.vocab import Vocabulary
from dora_jax.shapes import EOS_ID
from dora_jax.tasks.prepare import answer_words, describe, prepare
from dora_jax.tasks.seqio_registry import native_stderr_held_back, register, seqio
from dora_jax.tasks.sources import load_splits
from dora_jax.tasks.task import get_task

NAMES = ("fever", "multipit_gen", "multipit_id", "nq", "stanceosaurus", "wlp")
WLP = get_task("wlp")
PUBLISHED = os.environ.get("DORA_DATA_DIR", "")
SMALL = DataConfig(num_labels=200, num_unlabeled=300, num_validation=50, num_test=60)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    config = dataclasses.replace(SMALL, source_length=24, vocabulary_pieces=800)
    return prepare(WLP, config, tmp_path_factory.mktemp("prepare") / "tokens", lambda line: None)


def assert_tokens_are_the_vocabularys(store: TokenStore) -> None:
    source_limit = store.manifest["data"]["source_length"]
    target_limit = store.manifest["data"]["target_length"]
    for split in SPLITS:
        examples = store.examples(split)
        sources = store.vocabulary.encode([WLP.prompt_prefix + s for s in store.sources(split)])
        targets = store.vocabulary.encode(store.targets(split))
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            assert examples.source(i).tolist() == [*source[: source_limit - 1], EOS_ID]
            expected = [] if split == "unlabeled" else [*target[: target_limit - 1], EOS_ID]
            assert examples.target(i).tolist() == expected


def test_tokens_equal_the_vocabularys_and_end_with_eos(store):
    assert_tokens_are_the_vocabularys(store)


def test_texts_are_those_of_the_files(store):
    rows = load_splits(WLP, SMALL).rows
    for split in SPLITS:
        assert store.sources(split) == [row.source for row in rows[split]]
        assert store.targets(split) == [row.target for row in rows[split]]


def test_truncation_is_counted_before_it_happens(store):
    for split in SPLITS:
        texts = [WLP.prompt_prefix + source for source in store.sources(split)]
        full = np.array([len(ids) + 1 for ids in store.vocabulary.encode(texts)])
        facts = store.manifest["lengths"][split]["source"]
        assert facts["truncated_rows"] == (full > 24).sum() > 0
        assert facts["truncated_share"] == pytest.approx((full > 24).mean())
        assert facts["max"] == full.max()
        assert facts["p50"] == np.percentile(full, 50, method="higher")
    assert "target" not in store.manifest["lengths"]["unlabeled"]


def test_manifest_records_the_purchase_and_the_origin(store):
    facts = store.manifest
    assert facts["task"] == "wlp"
    assert facts["prompt_prefix"] == "wlp: "
    assert facts["labels"] == 200
    assert facts["price_usd_per_label"] == 0.26
    assert facts["origin"] == "bundled sample"
    assert facts["rows"] == {"train": 200, "unlabeled": 300, "validation": 50, "test": 60}
    assert facts["vocabulary"]["fingerprint"] == store.vocabulary.fingerprint
    assert facts["vocabulary"]["pieces"] == 800


def test_report_tells_sizes_and_truncation(store):
    text = "\n".join(describe(store))
    assert "train 200 · unlabeled 300 · validation 50 · test 60" in text
    count = store.manifest["lengths"]["test"]["source"]["truncated_rows"]
    assert f"truncated to 24 tokens: {count} of the test sources ({count / 60:.2%})" in text


def test_preparing_again_makes_the_same_store(tmp_path, store):
    config = dataclasses.replace(SMALL, source_length=24, vocabulary_pieces=800)
    again = prepare(WLP, config, tmp_path / "again", lambda line: None)
    assert again.fingerprint == store.fingerprint
    assert again.manifest == store.manifest


def test_a_named_vocabulary_is_used_and_kept(tmp_path, store):
    file = tmp_path / "named.model"
    file.write_bytes((store.directory / "vocabulary.model").read_bytes())
    lines = []
    config = dataclasses.replace(SMALL, vocabulary=str(file), num_unlabeled=0)
    named = prepare(WLP, config, tmp_path / "tokens", lines.append)
    file.unlink()
    assert TokenStore.open(named.directory).vocabulary.fingerprint == store.vocabulary.fingerprint
    assert len(named.examples("unlabeled")) == 0
    assert "named.model" in "\n".join(lines)


def test_bad_vocabulary_leaves_no_store(tmp_path):
    config = dataclasses.replace(SMALL, vocabulary_pieces=100_000)
    with pytest.raises(ValueError, match="100000 pieces cannot be trained"):
        prepare(WLP, config, tmp_path / "tokens", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_label_that_the_vocabulary_cannot_write_is_refused(tmp_path, store):
    """SentencePiece takes its own space mark for a space."""
    task = dataclasses.replace(get_task("fever"), labels=("REFUTES", "SUP\u2581PORTS"))
    file = str(store.directory / "vocabulary.model")
    config = dataclasses.replace(SMALL, task="fever", vocabulary=file)
    with pytest.raises(ValueError, match="cannot be written .*: it comes back as 'SUP PORTS'"):
        prepare(task, config, tmp_path / "tokens", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_markers_become_one_piece_each(store):
    marked, plain = store.vocabulary.encode(["buffer [Reagent] mix [Action]", "buffer mix"])
    assert len(marked) == len(plain) + 2


def test_answer_words_are_frequent_and_in_no_source():
    sources = ["the SUPPORTSS case", "mix it"]
    targets = [
        "mix [Action]",
        "a [Action]",
        "SUPPORTS",
        "SUPPORTS",
        "rare",
        "mix [B]",
        "it [B] [B]",
    ]
    assert answer_words(sources, targets, limit=9) == ["[Action]", "[B]"]
    assert answer_words(sources, targets, limit=1) == ["[Action]"]


def test_seqio_knows_the_task_by_its_name(store):
    file = str(store.directory / "vocabulary.model")
    register(WLP, SMALL, file)
    register(WLP, dataclasses.replace(SMALL, num_test=2), file)  # again: the last one holds
    task = seqio.get_mixture_or_task("wlp")
    features = {"inputs": 16, "targets": 8}
    examples = list(task.get_dataset(features, "test", shuffle=False).as_numpy_iterator())
    assert len(examples) == 2
    for example, source in zip(examples, store.sources("test"), strict=False):
        assert example["inputs_pretokenized"].decode() == f"wlp: {source}"
        assert example["inputs"].tolist()[-1] == EOS_ID
        assert len(example["inputs"]) <= 16
        assert len(example["targets"]) <= 8


@pytest.mark.parametrize("name", NAMES)
def test_seqios_evaluator_gives_the_scores_of_the_task(store, name):
    """Gold whole although its tokens are cut, sources as in the files: as `TaskSpec.score`."""
    task = get_task(name)
    data = DataConfig(task=name, num_labels=1, num_unlabeled=0, num_validation=12, num_test=0)
    # Not test: there the targets of multipit_gen are its sources.
    rows = load_splits(task, data).rows["validation"]
    register(task, data, str(store.directory / "vocabulary.model"))
    evaluator = seqio.Evaluator(
        name,
        seqio.EncDecFeatureConverter(pack=False),
        eval_split="validation",
        sequence_length={"inputs": 16, "targets": 8},
        async_compute_metrics=False,
    )
    # What a model writes: the gold of the first half, that of other rows for the second.
    written = [row.target for row in [*rows[:6], *rows[1:7]]]
    tokens = store.vocabulary.encode(written)
    padded = [[*ids, EOS_ID, *[0] * (200 - len(ids))] for ids in tokens]

    def predict(dataset):
        return [(int(i), padded[int(i)]) for i, _ in dataset.as_numpy_iterator()]

    predict_fn: Any = predict  # SeqIO's protocol asks for a second argument that it never gives
    results, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict_fn)
    found = results.result()[name]
    golds, sources = [row.target for row in rows], [row.source for row in rows]
    wanted = task.score(golds, written, sources, resamples=0)
    expected = {f"strict/{metric}": value for metric, value in wanted.strict.items()}
    expected |= {f"paper/{metric}": value for metric, value in wanted.paper.items()}
    assert found == pytest.approx(expected)
    assert 0 < found[f"strict/{wanted.primary}"] < 100


def test_what_seqios_metrics_compare(store):
    task = register(WLP, SMALL, str(store.directory / "vocabulary.model"))
    example = {"source": b"2 ul", "targets_pretokenized": "2 µl [Amount]".encode()}
    gold = task.postprocess_fn("2", example=example, is_target=True)
    assert gold == ("2 ul", "2 µl [Amount]")
    assert task.postprocess_fn("2", example=example, is_target=False) == "2"


# Every task


@pytest.mark.parametrize("name", NAMES)
def test_truncated_rows_of_every_task_are_told(tmp_path, name):
    task = get_task(name)
    data = DataConfig(
        task=name,
        num_labels=60,
        num_unlabeled=60,
        num_validation=10,
        num_test=30,
        source_length=8,
        target_length=2,
        vocabulary_pieces=400,
    )
    lines: list[str] = []
    facts = prepare(task, data, tmp_path / "tokens", lines.append).manifest
    share = facts["lengths"]["train"]["source"]["truncated_share"]
    assert 0 < share <= 1
    assert f"of the train sources ({share:.2%}), the longest of " in "\n".join(lines)
    assert facts["task_kind"] == task.kind
    assert tuple(facts["task_labels"]) == task.labels
    assert facts["prompt_prefix"] == task.prompt_prefix
    if task.kind == "classification":
        counts = facts["label_counts"]["train"]
        assert sum(counts.values()) == 60
        told = " · ".join(f"{label} {count}" for label, count in counts.items())
        assert f"labels: {told}" in lines
    else:
        assert facts["label_counts"] == {}


def test_leaks_and_skipped_rows_are_told(tmp_path):
    folder = tmp_path / "data" / "fever"
    folder.mkdir(parents=True)
    rows = [{"source": f"Claim {i} is true.", "target": "SUPPORTS"} for i in range(80)]
    bad = [{"source": "x", "target": "supports"}] * 3
    for split, members in {"train": rows[:70] + bad, "dev": rows[60:]}.items():
        lines = "".join(json.dumps(row) + "\n" for row in members)
        (folder / f"fever_{split}_all.json").write_text(lines)
    data = DataConfig(
        task="fever",
        data_dir=str(tmp_path / "data"),
        num_labels=40,
        on_bad_row="skip",
        vocabulary_pieces=300,
    )
    store = prepare(get_task("fever"), data, tmp_path / "tokens", lambda line: None)
    seen = store.manifest["test_rows_also_in_train_or_unlabeled"]
    assert 0 < seen <= 10
    text = "\n".join(describe(store))
    assert f"warning: {seen} of the 20 test texts ({seen / 20:.2%}) are also in the train" in text
    assert "bad rows left out: 3\n" in text
    assert "fever_train_all.json:71: the label 'supports' is not known" in text
    assert "(3 rows)" in text
    assert "validation texts are also in train" not in text


def test_native_chatter_is_held_back_unless_something_fails(capfd):
    with native_stderr_held_back():
        os.write(2, b"chatter")
    assert capfd.readouterr().err == ""
    with pytest.raises(RuntimeError), native_stderr_held_back():
        os.write(2, b"the reason")
        raise RuntimeError
    os.write(2, b", and after")
    assert capfd.readouterr().err == "the reason, and after"


def test_prepare_on_the_published_files(tmp_path):
    if not PUBLISHED:
        pytest.skip("DORA_DATA_DIR is not set: the published WLP files were not prepared.")
    config = DataConfig(data_dir=PUBLISHED, num_labels=1000, vocabulary_pieces=4000)
    store = prepare(WLP, config, tmp_path / "tokens", lambda line: None)
    assert_tokens_are_the_vocabularys(store)
    assert store.manifest["labels"] == len(store.targets("train")) == 1000
    texts = [t for s in SPLITS for t in (*store.sources(s), *store.targets(s))]
    assert "µ" in "".join(texts)
    assert "μ" in "".join(texts)
    decode = Vocabulary.load(store.directory / "vocabulary.model", 100).decode
    assert [decode(ids) for ids in store.vocabulary.encode(texts)] == texts
    empty = [i for i, target in enumerate(store.targets("test")) if not target]
    assert len(empty) == 21
    assert {tuple(store.examples("test").target(i)) for i in empty} == {(EOS_ID,)}
    assert json.loads((store.directory / "manifest.json").read_text())["labels"] == 1000
