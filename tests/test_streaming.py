"""Checkpoints of several GB stream: beyond the parameters, memory holds a few arrays of them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from flax import serialization, traverse_util

from dora_jax.checkpoints import names, placement, t5x
from dora_jax.config import T5Config

PROBE = Path(__file__).with_name("streaming_probe.py")
GB = 10**9
# 2.1 GB of parameters, in the proportions of a large T5.
NETWORK = T5Config(
    vocab_size=32128,
    emb_dim=1024,
    num_heads=16,
    num_encoder_layers=15,
    num_decoder_layers=15,
    mlp_dim=2816,
)
SHAPES = placement.shapes(NETWORK)
SHARD = 100  # tensors a file of Hugging Face

Shapes = Mapping[str, tuple[int, ...]]


def num_bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)


def hugging_face_shards(folder: Path) -> list[Shapes]:
    """Writes config.json; returns the tensors of each file."""
    settings = {
        "model_type": "t5",
        "vocab_size": NETWORK.vocab_size,
        "d_model": NETWORK.emb_dim,
        "d_kv": NETWORK.head_dim,
        "d_ff": NETWORK.mlp_dim,
        "num_layers": NETWORK.num_encoder_layers,
        "num_heads": NETWORK.num_heads,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = [(s.name, s.shape) for sources in names.sources(SHAPES).values() for s in sources]
    return [dict(tensors[i : i + SHARD]) for i in range(0, len(tensors), SHARD)]


def write_index(folder: Path, shards: list[Shapes], pattern: str, index: str) -> None:
    weight_map = {name: pattern.format(i) for i, shard in enumerate(shards) for name in shard}
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))


def write_safetensors(folder: Path) -> tuple[str, Shapes]:
    """Holes for weights: a file system stores them in no time, and memory does not know."""
    shards = hugging_face_shards(folder)
    for i, shard in enumerate(shards):
        header, offset = {}, 0
        for name, shape in shard.items():
            offsets = [offset, offset := offset + num_bytes(shape)]
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(folder / f"model-{i}.safetensors", "wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(8 + len(encoded) + offset)
    write_index(folder, shards, "model-{}.safetensors", "model.safetensors.index.json")
    return f"hf:{folder}", {name: shape for shard in shards for name, shape in shard.items()}


def write_torch(folder: Path) -> tuple[str, Shapes]:
    torch = pytest.importorskip("torch")
    shards = hugging_face_shards(folder)
    for i, shard in enumerate(shards):
        tensors = {name: torch.zeros(shape, dtype=torch.half) for name, shape in shard.items()}
        torch.save(tensors, folder / f"pytorch_model-{i}.bin")
    write_index(folder, shards, "pytorch_model-{}.bin", "pytorch_model.bin.index.json")
    return f"hf:{folder}", {name: shape for shard in shards for name, shape in shard.items()}


def write_zarr(folder: Path, name: str, shape: tuple[int, ...]) -> dict:
    """One array in one chunk, which is a hole; returns its spec."""
    metadata = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": shape,
        "dtype": "<f4",
        "compressor": None,
        "fill_value": None,
        "order": "C",
        "filters": None,
    }
    (folder / name).mkdir()
    (folder / name / ".zarray").write_text(json.dumps(metadata))
    with open(folder / name / ".".join("0" for _ in shape), "wb") as chunk:
        chunk.truncate(num_bytes(shape))
    kvstore = {"driver": "file", "path": name}
    return {"driver": "zarr", "dtype": "float32", "kvstore": kvstore, "metadata": {}}


def write_t5x_msgpack(folder: Path) -> tuple[str, Shapes]:
    pieces = t5x.pieces(SHAPES, t5x.UNSCANNED)
    shapes = {f"target.{name}": piece.shape for name, piece in pieces.items()}
    specs = {name: write_zarr(folder, name, shape) for name, shape in shapes.items()}
    tree = {"version": 3, "optimizer": traverse_util.unflatten_dict(specs, sep=".")}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    return f"t5x:{folder}", shapes


def write_t5x_scanned(folder: Path) -> tuple[str, Shapes]:
    """One OCDBT store, as our own folders have it too; the largest array is a stack of layers."""
    pieces = t5x.pieces(SHAPES, t5x.SCANNED)
    shapes = {f"target.{name}": piece.shape for name, piece in pieces.items()}
    base = {"driver": "file", "path": f"{folder}/state/", "file_io_sync": False}
    for name, shape in shapes.items():
        spec = {
            "driver": "zarr",
            "dtype": "float32",
            "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
            "metadata": {"compressor": None, "shape": shape, "chunks": shape},
            "store_data_equal_to_fill_value": True,
        }
        array = np.zeros(shape, np.float32)
        ts.open(spec, create=True, open=True).result().write(array).result()
    return f"t5x:{folder}", shapes


@pytest.mark.slow
@pytest.mark.parametrize(
    "write",
    [write_safetensors, write_torch, write_t5x_msgpack, write_t5x_scanned],
    ids=lambda write: write.__name__,
)
def test_peak_memory_is_bounded(
    tmp_path: Path, write: Callable[[Path], tuple[str, Shapes]]
) -> None:
    """At most three of the largest array and 1 GB, beyond the parameters themselves."""
    name, stored = write(tmp_path)
    try:
        probe = [sys.executable, str(PROBE), name]
        ended = subprocess.run(probe, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(tmp_path)
    assert ended.returncode == 0, ended.stderr
    measured = json.loads(ended.stdout)
    assert measured["parameters"] == sum(map(num_bytes, SHAPES.values())) > 2 * GB
    beyond = measured["rise"] - measured["parameters"]
    largest = max(map(num_bytes, stored.values()))
    print(f"\n{write.__name__}: {beyond / GB:.2f} GB beyond, largest {largest / GB:.2f} GB")
    assert beyond < 3 * largest + GB
    # Everything held twice, which would pass for that bound alone.
    assert beyond < 0.8 * measured["parameters"]
