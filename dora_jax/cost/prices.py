"""What a device-hour and a label cost, by whom it was said, and when.

The price book is data, `price_book.json` beside this file: dated entries that are never
edited, only superseded by newer ones. Users bring their own file of the same form.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOOK_VERSION = 1
KINDS = ("on-demand", "spot")
LABEL_UNITS = ("label",)
INPUT_TOKENS, OUTPUT_TOKENS = TOKEN_UNITS = ("million input tokens", "million output tokens")
DEVICE_UNITS = ("gpu", "chip", "core", "board", "host")
UNDATED = "undated"
NOT_PRICED = "not priced: set PRICE_USD_PER_DEVICE_HOUR"
SET_BY_USER = "set by the user"

# Public catalogs write this for "unknown" (SkyPilot's, seen in its GPU tables).
SENTINELS_USD = (700.0,)

# A market price older than this is no longer to be relied on.
STALE_DAYS = 365
# USD a million tokens. Below stand prices of a thousand tokens or of one, above typing errors.
TOKENS_USD = (0.005, 1000.0)
# Spot prices below this share of on-demand have been prices of a part of the unit.
LEAST_SPOT_SHARE = 0.1
# How many JAX devices one chip has. Slice names of v2 to v4 and v5p count TensorCores, those of
# v5e and v6e chips, and since v4 JAX shows both cores of a chip as one device.
TPU_DEVICES_PER_CHIP = {"v2": 2, "v3": 2, "v4": 1, "v5e": 1, "v5p": 1, "v6e": 1}

# The names JAX gives its devices. Whole names, not beginnings: "NVIDIA A100-SXM4-40GB MIG
# 1g.5gb" is a seventh of an A100 and "NVIDIA H100 PCIe" is slower and cheaper than the SXM.
# Source: TPU names from jax/_src/pallas/mosaic/tpu_info.py, GPU names as CUDA reports them.
DEVICE_ITEMS = {
    "cpu": "cpu",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


@dataclasses.dataclass(frozen=True)
class Price:
    """USD for one unit: an hour of one JAX device, or one label.

    `host_included` is None where the source does not say. `date` is the source's own, or
    "undated".
    """

    item: str
    unit: str
    usd: float
    source: str
    date: str
    kind: str = "on-demand"
    devices_per_unit: int = 1
    provider: str = ""
    region: str = ""
    host_included: bool | None = None
    note: str = ""

    @property
    def is_set(self) -> bool:
        """False for the marked zero of a device that nobody has put a price on."""
        return self.source != NOT_PRICED

    def is_stale(self, today: datetime.date) -> bool:
        """Whether a market price is too old, or of no known date; labels have no market."""
        if self.unit in LABEL_UNITS or self.source in (SET_BY_USER, NOT_PRICED):
            return False
        if self.date == UNDATED:
            return True
        last_day = self.date + {4: "-12-31", 7: "-28"}.get(len(self.date), "")
        return (today - datetime.date.fromisoformat(last_day)).days > STALE_DAYS

    @property
    def _rank(self) -> tuple[str, float]:
        # Newest first; between equals the dearest, so that a bill is never too low.
        return ("" if self.date == UNDATED else self.date, self.usd)


def user_price(usd: float, unit: str = "device") -> Price:
    """A price the user gave, marked as such and dated today.

    Args:
      usd: USD per device-hour, or per label; 0 or more.
      unit: "device", "label", or one of `TOKEN_UNITS`.
    """
    if not (math.isfinite(usd) and usd >= 0):
        raise ValueError(f"price = {usd} USD per {unit}; expected a number of 0 or more.")
    if unit in TOKEN_UNITS and usd:
        _check_tokens("the price given", usd, unit)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Price(item="user", unit=unit, usd=float(usd), source=SET_BY_USER, date=today)


def device_item(device_kind: str) -> str:
    """The price book's word for a JAX device: "NVIDIA H200" -> "h200".

    A name that JAX does not use is returned as it is, so that an item of the book names itself.
    """
    return DEVICE_ITEMS.get(device_kind, device_kind)


@dataclasses.dataclass(frozen=True)
class PriceBook:
    """A checked price book: its date, where it was read from, and all its entries."""

    date: str
    path: str
    entries: tuple[Price, ...]

    @classmethod
    def of_user(cls, path: str) -> PriceBook:
        """The user's own book before the packaged one; "" names none.

        What the user's book has a price for, on demand or on spot, is taken from it alone.
        """
        packaged = cls.load()
        if not path:
            return packaged
        if not Path(path).is_file():
            raise ValueError(f"There is no price book {path}; docs/dollars.md shows its form.")
        own = cls.load(path)
        priced = {_what(price) for price in own.entries}
        rest = [price for price in packaged.entries if _what(price) not in priced]
        return cls(own.date, f"{path} and the packaged price book", (*own.entries, *rest))

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> PriceBook:
        """Reads and checks a price book; without a path, the one of this package.

        Raises:
          ValueError: the file is no price book, or an entry fails a check.
        """
        path = Path(path) if path is not None else Path(__file__).with_name("price_book.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON: {error}. Repair the file.") from error
        if not isinstance(content, dict) or content.get("version") != BOOK_VERSION:
            raise ValueError(
                f'{path}: expected a JSON object with "version": {BOOK_VERSION}; see the '
                "price_book.json that comes with dora_jax for the form."
            )
        date = content.get("date")
        _check_date(f"{path}: the book", date, allow_undated=False)
        entries = content.get("entries")
        if not isinstance(entries, list) or not entries:
            raise ValueError(f'{path}: expected a list of prices under "entries"; found none.')
        prices = tuple(_read_entry(f"{path}: entry {i}", row) for i, row in enumerate(entries))
        _check_together(str(path), prices)
        return cls(date=str(date), path=str(path), entries=prices)

    def devices(self, *kinds: str) -> list[str]:
        """The items that the book has a price for by the hour, of these kinds or of any."""
        wanted = kinds or KINDS
        return sorted({p.item for p in self.entries if p.unit in DEVICE_UNITS and p.kind in wanted})

    def device_price(self, device_kind: str, spot: bool = False) -> Price:
        """USD for an hour of one JAX device.

        Args:
          device_kind: JAX's `device.device_kind`, or an item of the book ("a100-40gb").
          spot: the price of a device that may be taken back at any moment.

        Returns:
          Of the book's entries the newest, among equals the dearest. A book's price per board
          or per host is divided by the JAX devices on it. The CPU, where the book has no price
          for it, costs a marked 0.

        Raises:
          ValueError: the book knows no such device, or has no such price for it.
        """
        item, kind = device_item(device_kind), KINDS[spot]
        of_item = [p for p in self.entries if p.item == item and p.unit in DEVICE_UNITS]
        if item == "cpu" and not of_item:
            return Price(item="cpu", unit="device", usd=0.0, source=NOT_PRICED, date=UNDATED)
        prices = [p for p in of_item if p.kind == kind]
        if not prices:
            raise ValueError(
                f"{self.path} has no {kind} price for device {device_kind!r}; it has them for "
                f"{', '.join(self.devices(kind))}. Give one with "
                "--gin.PRICE_USD_PER_DEVICE_HOUR=…, or bring a price book with an entry for it."
            )
        return _per_device(max(prices, key=lambda price: price._rank))

    def label_price(self, task: str) -> Price:
        """USD for one human label of a task.

        Raises:
          ValueError: the book has no label price for the task.
        """
        prices = [p for p in self.entries if p.item == task and p.unit == "label"]
        if not prices:
            known = sorted({p.item for p in self.entries if p.unit == "label"})
            raise ValueError(
                f"{self.path} has no label price for task {task!r}; it has them for "
                f"{', '.join(known)}. Give one with --gin.PRICE_USD_PER_LABEL=…"
            )
        return max(prices, key=lambda price: price._rank)

    def token_price(self, model: str, unit: str) -> Price:
        """USD for a million tokens of a language model, `INPUT_TOKENS` or `OUTPUT_TOKENS`.

        Raises:
          ValueError: the book has no such price for the model.
        """
        prices = [p for p in self.entries if p.item == model and p.unit == unit]
        if not prices:
            known = sorted({p.item for p in self.entries if p.unit == unit}) or ["none"]
            raise ValueError(
                f"{self.path} has no price per {unit} for model {model!r}; it has them for "
                f"{', '.join(known)}. Bring a price book with an entry for it."
            )
        return max(prices, key=lambda price: price._rank)


def _what(price: Price) -> tuple[str, bool, str]:
    """What a price is for: two of one such thing take each other's place."""
    return price.item, price.unit in DEVICE_UNITS, price.kind


def _per_device(price: Price) -> Price:
    if price.devices_per_unit == 1:
        return price
    bought = f"{price.usd} USD per {price.unit} of {price.devices_per_unit} JAX devices"
    return dataclasses.replace(
        price,
        usd=price.usd / price.devices_per_unit,
        unit="device",
        devices_per_unit=1,
        note="; ".join(filter(None, (bought, price.note))),
    )


def _check_date(where: str, date: Any, allow_undated: bool = True) -> None:
    if allow_undated and date == UNDATED:
        return
    if not isinstance(date, str) or not re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2])(-[0-3]\d)?)?", date):
        raise ValueError(
            f'{where}: "date" is {date!r}; expected YYYY, YYYY-MM or YYYY-MM-DD'
            + (f', or "{UNDATED}" where the source has none.' if allow_undated else ".")
        )
    try:
        datetime.date.fromisoformat(date + "-01-01"[len(date) - 4 :])
    except ValueError as error:
        raise ValueError(f'{where}: "date" is {date!r}: {error}.') from None


def _read_entry(where: str, row: Any) -> Price:
    fields = {field.name: field for field in dataclasses.fields(Price)}
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected a JSON object, found {row!r}.")
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    missing = [name for name in (*required, "kind") if not row.get(name) and name != "usd"]
    if "usd" not in row:
        missing.append("usd")
    unknown = sorted(set(row) - set(fields))
    if missing or unknown:
        raise ValueError(
            f"{where} ({row.get('item')}): missing {missing}, not known {unknown}; every entry "
            f"needs {', '.join(required)}, kind, and may have the other fields of Price."
        )
    price = Price(**row)
    where = f"{where} ({price.item})"
    _check_date(where, price.date)
    for name, value, allowed in (
        ("kind", price.kind, KINDS),
        ("unit", price.unit, (*LABEL_UNITS, *TOKEN_UNITS, *DEVICE_UNITS)),
        ("host_included", price.host_included, (True, False, None)),
    ):
        if value not in allowed:
            raise ValueError(f'{where}: "{name}" is {value!r}; expected one of {allowed}.')
    is_number = isinstance(price.usd, int | float) and not isinstance(price.usd, bool)
    if not is_number or not math.isfinite(price.usd) or price.usd <= 0:
        raise ValueError(f'{where}: "usd" is {price.usd!r}; expected a number above 0.')
    if price.usd in SENTINELS_USD:
        raise ValueError(
            f'{where}: "usd" is {price.usd}, which public catalogs write for "unknown"; '
            "leave the entry out."
        )
    if not isinstance(price.devices_per_unit, int) or price.devices_per_unit < 1:
        raise ValueError(
            f'{where}: "devices_per_unit" is {price.devices_per_unit!r}; expected how many JAX '
            "devices one unit has, 1 or more."
        )
    _check_unit(where, price)
    return price


def _check_tokens(where: str, usd: float, unit: str) -> None:
    """Refuses what is hardly a price of a million tokens."""
    least, most = TOKENS_USD
    if usd < least:
        raise ValueError(
            f"{where}: {usd:g} USD per {unit} looks like a price of one token or of a thousand; "
            "multiply it by 1,000,000 or by 1,000."
        )
    if usd > most:
        raise ValueError(
            f"{where}: {usd:g} USD per {unit}; no known model costs over {most:,.0f}. Look for a "
            "mix-up of units."
        )


def _check_unit(where: str, price: Price) -> None:
    """Refuses a unit that the item is not sold in: a price of a core taken for that of a chip."""
    if price.unit in TOKEN_UNITS:
        _check_tokens(where, price.usd, price.unit)
    is_tpu = price.item in TPU_DEVICES_PER_CHIP
    if price.unit == "gpu" and price.devices_per_unit != 1:
        raise ValueError(
            f"{where}: {price.devices_per_unit} devices per gpu; JAX shows one. For a machine of "
            'several write "unit": "host".'
        )
    if price.unit in ("chip", "core") and not is_tpu or price.unit == "gpu" and is_tpu:
        raise ValueError(
            f'{where}: "unit" is {price.unit!r}; TPUs ({", ".join(TPU_DEVICES_PER_CHIP)}) are sold '
            "by chip, core, board or host, GPUs by gpu or host."
        )
    if not is_tpu or price.unit not in ("chip", "core"):
        return
    per_chip = TPU_DEVICES_PER_CHIP[price.item]
    if price.unit == "core" and per_chip == 1:
        raise ValueError(
            f"{where}: priced per core, but a JAX device of {price.item} is a chip, which has two "
            "on v4 and v5p. Enter the price of a chip."
        )
    wanted = per_chip if price.unit == "chip" else 1
    if price.devices_per_unit != wanted:
        raise ValueError(
            f'{where}: "devices_per_unit" is {price.devices_per_unit}; a {price.unit} of '
            f"{price.item} is {wanted} of JAX's devices."
        )


def _check_together(path: str, prices: tuple[Price, ...]) -> None:
    """Refuses two units for one item, spot dearer than on-demand in one source, swapped tokens."""
    _check_sides(path, prices)
    units: dict[str, tuple[str, int]] = {}
    on_demand: dict[tuple[str, str], float] = {}
    for price in prices:
        tokens = price.unit in TOKEN_UNITS  # what is read and what is written cost differently
        unit = ("million tokens" if tokens else price.unit, price.devices_per_unit)
        if units.setdefault(price.item, unit) != unit:
            raise ValueError(
                f"{path}: {price.item} is priced per {units[price.item]} and per {unit}; all "
                "entries of an item need one unit and one count of devices in it."
            )
        if price.kind == "on-demand":
            key = (price.item, price.source)
            on_demand[key] = max(price.usd, on_demand.get(key, 0.0))
    for price in prices:
        ceiling = on_demand.get((price.item, price.source), math.inf)
        too_cheap = ceiling < math.inf and price.usd < LEAST_SPOT_SHARE * ceiling
        if price.kind == "spot" and (price.usd > ceiling or too_cheap):
            raise ValueError(
                f"{path}: {price.item} costs {price.usd} USD on spot and {ceiling} on demand, "
                f"both from {price.source}; look for a mix-up of units (per chip and per board) "
                "or of regions."
            )


def _check_sides(path: str, prices: tuple[Price, ...]) -> None:
    """What a model writes never costs less than what it reads, in one source of one date."""
    sides = {(p.item, p.source, p.date, p.unit): p.usd for p in prices if p.unit in TOKEN_UNITS}
    for (item, source, date, unit), usd in sides.items():
        written = sides.get((item, source, date, OUTPUT_TOKENS), math.inf)
        if unit == INPUT_TOKENS and written < usd:
            raise ValueError(
                f"{path}: {item} costs {usd:g} USD per {INPUT_TOKENS} and {written:g} per "
                f"{OUTPUT_TOKENS}, both from {source}; look whether the two are swapped."
            )
