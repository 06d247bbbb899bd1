"""launch/convert.py: every pair of kinds keeps every weight, and refuses before it reads."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece
import t5x_fixtures as fixtures

from dora_jax.checkpoints import huggingface, native_folder, t5x
from dora_jax.config import T5Config
from dora_jax.launch import convert
from dora_jax.launch.cli import VERBS
from dora_jax.parallel.mesh import make_mesh
from dora_jax.stages import weights
from dora_jax.train.step import init_params

NETWORK = T5Config(
    vocab_size=48,
    emb_dim=16,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=3,
    head_dim=6,
    mlp_dim=20,
)
TEXTS = [
    "add ice to the tea and mix it well",
    "heat the tea until it is hot",
    "mix ice and tea in the hat of the cat",
    "a cat sat in the hat and the tea",
]


def train_vocabulary(file: Path, pieces: int) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=pieces,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    file.write_bytes(model.getvalue())
    return file


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network as each kind; and "vocabulary", a SentencePiece file of 28 pieces."""
    folder = tmp_path_factory.mktemp("sources")
    vocabulary = train_vocabulary(folder / "spiece.model", pieces=28)
    params = init_params(NETWORK, 0, make_mesh(devices=jax.devices()[:1]))
    huggingface.save(folder / "hf", NETWORK, params, vocabulary, extra_ids=10)
    native_folder.save(folder / "native", NETWORK, params, vocabulary, extra_ids=10)
    t5x.save(folder / "t5x" / "checkpoint_7", params)
    return {kind: folder / kind for kind in ("hf", "native", "t5x")} | {"vocabulary": vocabulary}


def equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def run(*arguments: str) -> int:
    before = jax.config.values["jax_platforms"]
    try:
        return convert.main(arguments)
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("source", ["hf", "t5x", "native"])
@pytest.mark.parametrize("target", ["hf", "t5x", "native"])
def test_every_pair(
    sources: dict[str, Path],
    tmp_path: Path,
    source: str,
    target: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [f"--source={source}:{sources[source]}", f"--target={target}:{tmp_path / 'out'}"]
    if (source, target) in (("t5x", "hf"), ("t5x", "native")):
        flags += [f"--vocabulary={sources['vocabulary']}", "--extra_ids=10"]
    assert run(*flags) == 0, capsys.readouterr().err
    assert "parameters" in capsys.readouterr().out
    expected = weights.find(f"native:{sources['native']}").read(None, None)
    found = weights.find(f"{target}:{tmp_path / 'out'}")
    network, params = found.read(None, NETWORK)
    assert network.emb_dim == NETWORK.emb_dim
    equal(params, expected[1])
    if target != "t5x":
        assert found.vocabulary is not None
        assert found.vocabulary.read_bytes() == sources["vocabulary"].read_bytes()
        assert found.extra_ids == 10
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("form", convert.T5X_FORMS)
def test_the_form_of_t5x_is_chosen(sources: dict[str, Path], tmp_path: Path, form: str) -> None:
    target = tmp_path / "checkpoint_3"
    flags = (f"--source=hf:{sources['hf']}", f"--target=t5x:{target}", f"--t5x_form={form}")
    assert run(*flags, "--t5x_scanned") == 0
    assert (target / "checkpoint").is_file() == (form == "msgpack")
    folder = t5x.find(target)
    names = set(t5x.stored_arrays(folder, "target."))
    assert "encoder.encoder.mlp.wo.kernel" in names
    equal(t5x.load(target), huggingface.load(sources["hf"])[1])
    assert run(*flags) == 0  # replaced, now with a module for each layer
    assert "encoder.layers_0.mlp.wo.kernel" in t5x.stored_arrays(t5x.find(target), "target.")


def test_wrong_requests_are_told_before_anything_is_read(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "config.json").write_text("{}")
    hf, out = f"--source=hf:{sources['hf']}", f"--target=hf:{tmp_path / 'out'}"
    (tmp_path / "no.model").write_bytes(b"no model")
    other = train_vocabulary(tmp_path / "other.model", pieces=26)
    for arguments, message in (
        ((), "Name both --source"),
        ((hf, "--target=onnx:x"), "expected hf:FOLDER, t5x:FOLDER or native:FOLDER"),
        (("--source=x", out), "'x' names no checkpoint; write hf:org/name"),
        ((hf, f"--target=hf:{thesis}"), "it has no *.safetensors"),
        ((f"--source=t5x:{sources['t5x']}", out), "--vocabulary=hf:google/t5-v1_1-small"),
        ((hf, out, "--extra_ids=100"), "vocab_size = 48, but the vocabulary"),
        (
            (hf, f"--target=native:{tmp_path / 'out'}", "--extra_ids=100"),
            "vocab_size = 48, but the vocabulary",
        ),
        ((hf, out, f"--vocabulary={tmp_path / 'no.model'}"), "is not a SentencePiece model"),
        ((hf, out, f"--vocabulary={other}"), "other.model is another vocabulary (26 pieces) than"),
        ((f"--source=t5x:{tmp_path / 'none'}", out), "There is nothing in"),
        ((f"--source=native:{thesis}", out), "expected a folder with network.json"),
        ((hf, out, "--gin.SEED=1"), "flags only"),
        ((hf, out, "--taget=x"), "Did you mean --target?"),
    ):
        assert run(*arguments) == 2, message
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "no.model",
        "other.model",
        "thesis",
    ]


def test_help_is_quick_to_read_and_the_verb_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        convert.main(["--help"])
    assert ended.value.code == 0
    assert "--source=hf:google/t5-v1_1-small" in capsys.readouterr().out
    assert {"convert", "export"} <= set(VERBS)


def test_a_native_folder_of_another_network_is_refused(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    params = native_folder.load(sources["native"])[1]
    native_folder.save(tmp_path / "n", NETWORK, params)
    record = tmp_path / "n" / "network.json"
    content = json.loads(record.read_text())
    content["network"]["mlp_dim"] = 21
    record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"layers\.mlp\.wi_0\.kernel expected \(2, 16, 21"):
        native_folder.load(tmp_path / "n")
    content["network"]["width"] = 3
    record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"it has \['width'\]"):
        native_folder.load(tmp_path / "n")
    content["network"] = {"mlp_dim": "20"}
    content["extra_ids"] = "ten"
    record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"network\.json tells of no T5"):
        native_folder.load(tmp_path / "n")
    with pytest.raises(ValueError, match="extra_ids is 'ten'"):
        native_folder.extra_ids(tmp_path / "n")
    with pytest.raises(ValueError, match="emb_dim: expected 512, found 16"):
        native_folder.load(sources["native"], expected=T5Config())


def test_optimizer_slots_of_t5x_stay_behind(tmp_path: Path) -> None:
    flat = fixtures.unscanned(gated=True, tied=False)
    source = fixtures.write_msgpack(tmp_path / "checkpoint_1", flat)
    assert run(f"--source=t5x:{source}", f"--target=t5x:{tmp_path / 'checkpoint_2'}") == 0
    names = t5x.stored_arrays(t5x.find(tmp_path / "checkpoint_2"), "state.param_states")
    assert not names
