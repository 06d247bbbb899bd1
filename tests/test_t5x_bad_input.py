"""T5X checkpoints that are damaged or of something else: each refused by name."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import t5x_fixtures as fixtures
from flax import serialization

from dora_jax.checkpoints import array_files, t5x
from dora_jax.config import T5Config

FLAT = fixtures.unscanned(gated=True, tied=False)
WI = "encoder.layers_1.mlp.wi_0.kernel"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both forms; not to be written to."""
    folder = tmp_path_factory.mktemp("t5x")
    fixtures.write_msgpack(folder / "msgpack" / "checkpoint_1000", FLAT)
    fixtures.write_orbax(folder / "orbax" / "checkpoint_1000", FLAT)
    return folder


@pytest.fixture
def damaged(originals: Path, tmp_path: Path) -> Path:
    """A copy of the older form to damage."""
    return Path(shutil.copytree(originals / "msgpack", tmp_path / "m")) / "checkpoint_1000"


def test_arrays_that_do_not_fit_are_named(tmp_path: Path) -> None:
    flat = dict(FLAT)
    del flat["encoder.encoder_norm.scale"]
    flat["encoder.layers_0.adapter.kernel"] = np.zeros((3, 4), np.float32)
    flat[WI] = np.zeros((16, 19), np.float32)
    folder = fixtures.write_orbax(tmp_path / "checkpoint_1", flat)
    with pytest.raises(ValueError) as error:
        t5x.load(folder)
    message = str(error.value)
    assert str(folder / "state") in message
    assert "1 missing: encoder.encoder_norm.scale (16,)" in message
    assert "1 unknown: encoder.layers_0.adapter.kernel (3, 4)" in message
    assert f"1 of another shape: {WI} expected (16, 20), found (16, 19)" in message


def test_a_lost_layer_is_named(tmp_path: Path) -> None:
    flat = {name: a for name, a in FLAT.items() if not name.startswith("decoder.layers_1.")}
    folder = fixtures.write_orbax(tmp_path / "checkpoint_1", flat)
    with pytest.raises(ValueError, match=r"14 missing: decoder\.layers_1\..*14 unknown: decoder"):
        t5x.load(folder)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    flat = {"decoder.embed.kernel": np.zeros((3, 4), np.float32)}
    folder = fixtures.write_orbax(tmp_path / "checkpoint_1", flat)
    with pytest.raises(
        ValueError, match=r"token_embedder\.embedding is missing.*decoder\.embed\.kernel"
    ):
        t5x.load(folder)
    with pytest.raises(ValueError, match=r"is missing.*There are none"):
        t5x.load(fixtures.write_orbax(tmp_path / "checkpoint_2", {}))


def test_another_network_than_the_run_is_refused(originals: Path) -> None:
    found = t5x.network(originals / "orbax")
    silu = dataclasses.replace(found, mlp_activations=("silu", "linear"), dtype="bfloat16")
    assert t5x.network(originals / "orbax", silu).mlp_activations == ("silu", "linear")
    with pytest.raises(ValueError, match="emb_dim: expected 512, found 16"):
        t5x.load(originals / "orbax", expected=T5Config())


def test_position_biases_that_differ_are_refused(tmp_path: Path) -> None:
    tree = fixtures.scanned(FLAT)
    tree["decoder.decoder.relpos_bias.rel_embedding"][0, 2, 0] += 1.0
    folder = fixtures.write_orbax(tmp_path / "checkpoint_1", tree)
    with pytest.raises(ValueError, match=r"that of layer 2 differs.*our decoder\.relpos_bias"):
        t5x.load(folder)


def test_lost_and_truncated_files_are_named(damaged: Path) -> None:
    array = damaged / f"target.{WI}"
    chunk = array / "0.0"
    content = chunk.read_bytes()
    chunk.unlink()  # TensorStore would read zeros
    with pytest.raises(ValueError, match=rf"target\.{WI} in .* damaged or incomplete"):
        t5x.load(damaged)
    chunk.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=rf"target\.{WI} in .* damaged or incomplete"):
        t5x.load(damaged)
    shutil.rmtree(array)
    with pytest.raises(ValueError, match=rf"target\.{WI} is missing from"):
        t5x.load(damaged)
    index = damaged / "checkpoint"
    index.write_bytes(index.read_bytes()[:200])
    with pytest.raises(ValueError, match="checkpoint is damaged"):
        t5x.load(damaged)
    index.write_bytes(b'model_checkpoint_path: "model.ckpt-1000"')
    with pytest.raises(ValueError, match="TensorFlow checkpoint"):
        t5x.load(damaged)


def test_a_damaged_key_value_store_is_named(originals: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals / "orbax", tmp_path / "o")) / "checkpoint_1000/state"
    for part in folder.glob("ocdbt.process_0/d/*"):
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        t5x.load(folder)
    (folder / array_files.OCDBT).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"manifest\.ocdbt is damaged"):
        t5x.load(folder)


@pytest.mark.parametrize("path", ["/etc/passwd", "../elsewhere", "target.other"])
def test_a_spec_that_points_elsewhere_is_refused(damaged: Path, path: str) -> None:
    index = damaged / "checkpoint"
    content = serialization.msgpack_restore(index.read_bytes())
    embedder = content["optimizer"]["target"]["token_embedder"]
    embedder["embedding"]["kvstore"]["path"] = path
    index.write_bytes(serialization.msgpack_serialize(content))
    with pytest.raises(ValueError, match=f"target.token_embedder.embedding is in '{path}'"):
        t5x.load(damaged)


def test_other_types_are_refused(tmp_path: Path) -> None:
    folder = fixtures.write_msgpack(tmp_path / "checkpoint_1", FLAT, dtype="int8")
    with pytest.raises(ValueError, match=r"array target\..* is int8; expected one of float32"):
        t5x.load(folder)


def test_places_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is nothing in .*nowhere"):
        t5x.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="There is no T5X checkpoint in"):
        t5x.load(tmp_path)
