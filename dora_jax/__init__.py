"""Distill or annotate: the best compact language model per dollar, in JAX.

`dora_jax.forward` and `dora_jax.greedy_decode` run a network; they are imported when first
asked for, so that `import dora_jax` stays light and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dora_jax.model.decode import greedy_decode
    from dora_jax.model.t5 import forward

__all__ = ["forward", "greedy_decode"]

_HOMES = {"forward": "dora_jax.model.t5", "greedy_decode": "dora_jax.model.decode"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dora_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
