"""One of several processes that read a checkpoint; tells how many bytes of it this one read.

python reading_worker.py ADDRESS PROCESSES PROCESS_ID FOLDER FSDP…
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import tensorstore as ts

from dora_jax.checkpoints import native, native_folder
from dora_jax.config import T5Config
from dora_jax.parallel.mesh import make_mesh
from dora_jax.train.step import abstract_params

NETWORK = T5Config(
    vocab_size=4096,
    emb_dim=512,
    num_heads=8,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=64,
    mlp_dim=2048,
    logits_via_embedding=True,
)
STEP = 1


def bytes_read() -> int:
    """What TensorStore has read from files so far in this process."""
    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


def checksum(params: object) -> float:
    """A number that every parameter counts in, the same on all hosts."""
    total = jax.jit(lambda tree: sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))
    return float(total(params))


def read(place: Path, fsdp: int) -> dict[str, tuple[int, float]]:
    """Bytes and checksum of a folder, and of what was saved on this mesh before."""
    mesh = make_mesh(fsdp=fsdp)
    before = bytes_read()
    params = native_folder.load(place / "folder", mesh)[1]
    read_first = bytes_read() - before
    best = place / f"best-{fsdp}"
    checkpoints = native.Checkpoints(best, keep=1)
    checkpoints.save(STEP, params, {})
    checkpoints.close()
    between = bytes_read()
    restored = native.restore_best(best, STEP, abstract_params(NETWORK, mesh))
    return {
        "folder": (read_first, checksum(params)),
        "best": (bytes_read() - between, checksum(restored)),
    }


def main(address: str, processes: str, process_id: str, folder: str, *fsdp: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.distributed.initialize(address, int(processes), int(process_id))
    told = {each: read(Path(folder), int(each)) for each in fsdp}
    (Path(folder) / f"told-{process_id}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
