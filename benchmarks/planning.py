"""How honest plans are: made-up worlds with known curves, planned from a few noisy runs each.

  python benchmarks/planning.py
  python benchmarks/planning.py --worlds=1000 --json=planning.json

Every world has two strategies with true curves of its own. Runs are drawn from them, the plan for a
budget is made from the runs alone, and then compared with the truth: how often the 95 % interval
of the recommended plan holds its true value, how many points the recommendation loses against the
best plan (regret), and how often it is right where it calls itself decided. Worlds of three kinds:

  power law     the curves are what planning assumes
  uneven noise  the same, and small label sets scatter more than large ones
  s-shaped      the curves are of another form: logistic over the logarithm of labels
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dora_jax.planning.arms import Market, Measured, arms_of
from dora_jax.planning.decision import DECIDED, fit_arms, plans
from dora_jax.whole_files import write_json

LABEL_USD = 0.26
PLACES = (125, 250, 500, 1000)
FIXED_USD = {"annotate": 5.0, "distill": 40.0}
BUDGETS = (100.0, 180.0, 320.0, 560.0)  # from within the runs to beyond them
TEST_SET_ERROR = 1.0  # standard error of every score, the same draw for all runs of a world
KINDS = ("power law", "uneven noise", "s-shaped")


class World(NamedTuple):
    """True curves by strategy, and the scatter of a run at so many labels."""

    curves: dict[str, Callable[[float], float]]
    scatter: Callable[[float], float]


def main() -> None:
    """Prints one line for each kind of world and number of seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=300, help="of each kind (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    flags = parser.parse_args()
    rows = []
    for kind in KINDS:
        for seeds in (1, 2, 4):
            rng = np.random.default_rng([flags.seed, KINDS.index(kind), seeds])
            name = f"{kind}, {seeds} seeds"
            worlds = tqdm(range(flags.worlds), desc=name, disable=None, leave=False)
            found = [one for _ in worlds for one in planned(world(kind, rng), seeds, rng)]
            rows.append({"kind": kind, "seeds": seeds, **summary(found)})
            print(line(rows[-1]), flush=True)
    if flags.json:
        write_json(flags.json, rows)


def world(kind: str, rng: np.random.Generator) -> World:
    """A world of this kind."""

    def curve() -> Callable[[float], float]:
        top, at_125 = rng.uniform(60, 95), rng.uniform(20, 58)
        if kind == "s-shaped":
            middle, width = np.log(rng.uniform(60, 400)), rng.uniform(0.5, 1.2)
            return lambda n: float(top / (1 + np.exp(-(np.log(n) - middle) / width)))
        exponent = rng.uniform(0.15, 1.2)
        return lambda n: float(top - (top - at_125) * (n / 125) ** -exponent)

    sd = rng.uniform(0.4, 2.5)
    uneven = kind == "uneven noise"
    curves = {strategy: curve() for strategy in FIXED_USD}
    return World(curves, lambda n: float(sd * (2 * (n / 125) ** -0.5 if uneven else 1.0)))


def planned(made: World, seeds: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The plan for each budget, beside the truth."""
    shift = TEST_SET_ERROR * rng.standard_normal()
    results = [
        measured(strategy, labels, seed, made, shift, rng)
        for strategy in made.curves
        for labels in PLACES
        for seed in range(seeds)
    ]
    fitted = fit_arms(arms_of(results), replicates=400, seed=int(rng.integers(2**31)))
    return [compared(plans(fitted, usd, Market(LABEL_USD)), made, results, usd) for usd in BUDGETS]


def measured(
    strategy: str, labels: int, seed: int, made: World, shift: float, rng: np.random.Generator
) -> Measured:
    """A run of this world."""
    noise = made.scatter(labels) * rng.standard_normal() + shift
    value = float(np.clip(made.curves[strategy](labels) + noise, 0, 100))
    half = 1.96 * TEST_SET_ERROR
    usd = FIXED_USD[strategy]
    return Measured(
        name=f"{strategy}-{labels}-{seed}",
        strategy=strategy,
        recipe=strategy,
        student="small",
        seed=seed,
        labels=labels,
        label_usd=LABEL_USD * labels,
        device_usd=usd,
        teacher_usd=0.0,
        value=value,
        interval=(value - half, value + half),
    )


def compared(found: list, made: World, results: list[Measured], usd: float) -> dict[str, Any]:
    """What the first plan is truly worth, and what others would have been."""
    worth = [made.curves[plan.strategy](plan.place) for plan in found]
    payable = [r for r in results if r.usd <= usd]
    run = max(payable, key=lambda r: r.value)
    low, high = found[0].interval
    return {
        "covered": low <= worth[0] <= high,
        "width": high - low,
        "regret": max(worth) - worth[0],
        "regret_of_best_run": max(worth) - made.curves[run.strategy](run.labels),
        "regret_of_annotate": max(worth)
        - next(w for w, p in zip(worth, found, strict=True) if p.strategy == "annotate"),
        "decided": found[0].chance >= DECIDED,
        "right": worth[0] == max(worth),
    }


def summary(found: list[dict[str, Any]]) -> dict[str, float]:
    """Shares and means over plans."""
    decided = [one for one in found if one["decided"]]

    def mean(name: str, of: list[dict[str, Any]] = found) -> float:
        return float(np.mean([one[name] for one in of])) if of else float("nan")

    return {
        "coverage": mean("covered"),
        "width": float(np.median([one["width"] for one in found])),
        "regret": mean("regret"),
        "regret_p95": float(np.percentile([one["regret"] for one in found], 95)),
        "regret_of_best_run": mean("regret_of_best_run"),
        "regret_of_annotate": mean("regret_of_annotate"),
        "decided": mean("decided"),
        "right_where_decided": mean("right", decided),
        "right": mean("right"),
    }


def line(row: dict[str, Any]) -> str:
    """One row in words."""
    return (
        f"{row['kind']:<13} {row['seeds']} seeds: coverage {row['coverage']:.1%} (width "
        f"{row['width']:.1f}), regret {row['regret']:.2f} (95 %: {row['regret_p95']:.2f}; best run "
        f"so far {row['regret_of_best_run']:.2f}, always annotate {row['regret_of_annotate']:.2f}),"
        f" decided {row['decided']:.0%}, right where decided {row['right_where_decided']:.1%}, "
        f"right {row['right']:.1%}"
    )


if __name__ == "__main__":
    main()
