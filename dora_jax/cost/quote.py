"""What a run will cost on given hardware, before it is rented.

Arithmetic alone: memory by `memory.py`, work by `workload.py`, time by `roofline.py`; no device
is touched. Hours are a range: what the hardware could reach at best, and that over the share
of it which was seen in practice. Dollars are those of the upper end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from dora_jax.config import RunConfig
from dora_jax.cost import calibrations, hardware
from dora_jax.cost.flops import parameter_count, training_flops
from dora_jax.cost.interruptions import expected_hours
from dora_jax.cost.memory import (
    SLOT_BYTES,
    Layout,
    StageMemory,
    llm_students,
    parameter_bytes,
    stages_memory,
)
from dora_jax.cost.prices import Price, device_item
from dora_jax.cost.roofline import (
    Rates,
    Traffic,
    encoding_traffic,
    passes,
    position_traffic,
    rates,
    update_traffic,
)
from dora_jax.cost.run_prices import device_price
from dora_jax.cost.workload import DataFacts, StageWork, assumed_facts, stages_work

NOT_COUNTED = ("machine boot", "image", "download of weights", "disk")
LAUNCH, PREPARE = "launch", "prepare"  # stages of the ledger that are no training


class StageQuote(NamedTuple):
    """One stage on the hardware. Steps are updates; a stage without any decodes batches."""

    stage: str
    fits: bool
    bytes_per_device: float
    flops_per_step: float  # done by all devices: of padding too, and again where recomputed
    useful_flops_per_step: float | None  # without those; None where nothing is trained
    bytes_per_step: float  # memory traffic of one device
    steps: int
    step_seconds_low: float
    step_seconds_high: float
    bound_by: str
    hours_low: float
    hours_high: float
    hours_beside: float  # of both: compiling, loading and saving, as `calibrations.json` assumes
    dollars: float  # at hours_high


class RunQuote(NamedTuple):
    """A run on the hardware. `dollars` is of compute alone, an upper estimate."""

    hardware: str
    devices: int
    spot: bool
    price: Price
    fits: bool
    bytes_per_device: float  # of the stage that holds most
    planned_bytes: float  # what a device may be planned to hold
    stages: tuple[StageQuote, ...]
    hours_low: float
    hours_high: float
    lost_hours: float  # of hours_high, to interruptions
    dollars: float
    dollars_per_1000_labelled: float | None
    efficiency: float
    efficiency_source: str
    not_counted: tuple[str, ...]

    def stage(self, name: str) -> StageQuote | None:
        """The stage of that name; None where the run has none."""
        return next((stage for stage in self.stages if stage.stage == name), None)


def quote_run(
    config: RunConfig,
    device_kind: str,
    devices: int,
    *,
    spot: bool = False,
    facts: DataFacts | None = None,
    memory_bytes: float = math.inf,
) -> RunQuote:
    """What a run takes on so many devices of a kind.

    Args:
      config: the run.
      device_kind: an item of the hardware table, JAX's name of a device, or "cpu".
      devices: how many.
      spot: at the price of devices that may be taken away, interruptions included.
      facts: sizes of the data; `workload.assumed_facts` without them.
      memory_bytes: of one device, where the table does not tell (a CPU's host).

    Raises:
      ValueError: no such hardware, no such price, or devices that the mesh cannot divide.
    """
    item = device_item(device_kind)
    layout, facts = Layout.of(config.mesh, devices), facts or assumed_facts(config)
    price = device_price(config.cost, item, spot)
    found = hardware.find(item)
    planned = found.planned_bytes if found else hardware.USABLE_SHARE * memory_bytes
    if found and found.network_bytes_per_second:
        layout = layout._replace(per_host=found.devices_per_host)
    seconds = calibrations.load().seconds[found.platform if found else "cpu"]
    needs = {memory.stage: memory for memory in stages_memory(config)}
    # The CPU's figures are of a whole machine, which its devices share.
    reached = rates(item) if found else rates(item).shared_by(devices)
    quoter = _Quoter(layout, reached, seconds, price.usd * devices, planned)
    stages = [quoter.alone(LAUNCH, seconds["start"]), quoter.alone(PREPARE, seconds["prepare"])]
    for work in stages_work(config, facts, layout.row_shards):
        stages.append(quoter.stage(work, needs.get(work.stage)))
    low = sum(stage.hours_low for stage in stages)
    high = sum(stage.hours_high for stage in stages)
    lost = _lost_hours(config, stages, devices, found) if spot else 0.0
    outside = max(config.cost.uncounted_hours, 0.0)
    hours = high + lost + outside
    label = next((stage for stage in stages if stage.stage == "label"), None)
    return RunQuote(
        hardware=item,
        devices=devices,
        spot=spot,
        price=price,
        fits=all(stage.fits for stage in stages),
        bytes_per_device=max(stage.bytes_per_device for stage in stages),
        planned_bytes=planned,
        stages=tuple(stages),
        hours_low=low + outside,
        hours_high=hours,
        lost_hours=lost,
        dollars=hours * price.usd * devices,
        dollars_per_1000_labelled=label and 1000 * label.dollars / max(facts.unlabeled, 1),
        efficiency=quoter.rates.efficiency,
        efficiency_source=quoter.rates.efficiency_source,
        not_counted=_not_counted(config),
    )


class _Quoter(NamedTuple):
    """What all stages of a run are quoted by."""

    layout: Layout
    rates: Rates
    seconds: dict[str, float]  # of the platform, calibrated
    usd_per_hour: float
    planned_bytes: float

    def alone(self, stage: str, seconds: float) -> StageQuote:
        """A stage in which the devices only wait."""
        hours = seconds / 3600
        usd = hours * self.usd_per_hour
        return StageQuote(
            stage, True, 0.0, 0.0, None, 0.0, 0, 0.0, 0.0, "host", hours, hours, hours, usd
        )

    def stage(self, work: StageWork, need: StageMemory | None) -> StageQuote:
        held = (
            need.bytes_per_device(self.layout.row_shards, self.layout.sharing(work.network))
            if need
            else 0.0
        )
        step_low = step_high = decode_low = decode_high = 0.0
        traffic, useful = Traffic(0.0, 0.0, 0.0), None
        bound, steps = "host", work.steps
        layers = work.network.num_encoder_layers + work.network.num_decoder_layers
        if work.train is not None:
            traffic = update_traffic(work, self.layout)
            step_low, step_high, bound = self.rates.range(traffic, passes(work.network) * layers)
            useful = training_flops(work.network, work.useful)
        if work.decoding is not None:
            batch = encoding_traffic(work.network, work.decoding, self.layout)
            position = position_traffic(work.network, work.decoding, self.layout)
            batch += position.times(work.decoding.positions)
            passed = layers + work.decoding.positions * work.network.num_decoder_layers
            low, high, decode_bound = self.rates.decoding().range(batch, passed)
            decode_low, decode_high = low * work.decoding.batches, high * work.decoding.batches
            if work.train is None:
                step_low, step_high, bound = low, high, decode_bound
                traffic, steps = batch, work.decoding.batches
        overhead = self._overhead(work)
        training = work.steps
        hours_low = (training * step_low + decode_low + overhead) / 3600
        hours_high = (training * step_high + decode_high + overhead) / 3600
        return StageQuote(
            stage=work.stage,
            fits=held <= self.planned_bytes,
            bytes_per_device=held,
            flops_per_step=traffic.flops * self.layout.devices,
            useful_flops_per_step=useful,
            bytes_per_step=traffic.memory_bytes,
            steps=steps,
            step_seconds_low=step_low,
            step_seconds_high=step_high,
            bound_by=bound,
            hours_low=hours_low,
            hours_high=hours_high,
            hours_beside=overhead / 3600,
            dollars=hours_high * self.usd_per_hour,
        )

    def _overhead(self, work: StageWork) -> float:
        """Seconds of compiling, loading and saving, of either end of the range."""
        parameters = parameter_count(work.network)
        saved = parameter_bytes(work.network) + (
            SLOT_BYTES[work.train.optimizer.name] if work.train else 0
        )
        moved = work.checkpoints * saved * parameters + work.loads_weights * 4 * parameters
        disk = moved / self.seconds["bytes_per_second_of_disk"]
        compiling = work.programs * self.seconds["program"]
        compiling += work.decoding_programs * self.seconds["decoding_program"]
        return self.seconds["stage" if work.train else "decoding_stage"] + compiling + disk


def _not_counted(config: RunConfig) -> tuple[str, ...]:
    given = config.cost.uncounted_hours >= 0  # of boot, image and download
    asked = ("answers of the language model",) if llm_students(config) else ()
    return (NOT_COUNTED[3:] if given else NOT_COUNTED) + asked


def _lost_hours(
    config: RunConfig,
    stages: list[StageQuote],
    devices: int,
    found: hardware.Hardware | None,
) -> float:
    """What interruptions are expected to cost: work done again, and restarts."""
    spot = calibrations.load().spot
    hosts = math.ceil(devices / found.devices_per_host) if found else 1
    rate = -math.log1p(-spot["interruptions_per_host_per_day"]) / 24 * hosts
    trains = {"teach": config.teach, "annotate": config.annotate, "distill": config.distill}
    lost = 0.0
    for stage in stages:
        hours = stage.hours_high
        interval = 3600 * hours  # a stage without checkpoints is done again
        if stage.stage in trains and stage.steps:
            interval = trains[stage.stage].checkpoint_every_steps * stage.step_seconds_high
        if stage.stage == "label":
            batches = config.label.shard_examples / max(config.label.batch_size, 1)
            interval = batches * stage.step_seconds_high
        if hours:
            restart = spot["restart_seconds"]
            lost += expected_hours(rate, max(interval, 1.0), 0.0, restart, hours) - hours
    return lost
