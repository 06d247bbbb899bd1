"""Which scale a machine gets, and that the count of bytes behind it is right."""

from __future__ import annotations

import dataclasses
import os
import re

import pytest

from dora_jax.config import (
    LabelConfig,
    ModelSource,
    OptimizerConfig,
    RunConfig,
    T5Config,
    TrainConfig,
)
from dora_jax.cost import hardware
from dora_jax.cost.flops import parameter_count
from dora_jax.cost.memory import GB, StageMemory, largest_stage, stages_memory
from dora_jax.launch import scale
from dora_jax.launch.gin_config import build
from dora_jax.launch.scale import Machine

NEED = StageMemory("teach", 10 * 10**9, 16, 8, 5 * GB / 8)  # 165 GB
CPU = Machine("cpu", "cpu", 1, 16 * GB)
LARGE_CPU = Machine("cpu", "cpu", 1, 1000 * GB)
ONE_H200 = Machine("gpu", "NVIDIA H200", 1, 140 * GB)
TWO_H200 = Machine("gpu", "NVIDIA H200", 2, 280 * GB)
UNKNOWN = Machine("gpu", "Strange", 8, None)
COMMAND = "python launch/run.py --gin_file=gin/wlp_distill.gin"


def stage(config: RunConfig, name: str) -> StageMemory:
    return next(s for s in stages_memory(config) if s.stage == name)


def run_config(**changes: object) -> RunConfig:
    source = ModelSource(T5Config(emb_dim=64), weights="hf:x/y")
    small = dataclasses.replace(source, network=T5Config(emb_dim=32))
    config = RunConfig("runs/x", "paper", teacher=source, student=small)
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("machine", "expected"),
    [(CPU, "rehearsal"), (LARGE_CPU, "rehearsal"), (ONE_H200, "rehearsal")]
    + [(UNKNOWN, "rehearsal"), (TWO_H200, "paper")],
)
def test_auto_takes_paper_scale_where_accelerators_hold_it(machine: Machine, expected: str) -> None:
    choice = scale.choose("auto", NEED, machine, COMMAND)
    assert choice.scale == expected
    assert choice.reason.endswith(".")
    assert "\n" not in choice.reason


def test_the_half_that_would_fit_is_told() -> None:
    half = NEED._replace(parameters=NEED.parameters // 2)
    machine = scale.Machine("gpu", "NVIDIA H200", 1, 0.75 * NEED.total_bytes)
    assert not scale.holds(machine, NEED)
    assert scale.holds(machine, half)
    choice = scale.choose("auto", NEED, machine, COMMAND, half)
    assert choice.scale == "rehearsal"
    assert scale.IN_HALF in choice.reason
    with pytest.raises(ValueError, match="TEACHER_PARAM_DTYPE"):
        scale.choose("paper", NEED, machine, COMMAND, half)
    small = machine._replace(total_bytes=0.1 * NEED.total_bytes)
    assert scale.IN_HALF not in scale.choose("auto", NEED, small, COMMAND, half).reason


def test_a_part_of_the_memory_is_left_to_xla() -> None:
    exactly = Machine("gpu", "NVIDIA H200", 1, NEED.total_bytes)
    assert scale.choose("auto", NEED, exactly, COMMAND).scale == "rehearsal"


def test_asked_for_is_taken() -> None:
    assert scale.choose("rehearsal", NEED, TWO_H200, COMMAND).scale == "rehearsal"
    assert scale.choose("paper", NEED, TWO_H200, COMMAND).scale == "paper"
    assert scale.choose("paper", NEED, LARGE_CPU, COMMAND).scale == "paper"


@pytest.mark.parametrize("machine", [CPU, ONE_H200, UNKNOWN])
def test_paper_scale_that_does_not_fit_is_refused_with_two_commands(machine: Machine) -> None:
    with pytest.raises(ValueError, match="does not fit") as caught:
        scale.choose("paper", NEED, machine, COMMAND)
    message = str(caught.value)
    assert "165 GB in stage teach" in message
    assert str(machine) in message
    assert re.search(rf"here: {re.escape(COMMAND)} --scale=rehearsal\n", message)
    assert re.search(rf"on \d+ × .* USD an hour\): {re.escape(COMMAND)} --scale=paper$", message)


@pytest.mark.parametrize("billions", [1, 3, 6, 11, 24, 90])
@pytest.mark.parametrize("item", scale.SUGGESTED)
def test_the_suggested_hardware_holds_it_and_less_that_is_for_rent_does_not(
    item: str, billions: int
) -> None:
    need = NEED._replace(parameters=billions * 10**9)
    devices = int(scale.smallest_hardware(need, [item]).split()[0])
    one = hardware.table()[item]

    def holds(count: int) -> bool:
        return scale.holds(Machine("gpu", item, count, count * one.usable_bytes), need)

    assert devices in one.counts and holds(devices)
    assert not any(holds(fewer) for fewer in one.counts if fewer < devices)


def test_of_the_hardware_that_holds_it_the_cheapest_is_suggested() -> None:
    def usd(need: StageMemory, items: tuple[str, ...] = scale.SUGGESTED) -> float:
        found = re.search(r"about ([\d.]+) USD", scale.smallest_hardware(need, items))
        return float(found[1])  # type: ignore[index]

    assert usd(NEED) == min(usd(NEED, (item,)) for item in scale.SUGGESTED)
    assert usd(NEED._replace(parameters=10**8)) < usd(NEED) < usd(NEED._replace(parameters=10**11))


def test_attached_machine_counts_the_hosts_memory_once() -> None:
    machine = scale.attached_machine()
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert (machine.platform, machine.devices) == ("cpu", 8)
    assert machine.total_bytes == host_bytes
    assert "no accelerator" in str(machine)


def test_bytes_of_a_parameter_by_optimizer() -> None:
    adamw = TrainConfig(optimizer=OptimizerConfig("adamw"))
    config = run_config(teach=adamw)
    assert stage(config, "teach").state_bytes_per_parameter == 4 + 4 + 8
    assert stage(run_config(), "teach").state_bytes_per_parameter == 4 + 4
    assert 4 < stage(config, "label").state_bytes_per_parameter < 8  # the decoder lies there twice
    assert stage(config, "teach").parameters == parameter_count(config.teacher.network)
    assert stage(config, "distill").parameters == parameter_count(config.student.network)


def test_stages_counted_are_those_of_the_run() -> None:
    def names(config: RunConfig) -> set[str]:
        return {s.stage for s in stages_memory(config)}

    assert names(run_config(strategies=("annotate",))) == {"annotate"}
    assert names(run_config()) == {"annotate", "teach", "label", "distill"}
    untrained = ModelSource(T5Config())
    assert names(run_config(teacher=untrained)) - names(run_config()) == {"pretrain-teacher"}
    assert "pretrain-student" in names(run_config(strategies=("annotate",), student=untrained))


def test_activations_grow_with_what_they_should() -> None:
    def activations(network: T5Config, train: TrainConfig) -> float:
        source = ModelSource(network, weights="hf:x/y")
        return stage(run_config(teacher=source, teach=train), "teach").activation_bytes

    plain = T5Config(num_encoder_layers=8, num_decoder_layers=8)
    train = TrainConfig(batch_size=32)
    whole = activations(plain, train)
    assert activations(plain, dataclasses.replace(train, batch_size=64)) == 2 * whole
    full = dataclasses.replace(plain, remat_policy="full")
    rematted = activations(full, train)
    assert rematted < whole
    # Microbatches take turns within a layer: what enters the layers stays.
    assert activations(full, dataclasses.replace(train, microbatches=4)) < rematted
    assert activations(plain, dataclasses.replace(train, microbatches=4)) == whole
    blocked = activations(plain, dataclasses.replace(train, vocabulary_block=128))
    assert blocked < whole
    half = activations(dataclasses.replace(plain, dtype="bfloat16"), train)
    assert whole / 2 < half < whole  # scores and logits stay float32


def test_label_stage_grows_with_its_batch() -> None:
    small = stage(run_config(label=LabelConfig(batch_size=8)), "label")
    large = stage(run_config(label=LabelConfig(batch_size=16)), "label")
    assert large.activation_bytes == 2 * small.activation_bytes


def test_the_papers_run_needs_several_accelerators_and_its_rehearsal_none() -> None:
    config = build("gin/wlp_distill.gin", "paper").config
    paper = largest_stage(config)
    assert paper.stage == "teach"
    # 8 bytes for each of 11.1 B parameters: float32 and their gradients; Adafactor keeps little.
    assert 89 * GB < paper.total_bytes < 105 * GB
    adamw = dataclasses.replace(config, teach=TrainConfig(optimizer=OptimizerConfig("adamw")))
    assert largest_stage(adamw).total_bytes > 178 * GB
    rehearsal = largest_stage(build("gin/wlp_distill.gin", "rehearsal").config)
    assert rehearsal.total_bytes < 3 * GB
