"""Settings in their plain-JSON form, and the short hash of it that manifests compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def to_dict(config: Any) -> Any:
    """The plain-JSON form of a config: dataclasses become dicts, tuples lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config


def fingerprint(config: Any) -> str:
    """First 16 hex digits of the SHA-256 of the config's canonical JSON."""
    text = json.dumps(to_dict(config), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def agreed(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all of these nested settings have in common."""
    first, *others = settings
    common = {}
    for name, value in first.items():
        values = [value, *(other.get(name) for other in others)]
        if all(isinstance(v, dict) for v in values):
            common[name] = agreed(values)
        elif all(v == value for v in values):
            common[name] = value
    return common
