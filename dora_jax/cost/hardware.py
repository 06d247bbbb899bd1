"""What an accelerator can do, by its vendor's figures: one sourced and dated table.

The table is data, `hardware.json` beside this file. A device is a JAX device: a GPU or a TPU
chip. The CPU is none of them; what a CPU does is measured (`calibrations.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

from dora_jax.checks import require
from dora_jax.cost.prices import device_item

# Share of the memory that is there which a run may plan with: XLA keeps some, fragmentation
# takes some, and on GPUs `launch.command_line.set_up_jax` leaves 8 % to CUDA and its libraries.
USABLE_SHARE = 0.9
_POWERS_OF_TWO = tuple(2**n for n in range(11))


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One kind of accelerator. `date` is that of the newest of its sources."""

    item: str  # the price book's word
    name: str
    platform: str  # "gpu" or "tpu"
    peak_bf16_flops_per_second: float  # dense
    memory_bytes: float  # as the vendor names it
    usable_bytes: float  # what a framework finds there
    memory_bytes_per_second: float
    link: str  # between the devices of a host or a slice
    link_bytes_per_second: float  # of one device, both directions together
    host_link: str
    host_bytes_per_second: float | None  # both directions; None where nobody publishes it
    devices_per_host: int
    network_bytes_per_second: float | None  # of a host, each way; None: links join all hosts
    source: str
    date: str
    slices: tuple[int, ...] = ()  # of a TPU: how many chips its common slices have

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float):
                require(
                    math.isfinite(value) and value > 0,
                    f"hardware {self.item}: {field.name} = {value}; expected more than 0.",
                )
        require(
            bool(self.source and self.date),
            f"hardware {self.item}: a figure without source or date is none.",
        )

    @property
    def planned_bytes(self) -> float:
        """What one device may be planned to hold."""
        return USABLE_SHARE * self.usable_bytes

    @property
    def counts(self) -> tuple[int, ...]:
        """How many devices are for rent together: slices of a TPU, GPUs in powers of two."""
        return self.slices or _POWERS_OF_TWO


class Devices(NamedTuple):
    """So many devices of one kind, and how the user wrote that."""

    hardware: str  # item of the table, or "cpu"
    count: int
    written: str


@functools.cache
def table() -> dict[str, Hardware]:
    """Every accelerator of the table, by item."""
    path = Path(__file__).with_name("hardware.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = (row | {"slices": tuple(row.get("slices", ()))} for row in content["hardware"])
    return {row["item"]: Hardware(**row) for row in rows}


def find(device_kind: str) -> Hardware | None:
    """The accelerator of a JAX device kind or an item; None where the table has none."""
    return table().get(device_item(device_kind))


def parse_devices(text: str) -> list[Devices]:
    """Reads "a100-40gb:4,v5e:64": kinds and how many of each; without a number, one.

    Raises:
      ValueError: a kind the table does not have, or a count that is no whole number above 0.
    """
    known = [*table(), "cpu"]
    found = []
    for written in filter(None, (part.strip() for part in text.split(","))):
        item, colon, count = written.partition(":")
        item = item.lower()
        if item not in known:
            raise ValueError(
                f"hardware {written!r}: there is no {item!r} in the table; it has "
                f"{', '.join(known)}. Write KIND:COUNT, as in h100:8."
            )
        if colon and not (count.isdecimal() and len(count) < 6 and int(count) > 0):
            raise ValueError(
                f"hardware {written[:40]!r}: the count is {count[:20]!r}; expected how many "
                f"devices, 1 to 99999, as in {item}:8."
            )
        found.append(Devices(item, int(count) if colon else 1, written))
    if not found:
        raise ValueError(f"hardware {text!r} names nothing; write KIND:COUNT, as in h100:8,v5e:64.")
    return found
