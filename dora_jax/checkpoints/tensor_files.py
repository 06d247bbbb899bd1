"""The tensors of a Hugging Face checkpoint folder: known by name first, read one at a time."""

from __future__ import annotations

import functools
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

# In the order of preference: safetensors cannot carry code and are checked as they are opened.
_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_DTYPES = ("F32", "BF16", "F16")


class StoredTensor(NamedTuple):
    """A tensor in a file or folder. `read` returns a float32 array of its own."""

    file: os.PathLike[str]
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by name; no weight is read yet.

    Raises:
      ValueError: no weights in the folder, a file missing, damaged or of a type we do not
        read, a tensor missing from the file its index names, or stored twice.
    """
    for weights in _WEIGHT_FILES:
        if (folder / weights).is_file():
            break
    else:
        raise ValueError(
            f"There are no weights in {folder}: expected one of {', '.join(_WEIGHT_FILES)}."
        )
    if not weights.endswith(".index.json"):
        return _read_header(folder / weights)
    weight_map = read_json(folder / weights).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f'{folder / weights} has no "weight_map"; download it again.')
    return _sharded(folder, weight_map)


def _sharded(folder: Path, weight_map: dict[str, str]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        header = _read_header(folder / file)
        twice = sorted(header.keys() & tensors.keys())
        if twice:
            first = tensors[twice[0]].file
            raise ValueError(
                f"The tensor {twice[0]} is stored twice, in {first} and in {folder / file}: "
                "expected each in one file. Download the checkpoint again."
            )
        tensors.update(header)
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file != folder / file:
            raise ValueError(
                f"The tensor {name} is not in {folder / file}, where the checkpoint's index "
                "says it is. Download the checkpoint again."
            )
    return tensors


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ValueError: no such file, not a JSON object, or one that has a name twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}).") from error
    return _parse_json(text, file)


def _parse_json(text: str | bytes, file: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        named = dict(pairs)
        if len(named) < len(pairs):  # JSON's own readers keep the last without a word
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice} is named twice")
        return named

    try:
        value = json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}. Download it again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}, expected a JSON object.")
    return value


def _read_header(file: Path) -> dict[str, StoredTensor]:
    if not file.is_file():
        raise ValueError(f"{file} is missing; put it there, or download the checkpoint again.")
    return _safetensors(file) if file.suffix == ".safetensors" else _torch(file)


def _safetensors(file: Path) -> dict[str, StoredTensor]:
    def read(name: str) -> np.ndarray:
        # Opened anew for each tensor, so that the pages of the one before are given back.
        with safe_open(file, "numpy") as tensors:
            return np.asarray(tensors.get_tensor(name), np.float32)

    found = {}
    try:
        with safe_open(file, "numpy") as tensors:  # which checks the header, but not for this
            with open(file, "rb") as stored:
                _parse_json(stored.read(int.from_bytes(stored.read(8), "little")), file)
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                view = tensors.get_slice(name)
                _check_dtype(file, name, view.get_dtype())
                shape = tuple(view.get_shape())
                found[name] = StoredTensor(file, shape, functools.partial(read, name))
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); download it again.") from error
    return found


def _check_dtype(file: Path, name: str, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise ValueError(
            f"The tensor {name} in {file} is {dtype}; expected one of {', '.join(_DTYPES)}. "
            "Quantised checkpoints have to be converted to one of these first."
        )


def _torch(file: Path) -> dict[str, StoredTensor]:
    """A `.bin` file, by torch's loader for weights only: it runs no code of the file."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{file} can only be read with torch: pip install 'dora_jax[torch]', or put "
            "model.safetensors beside it."
        ) from error
    dtypes = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    try:
        # Mapped into memory where the format allows it (all since torch 1.6): a tensor's
        # bytes are read when it is.
        mapped = zipfile.is_zipfile(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # pickle, zip and torch each raise classes of their own
        raise ValueError(
            f"{file} cannot be read as torch weights ({type(error).__name__}: {error}); "
            "download it again, or as model.safetensors."
        ) from error
    found = {}
    for name, tensor in tensors.items():
        _check_dtype(file, name, dtypes.get(tensor.dtype, str(tensor.dtype)))

        def read(tensor: Any = tensor) -> np.ndarray:
            return np.array(tensor.to(torch.float32).numpy())

        found[name] = StoredTensor(file, tuple(tensor.shape), read)
    return found
