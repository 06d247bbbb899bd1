"""Four hosts read the bytes of a checkpoint once a replica at most.

What a run starts from (`folder`) is read once by all of them together, whoever wrote it; what a
phase of the run has saved (`best`) once by each replica, on the devices that have saved it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from reading_worker import NETWORK, checksum
from whole_runs import free_port

from dora_jax.checkpoints import native_folder
from dora_jax.parallel.mesh import make_mesh
from dora_jax.train.step import init_params

pytestmark = [pytest.mark.slow, pytest.mark.multihost]
PROCESSES = 4
REPLICAS = {4: 1, 2: 2, 1: 4}  # by how many of the four share parameters


def test_a_checkpoint_is_read_once_a_replica_at_most(tmp_path: Path) -> None:
    params = init_params(NETWORK, 0, make_mesh(devices=jax.devices()[:1]))
    total_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    native_folder.save(tmp_path / "folder", NETWORK, params)
    address = f"127.0.0.1:{free_port()}"
    worker = [sys.executable, str(Path(__file__).with_name("reading_worker.py")), address]
    processes = [
        subprocess.Popen([*worker, str(PROCESSES), str(i), str(tmp_path), *map(str, REPLICAS)])
        for i in range(PROCESSES)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * PROCESSES
    told = [json.loads((tmp_path / f"told-{i}.json").read_text()) for i in range(PROCESSES)]
    for fsdp, replicas in REPLICAS.items():
        of_mesh = [each[str(fsdp)] for each in told]
        for kind, limit in (("folder", 1), ("best", replicas)):
            read_bytes = [each[kind][0] for each in of_mesh]
            print(f"{kind}, {replicas} replicas of {total_bytes:,} bytes: read {read_bytes}")
            # Compressed, so a little less than the arrays; indexes are read by all.
            assert 0.5 * total_bytes < sum(read_bytes) < 1.1 * limit * total_bytes
            for each in of_mesh:
                assert each[kind][1] == pytest.approx(checksum(params), rel=1e-5)
