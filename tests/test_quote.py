"""Quotes: what fits where, and hours and dollars that follow from the work."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import pytest

from dora_jax.config import CostConfig, MeshConfig, OptimizerConfig, RunConfig, T5Config
from dora_jax.cost import flops
from dora_jax.cost.hardware import Devices, parse_devices
from dora_jax.cost.memory import Layout, decoder_parameters
from dora_jax.cost.quote import RunQuote, quote_run
from dora_jax.cost.roofline import Rates, Traffic, position_traffic, update_traffic
from dora_jax.cost.workload import DataFacts, Decoding, StageWork, stages_work
from dora_jax.launch.gin_config import Override, build

# `make run` at c244773 on 2 cores of an Intel Xeon: seconds of each stage in its ledger, and what
# its data were.
BILLED = {"launch": 3.5, "prepare": 8.6, "pretrain-student": 39.8, "annotate": 19.5}
BILLED |= {"evaluate-annotate": 1.6, "pretrain-teacher": 86.8, "teach": 57.9}
BILLED |= {"evaluate-teacher": 2.4, "label": 7.1, "distill": 32.2, "evaluate-distill": 1.1}
BILLED_DATA = DataFacts(300, 2900, 200, 600, 22.0, 16.4, "the run's token store")


@functools.cache
def config_at(scale: str) -> RunConfig:
    return build("gin/wlp_distill.gin", scale).config


def quoted(written: str, config: RunConfig | None = None, spot: bool = False) -> RunQuote:
    devices: Devices = parse_devices(written)[0]
    return quote_run(config or config_at("paper"), devices.hardware, devices.count, spot=spot)


@pytest.mark.parametrize(
    ("written", "fits"),
    [("a100-40gb:1", False), ("v5e:4", False), ("h100:1", False)]
    + [("a100-40gb:4", True), ("h200:1", True), ("v5e:64", True), ("h100:8", True)],
)
def test_who_can_hold_t5_xxl(written: str, fits: bool) -> None:
    got = quoted(written)
    assert got.fits == fits
    assert (got.bytes_per_device <= got.planned_bytes) == fits
    teach = got.stage("teach")
    assert teach is not None
    assert teach.fits == fits


def test_bfloat16_parameters_fit_where_float32_ones_do_not() -> None:
    stored = [Override("TEACHER_PARAM_DTYPE", '"bfloat16"')]
    config = build("gin/wlp_distill.gin", "paper", stored).config
    assert config.student == config_at("paper").student
    for written in ("h100:1", "a100:1"):
        assert not quoted(written).fits
        assert quoted(written, config).fits
    exact, half = (quoted("h200:1", c).stage("teach") for c in (config_at("paper"), config))
    assert exact and half
    tree = 4 * flops.parameter_count(config.teacher.network)
    assert exact.bytes_per_device - half.bytes_per_device == pytest.approx(tree)
    assert exact.bytes_per_step - half.bytes_per_step == pytest.approx(2 * tree)


def test_adamw_takes_twice_the_memory() -> None:
    teach = dataclasses.replace(config_at("paper").teach, optimizer=OptimizerConfig("adamw"))
    config = dataclasses.replace(config_at("paper"), teach=teach)
    assert not quoted("h200:1", config).fits
    assert not quoted("a100-40gb:4", config).fits
    assert quoted("h200:2", config).fits


def test_devices_that_share_nothing_hold_everything() -> None:
    whole = dataclasses.replace(config_at("paper"), mesh=MeshConfig(fsdp=1))
    assert not quoted("a100-40gb:8", whole).fits
    assert quoted("a100-40gb:8").fits
    odd = Layout.of(MeshConfig(fsdp=-1), 3)
    assert odd.sharing(config_at("paper").teacher.network) == 1  # 4,096 rows over 3 devices
    with pytest.raises(ValueError, match="multiple of 4"):
        quoted("h100:6", dataclasses.replace(config_at("paper"), mesh=MeshConfig(fsdp=4)))


def test_hours_and_dollars_are_the_sums_of_the_stages() -> None:
    got = quoted("h100:8")
    assert got.hours_low == pytest.approx(sum(stage.hours_low for stage in got.stages))
    assert got.hours_high == pytest.approx(sum(stage.hours_high for stage in got.stages))
    assert got.dollars == pytest.approx(got.hours_high * 8 * got.price.usd)
    assert got.dollars == pytest.approx(sum(stage.dollars for stage in got.stages))
    for stage in got.stages:
        assert 0 <= stage.step_seconds_low <= stage.step_seconds_high
        assert stage.hours_low <= stage.hours_high
    label = got.stage("label")
    assert label is not None
    assert got.dollars_per_1000_labelled == pytest.approx(label.dollars / 8.557, rel=1e-3)


def test_the_stages_are_those_of_the_ledger() -> None:
    names = [stage.stage for stage in quoted("cpu", config_at("rehearsal")).stages]
    assert names == [
        "launch",
        "prepare",
        "pretrain-student",
        "annotate",
        "evaluate-annotate",
        "pretrain-teacher",
        "teach",
        "evaluate-teacher",
        "label",
        "distill",
        "evaluate-distill",
    ]


def test_a_step_has_the_arithmetic_of_its_tokens() -> None:
    stages = {stage.stage: stage for stage in quoted("h200:1").stages}
    network = config_at("paper").teacher.network
    # 32 examples of 32 + 27 tokens: 6 operations a parameter that a token meets, and attention.
    tokens = flops.TokenCounts.from_lengths([32] * 32, [27] * 32)
    teach = stages["teach"]
    useful = teach.useful_flops_per_step
    assert useful == pytest.approx(flops.training_flops(network, tokens), rel=0.02)
    # Padding and recomputation besides, by which the time is reckoned.
    assert teach.bound_by == "arithmetic"
    assert teach.flops_per_step == pytest.approx(teach.step_seconds_low * 989e12)
    assert useful is not None and teach.flops_per_step > 4 / 3 * useful
    assert teach.steps == 625


def test_hours_are_those_of_the_steps_and_what_stands_beside() -> None:
    for stage in quoted("h200:1").stages:
        if stage.stage in ("label", "evaluate-distill", "launch"):  # no validation in them
            steps = stage.steps * stage.step_seconds_high / 3600
            assert stage.hours_high == pytest.approx(steps + stage.hours_beside)


def test_the_devices_of_one_cpu_share_its_speed() -> None:
    one, two = (
        quote_run(config_at("rehearsal"), "cpu", n, facts=BILLED_DATA, memory_bytes=24e9)
        for n in (1, 2)
    )
    assert one.hours_high * 0.99 < two.hours_high < 1.5 * one.hours_high


def with_strategies(scale: str, *strategies: str) -> RunConfig:
    config = config_at(scale)
    llm = dataclasses.replace(config.llm, labels="labels.jsonl")
    return dataclasses.replace(config, strategies=strategies, llm=llm)


def test_every_strategy_has_its_stages() -> None:
    def stages(*strategies: str) -> set[str]:
        config = with_strategies("rehearsal", *strategies)
        return {stage.stage for stage in quoted("cpu", config).stages} - {"launch", "prepare"}

    pretrained = {"pretrain-student", "pretrain-teacher"}
    assert stages("pretrain") == pretrained
    assert stages("llm") == {"pretrain-student", "llm", "evaluate-llm"}
    both = stages("distill", "llm_human", "llm_distill")
    assert both >= pretrained | {"llm_human", "llm_distill", "evaluate-llm_distill", "label"}
    config = with_strategies("paper", "llm")
    assert "answers of the language model" in quoted("h200:1", config).not_counted


def test_more_work_costs_more() -> None:
    paper = config_at("paper")
    longer = dataclasses.replace(paper.distill, train_steps=2 * paper.distill.train_steps)
    base = quoted("h200:1").dollars
    assert quoted("h200:1", dataclasses.replace(paper, distill=longer)).dollars > base
    alone = dataclasses.replace(paper, strategies=("annotate",))
    assert quoted("h200:1", alone).dollars < base
    assert quoted("h200:1", alone).dollars_per_1000_labelled is None


def test_spot_is_cheaper_and_loses_hours() -> None:
    safe, spot = quoted("h100:8"), quoted("h100:8", spot=True)
    assert safe.lost_hours == 0
    assert 0 < spot.lost_hours < 0.2 * spot.hours_high
    assert spot.hours_high == pytest.approx(safe.hours_high + spot.lost_hours)
    assert spot.dollars < safe.dollars
    # The more hosts, the more often one of them is taken away.
    lost = [quoted(f"v5e:{n}", spot=True) for n in (8, 128)]
    share = [quote.lost_hours / quote.hours_high for quote in lost]
    assert share[1] > 2 * share[0]


def test_the_users_price_and_hours_outside_count() -> None:
    cost = CostConfig(price_usd_per_device_hour=2.0, uncounted_hours=0.5)
    config = dataclasses.replace(config_at("paper"), cost=cost)
    got, without = quoted("h200:1", config), quoted("h200:1")
    assert got.hours_high == pytest.approx(without.hours_high + 0.5)
    assert got.dollars == pytest.approx(2.0 * got.hours_high)
    assert "machine boot" in without.not_counted
    assert "machine boot" not in got.not_counted


def test_the_users_price_book_counts(tmp_path: Path) -> None:
    entry = {"item": "h200", "unit": "gpu", "kind": "on-demand", "usd": 2.5}
    entry |= {"source": "our contract", "date": "2026-11-01"}
    book = tmp_path / "book.json"
    book.write_text(json.dumps({"version": 1, "date": "2026-11-01", "entries": [entry]}))
    config = dataclasses.replace(config_at("paper"), cost=CostConfig(price_book=str(book)))
    got = quoted("h200:1", config)
    assert got.price.usd == 2.5
    assert got.dollars == pytest.approx(2.5 * got.hours_high)
    # What the user's book lacks is the packaged one's.
    assert quoted("a100:4", config).price == quoted("a100:4").price


def test_a_rehearsal_on_this_kind_of_cpu_is_quoted_near_its_bill() -> None:
    """All of it within a factor of 1.5, each stage within 2."""
    got = quote_run(config_at("rehearsal"), "cpu", 1, facts=BILLED_DATA, memory_bytes=24e9)
    billed = sum(BILLED.values())
    assert billed / 1.5 < 3600 * got.hours_high < 1.5 * billed
    assert {stage.stage for stage in got.stages} == set(BILLED)
    for stage in got.stages:
        assert 0.5 < 3600 * stage.hours_high / BILLED[stage.stage] < 2, stage.stage
    assert got.fits
    assert got.dollars == 0.0


def test_what_cannot_be_quoted_is_told() -> None:
    with pytest.raises(ValueError, match="h100"):
        quote_run(config_at("paper"), "NVIDIA GeForce", 1)
    with pytest.raises(ValueError, match="no spot price"):
        quoted("a100:1", spot=True)


SMALL = T5Config(
    vocab_size=100,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=2,
    dtype="bfloat16",
)


def test_decoding_reads_every_weight_and_every_key_once_a_position() -> None:
    # 2 layers of 6 square matrices of 8 x 8 and 3 of 8 x 16, and the head.
    weights = 2 * (6 * 64 + 3 * 128) + 100 * 8
    assert decoder_parameters(SMALL) == weights
    decoding = Decoding(examples=4, batches=1, rows=4, positions=5, source_length=7)
    alone = position_traffic(SMALL, decoding, Layout(1, 1, 1))
    cache = 4 * (5 + 7) * 2 * 2 * 8 * 2  # rows, positions, key and value, layers, width, bytes
    assert alone == Traffic(2 * weights * 4, 2 * weights + cache, 0)
    shared = position_traffic(SMALL, decoding, Layout(4, 4, 1))
    # Results of 4 products of width 8, 3 of 8, 2 of 16, in 2 layers, and the logits; summed.
    summed = 4 * (2 * (4 * 8 + 3 * 8 + 2 * 16) + 100) * 2
    assert shared == Traffic(2 * weights, 2 * weights / 4 + cache / 4, 2 * summed * 3 / 4)


def test_what_devices_send_in_an_update() -> None:
    config = dataclasses.replace(config_at("paper"), strategies=("annotate",))
    facts = DataFacts(10, 10, 10, 10, 20.0, 20.0, "")

    def sent(layout: Layout) -> float:
        work: StageWork = stages_work(config, facts, layout.row_shards)[0]
        return update_traffic(work, layout).link_bytes

    tree = 4 * flops.parameter_count(config.student.network)
    assert sent(Layout(1, 1, 1)) == 0
    # Gathered for the forward and the backward pass, gradients summed once: three trees of n - 1.
    assert sent(Layout(4, 4, 1)) == pytest.approx(3 * tree * 3 / 4)
    # Copies only sum their gradients: a ring sends each of them twice.
    assert sent(Layout(4, 1, 1)) == pytest.approx(2 * tree * 3 / 4)


def test_what_crosses_hosts_goes_over_their_network() -> None:
    config = dataclasses.replace(config_at("paper"), strategies=("annotate",))
    facts = DataFacts(10, 10, 10, 10, 20.0, 20.0, "")

    def crossing(devices: int, fsdp: int, per_host: int) -> float:
        layout = Layout(devices, fsdp, 1, per_host)
        work: StageWork = stages_work(config, facts, layout.row_shards)[0]
        return update_traffic(work, layout).network_bytes

    tree = 4 * flops.parameter_count(config.student.network)
    assert crossing(8, 8, 8) == crossing(8, 1, 8) == crossing(32, 32, 0) == 0
    # Parameters over 4 hosts: each host gets what the 32 hold, three times.
    assert crossing(32, 32, 8) == pytest.approx(3 * tree * 31 / 32)
    # A copy a host: only gradients cross, the shares of 8 devices twice.
    assert crossing(32, 8, 8) == pytest.approx(2 * tree * 3 / 4)


def test_a_second_host_makes_gpus_wait_for_the_network() -> None:
    config = config_at("paper")
    one, two = (
        quote_run(dataclasses.replace(config, mesh=MeshConfig(fsdp=-1)), "h100", n).stage("teach")
        for n in (8, 16)
    )
    assert one and two
    assert one.bound_by != "network"
    assert two.bound_by == "network"
    assert two.step_seconds_low > 3 * one.step_seconds_low
    slice_ = quote_run(dataclasses.replace(config, mesh=MeshConfig(fsdp=-1)), "v5e", 64)
    assert all(stage.bound_by != "network" for stage in slice_.stages)


def test_decoding_may_reach_another_rate_of_memory() -> None:
    rates = Rates(10.0, 5.0, 2.0, 0.5, "a test", layer_seconds=0.25)
    assert rates.decoding() == rates
    quick = rates._replace(decoding_bytes_per_second=20.0)
    assert quick.range(Traffic(10.0, 100.0, 2.0), 0)[0] == 20.0
    assert quick.decoding().range(Traffic(10.0, 100.0, 2.0), 0) == (5.0, 10.0, "memory")


def test_the_slowest_of_the_four_bounds_a_step() -> None:
    rates = Rates(10.0, 5.0, 2.0, 0.5, "a test", layer_seconds=0.25)
    assert rates.range(Traffic(100.0, 10.0, 2.0), 4) == (10.0, 21.0, "arithmetic")
    assert rates.range(Traffic(10.0, 100.0, 2.0), 0) == (20.0, 40.0, "memory")
    assert rates.range(Traffic(10.0, 10.0, 20.0), 0) == (10.0, 20.0, "links")
    beyond = rates._replace(network_bytes_per_second=0.5)
    assert beyond.range(Traffic(10.0, 10.0, 20.0, 20.0), 0) == (40.0, 80.0, "network")
    assert rates.range(Traffic(10.0, 10.0, 20.0, 20.0), 0) == (10.0, 20.0, "links")


def test_rows_are_padded_to_what_the_devices_split() -> None:
    def rows(shards: int) -> int:
        facts = BILLED_DATA._replace(source_tokens=20.0, target_tokens=18.0)
        work = stages_work(config_at("paper"), facts, shards)
        return next(stage.rows for stage in work if stage.stage == "teach")

    assert rows(1) == math.ceil(32 * max(20 / 96, 18 / 80) / 0.87)
    assert rows(64) == 64
