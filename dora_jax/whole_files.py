"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(
    path: str | os.PathLike[str], content: str | bytes, *, durable: bool = False
) -> None:
    """Writes aside and renames, so that a file under its name is always whole.

    Args:
      path: the file to be; it replaces one that is there.
      content: text is written as UTF-8.
      durable: also wait for the disk, against a crash of the machine.
    """
    path = Path(path)
    aside = path.with_name(f"{path.name}.tmp")
    with open(aside, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(aside, path)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file for programs and people, as `write_whole` does."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
