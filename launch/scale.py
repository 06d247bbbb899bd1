"""Paper scale or rehearsal: whether the attached accelerators can hold what a run needs.

The count is of bytes that exist at once in a run's largest stage, spread over all devices.
It is an estimate on the safe side for telling a machine that cannot from one that can, not
a plan of memory: packing, sharding and XLA's fusions use less.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from dora_jax.config import FIRST_LABEL_BATCH, ModelSource, RunConfig, T5Config, TrainConfig
from dora_jax.cost.flops import parameter_count
from dora_jax.cost.prices import PriceBook, device_item

GB = 1e9

# Share of a device's memory that a run may plan with: XLA keeps some, fragmentation takes some.
USABLE_SHARE = 0.9

# Bytes of optimizer state a parameter. Adafactor keeps a row and a column of each matrix,
# which is next to nothing; AdamW two float32 moments.
SLOT_BYTES = {"adafactor": 0, "adamw": 8}

# Memory of one JAX device in bytes, by price-book item. Used where the device does not say,
# and to name hardware that would do. Source: vendors' datasheets; Google Cloud TPU pages.
DEVICE_BYTES = {
    "a100-40gb": 40 * GB,
    "a100": 80 * GB,
    "h100": 80 * GB,
    "h200": 141 * GB,
    "v4": 32 * GB,
    "v5e": 16 * GB,
    "v5p": 95 * GB,
    "v6e": 32 * GB,
}
SUGGESTED = ("a100", "h100", "h200", "v5p", "v6e", "v5e")


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


class StageMemory(NamedTuple):
    """What one stage holds at once, over all devices together."""

    stage: str
    parameters: int
    state_bytes_per_parameter: int
    activation_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.parameters * self.state_bytes_per_parameter + self.activation_bytes

    def __str__(self) -> str:
        return (
            f"{self.total_bytes / GB:.0f} GB in stage {self.stage} ({self.parameters / 1e9:.2f} B "
            f"parameters × {self.state_bytes_per_parameter} bytes, activations "
            f"{self.activation_bytes / GB:.0f} GB)"
        )


class Choice(NamedTuple):
    """The scale of a run, and one sentence why."""

    scale: str
    reason: str


def attached_machine() -> Machine:
    """The devices JAX finds, and their memory. Starts JAX's backend."""
    import jax

    devices = jax.devices()
    first = devices[0]
    if first.platform == "cpu":  # virtual CPU devices share the host's memory
        host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Machine("cpu", first.device_kind, len(devices), float(host_bytes))
    stats = first.memory_stats() or {}
    one = stats.get("bytes_limit") or DEVICE_BYTES.get(device_item(first.device_kind))
    total_bytes = None if one is None else float(one) * len(devices)
    return Machine(first.platform, first.device_kind, len(devices), total_bytes)


def stages_memory(config: RunConfig) -> list[StageMemory]:
    """What each stage of a run holds at once; evaluation is smaller than any of them."""
    data = config.data
    tokens = data.source_length + data.target_length

    def training(stage: str, network: T5Config, train: TrainConfig) -> StageMemory:
        rows = -(-train.batch_size // train.microbatches)
        state = 4 + 4 + SLOT_BYTES[train.optimizer.name]  # float32 parameters, gradients, slots
        activations = _training_activations(network, rows, data.source_length, data.target_length)
        return StageMemory(stage, parameter_count(network), state, activations)

    def start(name: str, source: ModelSource) -> list[StageMemory]:
        if source.weights:
            return []
        return [training(f"pretrain-{name}", source.network, source.pretrain.train)]

    stages = start("student", config.student)
    if "annotate" in config.strategies:
        stages.append(training("annotate", config.student.network, config.annotate))
    if "distill" in config.strategies:
        teacher = config.teacher.network
        rows = config.label.batch_size or FIRST_LABEL_BATCH
        cache = rows * tokens * 2 * teacher.num_decoder_layers * _joined(teacher)
        logits = rows * data.target_length * teacher.vocab_size * 4
        held = float(cache * _bytes(teacher) + logits)
        stages += start("teacher", config.teacher)
        stages.append(training("teach", teacher, config.teach))
        stages.append(StageMemory("label", parameter_count(teacher), 4, held))
        stages.append(training("distill", config.student.network, config.distill))
    return stages


def largest_stage(config: RunConfig) -> StageMemory:
    """The stage that decides whether a machine can hold the run."""
    return max(stages_memory(config), key=lambda stage: stage.total_bytes)


def _joined(network: T5Config) -> int:
    return network.num_heads * network.head_dim


def _bytes(network: T5Config) -> int:
    return 2 if network.dtype == "bfloat16" else 4


def _training_activations(network: T5Config, rows: int, source: int, target: int) -> float:
    """Bytes that the backward pass finds stored, for unpacked rows of full length.

    Source: the count of arXiv 2205.05198, section 4.1, tensor by tensor, for T5's layers.
    """
    size = _bytes(network)

    def attention(queries: int, keys: int) -> float:
        vectors = 2 * network.emb_dim * queries + 2 * _joined(network) * (queries + keys)
        scores = 2 * network.num_heads * queries * keys  # before and after the softmax
        return float(rows * (vectors * size + scores * 4))

    def mlp(positions: int) -> float:
        hidden = (2 * len(network.mlp_activations) + 1) * network.mlp_dim
        return float(rows * positions * (hidden + 2 * network.emb_dim) * size)

    encoder_layer = attention(source, source) + mlp(source)
    decoder_layer = attention(target, target) + attention(target, source) + mlp(target)
    logits = rows * target * network.vocab_size * (4 + 4)  # float32, and their gradient
    if network.remat_policy == "full":  # only what enters each layer, and one layer at work
        entering = rows * network.emb_dim * size
        stored = entering * (
            network.num_encoder_layers * source + network.num_decoder_layers * target
        )
        return stored + max(encoder_layer, decoder_layer) + logits
    return (
        network.num_encoder_layers * encoder_layer
        + network.num_decoder_layers * decoder_layer
        + logits
    )


def holds(machine: Machine, need: StageMemory) -> bool:
    """Whether the machine's memory is known to be enough."""
    return machine.total_bytes is not None and (
        need.total_bytes <= USABLE_SHARE * machine.total_bytes
    )


def choose(requested: str, need: StageMemory, machine: Machine, command: str) -> Choice:
    """The scale of a run.

    Args:
      requested: "auto", "rehearsal" or "paper".
      need: `largest_stage` of the run at paper scale.
      machine: what is attached.
      command: the command line without --scale, for the commands in the error.

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
    if requested == "paper":
        raise ValueError(_does_not_fit(need, machine, command))
    if machine.platform == "cpu":
        return Choice("rehearsal", f"no accelerator is attached; paper scale needs {need}.")
    return Choice("rehearsal", f"paper scale needs {need}; attached: {machine}.")


def _does_not_fit(need: StageMemory, machine: Machine, command: str) -> str:
    return (
        f"--scale=paper does not fit this machine.\n"
        f"  needed:   {need}\n"
        f"  there is: {machine}, of which {USABLE_SHARE:.0%} can be planned with\n"
        f"Two commands that work:\n"
        f"  here: {command} --scale=rehearsal\n"
        f"  on {smallest_hardware(need)}: {command} --scale=paper"
    )


def smallest_hardware(need: StageMemory, items: Iterable[str] = SUGGESTED) -> str:
    """The cheapest number of devices of one kind that holds a stage, in words."""
    book = PriceBook.load()
    offers = []
    for item in items:
        devices = 1
        while devices * DEVICE_BYTES[item] * USABLE_SHARE < need.total_bytes:
            devices *= 2  # hosts and slices come in powers of two
        usd = devices * book.device_price(item).usd
        offers.append((usd, devices, f"{item.upper()} {DEVICE_BYTES[item] / GB:.0f} GB"))
    usd, devices, name = min(offers)
    return f"{devices} × {name} (about {usd:.2f} USD an hour)"
