"""Distill or annotate: the best compact language model per dollar, in JAX.

`dora_jax.forward` and `dora_jax.greedy_decode` run a network of `dora_jax.config`, read by
`dora_jax.checkpoints`. They are imported when first asked for, so that `import dora_jax` stays
light and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dora_jax import checkpoints as checkpoints
    from dora_jax import config as config
    from dora_jax.model.decode import greedy_decode
    from dora_jax.model.t5 import forward

__all__ = ["forward", "greedy_decode"]

_HOMES = {"forward": "dora_jax.model.t5", "greedy_decode": "dora_jax.model.decode"}
_MODULES = ("checkpoints", "config")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"dora_jax.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'dora_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
