"""What the programs of launch/ share: flags and `--gin.…`, help, errors, JAX's settings."""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from dora_jax.cost.affordable import Unaffordable
from dora_jax.launch import gin_config, run_files
from dora_jax.launch.gin_config import Override
from dora_jax.launch.run_files import nearest

EXIT_ERROR = 2
EXIT_BUDGET = 3  # the budget is reached: what was trained so far is scored, more money goes on
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the same command goes on
_GIN = "--gin."


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[Override]]:
    """Flags, and the `--gin.NAME=value` beside them.

    Raises:
      ValueError: an unknown flag, or a `--gin.` without a value.
    """
    overrides = []
    for argument in arguments:
        if argument.startswith(_GIN):
            name, equals, value = argument.removeprefix(_GIN).partition("=")
            if not equals:
                raise ValueError(f"{argument} has no value; write {_GIN}{name}=VALUE in one word.")
            overrides.append(Override(name, value))
    flags, unknown = parser.parse_known_args([a for a in arguments if not a.startswith(_GIN)])
    if unknown:
        known = [*re.findall(r"--\w+", parser.format_usage()), f"{_GIN}NAME"]
        hint = nearest(unknown[0].partition("=")[0], known)
        raise ValueError(f"There is no flag {unknown[0]!r}.{hint} Flags: {', '.join(known)}.")
    return flags, overrides


def require_place(flag: str, path: str) -> None:
    """Tells before the work that the file of a flag cannot be written after it.

    Raises:
      ValueError: there is no such folder, or it takes no file.
    """
    aside = f"{path}.tmp"
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        open(aside, "ab").close()
        os.remove(aside)
    except OSError as error:
        raise ValueError(f"{flag}={path} cannot be written: {error.strerror}.") from error


def gin_help() -> str:
    """Every gin name of a run: run.gin's with default and meaning, then the fields of configs."""
    lines = ["gin names, set with --gin.NAME=value (texts in two pairs of quotes):"]
    for name, default, meaning in run_files.settings():
        lines += [f"  {name} = {default}", f"      {meaning}"]
    lines += [
        "",
        "Every other setting, as --gin.OWNER.field=value, with OWNER one of the first line:",
    ]
    for config, owners in gin_config.owners().items():
        fields = ", ".join(gin_config.field_names(config))
        for text, indent in ((", ".join(owners), "  "), (fields, "      ")):
            lines.append(textwrap.fill(text, 96, initial_indent=indent, subsequent_indent=indent))
    return "\n".join(lines)


def command(program: Sequence[str], arguments: Sequence[str]) -> str:
    """A line to paste into a shell, with --gin texts quoted as the help shows them."""
    return " ".join([*map(shlex.quote, program), *map(_quoted, arguments)])


def _quoted(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if shlex.quote(argument) != argument and equals and not set(value) & set('"$`\\!'):
        return f'{name}="{value}"'
    return shlex.quote(argument)


def exit_status(run: Callable[[], int], debug: bool) -> int:
    """Runs, and turns errors a user can mend into a message and status 2, or 3 at the budget.

    Args:
      run: returns the exit status.
      debug: let every error through with its traceback.
    """
    status = EXIT_ERROR
    try:
        return run()
    except ValueError as error:
        if debug:
            raise
        message = str(error)
        status = EXIT_BUDGET if isinstance(error, Unaffordable) else EXIT_ERROR
    except BrokenPipeError:  # `| head` has seen enough; nor shall Python's last flush complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = (
            f"no space is left: {error}. What was finished before is whole; free some space and "
            "run the same command again."
        )
    sys.stderr.write(f"error: {message}\n")  # at once: other threads may be writing too
    return status


def default_compilation_cache() -> Path:
    """Where compiled programs are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "dora_jax" / "compiled"


def set_up_jax(compilation_cache: str) -> None:
    """Settings that JAX and TensorFlow read at their start; "" keeps no compilation cache."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # JAX takes three quarters of a GPU by default; nothing else runs on a rented one.
    if "XLA_CLIENT_MEM_FRACTION" not in os.environ:  # its newer name; both are an error
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    import jax

    if compilation_cache:
        jax.config.update("jax_compilation_cache_dir", compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Lets the C library hand freed memory out again instead of returning it to the kernel.

    For computing on a CPU: each update takes and frees the same large buffers, and glibc maps
    large ones afresh, to be cleared page by page at every use. Call it before threads start.
    Other C libraries than glibc stay as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    for parameter, value in (
        (_M_MMAP_MAX, 0),
        (_M_ARENA_MAX, 1),  # any other arena is too small for large buffers and maps them
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 64 * 2**20),
    ):
        mallopt(parameter, value)
