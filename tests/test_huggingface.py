"""Reading Hugging Face checkpoints: every form alike, and each way of being wrong named."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dora_jax
from dora_jax.checkpoints import huggingface
from dora_jax.config import T5Config
from dora_jax.model.t5 import abstract_params
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import make_mesh

reference = pytest.importorskip("t5_reference")
torch, transformers = reference.torch, reference.transformers

NORM = "encoder.final_layer_norm.weight"
QUERY = "decoder.block.2.layer.0.SelfAttention.q.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v1.1 checkpoint as transformers writes it; not to be written to."""
    return reference.save_model(
        reference.make_model("v1.1"), tmp_path_factory.mktemp("hf") / "v1.1"
    )


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in original.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rewrite(folder: Path, change: Any) -> None:
    """Applies `change` to the dictionary of tensors in a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def load_torch(original: Path) -> dict[str, Any]:
    return {
        name: torch.from_numpy(array)
        for name, array in load_file(original / "model.safetensors").items()
    }


def split_in_two(tensors: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = sorted(tensors)
    return {
        f"{part + 1:05}-of-00002": {name: tensors[name] for name in names[part::2]}
        for part in (0, 1)
    }


def write_index(file: Path, parts: dict[str, dict[str, Any]], pattern: str) -> None:
    weight_map = {name: pattern.format(part) for part in parts for name in parts[part]}
    file.write_text(json.dumps({"weight_map": weight_map}))


def shard(folder: Path) -> Path:
    """Turns model.safetensors into two files with an index; returns the index."""
    parts = split_in_two(load_file(folder / "model.safetensors"))
    for part, tensors in parts.items():
        save_file(tensors, folder / f"model-{part}.safetensors")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    write_index(index, parts, "model-{}.safetensors")
    return index


def test_every_form_of_the_same_weights_reads_alike(original: Path, folder: Path) -> None:
    config, params = huggingface.load(original)
    assert config.num_decoder_layers == 3
    assert not config.logits_via_embedding

    shard(folder)
    assert huggingface.load(folder)[0] == config
    equal(huggingface.load(f"hf:{folder}")[1], params)

    for file in folder.glob("model*"):
        file.unlink()
    tensors = load_torch(original)
    # A torch file names the embedding three times and may hold a table that T5 never reads.
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"]
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(
        32, 4
    )
    torch.save(tensors, folder / "pytorch_model.bin")
    equal(huggingface.load(folder)[1], params)
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    equal(huggingface.load(folder)[1], params)

    (folder / "pytorch_model.bin").unlink()
    parts = split_in_two(tensors)
    for part, some in parts.items():
        torch.save(some, folder / f"pytorch_model-{part}.bin")
    write_index(folder / "pytorch_model.bin.index.json", parts, "pytorch_model-{}.bin")
    equal(huggingface.load(folder)[1], params)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_widened_exactly(original: Path, folder: Path, dtype: Any) -> None:
    def halve(tensors: dict[str, np.ndarray]) -> None:
        tensors.update({name: array.astype(dtype) for name, array in tensors.items()})

    rewrite(folder, halve)
    expected = jax.tree.map(
        lambda array: np.asarray(array).astype(dtype).astype(np.float32),
        huggingface.load(original)[1],
    )
    equal(huggingface.load(folder)[1], expected)

    (folder / "model.safetensors").unlink()
    torch_dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[np.dtype(dtype).name]
    halves = {name: tensor.to(torch_dtype) for name, tensor in load_torch(original).items()}
    torch.save(halves, folder / "pytorch_model.bin")
    equal(huggingface.load(folder)[1], expected)


def test_parameters_arrive_in_their_shardings(original: Path) -> None:
    mesh = make_mesh(fsdp=2, tensor=2)
    config, params = huggingface.load(original, mesh)
    equal(params, huggingface.load(original)[1])
    shardings = partitioning.tree_shardings(abstract_params(config), mesh)
    for array, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
    wi = params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert wi.shape == (2, 16, 20)
    assert {part.data.shape for part in wi.addressable_shards} == {(2, 8, 10)}


@pytest.mark.parametrize(
    ("version", "head", "tied"),
    [
        ("v1.0", "dropped", True),  # transformers stores no head that is the embedding
        ("v1.0", "stored", True),  # older files do
        ("v1.0", "own", False),  # untied, but its states are scaled
        ("v1.1", "dropped", False),  # what transformers 5 makes of a new v1.1: tied, not scaled
        ("v1.1", "own", False),
    ],
)
def test_the_tensors_decide_about_the_head(
    tmp_path: Path, version: str, head: str, tied: bool
) -> None:
    model = reference.make_model(version)
    if head == "own":
        reference.untie(model)
    else:
        model.lm_head.weight = model.shared.weight
    reference.save_model(model, tmp_path)
    if head == "stored":
        rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["shared.weight"].copy()}))
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    config, params = huggingface.load(tmp_path)
    assert config.logits_via_embedding == tied
    rows = reference.random_rows(5, 2, 7, 4)
    error = reference.relative_error(
        dora_jax.forward(config, params, *rows), reference.logits_of(model, *rows).detach()
    )
    assert error < 1e-5


def test_checkpoints_of_transformers_4_keep_their_meaning(folder: Path, original: Path) -> None:
    config, params = huggingface.load(original)
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    for added_by_5 in ("scale_decoder_outputs", "dense_act_fn", "is_gated_act"):
        del settings[added_by_5]
    file.write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    assert huggingface.load(folder)[0] == config
    equal(huggingface.load(folder)[1], params)


def test_mt5_reads_as_a_v1_1(tmp_path: Path) -> None:
    config = transformers.MT5Config(
        vocab_size=48, d_model=16, d_kv=4, d_ff=20, num_layers=2, num_heads=4
    )
    model = transformers.MT5ForConditionalGeneration(config).eval()
    reference.untie(model)
    found, params = huggingface.load(reference.save_model(model, tmp_path))
    rows = reference.random_rows(5, 2, 7, 4)
    error = reference.relative_error(
        dora_jax.forward(found, params, *rows), reference.logits_of(model, *rows).detach()
    )
    assert error < 1e-5


# --- bad input ---------------------------------------------------------------------------


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    def break_three(tensors: dict[str, np.ndarray]) -> None:
        del tensors[NORM]
        tensors["encoder.adapter.weight"] = np.zeros((3, 4), np.float32)
        tensors[QUERY] = np.zeros((24, 15), np.float32)

    rewrite(folder, break_three)
    with pytest.raises(ValueError) as error:
        huggingface.load(folder)
    message = str(error.value)
    assert str(folder) in message
    assert f"1 missing: {NORM} (16,)" in message
    assert "1 unknown: encoder.adapter.weight (3, 4)" in message
    assert f"1 of another shape: {QUERY} expected (24, 16), found (24, 15)" in message


def test_a_vocabulary_of_another_size_is_named(folder: Path) -> None:
    set_config(folder, vocab_size=50)
    with pytest.raises(ValueError, match=r"shared.weight expected \(50, 16\), found \(48, 16\)"):
        huggingface.load(folder)


def test_a_deeper_checkpoint_is_refused(folder: Path) -> None:
    set_config(folder, num_layers=1)
    with pytest.raises(ValueError, match=r"9 unknown: encoder\.block\.1\..* and 4 more"):
        huggingface.load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bart"}, "model_type is 'bart'; expected 't5' or 'mt5'"),
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj is 'gated-tanh'"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05; expected 1e-06"),
        ({"d_model": "16"}, "d_model is '16'; expected a whole number"),
        ({"num_layers": None}, "num_layers is None; expected a whole number"),
        ({"num_decoder_layers": 0}, "num_decoder_layers is 0; expected a whole number"),
        ({"dropout_rate": "some"}, "dropout_rate is 'some'"),
    ],
)
def test_another_architecture_is_refused(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    set_config(folder, **settings)
    with pytest.raises(ValueError, match=message):
        huggingface.load(folder)


def test_another_network_than_the_run_is_refused(original: Path) -> None:
    found = huggingface.load(original)[0]
    free = dataclasses.replace(found, dtype="bfloat16", dropout_rate=0.3, scan_unroll=2)
    assert huggingface.load(original, expected=free)[0] == found
    with pytest.raises(ValueError, match="emb_dim: expected 512, found 16"):
        huggingface.load(original, expected=T5Config())


def test_broken_settings_are_refused(folder: Path) -> None:
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    del settings["d_kv"]
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="config.json has no 'd_kv'"):
        huggingface.load(folder)
    file.write_text('{"model_type": "t5"')
    with pytest.raises(ValueError, match="config.json cannot be used: Expecting"):
        huggingface.load(folder)
    file.write_text("[]")
    with pytest.raises(ValueError, match="config.json holds a list"):
        huggingface.load(folder)
    file.write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(ValueError, match=r"config\.json is no text"):
        huggingface.load(folder)
    file.unlink()
    with pytest.raises(ValueError, match="config.json cannot be read"):
        huggingface.load(folder)
    with pytest.raises(ValueError, match="no folder google/t5-v1_1-small; .* written hf:org/name"):
        huggingface.load("google/t5-v1_1-small")


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    stored = file.read_bytes()
    for damaged in (stored[:-100], stored[:5], b"<html>not found</html>"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            huggingface.load(folder)


def test_a_tensor_named_twice_in_one_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    stored = file.read_bytes()
    length = int.from_bytes(stored[:8], "little")
    header = stored[8 : 8 + length].decode().rstrip()
    entry = json.dumps(json.loads(header)[NORM])
    twice = f'{header[:-1]},"{NORM}":{entry}}}'.encode()
    file.write_bytes(len(twice).to_bytes(8, "little") + twice + stored[8 + length :])
    with pytest.raises(ValueError, match=f"{NORM} is named twice"):
        huggingface.load(folder)


def test_quantised_tensors_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({QUERY: np.zeros((24, 16), np.int8)}))
    with pytest.raises(ValueError, match=f"{QUERY}.* is I8; expected one of F32"):
        huggingface.load(folder)


def test_shards_and_their_index_must_agree(folder: Path) -> None:
    index = shard(folder)
    weight_map = json.loads(index.read_text())["weight_map"]
    first, second = sorted(folder.glob("model-*"))

    index.write_text(json.dumps({"weight_map": {**weight_map, "ghost.weight": second.name}}))
    with pytest.raises(ValueError, match="ghost.weight is not in .*00002-of-00002"):
        huggingface.load(folder)
    second_name = json.dumps({"shared.weight": second.name})[1:]
    index.write_text(json.dumps({"weight_map": weight_map})[:-2] + f", {second_name}}}")
    with pytest.raises(ValueError, match=r"index\.json.*shared.weight is named twice"):
        huggingface.load(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match='no "weight_map"'):
        huggingface.load(folder)
    index.write_text(json.dumps({"weight_map": weight_map}))

    tensors = load_file(second)
    twice = next(iter(load_file(first)))
    save_file({**tensors, twice: np.zeros(3, np.float32)}, second)
    with pytest.raises(ValueError, match=f"{twice} is stored twice, in .*{first.name}"):
        huggingface.load(folder)
    second.unlink()
    with pytest.raises(ValueError, match=f"{second.name} is missing"):
        huggingface.load(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights in .*expected one of model.safetensors"):
        huggingface.load(folder)


def test_two_different_embeddings_are_refused(folder: Path) -> None:
    rewrite(
        folder, lambda t: t.update({"decoder.embed_tokens.weight": np.ones((48, 16), np.float32)})
    )
    with pytest.raises(ValueError, match="decoder.embed_tokens.weight differs from shared.weight"):
        huggingface.load(folder)


class Payload:
    """Would write a file if a loader ran it."""

    def __reduce__(self) -> Any:
        return Path.write_text, (Path("pwned"), "x")


def test_a_torch_file_runs_no_code_and_holds_tensors(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({NORM: Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as torch weights"):
        huggingface.load(folder)
    assert not (tmp_path / "pwned").exists()
    torch.save({"step": 3, "model": {NORM: torch.zeros(16)}}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"step in .* is int; expected one of F32"):
        huggingface.load(folder)
    torch.save([torch.zeros(16)], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds a list, expected tensors by name"):
        huggingface.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="cannot be read as torch weights"):
        huggingface.load(folder)


def test_a_torch_file_without_torch_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install 'dora_jax\[torch\]'"):
        huggingface.load(folder)
