"""T5X checkpoints, written here by the description of T5X's own code and with none of ours.

Source: t5x/checkpoints.py (`Checkpointer.save`, `OrbaxCheckpointManagerInterface.save`),
t5x/examples/t5/network.py, t5x/examples/scalable_t5/{network,layers}.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (numpy then knows "bfloat16")
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import serialization, traverse_util

V, E, H, D, M, BUCKETS = 48, 16, 4, 6, 20, 32
ENCODER_LAYERS, DECODER_LAYERS = 2, 3
ATTENTION = ("query", "key", "value", "out")


def unscanned(gated: bool, tied: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """The parameters of t5x/examples/t5, by path with dots."""
    rng = np.random.default_rng(seed)
    tree: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, stddev: float = 0.3) -> None:
        tree[name] = rng.normal(0.0, stddev, shape).astype(np.float32)

    def attention(prefix: str) -> None:
        for name in ATTENTION[:3]:
            add(f"{prefix}.{name}.kernel", E, H * D)
        add(f"{prefix}.out.kernel", H * D, E)

    def mlp(prefix: str) -> None:
        for name in ("wi_0", "wi_1") if gated else ("wi",):
            add(f"{prefix}.{name}.kernel", E, M)
        add(f"{prefix}.wo.kernel", M, E)

    add("token_embedder.embedding", V, E, stddev=1.0)
    for stack in ("encoder", "decoder"):
        add(f"{stack}.relpos_bias.rel_embedding", H, BUCKETS)
        add(f"{stack}.{stack}_norm.scale", E, stddev=1.0)
    for i in range(ENCODER_LAYERS):
        layer = f"encoder.layers_{i}"
        add(f"{layer}.pre_attention_layer_norm.scale", E, stddev=1.0)
        attention(f"{layer}.attention")
        add(f"{layer}.pre_mlp_layer_norm.scale", E, stddev=1.0)
        mlp(f"{layer}.mlp")
    for i in range(DECODER_LAYERS):
        layer = f"decoder.layers_{i}"
        add(f"{layer}.pre_self_attention_layer_norm.scale", E, stddev=1.0)
        attention(f"{layer}.self_attention")
        add(f"{layer}.pre_cross_attention_layer_norm.scale", E, stddev=1.0)
        attention(f"{layer}.encoder_decoder_attention")
        add(f"{layer}.pre_mlp_layer_norm.scale", E, stddev=1.0)
        mlp(f"{layer}.mlp")
    if not tied:
        add("decoder.logits_dense.kernel", E, V)
    return tree


def scanned(
    flat: dict[str, np.ndarray], axis: int = 1, module: str | None = None
) -> dict[str, np.ndarray]:
    """The same network as t5x/examples/scalable_t5 has it: layers on an axis, heads apart."""
    tree: dict[str, np.ndarray] = {}
    for stack, layers in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS)):
        inner = f"{stack}.{module or stack}"
        for name in [n for n in flat if n.startswith(f"{stack}.layers_0.")]:
            rest = name.removeprefix(f"{stack}.layers_0.")
            parts = [_apart(rest, flat[f"{stack}.layers_{i}.{rest}"]) for i in range(layers)]
            tree[f"{inner}.{rest}"] = np.stack(parts, axis)
        bias = flat[f"{stack}.relpos_bias.rel_embedding"]
        tree[f"{inner}.relpos_bias.rel_embedding"] = np.stack([bias] * layers, axis)
        tree[f"{stack}.{stack}_norm.scale"] = flat[f"{stack}.{stack}_norm.scale"]
    for name in ("token_embedder.embedding", "decoder.logits_dense.kernel"):
        if name in flat:
            tree[name] = flat[name]
    return tree


def _apart(rest: str, array: np.ndarray) -> np.ndarray:
    if "attention." not in rest or "layer_norm" in rest:
        return array
    return array.reshape(H, D, E) if ".out." in rest else array.reshape(E, H, D)


def slots(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Some of Adafactor's, as T5X names them; readers of parameters leave them alone."""
    return {
        f"state.param_states.{name}.{slot}": np.full(array.shape[:1], 7.0, np.float32)
        for name, array in flat.items()
        for slot in ("v_row", "v_col", "v", "m")
        if "embedding" in name
    }


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(flat, sep=".")


def write_msgpack(
    folder: Path,
    flat: dict[str, np.ndarray],
    *,
    inline: tuple[str, ...] = (".scale",),
    driver: str = "file",
    old_spec: bool = False,
    dtype: str = "float32",
) -> Path:
    """The older form. Parameters whose names end in `inline` go into the msgpack file itself."""
    folder.mkdir(parents=True)
    arrays = {f"target.{name}": array for name, array in flat.items()} | slots(flat)
    tree: dict[str, Any] = {"state.step": np.int32(1000)}
    for name, array in arrays.items():
        if name.endswith(inline):
            tree[name] = array
            continue
        array = array.astype(dtype)
        # Without waiting for the disk, array by array.
        place = {"driver": "file", "path": str(folder / name), "file_io_sync": False}
        spec: dict[str, Any] = {
            "driver": "zarr",
            "dtype": dtype,
            "kvstore": place,
            "metadata": {
                "compressor": {"id": "gzip"},
                "shape": list(array.shape),
                "chunks": [max(1, n // 2) for n in array.shape],
            },
        }
        ts.open(spec, create=True, open=True).result().write(array).result()
        stored = {**spec, "kvstore": {"driver": driver, "path": name}}
        if driver == "gcs":
            stored["kvstore"]["bucket"] = "t5x-dummy-bucket"
        if old_spec:  # TensorStore before 0.1.14
            stored["kvstore"].pop("path")
            stored["path"] = name
        tree[name] = stored
    content = {"version": 3, "optimizer": nested(tree)}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return folder


def write_orbax(folder: Path, flat: dict[str, np.ndarray], *, ocdbt: bool = True) -> Path:
    """The present form: {state, target} under checkpoint_N/state, written by Orbax itself."""
    arrays = {f"target.{name}": array for name, array in flat.items()} | slots(flat)
    tree = nested({**arrays, "state.step": np.int32(1000)})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as checkpointer:
        checkpointer.save((folder / "state").absolute(), args=ocp.args.PyTreeSave(tree))
    return folder


def write_aggregate(folder: Path, flat: dict[str, np.ndarray]) -> Path:
    """Orbax of 2023: zarr folders, and a msgpack file of small arrays and placeholders."""
    write_orbax(folder, flat, ocdbt=False)
    tree: dict[str, Any] = {"state.step": np.int32(1000)}
    for name, array in flat.items():
        small = name.endswith(".scale")
        tree[f"target.{name}"] = array if small else f"PLACEHOLDER://target.{name}"
    (folder / "state" / "checkpoint").write_bytes(serialization.msgpack_serialize(nested(tree)))
    return folder
