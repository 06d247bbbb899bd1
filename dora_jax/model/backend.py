"""What kind of device programs are traced for: each has its own way to be fast."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_compiled_for: contextvars.ContextVar[str] = contextvars.ContextVar("compiled_for", default="")


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Inside, programs are traced for devices that are not here ("tpu" on a CPU's host)."""
    token = _compiled_for.set(platform)
    try:
        yield
    finally:
        _compiled_for.reset(token)


def platform() -> str:
    """What programs are traced for: "cpu", "gpu" or "tpu"."""
    return _compiled_for.get() or jax.default_backend()
