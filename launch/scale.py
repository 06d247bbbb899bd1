"""Paper scale or rehearsal: whether the attached accelerators can hold what a run needs.

The count of bytes is that of `dora_jax/cost/memory.py`, spread over all devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from dora_jax.cost import hardware
from dora_jax.cost.hardware import USABLE_SHARE
from dora_jax.cost.memory import GB, StageMemory
from dora_jax.cost.memory import in_bfloat16 as in_bfloat16
from dora_jax.cost.memory import largest_stage as largest_stage
from dora_jax.cost.prices import PriceBook

SUGGESTED = ("a100", "h100", "h200", "v5p", "v6e", "v5e")
IN_HALF = "--gin.TEACHER_PARAM_DTYPE=\"'bfloat16'\""


class Machine(NamedTuple):
    """The devices at hand, and the bytes all of them hold; None where they do not tell."""

    platform: str  # "cpu", "gpu" or "tpu"
    device_kind: str
    devices: int
    total_bytes: float | None

    def __str__(self) -> str:
        holds = "unknown memory" if self.total_bytes is None else f"{self.total_bytes / GB:.0f} GB"
        if self.platform == "cpu":
            return f"no accelerator, {os.cpu_count()} CPU cores, {holds}"
        return f"{self.devices} × {self.device_kind}, {holds}"


class Choice(NamedTuple):
    """The scale of a run, and one sentence why."""

    scale: str
    reason: str


def attached_machine() -> Machine:
    """The devices JAX finds, and their memory. Starts JAX's backend."""
    import jax

    devices = jax.devices()
    first = jax.local_devices()[0]  # only its own host may ask a device
    if first.platform == "cpu":  # virtual CPU devices share the host's memory
        host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Machine("cpu", first.device_kind, len(devices), float(host_bytes))
    stats = first.memory_stats() or {}
    found = hardware.find(first.device_kind)
    one = stats.get("bytes_limit") or (found and found.usable_bytes)
    total_bytes = None if one is None else float(one) * len(devices)
    return Machine(first.platform, first.device_kind, len(devices), total_bytes)


def holds(machine: Machine, need: StageMemory) -> bool:
    """Whether the machine's memory is known to be enough."""
    if machine.total_bytes is None:
        return False
    one = need.bytes_per_device(row_shards=machine.devices, sharing=machine.devices)
    return one <= USABLE_SHARE * machine.total_bytes / machine.devices


def choose(
    requested: str,
    need: StageMemory,
    machine: Machine,
    command: str,
    in_half: StageMemory | None = None,
) -> Choice:
    """The scale of a run.

    Args:
      requested: "auto", "rehearsal" or "paper".
      need: `largest_stage` of the run at paper scale.
      machine: what is attached.
      command: the command line without --scale, for the commands in the error.
      in_half: the same with the teacher's parameters in bfloat16, to tell where that would fit.

    Raises:
      ValueError: paper scale was asked for and does not fit.
    """
    if requested == "rehearsal":
        return Choice("rehearsal", "asked for with --scale=rehearsal.")
    if holds(machine, need):
        if requested == "paper":
            return Choice("paper", f"asked for with --scale=paper; it needs {need}.")
        if machine.platform != "cpu":
            return Choice("paper", f"{machine} can hold the run, which needs {need}.")
        return Choice(
            "rehearsal",
            "no accelerator is attached; --scale=paper would fit, and take long.",
        )
    fits_in_half = in_half is not None and holds(machine, in_half)
    if requested == "paper":
        raise ValueError(_does_not_fit(need, machine, command, fits_in_half))
    if machine.platform == "cpu":
        return Choice("rehearsal", f"no accelerator is attached; paper scale needs {need}.")
    hint = f" With {IN_HALF} it would fit." if fits_in_half else ""
    return Choice("rehearsal", f"paper scale needs {need}; attached: {machine}.{hint}")


def _does_not_fit(need: StageMemory, machine: Machine, command: str, fits_in_half: bool) -> str:
    if fits_in_half:
        other = f"  here: {command} --scale=paper {IN_HALF}"
    else:
        other = f"  on {smallest_hardware(need)}: {command} --scale=paper"
    return (
        f"--scale=paper does not fit this machine.\n"
        f"  needed:   {need}\n"
        f"  there is: {machine}, of which {USABLE_SHARE:.0%} can be planned with\n"
        f"Two commands that work:\n"
        f"  here: {command} --scale=rehearsal\n"
        f"{other}"
    )


def smallest_hardware(need: StageMemory, items: Iterable[str] = SUGGESTED) -> str:
    """The cheapest number of devices of one kind that holds a stage, in words."""
    book = PriceBook.load()
    offers = []
    for item in items:
        one = hardware.table()[item]
        for devices in one.counts:
            if need.bytes_per_device(devices, devices) <= one.planned_bytes:
                usd = devices * book.device_price(item).usd
                offers.append((usd, devices, f"{item.upper()} {one.memory_bytes / GB:.0f} GB"))
                break
    if not offers:
        return "more devices of any kind than are rented together"
    usd, devices, name = min(offers)
    return f"{devices} × {name} (about {usd:.2f} USD an hour)"
