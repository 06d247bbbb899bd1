"""Sweep files: run files with axes, `sweep/NAME = (value, …)` and `search/NAME = (value, …)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gin.config import config_parser  # `from gin` sends type checkers to gin/

from dora_jax.launch import run_files
from dora_jax.launch.gin_config import Override
from dora_jax.sweeps import Axis

SWEEP, SEARCH = "sweep", "search"


class _Reference(str):
    """`@scope/Config()` or `%NAME`, as it was written."""

    def __repr__(self) -> str:
        return str(self)


class AsWritten(config_parser.ParserDelegate):
    """Takes references and macros for what they are called; nothing need be registered."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        return _Reference(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name: str) -> _Reference:
        return _Reference(f"%{macro_name}")


def is_axis(name: str) -> bool:
    """Whether a setting's name is that of an axis."""
    return name.startswith((f"{SWEEP}/", f"{SEARCH}/"))


def read_axes(path: Path, overrides: Sequence[Override] = ()) -> list[Axis]:
    """The axes of a sweep file and what it includes, in order; later ones replace earlier.

    Args:
      path: of the file.
      overrides: of the command line; those that are axes replace the file's.

    Raises:
      ValueError: there is none, an axis is no tuple or list, or the file cannot be parsed.
    """
    axes: dict[str, Axis] = {}
    given = [(Path(f"--gin.{o.name}"), f"{o.name} = {o.value}") for o in overrides]
    given = [piece for piece, o in zip(given, overrides, strict=True) if is_axis(o.name)]
    for file, text in [*run_files.read(path), *given]:
        try:
            statements = list(config_parser.ConfigParser(text, AsWritten()))
        except SyntaxError as error:
            raise ValueError(f"{file}: {error}") from error
        for statement in statements:
            if isinstance(statement, config_parser.BindingStatement):
                axis = _axis(file, statement)
                if axis is not None:
                    axes[axis.name] = axis
    if not axes:
        raise ValueError(
            f"{path} has no axis, so that it is one run, for launch/run.py. A sweep file says what "
            "varies: sweep/NUM_LABELS = (100, 200, 400)."
        )
    return list(axes.values())


def _axis(file: Path, statement: Any) -> Axis | None:
    kind, _, scope = statement.scope.partition("/")
    if kind not in (SWEEP, SEARCH):
        return None
    name = "/".join(filter(None, (scope, statement.selector)))
    name += f".{statement.arg_name}" if statement.arg_name else ""
    if not isinstance(statement.value, tuple | list):
        raise ValueError(
            f"{file}, line {statement.location.line_num}: {kind}/{name} = {statement.value!r}; "
            f"expected a tuple of values, such as ({statement.value!r},)."
        )
    return Axis(name, tuple(repr(value) for value in statement.value), kind == SEARCH)
