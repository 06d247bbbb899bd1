"""What every reader of checkpoints refuses: another network, other tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dora_jax.config import T5Config

# No property of the weights.
_FREE = ("dropout_rate", "dtype", "param_dtype", "attention", "remat_policy", "scan_unroll")
_SHOWN = 5  # names an error lists before it only counts

Shapes = Mapping[str, tuple[int, ...]]


def same_network(where: str, found: T5Config, expected: T5Config) -> None:
    """Refuses a checkpoint of another network than the run's.

    Dropout, dtypes and how the layers are compiled are the run's own business.

    Raises:
      ValueError: names every setting that differs, with both values.
    """
    ours, theirs = dataclasses.asdict(expected), dataclasses.asdict(found)
    differences = [
        f"{name}: expected {ours[name]}, found {theirs[name]}"
        for name in ours
        if name not in _FREE and ours[name] != theirs[name]
    ]
    if differences:
        raise ValueError(
            f"The checkpoint {where} is another network than this run's. "
            f"{'; '.join(differences)}. Change the network's settings or the checkpoint."
        )


def same_tensors(wanted: Shapes, found: Shapes, where: str, advice: str) -> None:
    """Refuses a checkpoint that is not exactly the wanted tensors.

    Args:
      wanted: shape of every tensor of the network, by its name in the checkpoint.
      found: the stored tensors' shapes by name.
      where: the checkpoint and what it was taken for, for the message.
      advice: what to do, for the message.

    Raises:
      ValueError: tensors are missing, unknown, or of another shape; names them.
    """
    wrong = {
        "missing": [f"{name} {shape}" for name, shape in wanted.items() if name not in found],
        "unknown": [f"{name} {shape}" for name, shape in found.items() if name not in wanted],
        "of another shape": [
            f"{name} expected {shape}, found {found[name]}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
    }
    if any(wrong.values()):
        parts = [f"{len(names)} {kind}: {some(names)}" for kind, names in wrong.items() if names]
        raise ValueError(f"{where}. Tensors {'; '.join(parts)}. {advice}")


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
