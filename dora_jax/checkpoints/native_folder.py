"""A network and its parameters in one folder of ours, and parameters as training leaves them.

network.json     the network, and how many sentinels the vocabulary has
spiece.model     the vocabulary, where it is known
params/          Orbax, OCDBT: our parameter tree
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from etils import epath
from jax.sharding import Mesh

from dora_jax.checkpoints import checks, native, placement
from dora_jax.checkpoints.array_files import stored_arrays
from dora_jax.checkpoints.tensor_files import read_json
from dora_jax.checkpoints.whole_folder import written_whole
from dora_jax.config import T5Config, to_dict
from dora_jax.model.t5 import Params

NETWORK = "network.json"
CONTENT = (NETWORK, "spiece.model", "params")  # of a folder that `save` replaces


def load(
    path: str | os.PathLike[str], mesh: Mesh | None = None, expected: T5Config | None = None
) -> tuple[T5Config, Params]:
    """Reads such a folder, array by array, into its shardings.

    Args:
      path: a local folder.
      mesh: where the parameters go; default one device.
      expected: the network it has to be, known before a weight is read.

    Raises:
      ValueError: files missing or damaged, or not the arrays of the network.
    """
    folder = Path(path)
    config = network(_record(folder).get("network"), f"{folder / NETWORK}")
    if expected is not None:
        checks.same_network(str(path), config, expected)
    return config, read_params(folder / "params", config, mesh)


def extra_ids(path: str | os.PathLike[str]) -> int:
    """How many sentinels the vocabulary beside it has."""
    found = _record(Path(path)).get("extra_ids")
    if type(found) is not int or found < 0:
        raise ValueError(f"{Path(path) / NETWORK}: extra_ids is {found!r}; expected 0 or more.")
    return found


def _record(folder: Path) -> dict[str, Any]:
    return read_json(folder / NETWORK)


def network(fields: Any, where: str) -> T5Config:
    """The network that a JSON file tells of.

    Raises:
      ValueError: it is no such network; `where` names the file.
    """
    known = {field.name for field in dataclasses.fields(T5Config)}
    if not isinstance(fields, dict) or not set(fields) <= known:
        found = sorted(set(fields) - known) if isinstance(fields, dict) else fields
        raise ValueError(f"{where} tells of no T5: it has {found}; expected {sorted(known)}.")
    try:
        return T5Config(**fields)
    except (TypeError, ValueError) as error:  # of another type; out of its range
        raise ValueError(f"{where} tells of no T5: {error}") from error


def read_params(
    folder: str | os.PathLike[str], config: T5Config, mesh: Mesh | None = None
) -> Params:
    """A parameter tree of ours, as Orbax wrote it, array by array into its shardings.

    Raises:
      ValueError: missing, damaged, or of another network.
    """
    stored = stored_arrays(epath.Path(folder))
    found = {name: tensor.shape for name, tensor in stored.items()}
    advice = "Compare the network's settings with those it was trained with."
    where = f"{folder} does not hold the parameters of this network"
    checks.same_tensors(placement.shapes(config), found, where, advice)
    return placement.fill(
        config,
        mesh,
        lambda path: (
            iter(stored[path].read()) if placement.is_stack(path) else [stored[path].read()]
        ),
    )


def save(
    path: str | os.PathLike[str],
    config: T5Config,
    params: Params,
    vocabulary_file: str | os.PathLike[str] | None = None,
    extra_ids: int = 100,
) -> None:
    """Writes such a folder; it appears whole or not at all, and replaces only its like.

    Args:
      path: a local folder.
      params: float32.
      vocabulary_file: the SentencePiece model, where it is known.
      extra_ids: how many sentinels follow its pieces.

    Raises:
      ValueError: something else is at `path`.
    """
    with written_whole(path, CONTENT) as folder:
        native.write_tree(folder / "params", params)
        if vocabulary_file is not None:
            shutil.copyfile(vocabulary_file, folder / "spiece.model")
        record = {"version": 1, "network": to_dict(config), "extra_ids": extra_ids}
        text = json.dumps(record, indent=1) + "\n"
        (folder / NETWORK).write_text(text, encoding="utf-8")
