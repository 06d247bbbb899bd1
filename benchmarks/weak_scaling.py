"""Weak scaling of T5-XXL's update on TPU v5e, predicted: nothing of it ran on a TPU.

    make tpu-plans ARGS="--slice=v5e-16,v5e-32,v5e-64,v5e-128,v5e-256 --stage=teach"
    python benchmarks/weak_scaling.py --plans=build/tpu_plans.json --svg=docs/weak_scaling.svg

Prints a table and draws it. What a chip sends is read from the compiled programs; arithmetic and
memory are counted (dora_jax/cost/roofline.py); the longest of the three is the time of an update.
A second line counts all three for rows as long and as many as a chip can use, of which no program
was compiled.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.config import RunConfig
from dora_jax.cost.memory import GB, Layout
from dora_jax.cost.prices import PriceBook
from dora_jax.cost.roofline import Traffic, rates, update_traffic
from dora_jax.cost.workload import StageWork, assumed_facts, stages_work
from dora_jax.launch import gin_config
from dora_jax.report.page import vl_convert
from dora_jax.whole_files import write_whole

CHIP = "v5e"
LONG_ROWS, LONG_SOURCE, LONG_TARGET = 16, 512, 128  # a chip
COMPILED, COUNTED = "the paper's rows, links compiled", f"{LONG_ROWS} rows of 512 + 128, counted"
ARITHMETIC = "arithmetic"


class Point(NamedTuple):
    """One slice. Seconds are of an update, at least."""

    series: str
    chips: int
    sent_gb: float  # by a chip
    seconds: dict[str, float]
    usd_per_million_positions: float

    @property
    def efficiency(self) -> float:
        """Arithmetic over the longest."""
        return self.seconds[ARITHMETIC] / max(self.seconds.values())


def point(series: str, work: StageWork, traffic: Traffic, chips: int, usd: float) -> Point:
    """The prediction for an update of this traffic a chip, at a price of a chip-hour."""
    seconds = rates(CHIP).seconds(traffic)
    positions = work.rows * (work.source_length + work.target_length)
    dollars = max(seconds.values()) / 3600 * chips * usd
    return Point(series, chips, traffic.link_bytes / GB, seconds, dollars / positions * 1e6)


def points(config: RunConfig, plans: Sequence[dict[str, Any]]) -> list[Point]:
    """Both series, by the slices that were compiled."""
    usd = PriceBook.load().device_price(CHIP, False).usd
    found = []
    for plan in sorted(plans, key=lambda plan: plan["chips"]):
        layout = Layout.of(config.mesh, plan["chips"])
        work = next(
            work
            for work in stages_work(config, assumed_facts(config), layout.row_shards)
            if work.stage == plan["stage"]
        )
        traffic = update_traffic(work, layout)._replace(
            link_bytes=sum(plan["collectives"].values())
        )
        found.append(point(COMPILED, work, traffic, layout.devices, usd))
        long = work._replace(
            rows=LONG_ROWS * layout.row_shards,
            source_length=LONG_SOURCE,
            target_length=LONG_TARGET,
        )
        counted = update_traffic(long, layout)
        found.append(point(COUNTED, long, counted, layout.devices, usd))
    return found


def figure(found: Sequence[Point]) -> dict[str, Any]:
    """Efficiency and dollars over chips, as Vega-Lite."""
    rows = [
        {
            "rows": each.series,
            "chips": each.chips,
            "efficiency": each.efficiency,
            "usd": each.usd_per_million_positions,
        }
        for each in found
    ]
    chips = {
        "field": "chips",
        "type": "quantitative",
        "title": "v5e chips",
        "scale": {"type": "log", "base": 2},
        "axis": {"values": sorted({row["chips"] for row in rows})},
    }

    def panel(field: str, title: str, format_: str) -> dict[str, Any]:
        return {
            "width": 320,
            "height": 260,
            "mark": {"type": "line", "point": {"size": 70}},
            "encoding": {
                "x": chips,
                "y": {
                    "field": field,
                    "type": "quantitative",
                    "title": title,
                    "axis": {"format": format_},
                    "scale": {"domainMin": 0},
                },
                "color": {"field": "rows", "scale": {"range": ["#4a4a4a", "#b5410b"]}},
                "shape": {"field": "rows", "legend": None},
            },
        }

    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "white",
        "config": {
            "view": {"stroke": None},
            "legend": {"orient": "top", "title": None, "columns": 1, "labelLimit": 0},
        },
        "data": {"values": rows},
        "title": {
            "text": "T5-XXL's update on TPU v5e: predicted, not measured",
            "fontWeight": "normal",
        },
        "hconcat": [
            panel("efficiency", "predicted efficiency", "%"),
            panel("usd", "predicted dollars per million positions", "$.2f"),
        ],
    }


def print_table(found: Sequence[Point]) -> None:
    """As docs/quote.md has it."""
    print("| rows | chips | a chip sends, GB | arithmetic, ms | memory, ms | links, ms | ", end="")
    print("efficiency | dollars per million positions |\n|---|---|---|---|---|---|---|---|")
    for each in sorted(found, key=lambda each: (each.series, each.chips)):
        times = " | ".join(f"{1e3 * each.seconds[k]:.0f}" for k in (ARITHMETIC, "memory", "links"))
        print(
            f"| {each.series} | {each.chips} | {each.sent_gb:.1f} | {times} | "
            f"{each.efficiency:.1%} | {each.usd_per_million_positions:.2f} |"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plans", required=True, type=Path, help="the JSON of `make tpu-plans`")
    parser.add_argument("--svg", type=Path, help="where to draw it")
    parser.add_argument("--gin_file", default="wlp_distill.gin", help="the run that was compiled")
    flags = parser.parse_args(arguments)
    config = gin_config.build(flags.gin_file, "paper").config
    try:
        compiled = json.loads(flags.plans.read_text(encoding="utf-8"))["plans"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"--plans={flags.plans} is no file that `make tpu-plans` wrote: {error!r}")
    plans = [
        plan
        for plan in compiled
        if plan["slice"].startswith(f"{CHIP}-") and plan["stage"] == "teach"
    ]
    if not plans:
        print(f"{flags.plans} has no update of T5-XXL on {CHIP}.", file=sys.stderr)
        return 1
    found = points(config, plans)
    print_table(found)
    if flags.svg:
        write_whole(flags.svg, vl_convert().vegalite_to_svg(figure(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
