"""What interruptions cost: the hours that a run loses where its machines may be taken away.

Interruptions come as a Poisson process. Between two checkpoints, `interval` of work apart, a run
advances by the interval or loses what it did since the last one and restarts; how long that
takes on average is exact, not a first-order estimate.
Source: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart
dumps", Future Generation Computer Systems 22 (2006): its complete model of the wall time.
"""

from __future__ import annotations

import math


def expected_hours(
    interruptions_per_hour: float,
    checkpoint_every_seconds: float,
    checkpoint_seconds: float,
    restart_seconds: float,
    work_hours: float,
) -> float:
    """Hours that a run is expected to take, interruptions, checkpoints and restarts included.

    With rate λ, interval τ, checkpoint time δ and restart time R, a run of W work takes
    (W/τ) · e^{λR} · (e^{λ(τ+δ)} − 1)/λ: W/τ intervals, each tried until it comes through, and a
    restart that may itself be interrupted before each new try. At λ = 0 it takes W · (1 + δ/τ).

    Args:
      interruptions_per_hour: of the whole run: the rate of one host times the hosts, since any
        of them ends all; 0 or more.
      checkpoint_every_seconds: of work between two checkpoints, greater than 0.
      checkpoint_seconds: for which a checkpoint holds the devices up; near 0 where it is written
        while training goes on.
      restart_seconds: from an interruption to the first new update.
      work_hours: of the undisturbed run, without checkpoints.

    Returns:
      Hours, `math.inf` where a run at this rate does not come to its end.

    Raises:
      ValueError: a number out of its range.
    """
    numbers = {
        "interruptions_per_hour": interruptions_per_hour,
        "checkpoint_seconds": checkpoint_seconds,
        "restart_seconds": restart_seconds,
        "work_hours": work_hours,
    }
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} = {value}; expected a number of 0 or more.")
    if not (math.isfinite(checkpoint_every_seconds) and checkpoint_every_seconds > 0):
        raise ValueError(
            f"checkpoint_every_seconds = {checkpoint_every_seconds}; expected more than 0: a run "
            "without checkpoints loses everything at its first interruption."
        )
    # What is longer than the run has its one checkpoint at the end.
    interval_hours = min(checkpoint_every_seconds / 3600, work_hours)
    if interval_hours == 0:
        return 0.0
    tried_hours = interval_hours + checkpoint_seconds / 3600
    rate = interruptions_per_hour
    if rate == 0:
        return work_hours / interval_hours * tried_hours
    try:
        an_interval = math.exp(rate * restart_seconds / 3600) * math.expm1(rate * tried_hours)
    except OverflowError:
        return math.inf
    return work_hours / interval_hours * an_interval / rate


def expected_lost_hours(
    interruptions_per_hour: float,
    checkpoint_every_seconds: float,
    checkpoint_seconds: float,
    restart_seconds: float,
    work_hours: float,
) -> float:
    """Hours that interruptions add: work done again and restarts; checkpoints are not lost.

    Arguments, and what is raised, as in `expected_hours`.
    """
    timing = (checkpoint_every_seconds, checkpoint_seconds, restart_seconds, work_hours)
    return expected_hours(interruptions_per_hour, *timing) - expected_hours(0.0, *timing)
