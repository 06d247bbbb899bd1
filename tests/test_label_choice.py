"""What labelling is measured to cost, which choice is taken, and that a restart takes it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_run import (
    NETWORK,
    TRAIN,
    manifest_of,
    open_run,
    snapshot,
    tiny_config,
)

from dora_jax.config import LabelConfig, RunConfig
from dora_jax.data.soft_labels import SoftRow
from dora_jax.data.token_store import concatenate
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import Examples
from dora_jax.stages import label_choice, label_cost, weights
from dora_jax.stages.label import label, within
from dora_jax.stages.label_choice import choose
from dora_jax.stages.label_cost import Cost, LabelTimer, cheapest
from dora_jax.stages.prepare import prepare
from dora_jax.stages.train import finetune
from dora_jax.train.step import init_params

pytestmark = pytest.mark.usefixtures("compiled_cheaply", "one_device")

OPEN = LabelConfig(top_k=0, batch_size=0, shard_examples=8)


def cost(batch_size: int, widths: int, seconds: float) -> Cost:
    return Cost(batch_size, widths, 0, 0.0, 1, seconds)


# --- The search


@pytest.mark.parametrize(
    ("seconds", "tried", "best"),
    [
        (  # larger is cheaper up to 128; one width pads too much
            {(64, 5): 9, (128, 5): 7, (256, 5): 8, (128, 2): 6, (128, 1): 7},
            [(64, 5), (128, 5), (256, 5), (128, 2), (128, 1)],
            (128, 2),
        ),
        (  # larger is dearer, smaller is cheaper
            {(64, 5): 9, (128, 5): 10, (32, 5): 8, (16, 5): 9, (32, 2): 8},
            [(64, 5), (128, 5), (32, 5), (16, 5), (32, 2)],
            (32, 5),
        ),
        (  # only 16 fit
            {(64, 5): None, (32, 5): None, (16, 5): 30, (16, 2): 31},
            [(16, 5), (16, 2)],
            (16, 5),
        ),
    ],
)
def test_the_search_follows_the_cost(
    seconds: dict[tuple[int, int], float | None],
    tried: list[tuple[int, int]],
    best: tuple[int, int],
) -> None:
    def measure(batch_size: int, widths: int) -> Cost | None:
        found = seconds[batch_size, widths]
        return None if found is None else cost(batch_size, widths, found)

    taken, all_tried = cheapest(measure, spent=lambda: 0.0)
    assert [(one.batch_size, one.widths) for one in all_tried] == tried
    assert (taken.batch_size, taken.widths) == best


def test_measuring_ends_when_it_costs_a_share_of_the_job() -> None:
    clock = iter([4.0, 6.0, 100.0])  # a job of 100 s allows 5 of them
    taken, tried = cheapest(
        lambda batch, widths: cost(batch, widths, 100 - batch / 64), lambda: next(clock)
    )
    assert [one.batch_size for one in tried] == [64, 128]
    assert taken.batch_size == 128


def test_no_batch_that_fits_is_said_in_words() -> None:
    with pytest.raises(ValueError, match="Not even 16 texts at once fit"):
        cheapest(lambda *choice: None, lambda: 0.0)


# --- The measurement, with a pass that takes 2 s a batch, 0.5 s a column, 10 s to compile


class FakePass:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int = 1000) -> None:
        self.seconds, self.limit = 0.0, limit
        self.compiled: set[tuple[int, int]] = set()
        self.labelled: list[list[int]] = []
        monkeypatch.setattr(label_cost.predict, "label", self)
        monkeypatch.setattr(label_cost.time, "perf_counter", lambda: self.seconds)

    def __call__(
        self, network: Any, params: Any, examples: Examples, indices: Any, config: Any, **_: Any
    ) -> list[SoftRow]:
        if config.batch_size > self.limit:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        self.labelled.append(list(indices))
        longest = [len(examples.source(i)) for i in indices[:: config.batch_size]]
        step = {5: 16, 2: 48, 1: 80}[config.widths]
        for width in (-(-length // step) * step for length in longest):
            self.seconds += 2.0 + 0.5 * width
            if (config.batch_size, width) not in self.compiled:
                self.compiled.add((config.batch_size, width))
                self.seconds += 10.0
        return [SoftRow(*[np.zeros(1)] * 5)] * len(indices)


def pool(lengths: Sequence[int]) -> Examples:
    rows = [[2] * length for length in lengths]
    return Examples(*concatenate(rows), *concatenate([[]] * len(rows)))


def timer(examples: Examples) -> LabelTimer:
    mesh = make_mesh(devices=jax.devices()[:1])
    return LabelTimer(
        NETWORK, None, examples, LabelConfig(), source_length=80, target_length=8, mesh=mesh
    )


def test_the_cost_of_a_job_is_that_of_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePass(monkeypatch)
    measured = timer(pool([1 + i % 80 for i in range(2000)])).measure(64, 5)
    # By length: texts 301-364 of the longest first have 68 to 66 tokens, 968-1031 have 42 to 39,
    # 1634-1697 have 15 to 13: widths 80, 48 and 16, so 2 + 0.5 x 48 seconds in the mean.
    assert [len(indices) for indices in fake.labelled] == [192, 192]
    assert measured is not None
    assert measured.batch_seconds == pytest.approx(26.0)
    assert measured.program_seconds == pytest.approx(10.0)
    # Shards of 1,024 and 976 texts, 16 batches each, of widths 16, 32, 48, 64 and 80.
    assert (measured.batches, measured.programs) == (32, 5)
    assert measured.seconds == pytest.approx(32 * 26 + 5 * 10)


def test_fewer_widths_compile_less_and_pad_more(monkeypatch: pytest.MonkeyPatch) -> None:
    FakePass(monkeypatch)
    timed = timer(pool([1 + i % 80 for i in range(2000)]))
    many, one = timed.measure(64, 5), timed.measure(64, 1)
    assert many is not None
    assert one is not None
    assert one.programs == 1
    assert one.batch_seconds == pytest.approx(2 + 0.5 * 80)
    assert one.program_seconds == many.program_seconds  # 80 was compiled before


def test_a_small_pool_is_measured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePass(monkeypatch)
    measured = timer(pool([30] * 100)).measure(64, 5)
    assert [sorted(indices) for indices in fake.labelled] == [list(range(100))] * 2
    assert measured == Cost(64, 5, 1, 10.0, 2, 18.0)


def test_a_batch_beyond_memory_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    FakePass(monkeypatch, limit=64)
    timed = timer(pool([30] * 1000))
    assert timed.measure(128, 5) is None
    assert timed.measure(64, 5) is not None


# --- A run


def config_of(directory: Path, how: LabelConfig) -> RunConfig:
    teach = dataclasses.replace(TRAIN, eval_every_steps=0)
    return tiny_config(directory, teach=teach, label=how)


def labelled(config: RunConfig, lines: list[str]) -> tuple[LabelConfig, Path]:
    """A run as far as its labels: what was chosen, and the store."""
    with open_run(config, report=lines.append) as context:
        store = prepare(context)
        start = weights.Start(NETWORK, "start", lambda: init_params(NETWORK, 0, context.mesh))
        teacher = finetune(context, store, "teach", "distill", start, config.teach)
        labelling = within(context, teacher, NETWORK.vocab_size)
        how = choose(context, store, labelling, start)
        return how, label(context, store, labelling, how).unlabeled


def test_what_is_left_open_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_choice, "TOP_KS", (4, 310, 320))  # the last is exact
    directory, lines = tmp_path / "open", []
    how, labels = labelled(config_of(directory, OPEN), lines)
    assert how == dataclasses.replace(
        OPEN, top_k=how.top_k, batch_size=how.batch_size, widths=how.widths
    )
    assert how.top_k == 310  # and not the exact one
    assert how.batch_size in label_cost.BATCH_SIZES
    outputs = manifest_of(directory, label_choice.STAGE)["outputs"]
    assert outputs["chosen"] == {
        "top_k": how.top_k,
        "batch_size": how.batch_size,
        "widths": how.widths,
    }
    assert outputs["costs"][0]["batch_size"] == 64
    assert outputs["costs"][0]["batch_seconds"] > 0
    assert outputs["teacher_forward_seconds"] > 0
    assert [choice["top_k"] for choice in outputs["entries"]["choices"]] == [4, 310, 320]
    assert outputs["entries"]["choices"][0]["errors"]["bucket"]["gradient"] > 0.01
    said = "\n".join(lines)
    for wanted in (f"taken: TOP_K = {how.top_k}", f"taken: LABEL_BATCH_SIZE = {how.batch_size}"):
        assert wanted in said

    # A restart measures nothing, and a run that is told the choice makes the same labels.
    monkeypatch.setattr(label_choice, "_measured", lambda *_: pytest.fail("measured again"))
    before = snapshot(labels)
    assert labelled(config_of(directory, OPEN), []) == (how, labels)
    told, same = labelled(config_of(tmp_path / "told", how), [])
    assert told == how
    assert not (tmp_path / "told" / label_choice.STAGE).exists()
    assert snapshot(labels) == before
    records = [name for name in before if name.endswith(".records")]
    assert len(records) == 3
    assert all((same / name).read_bytes() == before[name] for name in records)


def test_where_no_k_is_near_enough_the_nearest_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_choice, "TOP_KS", (4, 8))
    lines: list[str] = []
    how = dataclasses.replace(OPEN, batch_size=8)
    assert labelled(config_of(tmp_path / "near", how), lines)[0] == dataclasses.replace(
        how, top_k=8
    )
    assert "none is within 0.01" in lines[-1]
    assert not any("LABEL_BATCH_SIZE" in line for line in lines), lines


def test_updates_that_do_not_draw_every_text_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    how = dataclasses.replace(OPEN, top_k=8)
    short = dataclasses.replace(TRAIN, train_steps=2, batch_size=4)
    config = dataclasses.replace(config_of(tmp_path / "short", how), distill=short)
    assert labelled(config, lines)[0].top_k == 8
    assert any("NUM_UNLABELED = 8" in line for line in lines), lines
    assert not any("TOP_K" in line for line in lines), lines
