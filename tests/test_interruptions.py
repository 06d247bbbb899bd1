"""What interruptions cost, against hand-computed cases and a simulation of many runs."""

from __future__ import annotations

import math
import random

import pytest

from dora_jax.cost.interruptions import expected_hours, expected_lost_hours


def simulated_hours(
    rate: float, every_seconds: float, checkpoint: float, restart: float, work: float
) -> float:
    """The mean of 4,000 runs, interruption by interruption."""
    draw = random.Random(0)
    runs, total = 4000, 0.0
    intervals = round(work * 3600 / every_seconds)
    for _ in range(runs):
        clock, done, next_interruption = 0.0, 0, draw.expovariate(rate / 3600)
        at_work_from = 0.0
        while done < intervals:
            ready = at_work_from + every_seconds + checkpoint
            if ready <= next_interruption:
                done, at_work_from, clock = done + 1, ready, ready
            else:
                at_work_from = next_interruption + restart
                next_interruption += draw.expovariate(rate / 3600)
        total += clock
    return total / runs / 3600


@pytest.mark.parametrize(
    ("rate", "every_seconds", "checkpoint", "restart", "work"),
    [(0.5, 600, 20, 300, 4), (2.0, 1200, 60, 600, 2), (0.05, 3600, 0, 900, 10)],
)
def test_expected_hours_are_those_of_many_simulated_runs(
    rate: float, every_seconds: float, checkpoint: float, restart: float, work: float
) -> None:
    settings = (rate, every_seconds, checkpoint, restart, work)
    assert expected_hours(*settings) == pytest.approx(simulated_hours(*settings), rel=0.02)


def test_without_interruptions_only_checkpoints_take_time() -> None:
    # 10 hours of work, a checkpoint of 36 seconds after each of them.
    assert expected_hours(0.0, 3600, 36, 600, 10) == pytest.approx(10.1)
    assert expected_lost_hours(0.0, 3600, 36, 600, 10) == 0.0


def test_rare_interruptions_lose_half_an_interval_and_a_restart_each() -> None:
    # One interruption in 10,000 hours of 100: a hundredth of (1800 + 600) seconds.
    lost = expected_lost_hours(1e-4, 3600, 0, 600, 100)
    assert lost == pytest.approx(0.01 * 2400 / 3600, rel=1e-3)


def test_an_interval_longer_than_the_run_is_the_run() -> None:
    assert expected_hours(0.5, 1e9, 60, 60, 2) == expected_hours(0.5, 7200, 60, 60, 2)
    assert expected_hours(0.5, 60, 60, 60, 0) == 0.0


def test_a_run_that_never_ends_is_said_to() -> None:
    assert math.isinf(expected_hours(100.0, 360_000, 60, 60, 1000))
    assert math.isinf(expected_lost_hours(100.0, 360_000, 60, 60, 1000))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ((-1, 60, 1, 1, 1), "interruptions_per_hour = -1"),
        ((1, 0, 1, 1, 1), "checkpoint_every_seconds = 0"),
        ((1, 60, math.nan, 1, 1), "checkpoint_seconds = nan"),
        ((1, 60, 1, -5, 1), "restart_seconds = -5"),
        ((1, 60, 1, 1, math.inf), "work_hours = inf"),
    ],
)
def test_a_number_out_of_range_is_named(settings: tuple[float, ...], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        expected_hours(*settings)
