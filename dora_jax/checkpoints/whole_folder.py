"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str], content: Sequence[str]) -> Iterator[Path]:
    """Gives a folder beside `path` to write into, and renames it when all went well.

    A checkpoint that is at `path` already is replaced in the same moment. After an error
    `path` is what it was.

    Args:
      path: the folder to be, on a local disk.
      content: see `refuse_other_content`.

    Raises:
      ValueError: see there.
    """
    refuse_other_content(path, content)
    path = Path(path)
    aside, replaced = path.with_name(f"{path.name}.tmp"), path.with_name(f"{path.name}.old")
    if replaced.exists() and not path.exists():  # an earlier writer was killed between renames
        os.replace(replaced, path)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if path.exists():
        os.replace(path, replaced)
    os.replace(aside, path)
    shutil.rmtree(replaced, ignore_errors=True)


def refuse_other_content(path: str | os.PathLike[str], content: Sequence[str]) -> None:
    """Refuses to write where something else than a checkpoint of this kind is.

    Args:
      path: the folder to be.
      content: patterns of all names that may be in a folder that is replaced. The first has to
        be there, so that a folder with no more than a README is not taken for a checkpoint.

    Raises:
      ValueError: `path` is not local, or there is something else.
    """
    if os.fspath(path).startswith("gs://"):
        raise ValueError(
            f"{path}: checkpoints are written to a local disk, where a rename is one step. Write "
            f"one there, then copy it: gcloud storage cp -r FOLDER {path}"
        )
    path = Path(path)
    if not path.exists():
        return
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [path.name]
    strange = [name for name in names if not any(fnmatch.fnmatch(name, p) for p in content)]
    if names and (strange or not fnmatch.filter(names, content[0])):
        raise ValueError(
            f"{path} exists and is no checkpoint of the kind that would replace it: it has "
            f"{', '.join(strange[:5]) or f'no {content[0]}'}. Name another folder, or remove it "
            "first."
        )
