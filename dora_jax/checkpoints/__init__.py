"""Reading and writing checkpoints. `huggingface` and `t5x` are imported when first asked for."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dora_jax.checkpoints import huggingface as huggingface
    from dora_jax.checkpoints import native_folder as native_folder
    from dora_jax.checkpoints import t5x as t5x


def __getattr__(name: str) -> ModuleType:
    if name not in ("huggingface", "native_folder", "t5x"):
        raise AttributeError(f"module 'dora_jax.checkpoints' has no attribute {name!r}")
    return importlib.import_module(f"dora_jax.checkpoints.{name}")
