"""The device mesh (data, fsdp, tensor) over all devices of all hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

AXES = ("data", "fsdp", "tensor")


def make_mesh(*, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices as (data, fsdp, tensor); what fsdp and tensor leave over is data.

    Args:
      fsdp: over how many devices parameters and optimizer state are split by rows; -1 takes all
        that `tensor` leaves.
      tensor: over how many devices each matrix product is split. The fastest links: the
        last axis varies fastest over the devices of a host.
      devices: JAX's, by default all of `jax.devices()`.

    Raises:
      ValueError: if the number of devices is not a multiple of fsdp * tensor.
    """
    devices = list(jax.devices() if devices is None else devices)
    if fsdp == -1:
        fsdp = max(len(devices) // tensor, 1)
    if fsdp < 1 or tensor < 1 or len(devices) % (fsdp * tensor):
        raise ValueError(
            f"A mesh with fsdp={fsdp} and tensor={tensor} needs a multiple of {fsdp * tensor} "
            f"devices; there are {len(devices)}."
        )
    return Mesh(np.asarray(devices).reshape(-1, fsdp, tensor), AXES)


def data_shards(mesh: Mesh) -> int:
    """Into how many pieces a batch's rows are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
