"""The arrays of a T5X or Orbax checkpoint folder: known by name first, read one at a time.

There are three forms, told apart by what lies in the folder:

* T5X's own: a msgpack file `checkpoint`, a tree whose leaves are arrays or TensorStore specs;
  a spec's array is a zarr folder beside it.
* Orbax: a zarr folder for each array; small ones may be in a msgpack file `checkpoint`, whose
  other leaves are texts "PLACEHOLDER://name".
* Orbax with OCDBT: all zarr folders in one key-value store, `manifest.ocdbt`.

In all of them an array is named by its path in the tree, with dots. Of a spec in a msgpack file
only that name is used: a checkpoint does not get to say what else is opened.
Source: t5x/checkpoints.py, versions of 2021 to 2025; orbax.checkpoint; TensorStore's zarr and
ocdbt drivers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization, traverse_util

from dora_jax.checkpoints.tensor_files import StoredTensor

OCDBT = "manifest.ocdbt"
MSGPACK = "checkpoint"
_ZARR = {".zarray": "zarr", "zarr.json": "zarr3"}  # the file in an array's folder → its driver
_DTYPES = ("float32", "bfloat16", "float16")
_SPEC_KEYS = {"driver", "kvstore", "metadata"}
_PLACEHOLDER = "PLACEHOLDER://"
_VERSION = 3  # of T5X's own form, since 2021; 2 had bfloat16 as uint16
_CHUNK_BYTES = 64 << 20
# TensorStore would try for minutes to reach a bucket.
_CONTEXT = ts.Context({"gcs_request_retries": {"max_retries": 4}})


def file_names(folder: epath.Path) -> list[str]:
    """Of all files below a folder, relative to it; none where there is no such folder.

    Raises:
      ValueError: a bucket cannot be reached.
    """
    text = os.fspath(folder)
    if text.startswith("gs://"):
        return _keys(_files(folder), text)
    # TensorStore would not go into folders that are links.
    walked = os.walk(text, followlinks=True)
    return [
        os.path.relpath(os.path.join(at, file), text) for at, _, files in walked for file in files
    ]


def holds_arrays(names: Iterable[str]) -> bool:
    """Whether the files below a folder are a checkpoint in one of the three forms."""
    names = set(names)
    return bool(names & {OCDBT, MSGPACK}) or bool(_zarr_folders(names))


def stored_arrays(folder: epath.Path, prefix: str = "") -> dict[str, StoredTensor]:
    """The arrays whose names begin with a prefix, by the rest of their names; none is read yet.

    Args:
      folder: local or gs://.
      prefix: "target." for the parameters of a T5X checkpoint, whose optimizer is in "state.".

    Raises:
      ValueError: the folder is no checkpoint, or damaged, or an array is missing or of a type
        we do not read.
    """
    files = file_names(folder)
    if not holds_arrays(files):
        raise ValueError(
            f"{folder} is no T5X or Orbax checkpoint: expected {OCDBT}, a file `{MSGPACK}` or zarr "
            "folders in it."
        )
    inline: dict[str, StoredTensor] = {}
    store = _files(folder)
    if OCDBT in files:
        store = {"driver": "ocdbt", "base": store, "path": ""}
        drivers = _zarr_folders(_keys(store, str(folder / OCDBT)))
    elif MSGPACK in files:
        content = _store(store).read(MSGPACK).result().value
        inline, drivers = _msgpack_leaves(folder / MSGPACK, content, prefix)
    else:
        drivers = _zarr_folders(files)
    wanted = {name: driver for name, driver in drivers.items() if name.startswith(prefix)}
    opening = {name: _open(driver, store, name) for name, driver in wanted.items()}
    outside = {name: _stored(folder, name, future) for name, future in opening.items()}
    return {name.removeprefix(prefix): array for name, array in (inline | outside).items()}


def _files(folder: epath.Path) -> dict[str, Any]:
    """TensorStore's key-value store of a folder."""
    text = os.fspath(folder)
    if text.startswith("gs://"):
        bucket, _, path = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{path.rstrip('/')}/"}
    return {"driver": "file", "path": f"{text.rstrip('/')}/"}


def _store(spec: Mapping[str, Any]) -> ts.KvStore:
    return ts.KvStore.open(dict(spec), context=_CONTEXT).result()


def _keys(store: Mapping[str, Any], place: str) -> list[str]:
    try:
        return [key.decode() for key in _store(store).list().result()]
    except ValueError as error:
        raise ValueError(
            f"{place} is damaged or cannot be reached ({error}). Copy it again; a bucket that is "
            "not public needs credentials (gcloud auth application-default login)."
        ) from error


def _zarr_folders(files: Iterable[str]) -> dict[str, str]:
    """Name → driver of every array whose folder is among the files, and not deeper."""
    split = (name.partition("/") for name in files)
    return {name: _ZARR[file] for name, _, file in split if file in _ZARR}


def _msgpack_leaves(
    file: epath.Path, content: bytes, prefix: str
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The arrays that are in the file, and the drivers of those beside it; both by name."""
    if content.startswith(b"model_checkpoint_path"):
        raise ValueError(
            f"{file} belongs to a TensorFlow checkpoint, which has to be converted by T5X first "
            "(t5x.convert_tf_checkpoint)."
        )
    try:
        tree = serialization.msgpack_restore(content)
    except Exception as error:  # msgpack and flax raise classes of their own
        raise ValueError(f"{file} is damaged ({error}); copy it again.") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{file} holds a {type(tree).__name__}, expected a tree of arrays.")
    inside: dict[str, StoredTensor] = {}
    beside: dict[str, str] = {}
    for name, leaf in _leaves(tree.get("optimizer", tree), ""):
        if not name.startswith(prefix):
            continue
        if isinstance(leaf, np.ndarray):
            _check_dtype(file, name, leaf.dtype.name)
            read = functools.partial(np.array, leaf, np.float32)
            inside[name] = StoredTensor(file, leaf.shape, read)
        elif leaf is not None:
            _check_place(file, name, leaf)
            beside[name] = "zarr"
    return inside, beside


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and not value.keys() >= _SPEC_KEYS:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_place(file: epath.Path, name: str, leaf: Any) -> None:
    """Refuses a leaf that does not name the zarr folder beside the file."""
    if isinstance(leaf, dict):  # TensorStore before 0.1.14 had the path outside `kvstore`
        place = str(leaf["kvstore"].get("path") or leaf.get("path", "")).rstrip("/")
    else:
        place = str(leaf).removeprefix(_PLACEHOLDER)
    if place != name:
        raise ValueError(
            f"{file} says that the array {name} is in {place!r}; expected the folder {name!r} "
            "beside that file, where T5X writes it."
        )


def _open(driver: str, store: Mapping[str, Any], name: str) -> Any:
    spec = {
        "driver": driver,
        "kvstore": {**store, "path": f"{store['path']}{name}/"},
        # Otherwise a lost file would read as zeros.
        "fill_missing_data_reads": False,
    }
    return ts.open(spec, open=True, read=True, context=_CONTEXT)


def _stored(folder: epath.Path, name: str, future: Any) -> StoredTensor:
    try:
        array = future.result()
    except ValueError as error:
        raise ValueError(
            f"The array {name} is missing from {folder}, or damaged: {error}. Copy the checkpoint "
            "again."
        ) from error
    _check_dtype(folder, name, array.dtype.name)

    def read() -> np.ndarray:
        try:
            return np.asarray(array.read().result()).astype(np.float32, copy=False)
        except ValueError as error:
            raise ValueError(
                f"The array {name} in {folder} is damaged or incomplete: {error}. Copy the "
                "checkpoint again."
            ) from error

    return StoredTensor(folder, tuple(array.shape), read)


def _check_dtype(place: epath.Path, name: str, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise ValueError(
            f"The array {name} in {place} is {dtype}; expected one of {', '.join(_DTYPES)}."
        )


def write_arrays(
    folder: Path, arrays: Iterable[tuple[str, np.ndarray]], state: Mapping[str, Any]
) -> None:
    """Writes T5X's own form: a zarr folder for each array, and the msgpack file that names them.

    Args:
      folder: local, and not under its final name yet.
      arrays: by name, "target.encoder.…"; taken and written one after another.
      state: what is in the file itself, under "state".
    """
    tree: dict[str, Any] = {}
    for name, array in arrays:
        spec = {
            "driver": "zarr",
            "dtype": array.dtype.name,
            "kvstore": {"driver": "file", "path": name},
            "metadata": {
                "compressor": {"id": "gzip", "level": 1},
                "shape": list(array.shape),
                "chunks": _chunks(array),
            },
        }
        kvstore = {"driver": "file", "path": os.fspath(folder / name)}
        # A chunk of zeros is written too, so that a chunk that is not there is a lost one.
        here = {**spec, "kvstore": kvstore, "store_data_equal_to_fill_value": True}
        ts.open(here, create=True, open=True).result().write(array).result()
        tree[name] = ts.Spec(spec).to_json()
    nested = traverse_util.unflatten_dict(tree, sep=".")
    content = {"version": _VERSION, "optimizer": {**nested, "state": dict(state)}}
    (folder / MSGPACK).write_bytes(serialization.msgpack_serialize(content))


def _chunks(array: np.ndarray) -> list[int]:
    """Whole rows, 64 MiB of them at most, as T5X does."""
    row_bytes = array.nbytes // max(len(array), 1)
    return [max(1, min(len(array), _CHUNK_BYTES // max(row_bytes, 1))), *array.shape[1:]]
