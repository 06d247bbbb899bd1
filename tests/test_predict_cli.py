"""launch/predict.py: the same predictions from every kind of checkpoint, in order, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_run import read_rows, sentences

import dora_jax
from dora_jax import predict as engine
from dora_jax.checkpoints import huggingface, native_folder, t5x
from dora_jax.config import T5Config
from dora_jax.data.vocab import Vocabulary, train_sentencepiece
from dora_jax.launch import predict
from dora_jax.launch.prediction_files import Predictions
from dora_jax.model.t5 import Params, abstract_params
from dora_jax.shapes import EOS_ID

LENGTH = 7
EXTRA_IDS = 10
NETWORK = T5Config(
    vocab_size=320,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=16,
)
TEXTS = [f"{'Mix and ' * (i % 4)}add {i} ml." for i in range(11)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    file = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    train_sentencepiece(sum(sentences("train", 24), []), file, 310)
    return Vocabulary.load(file, EXTRA_IDS)


@pytest.fixture(scope="module")
def params() -> Params:
    rng = np.random.default_rng(4)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.5, leaf.shape), jnp.float32),
        nn.unbox(abstract_params(NETWORK)),
    )


@pytest.fixture(scope="module")
def checkpoint(
    vocabulary: Vocabulary, params: Params, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "native"
    native_folder.save(folder, NETWORK, params, Path(vocabulary.path), EXTRA_IDS)
    return folder


@pytest.fixture(scope="module")
def expected(vocabulary: Vocabulary, params: Params) -> list[str]:
    """Each text decoded by itself, without padding."""
    predictions = []
    for text in TEXTS:
        tokens = [*vocabulary.encode([f"wlp: {text}"])[0], EOS_ID]
        tokens_1S = np.pad(np.array([tokens], np.int32), ((0, 0), (0, 48 - len(tokens))))
        tokens_1T = dora_jax.greedy_decode(NETWORK, params, tokens_1S, LENGTH)
        predictions.append(vocabulary.decode(np.asarray(tokens_1T)[0].tolist()))
    assert len(set(predictions)) > 3
    return predictions


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "CHUNK_BATCHES", 1)


Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path) -> Run:
    """The program on TEXTS, in chunks of one batch of four."""
    lines = [json.dumps({"source": text, "id": i}) for i, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    defaults = {
        "checkpoint": str(checkpoint),
        "task": "wlp",
        "inputs": str(tmp_path / "in.jsonl"),
        "outputs": str(tmp_path / "out.jsonl"),
        "target_length": LENGTH,
        "batch_size": 4,
        "compilation_cache": "",
    }

    def start(**flags: Any) -> int:
        given = {**defaults, **flags}
        return predict.main(
            [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
        )

    return start


def predictions(tmp_path: Path) -> list[str]:
    return [row["prediction"] for row in read_rows(tmp_path / "out.jsonl")]


def test_every_kind_of_checkpoint_predicts_the_same(
    run: Run, tmp_path: Path, vocabulary: Vocabulary, params: Params, expected: list[str]
) -> None:
    assert run() == 0
    rows = read_rows(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(len(TEXTS)))
    assert [row["source"] for row in rows] == TEXTS
    assert predictions(tmp_path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    huggingface.save(tmp_path / "hf", NETWORK, params, vocabulary.path, extra_ids=EXTRA_IDS)
    t5x.save(tmp_path / "t5x" / "checkpoint_3", params)
    for name in (f"hf:{tmp_path / 'hf'}", f"t5x:{tmp_path / 't5x'}"):
        (tmp_path / "out.jsonl").unlink()
        known = {"vocabulary": vocabulary.path, "extra_ids": EXTRA_IDS}
        assert run(checkpoint=name, **(known if name.startswith("t5x") else {})) == 0
        assert predictions(tmp_path) == expected


def test_a_killed_run_goes_on_where_it_was(
    run: Run, tmp_path: Path, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Predictions.append

    def append_and_stop(self: Predictions, *rows: Any) -> None:
        append(self, *rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Predictions, "append", append_and_stop)
        assert run() == predict.EXIT_INTERRUPTED
    assert not (tmp_path / "out.jsonl").exists()
    partial = tmp_path / "out.jsonl.partial"
    assert len(read_rows(partial)) == 4
    with partial.open("a", encoding="utf-8") as file:
        file.write('{"source": "torn by kill -9')

    decoded = []
    decode = engine.decode

    def counted(network: Any, params: Any, examples: Any, **settings: Any) -> Any:
        decoded.append(len(examples))
        return decode(network, params, examples, **settings)

    monkeypatch.setattr(engine, "decode", counted)
    assert run() == 0
    assert decoded == [4, 3]
    assert predictions(tmp_path) == expected


def test_a_begun_file_is_not_continued_with_other_settings(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            engine, "decode", lambda *given, **_: [np.zeros(0, np.int32)] * len(given[2])
        )
        patched.setattr(Predictions, "finish", lambda self: None)
        assert run() == 0
    before = (tmp_path / "out.jsonl.partial").read_bytes()
    assert run(num_beams=3, target_length=5) == 2
    message = capsys.readouterr().err
    assert "decoding: then greedy, now BeamSearch(num_beams=3" in message
    assert f"target_length: then {LENGTH}, now 5" in message
    (tmp_path / "in.jsonl").write_text('{"source": "another file"}\n', encoding="utf-8")
    assert run() == 2
    assert "inputs: then" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl.partial").read_bytes() == before


def test_bad_rows_are_told_with_their_numbers(
    run: Run, tmp_path: Path, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.dumps({"source": text}).encode() for text in TEXTS[:2]]
    bad = [b"{", b"", b"[1]", b'{"text": "x"}', b'{"source": 3}', b'{"source": "\xff"}']
    bad += [b'{"source": "\\ud800"}', b"1" * 5000]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([good[0], *bad, good[1]]))
    assert run() == 2
    message = capsys.readouterr().err
    assert "8 of the 10 rows" in message
    assert "row 2: no JSON" in message and "row 3: it is empty" in message
    assert "and 3 more" in message and "--on_bad_row=skip" in message
    assert not list(tmp_path.glob("out*"))

    assert run(on_bad_row="skip") == 0
    message = capsys.readouterr().err
    for number, complaint in (
        (4, "found list"),
        (5, "the keys ['text']"),
        (6, "found int"),
        (7, "no UTF-8"),
        (8, "no character"),
        (9, "digits"),
    ):
        line = next(line for line in message.splitlines() if f"row {number}:" in line)
        assert complaint in line
    assert predictions(tmp_path) == expected[:2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"inputs": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"),
        ({"task": "wpl"}, "Did you mean 'wlp'"),
        ({"checkpoint": ""}, "--checkpoint"),
        ({"checkpoint": "runs/none"}, "is no checkpoint"),
        ({"batch_size": 0}, "--batch_size=0"),
        ({"sample": True, "temperature": 0}, "temperature"),
        ({"sample": True, "num_beams": 2}, "choose one"),
        ({"extra_ids": 100}, "vocab_size"),
    ],
    ids=str,
)
def test_wrong_flags_are_told(
    run: Run,
    tmp_path: Path,
    flags: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(**flags) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_what_is_there_is_not_overwritten(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.jsonl").write_text("mine", encoding="utf-8")
    assert run() == 2
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "out.jsonl").unlink()
    with Predictions(tmp_path / "out.jsonl", {}):
        assert run() == 2
    assert "Another process writes" in capsys.readouterr().err


def test_sampling_is_the_same_in_any_batch_and_long_sources_are_cut(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []
    for batch_size in (4, 3):
        assert run(batch_size=batch_size, sample=True, seed=5, source_length=16) == 0
        drawn.append(predictions(tmp_path))
        (tmp_path / "out.jsonl").unlink()
    assert drawn[0] == drawn[1]
    assert "cut to 16 tokens" in capsys.readouterr().err
