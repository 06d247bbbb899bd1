"""Vocabularies: exact round trips, T5's ids, the same bytes twice, errors that teach."""

import dataclasses
import io
import itertools

import pytest
import sentencepiece

from dora_jax.data.vocab import Vocabulary, train_sentencepiece

WORDS = [a + b + c for a in ("mix", "cel", "buf", "gar") for b in "aeiou" for c in ("ran", "tol")]
TEXTS = [
    f"Add {n} µl of {first} to the {second} and keep at {n % 90} °C."
    for n, (first, second) in enumerate(itertools.product(WORDS, WORDS[::3]))
]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    train_sentencepiece(TEXTS, path, pieces=400, symbols=["[Reagent]", "[Measure-Type]"])
    return path


@pytest.fixture(scope="module")
def vocabulary(model_file):
    return Vocabulary.load(model_file, extra_ids=100)


@pytest.mark.parametrize(
    "text",
    [
        "Add 5 µl of buffer.",
        "2 μl and 3 µl, 4 m², 5 ℃, NaCl™, café, ½ – ‐ −",  # NFKC would change most of these
        "  two  spaces, one at the end ",
        "tab\tand\nnewline",
        "日本 ☃ 🧪",
        "buffer [Reagent] a [b] [Reagent]x [viral] [",
        "",
    ],
)
def test_every_text_round_trips_exactly(vocabulary, text):
    [ids] = vocabulary.encode([text])
    assert vocabulary.decode(ids) == text
    assert max(ids, default=0) < vocabulary.pieces
    assert not {0, 1, 2} & set(ids)


def test_symbols_are_one_piece_each(vocabulary):
    marked, plain = vocabulary.encode(["buffer [Reagent] tube [Measure-Type]", "buffer tube"])
    assert len(marked) == len(plain) + 2


def test_decode_stops_at_eos_and_drops_what_is_no_text(vocabulary):
    [[*ids]] = vocabulary.encode(["mix the gel"])
    around = [0, *ids, vocabulary.sentinel_ids[0], vocabulary.size + 5, 1, *ids]
    assert vocabulary.decode(around) == "mix the gel"


def test_sentinels_descend_from_the_highest_id(vocabulary):
    assert vocabulary.size == 500
    assert vocabulary.sentinel_ids == tuple(range(499, 399, -1))
    [ids] = vocabulary.encode(["mix <extra_id_0> gel <extra_id_99>"])
    assert [token for token in ids if token >= 400] == [499, 400]


@pytest.mark.parametrize(("extra_ids", "expected"), [(100, 512), (112, 512), (113, 640)])
def test_padded_size_is_the_next_multiple(model_file, extra_ids, expected):
    assert Vocabulary.load(model_file, extra_ids).padded_size() == expected


def test_check_size_refuses_a_network_that_is_too_small(vocabulary):
    vocabulary.check_size(500)
    vocabulary.check_size(512)
    with pytest.raises(ValueError, match="vocab_size = 499.*500 ids.*512"):
        vocabulary.check_size(499)


def test_training_again_makes_the_same_bytes(tmp_path, model_file):
    again = tmp_path / "again.model"
    train_sentencepiece(iter(TEXTS), again, 400, ["[Reagent]", "[Measure-Type]"])
    assert again.read_bytes() == model_file.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.model"]


def test_fingerprint_covers_the_file_and_the_sentinels(tmp_path, model_file, vocabulary):
    copy = tmp_path / "elsewhere.model"
    copy.write_bytes(model_file.read_bytes())
    assert Vocabulary.load(copy, 100).fingerprint == vocabulary.fingerprint
    assert Vocabulary.load(copy, 99).fingerprint != vocabulary.fingerprint
    train_sentencepiece(TEXTS, copy, 401)
    assert Vocabulary.load(copy, 100).fingerprint != vocabulary.fingerprint


def test_vocabulary_is_frozen(vocabulary):
    with pytest.raises(dataclasses.FrozenInstanceError):
        vocabulary.pieces = 3


@pytest.mark.parametrize(
    ("texts", "pieces", "message"),
    [
        ([], 400, "no text"),
        (["", ""], 400, "no text"),
        (TEXTS, 100_000, r"100000 pieces .* they hold \d+ at most"),
        (TEXTS, 200, r"200 pieces .* \d+ are needed for the bytes"),
    ],
)
def test_impossible_training_says_what_would_work(tmp_path, texts, pieces, message):
    with pytest.raises(ValueError, match=message):
        train_sentencepiece(texts, tmp_path / "no.model", pieces)
    assert not list(tmp_path.iterdir())


def test_long_sentences_are_learned_from(tmp_path):
    path = tmp_path / "long.model"
    train_sentencepiece(["pipetting " * 2000], path, 274)
    [ids] = Vocabulary.load(path, 0).encode(["pipetting"])
    assert len(ids) <= 2


def test_files_that_are_no_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.model cannot be read"):
        Vocabulary.load(tmp_path / "nowhere.model", 0)
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"\xff\x00not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Vocabulary.load(broken, 0)
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Vocabulary.load(broken, 0)


def test_other_special_ids_are_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=70, minloglevel=2
    )
    path = tmp_path / "llama_like.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"pad, eos, unk = \(-1, 2, 0\).*--pad_id=0"):
        Vocabulary.load(path, 0)
