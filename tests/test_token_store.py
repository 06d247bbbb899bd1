"""The token store: what goes in comes out, whole or not at all, and damage is named."""

import json

import numpy as np
import pytest

from dora_jax.data import token_store
from dora_jax.data.token_store import SPLITS, Split, TokenStore, concatenate, write_token_store
from dora_jax.data.vocab import train_sentencepiece
from dora_jax.shapes import Examples

SOURCES = {
    "train": [[5, 6, 1], [7, 1]],
    "unlabeled": [[8, 9, 10, 1]],
    "validation": [[5, 1]],
    "test": [[6, 1], [7, 8, 1], [9, 1]],
}
TARGETS = {
    "train": [[11, 1], [1]],
    "unlabeled": [[]],
    "validation": [[12, 1]],
    "test": [[1], [13, 14, 1], [1]],
}
TEXTS = {
    "train": (["Add 2 µl\u2028of 水", "Wait"], ["2 µl [Amount]", ""]),
    "unlabeled": (['He said "mix\n"'], [""]),
    "validation": (["Spin"], ["Spin [Action]"]),
    "test": (["a", "b", "c"], ["", "b [Reagent]", ""]),
}


@pytest.fixture(scope="module")
def vocabulary_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "trained.model"
    train_sentencepiece(["add the buffer to the tube and spin it"] * 3, path, 275)
    return path


def splits() -> dict[str, Split]:
    return {
        name: Split(
            *TEXTS[name], Examples(*concatenate(SOURCES[name]), *concatenate(TARGETS[name]))
        )
        for name in SPLITS
    }


@pytest.fixture
def store(tmp_path, vocabulary_file):
    return write_token_store(
        tmp_path / "tokens", splits(), vocabulary_file, 100, {"task": "wlp", "shares": (1, 2)}
    )


def test_what_goes_in_comes_out(store):
    reopened = TokenStore.open(str(store.directory))
    for name in SPLITS:
        examples = reopened.examples(name)
        assert len(examples) == len(SOURCES[name])
        assert [examples.source(i).tolist() for i in range(len(examples))] == SOURCES[name]
        assert [examples.target(i).tolist() for i in range(len(examples))] == TARGETS[name]
        assert (reopened.sources(name), reopened.targets(name)) == TEXTS[name]
    assert reopened.manifest["task"] == "wlp"
    assert reopened.manifest["shares"] == [1, 2]
    assert reopened.vocabulary.size == 375


def test_arrays_are_memory_mapped_and_typed(store):
    examples = store.examples("test")
    assert all(isinstance(array, np.memmap) for array in examples)
    assert [array.dtype for array in examples] == [np.int32, np.int64, np.int32, np.int64]


def test_empty_split_is_legal(tmp_path, vocabulary_file):
    nothing = Split([], [], Examples(*concatenate([]), *concatenate([])))
    store = write_token_store(
        tmp_path / "tokens", splits() | {"unlabeled": nothing}, vocabulary_file, 0, {}
    )
    assert len(store.examples("unlabeled")) == 0
    assert store.sources("unlabeled") == []


def test_fingerprint_follows_content_not_place(tmp_path, vocabulary_file, store):
    def written(name, changed=None, extra_ids=100, **manifest):
        return write_token_store(
            tmp_path / name, splits() | (changed or {}), vocabulary_file, extra_ids, manifest
        ).fingerprint

    other = splits()["train"]._replace(targets=["2 µl [Amount]", "x"])
    assert written("same", anything="else") == store.fingerprint
    assert written("text", {"train": other}) != store.fingerprint
    assert written("sentinels", extra_ids=99) != store.fingerprint


def test_unknown_split_lists_the_known(store):
    for read in (store.examples, store.sources, store.targets):
        with pytest.raises(ValueError, match="'dev'; there are train, unlabeled, validation, test"):
            read("dev")


def test_existing_folder_is_not_touched(store, vocabulary_file):
    before = {file.name: file.read_bytes() for file in store.directory.iterdir()}
    with pytest.raises(ValueError, match="exists already"):
        write_token_store(store.directory, splits(), vocabulary_file, 100, {})
    assert {file.name: file.read_bytes() for file in store.directory.iterdir()} == before


def test_failure_half_way_leaves_nothing(tmp_path, vocabulary_file, monkeypatch):
    def disk_full(file, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_store.np, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_token_store(tmp_path / "tokens", splits(), vocabulary_file, 100, {})
    assert not list(tmp_path.iterdir())


def test_leftover_of_a_killed_run_is_replaced(tmp_path, vocabulary_file):
    leftover = tmp_path / "tokens.tmp"
    leftover.mkdir()
    (leftover / "half.npy").write_bytes(b"half")
    store = write_token_store(tmp_path / "tokens", splits(), vocabulary_file, 100, {})
    assert not leftover.exists()
    assert "half.npy" not in store.manifest["files"]


def test_wrong_input_is_refused(tmp_path, vocabulary_file):
    three = {name: split for name, split in splits().items() if name != "test"}
    with pytest.raises(ValueError, match="has the splits"):
        write_token_store(tmp_path / "tokens", three, vocabulary_file, 100, {})
    uneven = splits() | {"train": splits()["train"]._replace(sources=["only one"])}
    with pytest.raises(ValueError, match="'train' has 1 sources, 2 targets and 2 tokenised"):
        write_token_store(tmp_path / "tokens", uneven, vocabulary_file, 100, {})
    assert not list(tmp_path.iterdir())


def test_folders_that_are_no_store_are_refused(tmp_path, store):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        TokenStore.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        TokenStore.open(tmp_path)
    manifest = store.directory / "manifest.json"
    written = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(written | {"version": 7}))
    with pytest.raises(ValueError, match="version 7, this program reads 1"):
        TokenStore.open(store.directory)
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        TokenStore.open(store.directory)


@pytest.mark.parametrize(
    "name",
    ["train.source_tokens.npy", "test.jsonl", "vocabulary.model", "train.target_offsets.npy"],
)
def test_damaged_file_is_named(store, name):
    file = store.directory / name
    content = bytearray(file.read_bytes())
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{name} is damaged.*bytes = {len(content)}"):
        TokenStore.open(store.directory)
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged.*sha256"):
        TokenStore.open(store.directory)
    file.unlink()
    with pytest.raises(ValueError, match=f"lacks .*{name}"):
        TokenStore.open(store.directory)
