"""One of two processes that agree with each other on everything; tells what each function gave.

python agreeing_worker.py ADDRESS PROCESS_ID FOLDER
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dora_jax.parallel import hosts, partitioning
from dora_jax.parallel.mesh import make_mesh, own_shards
from dora_jax.stages import manifest
from dora_jax.stages.context import _require_shared


def error_of(act: Callable[[], object]) -> list[Any]:
    try:
        act()
    except (ValueError, OSError) as error:
        return [type(error).__name__, str(error), getattr(error, "errno", None)]
    return []


def fail(error: Exception) -> None:
    raise error


def agree(own: int, folder: Path) -> dict[str, Any]:
    """What this process sees of things that the first decides, or all together."""
    mesh = make_mesh()
    rows = np.arange(8.0).reshape(4, 2)
    [piece] = own_shards(mesh)
    placed = partitioning.place_rows({"rows": rows[2 * piece : 2 * piece + 2]}, 4, mesh)
    poll = hosts.Poll(mesh)
    stage = folder / "stage"
    return {
        "count": hosts.count(),
        "of the first": hosts.from_first(lambda: {"who": own, "text": "µ" * 5000}),
        "no value": hosts.from_first(lambda: None),
        "value error": error_of(lambda: hosts.on_first(lambda: fail(ValueError(f"of {own}")))),
        "full disk": error_of(
            lambda: hosts.on_first(lambda: fail(OSError(errno.ENOSPC, f"of {own}", "a file")))
        ),
        "one of them": hosts.any_of(own == 1),
        "none of them": hosts.any_of(False),
        "poll": [poll.any_of(own == 1 and turn == 1) for turn in range(4)],
        "fetched": hosts.fetch(placed)["rows"].tolist(),
        "begun": manifest.begin(stage, {"seed": 3}),
        "finished": manifest.finish(stage, {"who": own}),
        "found": manifest.begin(stage, {"seed": 3}),
        "other settings": error_of(lambda: manifest.begin(stage, {"seed": 4}))[0],
        "shared": error_of(lambda: _require_shared(folder)),
        "not shared": error_of(lambda: _require_shared(folder / str(own))),
    }


def main(address: str, process_id: str, folder: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.distributed.initialize(address, 2, int(process_id))
    told = agree(jax.process_index(), Path(folder))
    told["first"] = hosts.is_first()
    (Path(folder) / f"told-{process_id}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
