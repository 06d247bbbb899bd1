"""Run files: where they lie, what they include, and the names that run.gin explains.

gin's own `include` looks into the working directory first, and would import a Python package
to look beside it; here an include is looked up beside the file that names it, then in the
packaged gin folder, the same from a checkout, from elsewhere and from an installed wheel.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# `gin/` of a checkout, or `gin_files/` beside `launch/` in an installed package.
GIN_FOLDER = next(
    folder
    for folder in (Path(__file__).resolve().parents[1] / name for name in ("gin", "gin_files"))
    if (folder / "run.gin").is_file()
)
WIRING = "run.gin"
SCALES = ("rehearsal", "paper")

_INCLUDE = re.compile(r"""include\s+["']([^"']+)["']\s*(#.*)?""")


class Piece(NamedTuple):
    """Lines of a gin file between two includes; blank lines before keep line numbers right."""

    file: Path
    text: str


class Setting(NamedTuple):
    """One line of run.gin: what `--help` prints."""

    name: str
    default: str
    meaning: str


def find_run_file(name: str | os.PathLike[str]) -> Path:
    """The run file of that path, or of that name in the packaged gin folder.

    Raises:
      ValueError: there is none; the message lists those there are.
    """
    path = Path(name)
    parts = path.parts[1:] if path.parts[:1] == ("gin",) else path.parts
    for candidate in (path, GIN_FOLDER.joinpath(*parts)):
        if candidate.is_file():
            return candidate.resolve()
    known = run_files()
    raise ValueError(
        f"There is no run file {path}.{nearest(f'gin/{path.name}', known)} Run files: "
        f"{', '.join(known)}; or give the path of your own."
    )


def run_files() -> list[str]:
    """The run files that come with the package, as `--gin_file` takes them."""
    return sorted(f"gin/{p.name}" for p in GIN_FOLDER.glob("*.gin") if p.name != WIRING)


def scale_file(scale: str) -> Path:
    """The gin file of a scale, or of a scale on the user's own data.

    Raises:
      ValueError: there is no such scale.
    """
    path = GIN_FOLDER / "scale" / f"{scale}.gin"
    if not path.is_file():
        raise ValueError(f"There is no scale {scale!r}; choose auto, {' or '.join(SCALES)}.")
    return path


def sample_file(task: str) -> Path | None:
    """The gin file of a task's rehearsal on the bundled sample, if it has one."""
    path = GIN_FOLDER / "scale" / f"rehearsal_{task}.gin"
    return path if path.is_file() else None


def read(path: Path, including: tuple[Path, ...] = ()) -> Iterator[Piece]:
    """A gin file and all that it includes, in the order in which gin is to see them.

    Args:
      path: the file.
      including: the files that led here.

    Raises:
      ValueError: a file cannot be read, an include is not there, or files include each other.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The gin file {path} cannot be read: {error}.") from error
    start = 0
    for i, line in enumerate(lines):
        match = _INCLUDE.fullmatch(line.rstrip())
        if match is None:
            continue
        included = _find_include(match[1], path, i + 1)
        if included in (*including, path):
            raise ValueError(f"{path}, line {i + 1}: {included} includes itself.")
        yield Piece(path, "\n" * start + "\n".join(lines[start:i]))
        yield from read(included, (*including, path))
        start = i + 1
    yield Piece(path, "\n" * start + "\n".join(lines[start:]))


def _find_include(name: str, file: Path, line: int) -> Path:
    for folder in (file.parent, GIN_FOLDER):
        if (folder / name).is_file():
            return (folder / name).resolve()
    known = sorted(p.relative_to(GIN_FOLDER).as_posix() for p in GIN_FOLDER.rglob("*.gin"))
    raise ValueError(
        f"{file}, line {line}: there is no {name} to include, neither beside that file nor in the "
        f"packaged gin folder.{nearest(name, known)} There are {', '.join(known)}."
    )


def settings() -> list[Setting]:
    """Every name of run.gin with its default and meaning, in order."""
    lines = (GIN_FOLDER / WIRING).read_text(encoding="utf-8").splitlines()
    matches = (re.fullmatch(r"([A-Z][A-Z0-9_]*) = (.+?)  # (.+)", line) for line in lines)
    return [Setting(*match.groups()) for match in matches if match]


def nearest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean …?" with up to three names that are spelled alike, or ""."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""
