"""How long work takes on a device that does nothing else: arithmetic, memory, links, network.

Each of them has its own time, the least that the device needs for it; they overlap, so the
longest one bounds the step (S. Williams et al., "Roofline", CACM 52, 2009). What is reached in
practice is a share of it (`calibrations.json`, "efficiency"). A CPU's figures are measured on
whole updates and on decoding, so that its share is 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from dora_jax.config import T5Config
from dora_jax.cost import calibrations, hardware
from dora_jax.cost.flops import TokenCounts, forward_flops, parameter_count
from dora_jax.cost.memory import (
    SLOT_BYTES,
    Layout,
    decoder_parameters,
    joined,
    parameter_bytes,
    stored_layer_bytes,
    value_bytes,
)
from dora_jax.cost.workload import Decoding, StageWork


class Traffic(NamedTuple):
    """What one device does in a step, and what its host sends to other hosts."""

    flops: float
    memory_bytes: float
    link_bytes: float  # sent
    network_bytes: float = 0.0  # sent by all devices of a host together

    def __add__(self, other: object) -> Traffic:
        if not isinstance(other, Traffic):
            return NotImplemented
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> Traffic:
        return Traffic(*(factor * value for value in self))


class Rates(NamedTuple):
    """What one device can do, and how much of that it reaches."""

    flops_per_second: float
    memory_bytes_per_second: float
    link_bytes_per_second: float  # one direction
    efficiency: float
    efficiency_source: str
    layer_seconds: float  # of one pass through a layer, however little there is to do
    network_bytes_per_second: float = math.inf  # of a host, one direction
    decoding_bytes_per_second: float = 0.0  # of memory, where decoding reaches another rate

    def decoding(self) -> Rates:
        """The same while decoding."""
        reached = self.decoding_bytes_per_second or self.memory_bytes_per_second
        return self._replace(memory_bytes_per_second=reached)

    def shared_by(self, devices: int) -> Rates:
        """Of each of so many devices that are one machine's together."""
        return self._replace(
            flops_per_second=self.flops_per_second / devices,
            memory_bytes_per_second=self.memory_bytes_per_second / devices,
            decoding_bytes_per_second=self.decoding_bytes_per_second / devices,
        )

    def seconds(self, traffic: Traffic) -> dict[str, float]:
        """By what the time goes into: "arithmetic", "memory", "links", "network"."""
        return {
            "arithmetic": traffic.flops / self.flops_per_second,
            "memory": traffic.memory_bytes / self.memory_bytes_per_second,
            "links": traffic.link_bytes / self.link_bytes_per_second,
            "network": traffic.network_bytes / self.network_bytes_per_second,
        }

    def range(self, traffic: Traffic, layers: int) -> tuple[float, float, str]:
        """Seconds at least, seconds at the efficiency, and what bounds them.

        Args:
          traffic: of one device.
          layers: passed through one after the other, which takes time however small they are;
            counted at the upper end.
        """
        parts = self.seconds(traffic)
        bound = max(parts, key=lambda name: parts[name])
        least = parts[bound]
        return least, least / self.efficiency + layers * self.layer_seconds, bound


def rates(item: str) -> Rates:
    """Of an accelerator of the hardware table, or of "cpu".

    Raises:
      ValueError: the table has no such device.
    """
    calibrated = calibrations.load()
    if item == "cpu":
        cpu = calibrated.cpu
        return Rates(
            cpu["flops_per_second"],
            cpu["memory_bytes_per_second"],
            cpu["memory_bytes_per_second"],
            1.0,
            f"{cpu['source']} ({cpu['date']})",
            calibrated.seconds["cpu"]["layer"],
            decoding_bytes_per_second=cpu["decoding_bytes_per_second"],
        )
    found = hardware.find(item)
    if found is None:
        raise ValueError(
            f"hardware {item!r} is not in the table; it has {', '.join(hardware.table())}, cpu."
        )
    efficiency = calibrated.efficiency[found.platform]
    return Rates(
        found.peak_bf16_flops_per_second,
        found.memory_bytes_per_second,
        found.link_bytes_per_second / 2,
        efficiency["value"],
        f"{efficiency['source']} ({efficiency['date']})",
        calibrated.seconds[found.platform]["layer"],
        found.network_bytes_per_second or math.inf,
    )


def passes(network: T5Config) -> int:
    """Forward, twice as much backward, and forward once more where it is recomputed."""
    return 4 if network.remat_policy == "full" else 3


def update_traffic(work: StageWork, layout: Layout) -> Traffic:
    """What one update asks of each device, padding and recomputation included."""
    assert work.train is not None
    network, sharing = work.network, layout.sharing(work.network)
    parameters, size = parameter_count(network), value_bytes(network)
    again = network.remat_policy == "full"
    rows = work.rows / layout.row_shards
    encoder, decoder = stored_layer_bytes(network, work.source_length, work.target_length)
    layers = network.num_encoder_layers * encoder + network.num_decoder_layers * decoder
    logits = work.target_length * network.vocab_size * 4
    # Weights once for each pass, activations written and read, state read and written.
    weights = (3 if again else 2) * parameters * size / layout.tensor
    activations = rows * ((3 if again else 2) * layers + 4 * logits) / layout.tensor
    slots = SLOT_BYTES[work.train.optimizer.name]
    state = parameters / sharing * (4 * parameter_bytes(network) + 2 * slots)
    return Traffic(
        passes(network) * forward_flops(network, work.padded) / layout.devices,
        weights + activations + state,
        *_update_links(network, work, layout, sharing),
    )


def _update_links(
    network: T5Config, work: StageWork, layout: Layout, sharing: int
) -> tuple[float, float]:
    """Bytes that a device sends in an update, and those that its host sends to others.

    Three trees of parameters where devices share them: weights gathered for each pass, gradients
    summed to their shares. What is compiled for TPU gathers in bfloat16 and sums to all, which
    comes to the same for float32 parameters (docs/quote.md). Where devices that share parameters
    are on several hosts, each host gets what it lacks once, through all its network cards, and
    its devices pass it on.
    """
    held = parameter_bytes(network) * parameter_count(network) / layout.tensor
    fsdp, copies = sharing // layout.tensor or 1, layout.devices // sharing
    gathered = 3 * held * (fsdp - 1) / fsdp
    reduced = 2 * held / fsdp * (copies - 1) / copies
    tokens = work.rows * (2 * work.source_length + 3 * work.target_length) / layout.row_shards
    # One sum over the tensor axis for each block, forwards and backwards.
    sums = 2 * tokens * network.emb_dim * value_bytes(network) * network.num_decoder_layers
    within = 2 * sums * (layout.tensor - 1) / layout.tensor
    outside = gathered if layout.crosses(sharing) else 0.0
    if layout.crosses(layout.devices):
        outside += reduced * min(layout.per_host, sharing)
    return gathered + reduced + within, outside


def position_traffic(network: T5Config, decoding: Decoding, layout: Layout) -> Traffic:
    """What decoding one more position of a batch asks of each device.

    Every weight of the decoder is read, and so are the keys and values of every position there
    may be. Devices that share the parameters keep their share, multiply all rows by it and sum
    the results: a position's activations are far fewer than the weights.
    """
    parameters, size = decoder_parameters(network), value_bytes(network)
    sharing = layout.sharing(network)
    rows = decoding.rows * sharing / layout.devices  # of the devices that share one copy
    cached = (decoding.positions + decoding.source_length) * 2 * network.num_decoder_layers
    cache = decoding.rows * cached * joined(network) * size / layout.devices
    results = 4 * joined(network) + 3 * network.emb_dim
    results += len(network.mlp_activations) * network.mlp_dim
    summed = rows * size * (network.num_decoder_layers * results + network.vocab_size)
    sent = 2 * summed * (sharing - 1) / sharing
    return Traffic(
        2 * parameters * rows / sharing,
        parameters * size / sharing + cache,
        sent,
        sent if layout.crosses(sharing) else 0.0,
    )


def encoding_traffic(network: T5Config, decoding: Decoding, layout: Layout) -> Traffic:
    """What encoding a batch asks of each device; shared parameters are gathered for it."""
    tokens = decoding.rows * decoding.source_length
    counts = TokenCounts(tokens, 0, tokens * decoding.source_length, 0, 0)
    sharing = layout.sharing(network)
    weights = value_bytes(network) * (parameter_count(network) - decoder_parameters(network))
    flops = forward_flops(network, counts) / layout.devices
    sent = weights * (sharing - 1) / sharing
    return Traffic(flops, weights, sent, sent if layout.crosses(sharing) else 0.0)
