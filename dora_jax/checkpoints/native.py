"""Checkpoints of running training, and final parameters: Orbax, asynchronous and sharded.

A checkpoint counts once Orbax has renamed it to its final name; one cut off by a crash is
never found again. Only this module knows Orbax.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

# Orbax tells every step of every save at INFO, its own thread tuning as warnings, and what it
# raises, with two tracebacks, as errors.
logging.getLogger("absl").setLevel(logging.CRITICAL)
# Of the tensors that could not be written, the first one's error is raised to us; asyncio would
# print the tracebacks of all the others.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)

_tell_unraisable = sys.unraisablehook


def _tell_unless_loop_closed(unraisable: Any) -> None:
    """Where a save fails, TensorStore's threads find Orbax's event loop closed, hundreds of times.

    Each would print a traceback around the message that says what failed.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        _tell_unraisable(unraisable)


sys.unraisablehook = _tell_unless_loop_closed


# Each device's piece of an array is written in chunks of so many bytes at most. Devices of another
# mesh read every chunk that theirs overlaps; with chunks as large as pieces that is nearly all.
_CHUNK_BYTES = 1 << 20


class Checkpoints:
    """The numbered checkpoints of one training phase: a state and a small JSON record each."""

    def __init__(self, directory: Path, keep: int) -> None:
        """Opens (and makes) the directory; the last `keep` checkpoints stay in it."""
        directory = Path(directory).absolute()
        # Many hosts wait for each other by name, and two managers may be saving at one time.
        name = f"{directory.parent.name}-{directory.name}"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            create=True,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=name
            ),
        )
        self._manager = ocp.CheckpointManager(directory, options=options)

    def steps(self) -> list[int]:
        return list(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of all later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Starts saving; returns once the state is copied and training may go on.

        Args:
          step: later than every step there is.
          state: a tree of arrays.
          record: JSON-able.
        """
        with self._full_disk_named():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state, save_args=_in_chunks(state)),
                    record=ocp.args.JsonSave(record),
                ),
            )

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """The state of a step, straight into the shardings of `abstract_state`.

        Args:
          step: one that `latest_step` returned.
          abstract_state: a tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          ValueError: the checkpoint does not fit `abstract_state` or cannot be read.
        """
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state),
                    record=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"The checkpoint {self._manager.directory / str(step)} cannot be restored: "
                f"{error}. Remove that folder to go on from the one before."
            ) from error
        return restored["state"], restored["record"]

    def wait(self) -> None:
        """Returns when everything started is on disk."""
        with self._full_disk_named():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._full_disk_named():
            self._manager.close()

    @contextlib.contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        """TensorStore raises a ValueError where the rest of Python raises an OSError."""
        try:
            yield
        except ValueError as error:
            code = re.search(rf"os_error_code='({errno.ENOSPC}|{errno.EDQUOT})'", str(error))
            if code is None:
                raise
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(self._manager.directory)) from error


def restore_best(directory: Path, step: int, abstract_params: Any) -> Any:
    """The parameters a finished phase chose, straight into their shardings.

    Args:
      directory: `best/` of the phase.
      step: the chosen update, as the phase's manifest tells.
      abstract_params: a tree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
      ValueError: there are none, or they are of another network.
    """
    if not (Path(directory) / str(step)).is_dir():
        raise ValueError(
            f"No parameters at {directory}/{step}; expected the folder that a finished training "
            "phase leaves. Remove the phase's folder to train it anew."
        )
    checkpoints = Checkpoints(directory, keep=1)
    try:
        return checkpoints.restore(step, abstract_params)[0]
    finally:
        checkpoints.close()


def write_tree(folder: Path, tree: Any) -> None:
    """Writes a tree of arrays in Orbax's own form, OCDBT; returns when it is on disk."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
        saved = ocp.args.PyTreeSave(tree, save_args=_in_chunks(tree))
        checkpointer.save(Path(folder).absolute(), args=saved)


def _in_chunks(tree: Any) -> Any:
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)


def abstract(state: Any) -> Any:
    """Shapes, dtypes and shardings of a state, to restore another one like it."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
