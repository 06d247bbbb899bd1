"""Which price holds for a run: the one that its settings give, else that of its price book."""

from __future__ import annotations

import datetime

from dora_jax.config import CostConfig
from dora_jax.cost.prices import NOT_PRICED, SET_BY_USER, UNDATED, Price, PriceBook, user_price


def device_price(cost: CostConfig, device_kind: str, spot: bool) -> Price:
    """USD for an hour of a device: the user's own price, else that of the price book.

    Raises:
      ValueError: the book has no such price for the device.
    """
    if cost.price_usd_per_device_hour >= 0:
        return user_price(cost.price_usd_per_device_hour)
    return PriceBook.of_user(cost.price_book).device_price(device_kind, spot)


def label_price(cost: CostConfig, task: str) -> Price:
    """USD for a human label of a task: the user's own price, else that of the price book.

    Raises:
      ValueError: the book has none for the task.
    """
    if cost.price_usd_per_label >= 0:
        return user_price(cost.price_usd_per_label, unit="label")
    return PriceBook.of_user(cost.price_book).label_price(task)


def device_price_notes(cost: CostConfig, price: Price, today: datetime.date) -> list[str]:
    """What a person should know of the price that `device_price` gave before paying it."""
    notes = []
    if price.is_stale(today):
        since = "of no date" if price.date == UNDATED else f"of {price.date}"
        notes.append(
            f"${price.usd:,.3f} an hour for {price.item} {price.kind} is {since} ({price.source}); "
            "ask what it costs now, and set PRICE_USD_PER_DEVICE_HOUR"
        )
    if cost.price_book and price.source not in (SET_BY_USER, NOT_PRICED):
        own = PriceBook.load(cost.price_book).devices()
        if own and price.item not in own:  # one of labels alone is meant so
            notes.append(
                f"PRICE_BOOK {cost.price_book} prices {', '.join(own)}, not {price.item}, which "
                f"costs ${price.usd:,.3f} an hour by the packaged book"
            )
    return notes
