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
_TORCH_DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}


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
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text ({error}). Download it again.") from error
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
    return _safetensors(file) if file.suffix == ".safetensors" else _torch_header(file)


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


def _torch_header(file: Path) -> dict[str, StoredTensor]:
    """A `.bin` file, by torch's loader for weights only: it runs no code of the file."""
    mapped = zipfile.is_zipfile(file)
    found = {}
    for name, tensor in _torch(file, mapped).items():
        dtype = str(getattr(tensor, "dtype", type(tensor).__name__))
        _check_dtype(file, name, _TORCH_DTYPES.get(dtype, dtype))
        # The oldest form can only be read whole, and once is enough for that.
        read = functools.partial(_read_mapped, file, name) if mapped else _reader(tensor)
        found[name] = StoredTensor(file, tuple(tensor.shape), read)
    return found


def _reader(tensor: Any) -> Callable[[], np.ndarray]:
    return lambda: np.array(tensor.detach().float().numpy())


def _read_mapped(file: Path, name: str) -> np.ndarray:
    # Opened anew for each tensor, as safetensors are, and for the same reason.
    return _reader(_torch(file, mapped=True)[name])()


def _torch(file: Path, mapped: bool) -> dict[str, Any]:
    """The tensors of a file by name; mapped into memory, a tensor's bytes are read when it is."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{file} can only be read with torch: pip install 'dora_jax[torch]', or put "
            "model.safetensors beside it."
        ) from error
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # pickle, zip and torch each raise classes of their own
        raise ValueError(
            f"{file} cannot be read as torch weights ({type(error).__name__}: {error}); "
            "download it again, or as model.safetensors."
        ) from error
    if not isinstance(tensors, dict):
        raise ValueError(f"{file} holds a {type(tensors).__name__}, expected tensors by name.")
    return tensors
