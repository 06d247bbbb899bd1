"""gin: from run files and `--gin.NAME=value` to one checked RunConfig, and back to text.

The only module that knows gin. gin itself accepts a name that nothing reads and a scope that
nobody has; a misspelled setting would then be lost without a word, on a run that costs
hundreds of dollars. So every name is checked here, and the errors offer the nearest ones.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import io
import os
import re
import tokenize
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gin import config as gin  # plain `import gin` sends type checkers to gin/

from dora_jax import config as configs
from dora_jax.config import RunConfig
from dora_jax.fingerprints import fingerprint
from dora_jax.launch import run_files
from dora_jax.launch.run_files import find_run_file, nearest

DATA_DIR_VARIABLE = "DORA_DATA_DIR"
ALL_NAMES = "All names: python launch/run.py --help"

_CONFIGS = (
    configs.RunConfig,
    configs.DataConfig,
    configs.OwnTaskConfig,
    configs.ModelSource,
    configs.T5Config,
    configs.PretrainConfig,
    configs.TrainConfig,
    configs.OptimizerConfig,
    configs.SoftLossConfig,
    configs.LlmConfig,
    configs.LabelConfig,
    configs.EvaluateConfig,
    configs.MeshConfig,
    configs.CostConfig,
)
_MACRO = "gin.macro"
_OF_THE_DATA = ("NUM_LABELS", "TASK_FEATURE_LENGTHS", "VOCABULARY_PIECES")


class Override(NamedTuple):
    """`--gin.NAME=value` of the command line."""

    name: str
    value: str


class Resolved(NamedTuple):
    """A run's configuration, and the gin text that gives the same one when parsed again."""

    config: RunConfig
    text: str


def build(
    run_file: str | os.PathLike[str],
    scale: str,
    overrides: Sequence[Override] = (),
    *,
    check_use: bool = True,
    is_sweep: bool = False,
) -> Resolved:
    """Reads a run file, then the scale's file, then the overrides, and checks all of it.

    A run file that sets SCALE itself, like a run's `config.gin`, is taken without the scale's.

    Args:
      run_file: a path, or the name of a file in the packaged gin folder.
      scale: "rehearsal" or "paper".
      overrides: of the command line; they win.
      check_use: refuse overrides that mean nothing at this scale.
      is_sweep: leave the axes of a sweep file to launch/sweep.py.

    Raises:
      ValueError: no such file, an unknown or unused name, a value of the wrong kind.
    """
    path = find_run_file(run_file)
    gin.clear_config()
    _parse_file(path)
    if not _bound("SCALE"):
        _parse_overrides(overrides)  # they may name the data that the scale's files depend on
        _parse_scale(scale)
    elif _bound("SCALE") != scale:
        raise ValueError(
            f"{path} sets SCALE = {_bound('SCALE')!r}, so that it cannot run at scale {scale!r}. "
            "Leave --scale away, or take a run file without SCALE."
        )
    _parse_overrides(overrides)
    _set_default("DATA_DIR", "" if _bound("TRAIN_FILE") else _data_dir())
    # A folder of one's own data gets a run directory of its own, beside the sample's.
    data_name = f"-{Path(_bound('DATA_DIR')).name}" if _bound("DATA_DIR") else ""
    _set_default("MODEL_DIR", f"runs/{path.stem}-{scale}{data_name}")
    _check_macros(overrides, is_sweep)
    if check_use:
        _check_references()
    config = _make()
    if check_use:
        _check_use(overrides)
    header = f"# {path.name} at scale {scale}, resolved. To run it again: --gin_file=THIS_FILE\n\n"
    return Resolved(config, header + gin.operative_config_str(max_line_length=100))


def own_scale(run_file: str | os.PathLike[str]) -> str | None:
    """The scale that a run file sets itself, as the `config.gin` of a run directory does."""
    gin.clear_config()
    _parse_file(find_run_file(run_file))
    return _bound("SCALE") or None


def owners() -> dict[str, list[str]]:
    """For each config the "scope/Config" that a run or a model file has, to set its fields by."""
    build(run_files.WIRING, "paper")
    known = {config.__name__ for config in _CONFIGS}
    found: dict[str, list[str]] = {}
    for scope, selector in sorted({*_bindings(), *_operative()}):
        name = selector.rpartition(".")[2]
        if name in known and scope:
            found.setdefault(name, []).append(f"{scope}/{name}")
    return {name: found.get(name, [name]) for name in sorted(known)}


def field_names(config: str) -> list[str]:
    """The fields of a config of that name; none if there is none."""
    found = [c for c in _CONFIGS if c.__name__ == config]
    return [field.name for c in found for field in dataclasses.fields(c)]


def _make() -> RunConfig:
    try:
        return gin.get_configurable("RunConfig")()
    except (ValueError, TypeError) as error:  # without the calls that gin lists after it
        raise ValueError(str(error).split("\n  In call to configurable")[0]) from None


# --- What gin calls to make a config


def _checked(config: type) -> Callable[..., Any]:
    """A constructor that checks the kinds of values, and names the gin setting in errors."""
    kinds = typing.get_type_hints(config)

    @functools.wraps(config, updated=())
    def construct(**fields: Any) -> Any:
        for name, value in fields.items():
            try:
                fields[name] = _conform(value, kinds[name])
            except ValueError as error:
                shown = f"@{value.__name__}" if callable(value) else repr(value)
                raise ValueError(
                    f"{config.__name__}.{name} = {shown}; expected {error}. Set it with "
                    f"--gin.{_set_by(config, name)}=…"
                ) from None
        try:
            return config(**fields)
        except ValueError as error:
            named = re.search(rf"\b{config.__name__}\.(\w+)", str(error))
            hint = f" Set it with --gin.{_set_by(config, named[1])}=…" if named else ""
            raise ValueError(f"{error}{hint}") from None

    # gin reads defaults from it, and writes them into the resolved text.
    construct.__signature__ = inspect.signature(config)  # type: ignore[attr-defined]
    return construct


def _conform(value: Any, kind: Any) -> Any:
    """The value as its field holds it; a ValueError says what was expected."""
    if typing.get_origin(kind) is tuple:
        member = typing.get_args(kind)[0]
        example = '("a", "b")' if member is str else "(1.0, 2.0)"
        if not isinstance(value, list | tuple):
            raise ValueError(f"a tuple such as {example}")
        return tuple(_conform(item, member) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # 2 and 2.0 must not give two fingerprints
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if dataclasses.is_dataclass(kind):
        raise ValueError(f"a {kind.__name__}, written @NAME/{kind.__name__}() with parentheses")
    expected = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "a bool"}
    raise ValueError(expected[kind])


def _set_by(config: type, field: str) -> str:
    """The gin name that sets a field of the config being made: its macro, else scope and field."""
    value = gin.get_bindings(config.__name__, resolve_references=False).get(field)
    if isinstance(value, gin.ConfigurableReference) and repr(value).startswith("%"):
        return repr(value)[1:]
    scope = gin.current_scope_str()
    return f"{scope}/{config.__name__}.{field}" if scope else f"{config.__name__}.{field}"


def feature_length(lengths: Mapping[str, int], feature: str) -> int:
    """One of TASK_FEATURE_LENGTHS."""
    if not isinstance(lengths, Mapping) or set(lengths) != {"inputs", "targets"}:
        raise ValueError(
            f'TASK_FEATURE_LENGTHS = {lengths!r}; expected {{"inputs": 512, "targets": 128}}.'
        )
    return lengths[feature]


def files_fingerprint(files: Sequence[str], token_store: str) -> str:
    """Of the bytes of an own task's files, so that a run refuses files that have changed.

    A prepared token store holds their rows and stands for them; its host need not have them.
    """
    if token_store or not any(files):
        return ""
    try:
        contents = [Path(file).read_bytes() if file else b"" for file in files]
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read ({error.strerror}), a file of your own task: name "
            f"it as it is seen from {Path.cwd()}."
        ) from None
    return fingerprint([hashlib.sha256(content).hexdigest() for content in contents])


def stored_temperatures(temperature: float) -> tuple[float, ...]:
    """Temperatures with a stored log-normaliser: 1, for plain probabilities, and the loss's."""
    return tuple(sorted({1.0, temperature}))


def entries_drawn_at(tail: str, temperature: float) -> float:
    """The temperature at which the kept entries are drawn; 0: they are the largest."""
    return temperature if tail == "sample" else 0.0


for _config in _CONFIGS:
    gin.external_configurable(_checked(_config), _config.__name__, module="dora_jax")
for _function in (feature_length, files_fingerprint, stored_temperatures, entries_drawn_at):
    gin.external_configurable(_function, module="dora_jax")


# --- Parsing


def _parse_scale(scale: str) -> None:
    given = {name: _bound(name) for name in _OF_THE_DATA}
    _parse_file(run_files.scale_file(scale))
    if _bound("TRAIN_FILE"):
        # What is known of such data stands in the run file alone, and holds at every scale.
        for name, value in given.items():
            gin.bind_parameter((name, _MACRO, "value"), value)
    elif scale == "rehearsal" and _data_dir():
        _parse_file(run_files.scale_file("rehearsal_own_data"))
    elif scale == "rehearsal" and (recipe := run_files.sample_file(_bound("MIXTURE_OR_TASK_NAME"))):
        _parse_file(recipe)


def _data_dir() -> str:
    return _bound("DATA_DIR") or os.environ.get(DATA_DIR_VARIABLE, "")


def _parse_file(path: Path) -> None:
    for file, text in run_files.read(path):
        named = io.StringIO(text)
        named.name = str(file)  # gin puts it into its errors
        try:
            gin.parse_config(named)
        except (ValueError, SyntaxError, tokenize.TokenError) as error:
            raise _explained(error, str(file)) from None


def _parse_overrides(overrides: Iterable[Override]) -> None:
    for name, value in overrides:
        if name == "SCALE":
            raise ValueError("The scale is chosen with --scale=rehearsal or --scale=paper.")
        try:
            gin.parse_config(f"{name} = {value}")
        except (SyntaxError, tokenize.TokenError):
            text = value if value and not set(value) & set("\"'\\") else "text"
            raise ValueError(
                f"--gin.{name}={value} cannot be read; expected a Python value: 3, 1e-3, True, or "
                "a text in two pairs of quotes, since the shell takes the outer one: "
                f"--gin.{name}=\"'{text}'\""
            ) from None
        except ValueError as error:
            raise _explained(error, f"--gin.{name}={value}") from None


def _explained(error: Exception, where: str) -> ValueError:
    """gin's own errors, with the nearest names that would do."""
    text, _, place = str(error).partition("\n")
    place = f"\n{place}" if place and not where.startswith("--gin.") else ""
    if match := re.match(r"No configurable matching (?:reference )?'@?(?:.*/)?([\w.]+)", text):
        names = [config.__name__ for config in _CONFIGS]
        hint = f"{nearest(match[1], names)} There are {', '.join(names)}."
        return ValueError(f"{where}: there is no {match[1]!r}.{hint}{place}")
    if match := re.match(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", text):
        fields = field_names(match[1].rpartition(".")[2])
        hint = f"{nearest(match[2], fields)} Its fields: {', '.join(fields)}."
        return ValueError(f"{where}: {match[1]} has no field {match[2]!r}.{hint}{place}")
    return ValueError(f"{where}: {error}")


# --- What is bound, and what of it is used. gin has no public reader of either table.


def _bindings() -> Mapping[tuple[str, str], Mapping[str, Any]]:
    """(scope, selector) -> parameters, as parsed. A macro is a scope of the selector gin.macro."""
    return gin._CONFIG


def _operative() -> Mapping[tuple[str, str], Mapping[str, Any]]:
    """The same for what took part in making the config."""
    return gin._OPERATIVE_CONFIG


def _bound(macro: str) -> Any:
    return _bindings().get((macro, _MACRO), {}).get("value")


def _set_default(macro: str, value: str) -> None:
    if not _bound(macro):
        gin.bind_parameter((macro, _MACRO, "value"), value)


def _references() -> set[tuple[str, str]]:
    return {reference.config_key for reference in gin.iterate_references(_bindings())}


def _check_macros(overrides: Iterable[Override], is_sweep: bool) -> None:
    """Refuses names that nothing reads, and reads of names that nothing sets."""
    if ("", "dora_jax.RunConfig") not in _bindings():
        raise ValueError(f'The run file has no wiring; begin it with: include "{run_files.WIRING}"')
    defined = {scope for scope, selector in _bindings() if selector == _MACRO}
    read = {scope for scope, selector in _references() if selector == _MACRO}
    # Those of run.gin stay names even where something else has taken their reader's place.
    known = read | {setting.name for setting in run_files.settings()}
    given = {name for name, _ in overrides}
    for name in sorted(defined - known):
        if name.startswith(("sweep/", "search/")):
            if is_sweep:
                continue
            raise ValueError(f"{name} is an axis of a sweep: python launch/sweep.py --gin_file=…")
        where = f"--gin.{name}" if name in given else f"{name}, set in a gin file,"
        raise ValueError(f"{where} is no name of this run.{nearest(name, known)} {ALL_NAMES}")
    for name in sorted(read - defined):
        raise ValueError(f"%{name} is read, but nothing sets it.{nearest(name, defined)}")


def _check_references() -> None:
    """Refuses `@NAME/T5Config()` with a NAME that no file describes: gin would take defaults."""
    for scope, selector in sorted(_references()):
        if selector == _MACRO or not scope or (scope, selector) in _bindings():
            continue
        name = selector.rpartition(".")[2]
        known = {f"@{s}/{name}()" for s, other in _bindings() if other == selector and s}
        raise ValueError(
            f"@{scope}/{name}() is described by no gin file."
            f"{nearest(f'@{scope}/{name}()', known)} There are {', '.join(sorted(known))}."
        )


def _check_use(overrides: Iterable[Override]) -> None:
    """Refuses overrides of what the run does not use, or sets again in a narrower scope."""
    for name, _ in overrides:
        if (name, _MACRO) in _bindings():
            if (name, _MACRO) not in _operative():
                raise ValueError(f"--gin.{name} changes nothing at this scale: nothing reads it.")
            continue
        key = gin.ParsedBindingKey.parse(name)
        scopes = [scope for scope, selector in _operative() if selector == key.complete_selector]
        if any(_deciding_scope(scope, key) == key.scope for scope in scopes):
            continue
        owner = key.given_selector
        used = sorted(f"{scope}/{owner}.{key.arg_name}".lstrip("/") for scope in scopes)
        reads = f"What it reads: {', '.join(used) or f'no {owner}'}."
        raise ValueError(
            f"--gin.{name} changes nothing in this run.{nearest(name, used) or ' ' + reads} "
            f"{ALL_NAMES}"
        )


def _deciding_scope(scope: str, key: Any) -> str | None:
    """The narrowest scope around `scope` in which the key's parameter is bound."""
    parts = scope.split("/") if scope else []
    for length in range(len(parts), -1, -1):
        outer = "/".join(parts[:length])
        if key.arg_name in _bindings().get((outer, key.complete_selector), {}):
            return outer
    return None
