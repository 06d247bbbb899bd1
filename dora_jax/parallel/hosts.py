"""What the processes of one run agree on: who writes, what was decided, whether to stop.

One process a host carries out the same program. All of them must take the same decisions, since
a computation that only some of them start never ends. So whatever depends on a clock, a disk or
a signal is decided by one, or by all together, through the functions here. In a run of one
process each of them is nothing but its own argument.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Value = TypeVar("Value")

# A message is padded to a multiple of this, so that few sizes are compiled.
_MESSAGE_BYTES = 4096


def count() -> int:
    """How many processes the run has. Starts no backend in a run of one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes what all of them share: records, tables, progress bars."""
    return count() == 1 or jax.process_index() == 0


def from_first(decide: Callable[[], Value]) -> Value:
    """What the first process finds, on every process; the others do not call `decide`.

    Args:
      decide: returns something made of JSON's types; tuples come back as lists.

    Raises:
      ValueError, OSError: what `decide` raised, on every process, so that all end alike.
    """
    if count() == 1:
        return decide()
    message: dict[str, Any] = {}
    error: Exception | None = None
    if is_first():
        try:
            message["value"] = decide()
        except ValueError as raised:
            error, message["value error"] = raised, str(raised)
        except OSError as raised:
            error, message["system error"] = raised, _parts(raised)
    received = json.loads(_broadcast(json.dumps(message).encode()))
    if error is not None:
        raise error
    if "value error" in received:
        raise ValueError(received["value error"])
    if "system error" in received:
        raise OSError(*received["system error"])
    return received["value"]


def _parts(error: OSError) -> list[Any]:
    """What an equal error is made of."""
    if error.errno is None:
        return [str(error)]
    return [error.errno, error.strerror, error.filename and str(error.filename)]


def on_first(act: Callable[[], object]) -> None:
    """Lets the first process act; all go on when it is done, or raise what it raised."""

    def nothing() -> None:
        act()

    from_first(nothing)


def _broadcast(message: bytes) -> bytes:
    """The first process's bytes, on every process."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.zeros(-(-length // _MESSAGE_BYTES) * _MESSAGE_BYTES, np.uint8)
    if is_first():
        padded[:length] = np.frombuffer(message, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded)[:length].tobytes()


def any_of(flag: bool) -> bool:
    """Whether the flag is set on any process; waits for all of them."""
    if count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array([flag], np.int32)).any())


def fetch(tree: Any) -> Any:
    """Arrays on the devices of all hosts → the same whole numpy arrays on every host."""
    if count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


class Poll:
    """Asks all processes at every update whether one of them wants to stop, without waiting.

    The question goes through the devices behind the update just started, and its answer is read
    after the next one: a wait at every update would keep the devices idle.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: jax.Array | None = None

    def any_of(self, flag: bool) -> bool:
        """Whether any process had its flag set at the call before this one.

        All processes call it equally often. In a run of one the answer is the flag itself.
        """
        if count() == 1:
            return flag
        before = self._asked
        devices = self._sharding.num_devices
        flags = jax.make_array_from_callback(
            (devices,), self._sharding, lambda index: np.full(devices, flag, np.int32)[index]
        )
        self._asked = self._total(flags)
        return before is not None and int(before) > 0
