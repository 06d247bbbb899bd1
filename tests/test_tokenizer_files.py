"""Our vocabularies in transformers' hands: the same ids for every text of the bundled sample."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

import dora_jax.data
from dora_jax.checkpoints import tokenizer_files
from dora_jax.data.vocab import Vocabulary, train_sentencepiece

transformers = pytest.importorskip("t5_reference").transformers

SAMPLE = Path(dora_jax.data.__file__).parent / "sample" / "wlp"
EXTRA_IDS = 20
SYMBOLS = ("[Action]", "[Reagent]", "[Amount]", "[Measure-Type]")


def sample_texts() -> list[str]:
    """Every source and target of the bundled sample."""
    rows = [
        json.loads(line)
        for file in sorted(SAMPLE.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return [row[side] for row in rows for side in ("source", "target") if row.get(side)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return sample_texts()


@pytest.fixture(scope="module")
def both(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocabulary, Any]:
    """A rehearsal's vocabulary, and transformers' tokenizer from what is written of it."""
    folder = tmp_path_factory.mktemp("vocabulary")
    file = folder / "byte_pair.model"
    train_sentencepiece(texts, file, 2400, SYMBOLS)
    return Vocabulary.load(file, EXTRA_IDS), written(folder / "hf", file)


def written(folder: Path, file: Path) -> Any:
    """AutoTokenizer's reading of what `write` writes."""
    folder.mkdir()
    tokenizer_files.write(folder, file, EXTRA_IDS)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def assert_same(both: tuple[Vocabulary, Any], texts: list[str]) -> None:
    ours, theirs = both
    for text, expected, found in zip(
        texts, ours.encode(texts), theirs(texts).input_ids, strict=True
    ):
        assert found == [*expected, 1], text
        assert theirs.decode(found, skip_special_tokens=True) == ours.decode(expected), text


def test_all_rows_of_the_sample_with_and_without_prompt(
    both: tuple[Vocabulary, Any], texts: list[str]
) -> None:
    assert len(texts) > 4000
    assert_same(both, texts)
    assert_same(both, [f"wlp: {text}" for text in texts[:500]])


def test_texts_that_the_vocabulary_has_not_seen(
    both: tuple[Vocabulary, Any], texts: list[str]
) -> None:
    draw = random.Random(0)
    words = [word for text in texts for word in text.split(" ")]
    characters = sorted({c for text in texts for c in text}) + list("µ²™日本ü\n\t  ")
    strange = ["".join(draw.choices(characters, k=draw.randrange(1, 50))) for _ in range(2000)]
    strange += [" ".join(draw.choices(words, k=draw.randrange(1, 12))) for _ in range(2000)]
    strange += [c * n for c in "aeo.-0 " for n in range(1, 40)]
    strange += ["", " ", " leading", "trailing ", "two  spaces", "[Action][Reagent]", "x[Action]"]
    assert_same(both, strange)


def test_symbols_and_sentinels_are_one_id(both: tuple[Vocabulary, Any]) -> None:
    ours, theirs = both
    assert len(theirs) == ours.size
    names = [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]
    assert tuple(theirs.convert_tokens_to_ids(names)) == ours.sentinel_ids
    text = "mix <extra_id_0> and <extra_id_1>"
    assert theirs(text).input_ids == [*ours.encode([text])[0], 1]
    assert ours.sentinel_ids[1] in theirs(text).input_ids
    ids = theirs("the ice [Reagent] now").input_ids
    symbol = ours.encode(["[Reagent]"])[0]
    assert len(symbol) == 1
    assert symbol[0] in ids


def test_a_unigram_vocabulary_is_left_to_the_t5_tokenizer(texts: list[str], tmp_path: Path) -> None:
    ours = train(tmp_path, texts, model_type="unigram")
    theirs = written(tmp_path / "hf", tmp_path / "x.model")
    assert not (tmp_path / "hf" / "tokenizer.json").exists()
    different = 0
    for text, expected in zip(texts[:1000], ours.encode(texts[:1000]), strict=True):
        found = theirs(text).input_ids
        # Of two splits of equal score, "0" "00" and "00" "0", transformers may take the other.
        assert sorted(found) == sorted([*expected, 1])
        different += found != [*expected, 1]
    assert different < 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "unigram", "byte_fallback": True}, "is unigram with byte fallback"),
        ({"model_type": "char"}, "is neither unigram nor byte-pair"),
        ({"model_type": "bpe", "normalization_rule_name": "identity"}, "without byte fallback"),
        ({"model_type": "bpe", "byte_fallback": True}, r"normalises text \(nmt_nfkc\)"),
        (
            {
                "model_type": "bpe",
                "byte_fallback": True,
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
                "add_dummy_prefix": False,
            },
            "marks spaces in another way",
        ),
    ],
)
def test_what_no_tokenizer_of_transformers_does_is_refused(
    texts: list[str], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    train(tmp_path, texts[:300], **settings)
    (tmp_path / "hf").mkdir()
    with pytest.raises(ValueError, match=message):
        tokenizer_files.write(tmp_path / "hf", tmp_path / "x.model", EXTRA_IDS)


def train(folder: Path, texts: list[str], **settings: Any) -> Vocabulary:
    """Any SentencePiece model, at folder/x.model."""
    options = {"vocab_size": 400, "hard_vocab_limit": False, "bos_id": -1} | settings
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "x"),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        minloglevel=2,
        **options,
    )
    return Vocabulary.load(folder / "x.model", EXTRA_IDS)
