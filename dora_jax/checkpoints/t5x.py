"""T5X checkpoints: read straight into shardings, and written.

T5X has two trees. The one of `examples/t5` and of all published T5 checkpoints has a module for
each layer, `encoder.layers_0.…`, and joined attention kernels [E, H*D]. The one of
`examples/scalable_t5` scans over layers: `encoder.encoder.…`, layers on axis 1, kernels
[E, L, H, D], and a position bias in every layer. `array_files` has the forms on disk. The output
head is in the decoder; everything else is named as our parameters are. Optimizer slots are left
where they are.
Source: t5x/checkpoints.py, t5x/examples/t5/network.py, t5x/examples/scalable_t5/network.py.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

from dora_jax.checkpoints import checks, native, placement
from dora_jax.checkpoints.array_files import (
    MSGPACK,
    file_names,
    holds_arrays,
    stored_arrays,
    write_arrays,
)
from dora_jax.checkpoints.tensor_files import StoredTensor
from dora_jax.checkpoints.whole_folder import written_whole
from dora_jax.config import T5Config
from dora_jax.model.t5 import Params

# What may be in a folder that `save` replaces, by the form it is written in.
CONTENT = {
    "orbax": ("state", "_CHECKPOINT_METADATA", "commit_success.txt"),
    "msgpack": (MSGPACK, "target.*", "state.*"),
}
_PARAMETERS = "target."
_STEP = re.compile(r"checkpoint_(\d+)")
_BIAS = "relpos_bias.rel_embedding"
_HEAD, _THEIR_HEAD = "logits_dense.kernel", "decoder.logits_dense.kernel"
_EMBEDDING = "token_embedder.embedding"
_QUERY = "attention.query.kernel"
_ADVICE = "Name a checkpoint of t5x/examples/t5 or scalable_t5, or copy it again."


class Layout(NamedTuple):
    """How a T5X tree arranges the layers of a stack.

    Attributes:
      scanned: the name of the scanned module, "{}" for that of the stack; None: one a layer.
      axis: where the layers are in a scanned array.
      split_heads: attention kernels have an axis for heads and one for their width.
      bias_in_layers: every layer has a position bias of its own.
    """

    scanned: str | None = None
    axis: int = 0
    split_heads: bool = False
    bias_in_layers: bool = False


UNSCANNED = Layout()
SCANNED = Layout("{}", axis=1, split_heads=True, bias_in_layers=True)


class Piece(NamedTuple):
    """One array of a T5X tree: which parameter it is, or which layer of one."""

    path: str
    layer: int | None  # None: all of it
    shape: tuple[int, ...]  # as T5X has it


def find(path: str | os.PathLike[str]) -> epath.Path:
    """The folder with the arrays: `…/state`, `checkpoint_N`, or the newest of a model directory.

    Raises:
      ValueError: there is no checkpoint.
    """
    folder = epath.Path(path).expanduser()
    names = file_names(folder)
    if not names:
        raise ValueError(f"There is nothing in {folder}; expected a T5X checkpoint_N.")
    in_state = [name.removeprefix("state/") for name in names if name.startswith("state/")]
    if holds_arrays(in_state):
        return folder / "state"
    if holds_arrays(names):
        return folder
    steps = {int(m[1]): m[0] for name in names if (m := _STEP.fullmatch(name.partition("/")[0]))}
    if not steps:
        raise ValueError(
            f"There is no T5X checkpoint in {folder}: expected checkpoint_N folders, or one of "
            "them, with a file `checkpoint` or a folder `state` in it."
        )
    return find(folder / steps[max(steps)])


def network(path: str | os.PathLike[str], expected: T5Config | None = None) -> T5Config:
    """The network of a checkpoint, from the shapes of its arrays.

    Shapes do not tell the activation functions, nor the distance of the last position bucket.
    These are those of `expected`, else what T5 has: ReLU for one branch, GELU times linear for two,
    and 128.

    Raises:
      ValueError: no checkpoint, or not of a T5.
    """
    return _open(path, expected)[1]


def load(
    path: str | os.PathLike[str], mesh: Mesh | None = None, expected: T5Config | None = None
) -> Params:
    """Reads the parameters, array by array, into their shardings.

    Args:
      path: what `find` takes; local or gs://.
      mesh: where the parameters go; default one device.
      expected: the network it has to be (`checks.same_network`), known before a weight is read.

    Returns:
      The parameter tree, float32.

    Raises:
      ValueError: files missing or damaged, or not the arrays of such a network.
    """
    stored, config, layout = _open(path, expected)
    if expected is not None:
        checks.same_network(str(path), config, expected)
    shapes = placement.shapes(config)
    names: dict[str, list[str]] = {}
    for name, piece in pieces(shapes, layout).items():
        names.setdefault(piece.path, []).append(name)

    def read(path: str) -> Iterator[np.ndarray]:
        if path.endswith(_BIAS):
            yield _one_bias([stored[name] for name in names[path]], path, layout)
        elif not placement.is_stack(path):
            yield stored[names[path][0]].read()
        else:
            for name in names[path]:
                array = stored[name].read()
                layers = [array] if layout.scanned is None else np.moveaxis(array, layout.axis, 0)
                yield from (layer.reshape(shapes[path][1:]) for layer in layers)

    return placement.fill(config, mesh, read)


def pieces(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> dict[str, Piece]:
    """Every array of a T5X tree by its name, for our parameters of these shapes."""
    found: dict[str, Piece] = {}
    heads = shapes[f"encoder.{_BIAS}"][0]
    for path, shape in shapes.items():
        stack, _, rest = path.partition(".")
        if path == _HEAD:
            found[_THEIR_HEAD] = Piece(path, None, shape)
        elif placement.is_stack(path):
            inner = _split(shape[1:], rest, heads) if layout.split_heads else shape[1:]
            rest = rest.removeprefix("layers.")
            found |= _layered(path, stack, rest, inner, shape[0], layout)
        elif rest == _BIAS and layout.bias_in_layers:
            layers = next(s[0] for p, s in shapes.items() if p.startswith(f"{stack}.layers."))
            found |= _layered(path, stack, rest, shape, layers, layout)
        else:
            found[path] = Piece(path, None, shape)
    return found


def _layered(
    path: str, stack: str, rest: str, shape: tuple[int, ...], layers: int, layout: Layout
) -> dict[str, Piece]:
    if layout.scanned is None:
        return {f"{stack}.layers_{i}.{rest}": Piece(path, i, shape) for i in range(layers)}
    scanned = (*shape[: layout.axis], layers, *shape[layout.axis :])
    return {f"{stack}.{layout.scanned.format(stack)}.{rest}": Piece(path, None, scanned)}


def _split(shape: tuple[int, ...], rest: str, heads: int) -> tuple[int, ...]:
    """The shape of a layer's parameter with an axis for heads, if it is an attention kernel."""
    if "attention." not in rest or not rest.endswith("kernel"):
        return shape
    if rest.endswith("out.kernel"):
        return (heads, shape[0] // heads, shape[1])
    return (shape[0], heads, shape[1] // heads)


def _one_bias(stored: list[StoredTensor], path: str, layout: Layout) -> np.ndarray:
    """The position bias of a stack, also where every layer has a copy of its own."""
    biases = [tensor.read() for tensor in stored]
    if layout.bias_in_layers and layout.scanned is not None:
        biases = list(np.moveaxis(biases[0], layout.axis, 0))
    for i, bias in enumerate(biases):
        if not np.array_equal(bias, biases[0]):
            raise ValueError(
                f"In {stored[0].file} every layer has a position bias, and that of layer {i} "
                f"differs from layer 0's; expected one for the stack, our {path}. A network of "
                "scalable_t5 that was trained that way has no equal here."
            )
    return biases[0]


def _open(
    path: str | os.PathLike[str], expected: T5Config | None
) -> tuple[dict[str, StoredTensor], T5Config, Layout]:
    """The stored parameters, checked to be exactly those of the network they tell of."""
    folder = find(path)
    stored = stored_arrays(folder, _PARAMETERS)
    found = {name: tensor.shape for name, tensor in stored.items()}
    layout = _layout(found, folder)
    config = _network(found, layout, folder, expected)
    wanted = {name: p.shape for name, p in pieces(placement.shapes(config), layout).items()}
    checks.same_tensors(wanted, found, f"{folder} does not hold one whole T5 network", _ADVICE)
    return stored, config, layout


def _shape(found: checks.Shapes, name: str, folder: epath.Path) -> tuple[int, ...]:
    if name not in found:
        raise ValueError(
            f"{folder} holds no T5: the array {_PARAMETERS}{name} is missing. There are "
            f"{checks.some(sorted(found)) or 'none'}. {_ADVICE}"
        )
    return found[name]


def _layout(found: checks.Shapes, folder: epath.Path) -> Layout:
    emb_dim = _shape(found, _EMBEDDING, folder)[-1]
    in_layers = f"encoder.{_BIAS}" not in found
    modules = ("layers_0", "encoder", "layers")  # the last as some T5X networks name the scan
    module = next((m for m in modules if f"encoder.{m}.{_QUERY}" in found), modules[0])
    query = _shape(found, f"encoder.{module}.{_QUERY}", folder)
    if module == "layers_0":
        return Layout(None, 0, len(query) == 3, in_layers)
    axis = 1 if query[0] == emb_dim else 0
    return Layout("{}" if module == "encoder" else module, axis, len(query) == 4, in_layers)


def _network(
    found: checks.Shapes, layout: Layout, folder: epath.Path, expected: T5Config | None
) -> T5Config:
    def of_layer(stack: str, rest: str) -> tuple[int, ...]:
        """The shape of one layer's array."""
        module = "layers_0" if layout.scanned is None else layout.scanned.format(stack)
        shape = _shape(found, f"{stack}.{module}.{rest}", folder)
        return shape if layout.scanned is None else shape[: layout.axis] + shape[layout.axis + 1 :]

    def layers(stack: str, query: str) -> int:
        if layout.scanned is not None:
            return found[f"{stack}.{layout.scanned.format(stack)}.{query}"][layout.axis]
        numbered = (re.match(rf"{stack}\.layers_(\d+)\.", name) for name in found)
        return len({match[1] for match in numbered if match})

    vocab_size, emb_dim = _shape(found, _EMBEDDING, folder)
    bias = of_layer("encoder", _BIAS) if layout.bias_in_layers else found[f"encoder.{_BIAS}"]
    query, decoder_query = of_layer("encoder", _QUERY), f"self_{_QUERY}"
    of_layer("decoder", decoder_query)
    gated = any(name.endswith("mlp.wi_0.kernel") for name in found)
    mlp_dim = of_layer("encoder", f"mlp.{'wi_0' if gated else 'wi'}.kernel")[-1]
    activations = ("gelu", "linear") if gated else ("relu",)
    max_distance = T5Config.relative_attention_max_distance
    if expected is not None:
        max_distance = expected.relative_attention_max_distance
        if len(expected.mlp_activations) == len(activations):
            activations = expected.mlp_activations
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=bias[0],
        num_encoder_layers=layers("encoder", _QUERY),
        num_decoder_layers=layers("decoder", decoder_query),
        head_dim=math.prod(query) // (emb_dim * bias[0]),
        mlp_dim=mlp_dim,
        mlp_activations=activations,
        logits_via_embedding=_THEIR_HEAD not in found,
        relative_attention_num_buckets=bias[-1],
        relative_attention_max_distance=max_distance,
    )


def save(
    path: str | os.PathLike[str],
    params: Params,
    *,
    layout: Layout = UNSCANNED,
    form: str = "orbax",
) -> None:
    """Writes the parameters as T5X does; its optimizer then starts anew.

    The folder appears whole or not at all. A checkpoint that is there already is replaced.

    Args:
      path: a local folder checkpoint_N; N is the step.
      params: float32; one process must be able to read all of them. Host memory holds them
        once, where they are not on the host already.
      layout: UNSCANNED or SCANNED.
      form: "orbax", T5X's present one, or "msgpack", its older one with zarr folders.

    Raises:
      ValueError: another name, or something other than a checkpoint is at `path`.
    """
    name = epath.Path(path).name
    step = _STEP.fullmatch(name)
    if step is None:
        raise ValueError(f"{path}: T5X finds checkpoints by their names; expected checkpoint_N.")
    arrays = _their_arrays(params, layout)
    state = {"step": np.int32(step[1])}
    with written_whole(path, CONTENT[form]) as folder:
        if form == "orbax":
            tree = traverse_util.unflatten_dict(dict(arrays), sep=".")
            native.write_tree(folder / "state", {"target": tree, "state": state})
        else:
            write_arrays(folder, ((f"{_PARAMETERS}{name}", array) for name, array in arrays), state)


def _their_arrays(params: Params, layout: Layout) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a T5X tree, by name; views of ours wherever these are on the host."""
    leaves = placement.by_path(params)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    for name, piece in pieces(shapes, layout).items():
        array = np.asarray(leaves[piece.path], np.float32)
        if placement.is_stack(piece.path) and piece.layer is not None:
            yield name, array[piece.layer].reshape(piece.shape)
        elif placement.is_stack(piece.path):
            inner = piece.shape[: layout.axis] + piece.shape[layout.axis + 1 :]
            yield name, np.moveaxis(array.reshape(len(array), *inner), 0, layout.axis)
        elif len(piece.shape) > array.ndim:
            yield name, np.broadcast_to(np.expand_dims(array, layout.axis), piece.shape)
        else:
            yield name, array
