"""The record of a stage: what it was asked, from which inputs, by which code, on what.

A stage begins by writing it and ends by completing it. A rerun finds a finished stage and
skips it, an unfinished one and goes on, or one of other settings and refuses. Of many hosts the
first one reads and writes it, so that all of them skip or run the same stages.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from dora_jax.config import fingerprint, to_dict
from dora_jax.cost.ledger import code_version
from dora_jax.parallel import hosts
from dora_jax.whole_files import write_json

_NAME = "manifest.json"


def begin(directory: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Starts a stage, or finds it finished.

    Args:
      directory: the stage's own folder; made where missing.
      settings: configs and the fingerprints of inputs that decide the stage's result.

    Returns:
      The outputs of a stage that finished with these settings, else None: it is to be run,
      from its last checkpoint if there is one.

    Raises:
      ValueError: the folder holds a stage of other settings.
    """
    wanted = to_dict(settings)
    return hosts.from_first(lambda: _begin(directory, wanted))


def _begin(directory: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _NAME
    if path.exists():
        found = read(directory)
        refuse_difference(directory, found["settings"], wanted)
        return found.get("outputs")
    write_json(
        path,
        {"settings": wanted, "fingerprint": fingerprint(wanted), "made_by": _environment()},
    )
    return None


def finish(directory: Path, outputs: dict[str, Any]) -> dict[str, Any]:
    """Completes a stage's manifest. Returns the outputs as they will be read back."""

    def write() -> dict[str, Any]:
        manifest = read(directory) | {"outputs": to_dict(outputs), "finished_by": _environment()}
        write_json(directory / _NAME, manifest)
        return manifest["outputs"]

    return hosts.from_first(write)


def is_finished(directory: Path) -> bool:
    """Whether a stage has finished there, with whatever settings."""
    path = directory / _NAME
    return hosts.from_first(lambda: path.exists() and "outputs" in read(directory))


def reopen(directory: Path) -> None:
    """Makes a finished stage an unfinished one, for outputs that were damaged since."""

    def write() -> None:
        manifest = read(directory)
        manifest.pop("outputs", None)
        write_json(directory / _NAME, manifest)

    hosts.on_first(write)


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a stage that has begun."""
    return read_json(directory / _NAME)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file that a stage wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Restore it, or remove the folder "
            f"{path.parent} to do this part anew."
        ) from error


def refuse_difference(directory: Path, found: Any, wanted: Any) -> None:
    """Raises a ValueError that lists every setting in which two manifests differ."""
    differences = list(_differences("", found, wanted))
    if differences:
        listed = "\n".join(f"  {name}: {old} there, {new} now" for name, old, new in differences)
        raise ValueError(
            f"{directory} was made with other settings:\n{listed}\n"
            "Nothing was changed. Choose another MODEL_DIR, take the settings back, or remove "
            "that folder."
        )


def _differences(name: str, found: Any, wanted: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            place = f"{name}.{key}" if name else key
            yield from _differences(place, found.get(key, "unset"), wanted.get(key, "unset"))
    elif found != wanted:
        yield name, json.dumps(found, ensure_ascii=False), json.dumps(wanted, ensure_ascii=False)


def _environment() -> dict[str, Any]:
    """What else decides the bits of a result, beside the settings."""
    devices = jax.devices()
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "cpu_threads": len(os.sched_getaffinity(0)),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
