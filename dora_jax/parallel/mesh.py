"""The device mesh (data, fsdp, tensor) over all devices of all hosts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

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
    return Mesh(np.asarray(devices).reshape(_sizes(len(devices), fsdp, tensor)), AXES)


def abstract_mesh(devices: int, *, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
    """The mesh that `make_mesh` makes of so many devices, for plans without them.

    Raises:
      ValueError: as `make_mesh`.
    """
    return AbstractMesh(_sizes(devices, fsdp, tensor), AXES)


def _sizes(devices: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    if fsdp == -1:
        fsdp = max(devices // tensor, 1)
    if devices < 1 or fsdp < 1 or tensor < 1 or devices % (fsdp * tensor):
        raise ValueError(
            f"A mesh with fsdp={fsdp} and tensor={tensor} needs a multiple of {fsdp * tensor} "
            f"devices; there are {devices}."
        )
    return devices // (fsdp * tensor), fsdp, tensor


def own_shards(mesh: Mesh) -> range:
    """Which of a batch's `data_shards` pieces the devices of this process hold.

    Raises:
      ValueError: pieces that do not follow each other: a host holds one stretch of a batch.
    """
    here = jax.process_index()
    pieces = mesh.devices.reshape(-1, mesh.shape["tensor"])
    own = [i for i, devices in enumerate(pieces) if any(d.process_index == here for d in devices)]
    if not own or own != list(range(own[0], own[-1] + 1)):
        raise ValueError(
            f"Process {here} holds the pieces {own} of a batch in the mesh {dict(mesh.shape)}; "
            "expected neighbours. Let fsdp * tensor be a multiple or a divisor of the devices of "
            "a host."
        )
    return range(own[0], own[-1] + 1)


def data_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many pieces a batch's rows are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def whole_pieces(rows: float, mesh: Mesh | AbstractMesh) -> int:
    """So many rows, rounded up to what every piece of a batch has its share of."""
    return math.ceil(rows / data_shards(mesh)) * data_shards(mesh)
