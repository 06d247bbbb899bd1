"""Writing Hugging Face checkpoints: transformers agrees, and nothing that existed is lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece

from dora_jax.checkpoints import huggingface
from dora_jax.config import T5Config
from dora_jax.data.vocab import Vocabulary

reference = pytest.importorskip("t5_reference")
torch, transformers = reference.torch, reference.transformers

TEXTS = [
    "add ice to the tea and mix it well",
    "heat the tea until it is hot",
    "mix ice and tea in the hat of the cat",
    "a cat sat in the hat and the tea",
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[T5Config, Any]:
    """A v1.1: its configuration and parameters."""
    folder = tmp_path_factory.mktemp("hf")
    return huggingface.load(reference.save_model(reference.make_model("v1.1"), folder))


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unigram model of 28 pieces, as T5's are, with room for 10 sentinels in 48 ids."""
    prefix = tmp_path_factory.mktemp("vocabulary") / "spiece"
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(prefix),
        vocab_size=28,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


def equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 9_000])
def test_what_is_written_has_the_same_logits_in_transformers(
    tmp_path: Path, tokenizer_file: Path, version: str, max_shard_bytes: int
) -> None:
    model = reference.make_model(version)
    config, params = huggingface.load(reference.save_model(model, tmp_path / "in"))
    exported = tmp_path / "out"
    huggingface.save(
        exported,
        config,
        params,
        tokenizer_file,
        extra_ids=10,
        max_shard_bytes=max_shard_bytes,
    )
    files = sorted(exported.glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes == 9_000)
    assert all(file.stat().st_size < max_shard_bytes + 4_000 for file in files)  # headers
    assert len({file.stat().st_mode for file in exported.iterdir()}) == 1
    again = transformers.T5ForConditionalGeneration.from_pretrained(exported).eval()
    rows = reference.random_rows(6, 2, 8, 5)
    with torch.no_grad():
        np.testing.assert_array_equal(
            reference.logits_of(again, *rows), reference.logits_of(model, *rows)
        )
    back_config, back = huggingface.load(exported)
    assert back_config == config
    equal(back, params)


def test_the_written_vocabulary_is_ours(
    tmp_path: Path, network: tuple[T5Config, Any], tokenizer_file: Path
) -> None:
    config, params = network
    huggingface.save(tmp_path / "out", config, params, tokenizer_file, extra_ids=10)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Vocabulary.load(tokenizer_file, 10)
    assert len(theirs) == ours.size
    for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert theirs(text).input_ids == [*ids, 1]
    sentinels = [f"<extra_id_{i}>" for i in range(10)]
    assert tuple(theirs.convert_tokens_to_ids(sentinels)) == ours.sentinel_ids


def test_a_checkpoint_is_replaced_whole_and_nothing_else_ever(
    tmp_path: Path,
    network: tuple[T5Config, Any],
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, params = network
    target = tmp_path / "out"

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(huggingface, "save_file", full_disk)
        with pytest.raises(OSError, match="No space"):
            huggingface.save(target, config, params, tokenizer_file, extra_ids=10)
        assert not target.exists()
    huggingface.save(target, config, params, tokenizer_file, extra_ids=10)
    doubled = jax.tree.map(lambda array: 2 * array, params)
    with monkeypatch.context() as broken:
        broken.setattr(huggingface, "save_file", full_disk)
        with pytest.raises(OSError, match="No space"):
            huggingface.save(target, config, doubled, tokenizer_file, extra_ids=10)
    equal(huggingface.load(target)[1], params)
    huggingface.save(target, config, doubled, tokenizer_file, extra_ids=10)
    equal(huggingface.load(target)[1], doubled)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    # A writer that was killed between its two renames: the old checkpoint comes back first.
    target.rename(tmp_path / "out.old")
    with monkeypatch.context() as broken:
        broken.setattr(huggingface, "save_file", full_disk)
        with pytest.raises(OSError, match="No space"):
            huggingface.save(target, config, params, tokenizer_file, extra_ids=10)
    equal(huggingface.load(target)[1], doubled)

    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"it has thesis\.tex"):
        huggingface.save(thesis, config, params, tokenizer_file, extra_ids=10)
    assert (thesis / "thesis.tex").exists()


def test_networks_and_vocabularies_that_do_not_fit_are_not_written(
    tmp_path: Path, network: tuple[T5Config, Any], tokenizer_file: Path
) -> None:
    config, params = network
    with pytest.raises(ValueError, match="vocab_size = 48.*128 ids"):
        huggingface.save(tmp_path / "out", config, params, tokenizer_file, extra_ids=100)
    strange = dataclasses.replace(config, mlp_activations=("relu", "gelu"))
    with pytest.raises(ValueError, match="transformers has no T5"):
        huggingface.save(tmp_path / "out", strange, params, tokenizer_file, extra_ids=10)
    assert not list(tmp_path.iterdir())
