"""What a run will cost on hardware that is not rented yet: fits or not, hours, dollars."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import contextlib
import datetime
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dora_jax.cost import hardware
from dora_jax.cost.charging import buys_labels
from dora_jax.cost.hardware import Devices
from dora_jax.cost.memory import Layout, in_bfloat16
from dora_jax.cost.quote import RunQuote, quote_run
from dora_jax.cost.run_prices import device_price_notes, label_price
from dora_jax.launch import gin_config
from dora_jax.launch.command_line import exit_status, gin_help, parse, require_place
from dora_jax.launch.run_files import SCALES, run_files
from dora_jax.whole_files import write_json

if TYPE_CHECKING:
    from dora_jax.config import RunConfig
    from dora_jax.cost.workload import DataFacts

MOST_DEVICES = 256  # that are tried where --hardware does not say
DESCRIPTION = """\
Tells what a run will take on given hardware before it is rented: whether every stage fits, hours
and dollars of each, on demand and on spot, and which hardware is cheapest. Nothing is started and
no device is needed. docs/quote.md says what is counted and by which arithmetic.

  python launch/quote.py --gin_file=gin/wlp_distill.gin
  python launch/quote.py --gin_file=gin/wlp_distill.gin --hardware=a100-40gb:4,h200:1,v5e:64
  python launch/quote.py --gin_file=gin/wlp_distill.gin --hardware=h100:8 --json=- \\
    --gin.NUM_LABELS=5000
  python launch/quote.py --run=runs/wlp_distill-rehearsal    (the quote beside what was billed)
"""


class Offer(NamedTuple):
    """A run on one kind of hardware, on demand and, where there is a price for it, on spot."""

    written: str  # the hardware as it was asked for
    on_demand: RunQuote
    spot: RunQuote | None
    notes: tuple[str, ...] = ()  # what a person should know before relying on it


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _quote(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/quote.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--gin_file", metavar="FILE", help=f"{', '.join(run_files())}, or your own")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        help="of the run (default: the run file's own, else paper)",
    )
    parser.add_argument(
        "--hardware",
        metavar="KIND:COUNT,…",
        help=f"of {', '.join(hardware.table())}, cpu (default: of each the fewest that fit)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the quotes there; -: print them instead of tables"
    )
    parser.add_argument("--run", metavar="DIR", help="a run directory: its quote beside its ledger")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--help", action="store_true", help="show this and every gin name")
    return parser


def _quote(arguments: list[str]) -> int:
    parser = _parser()
    flags, overrides = parse(parser, arguments)
    if flags.help:
        print(f"{parser.format_help()}\n{gin_help()}")
        return 0
    if (flags.gin_file is None) == (flags.run is None):
        raise ValueError(
            f"Which run? Add --gin_file=FILE ({', '.join(run_files())}, or your own) to quote it, "
            "or --run=DIR to hold a run's quote against its ledger; one of the two."
        )
    if flags.json not in (None, "-"):
        require_place("--json", flags.json)
    if flags.run is not None:
        return _audit(flags, overrides)
    scale = gin_config.own_scale(flags.gin_file) or flags.scale or "paper"
    config = gin_config.build(flags.gin_file, flags.scale or scale, overrides).config

    from dora_jax.launch.quote_facts import data_facts
    from dora_jax.launch.quote_tables import print_quotes

    facts = data_facts(config)
    if flags.hardware:
        asked = hardware.parse_devices(flags.hardware)
    elif config.scale == "rehearsal":
        asked = hardware.parse_devices("cpu")
    else:
        asked = [fewest(config, item, facts) for item in hardware.table()]
    offers = [offer(config, devices, facts) for devices in asked]
    account = as_json(config, facts, offers)
    account["fit_with_bfloat16_parameters"] = _fit_in_bfloat16(config, asked, offers, facts)
    if flags.json == "-":
        print(json.dumps(account, indent=2))
        return 0
    print_quotes(config, facts, offers, account)
    if flags.json:
        write_json(flags.json, account)
    return 0


def _audit(flags: argparse.Namespace, overrides: list[gin_config.Override]) -> int:
    from dora_jax.launch.quote_audit import audit, audit_of_run

    if overrides or flags.hardware or flags.scale:
        raise ValueError(
            "--run takes the settings and the hardware that the run had; leave --gin…, --hardware "
            "and --scale away."
        )
    found = audit_of_run(Path(flags.run))
    if flags.json == "-":
        print(json.dumps(found.to_json(), indent=2))
        return 0
    print(audit(found))
    if flags.json:
        write_json(flags.json, found.to_json())
    return 0


def fewest(config: RunConfig, item: str, facts: DataFacts) -> Devices:
    """The smallest number of devices of a kind that holds the run, or the largest tried."""
    tried = [n for n in hardware.table()[item].counts if n <= MOST_DEVICES]
    for count in tried:
        with contextlib.suppress(ValueError):  # the mesh wants more of them
            if quote_run(config, item, count, facts=facts).fits:
                break
    return Devices(item, count, f"{item}:{count}")


def offer(config: RunConfig, devices: Devices, facts: DataFacts) -> Offer:
    """The run on these devices.

    Raises:
      ValueError: the mesh cannot divide them, or they have no price.
    """
    own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # of a CPU's host

    def quoted(spot: bool) -> RunQuote:
        return quote_run(
            config,
            devices.hardware,
            devices.count,
            spot=spot,
            facts=facts,
            memory_bytes=own / devices.count,
        )

    try:
        spot = None if devices.hardware == "cpu" else quoted(True)
    except ValueError:  # the book has no spot price for it
        spot = None
    on_demand, today = quoted(False), datetime.datetime.now(datetime.UTC).date()
    prices = [on_demand.price] + ([spot.price] if spot else [])
    notes = [note for price in prices for note in device_price_notes(config.cost, price, today)]
    notes = [*_sharing(config, devices), *_slices(devices), *notes]
    return Offer(devices.written, on_demand, spot, tuple(notes))


def _sharing(config: RunConfig, devices: Devices) -> list[str]:
    """Says where the devices cannot share the teacher, which then lies whole on each."""
    layout, network = Layout.of(config.mesh, devices.count), config.teacher.network
    if layout.sharing(network) == layout.fsdp * layout.tensor:
        return []
    return [
        f"{layout.fsdp} devices do not divide the teacher's embedding of {network.emb_dim:,}, so "
        "that each holds all of it; take a power of two, or set FSDP"
    ]


def _slices(devices: Devices) -> list[str]:
    """Says where so many chips are no common slice."""
    one = hardware.table().get(devices.hardware)
    if one is None or not one.slices or devices.count in one.slices:
        return []
    return [
        f"{devices.count:,} chips are none of the common slices ("
        f"{', '.join(f'{n:,}' for n in one.slices)}): ask whether they are for rent; several "
        "slices are joined by a slower network, which is not counted"
    ]


def _fit_in_bfloat16(
    config: RunConfig, asked: Sequence[Devices], offers: Sequence[Offer], facts: DataFacts
) -> list[str]:
    """Hardware that holds the run only where the teacher's parameters are bfloat16."""
    stored = in_bfloat16(config)
    return [
        devices.written
        for devices, one in zip(asked, offers, strict=True)
        if not one.on_demand.fits and offer(stored, devices, facts).on_demand.fits
    ]


def as_json(config: RunConfig, facts: DataFacts, offers: Sequence[Offer]) -> dict:
    """The quotes as `--json` writes them; docs/quote.md explains the fields."""
    fitting = [each for each in offers if each.on_demand.fits and each.on_demand.price.is_set]
    on_spot = [each for each in fitting if each.spot]
    return {
        "run": config.model_dir,
        "scale": config.scale,
        "data": facts._asdict(),
        "labels": _labels(config, facts),
        "quotes": [_one_as_json(each) for each in offers],
        "cheapest": min(fitting, key=lambda o: o.on_demand.dollars).written if fitting else None,
        "cheapest_on_spot": (
            min(on_spot, key=lambda o: o.spot.dollars if o.spot else 0).written if on_spot else None
        ),
    }


def _labels(config: RunConfig, facts: DataFacts) -> dict | None:
    """What the run buys besides; None where it buys none."""
    if not buys_labels(config.strategies):
        return None
    usd = label_price(config.cost, config.data.task).usd
    return {"count": facts.labels, "usd_per_label": usd, "dollars": facts.labels * usd}


def _one_as_json(one: Offer) -> dict:
    quote, fits = one.on_demand, one.on_demand.fits
    return {
        "hardware": one.written,
        "devices": quote.devices,
        "fits": fits,
        "bytes_per_device": round(quote.bytes_per_device),
        "usable_bytes_per_device": round(quote.planned_bytes),
        # What does not fit takes no time and costs nothing: there is no such run.
        "hours": quote.hours_high if fits else None,
        "hours_low": quote.hours_low if fits else None,
        "hours_beside": sum(stage.hours_beside for stage in quote.stages) if fits else None,
        "dollars": quote.dollars if fits else None,
        "dollars_on_spot": one.spot.dollars if fits and one.spot else None,
        "hours_on_spot": one.spot.hours_high if fits and one.spot else None,
        "hours_lost_on_spot": one.spot.lost_hours if fits and one.spot else None,
        "dollars_per_1000_labelled": quote.dollars_per_1000_labelled if fits else None,
        "price_usd_per_device_hour": quote.price.usd,
        "price_source": quote.price.source,
        "price_date": quote.price.date,
        "price_note": quote.price.note,
        "notes": list(one.notes),
        "spot_price_usd_per_device_hour": one.spot.price.usd if one.spot else None,
        "efficiency": quote.efficiency,
        "efficiency_source": quote.efficiency_source,
        "not_counted": list(quote.not_counted),
        "stages": [stage._asdict() for stage in quote.stages],
    }


if __name__ == "__main__":
    sys.exit(main())
