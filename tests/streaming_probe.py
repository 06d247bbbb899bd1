"""Reads one checkpoint in a process of its own, and prints what memory that took.

    python tests/streaming_probe.py KIND:FOLDER

Prints JSON: the bytes of the parameters, and by how many bytes the peak of the process rose above
what it was before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from dora_jax.stages import weights


def main(name: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.block_until_ready(jax.numpy.zeros(3) + 1)
    before = status_bytes("VmRSS")
    _, params = weights.find(name).read(None, None)
    jax.block_until_ready(params)
    measured = {
        "parameters": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        # Not ru_maxrss, which a process inherits from the one that started it.
        "rise": status_bytes("VmHWM") - before,
    }
    print(json.dumps(measured))


def status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main(sys.argv[1])
