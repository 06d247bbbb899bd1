"""Receipts priced anew by another book; what was written stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from dora_jax.cost.ledger_rows import LABELS, LedgerRow
from dora_jax.cost.prices import LABEL_UNITS, SET_BY_USER, TOKEN_UNITS, Price, PriceBook


def reprice(rows: Iterable[LedgerRow], book: PriceBook) -> list[LedgerRow]:
    """The rows as they would be by the prices of `book`, on-demand ones for devices.

    dollars = device-hours, labels or million tokens × the book's price of each. Tokens whose price
    the user set keep it.

    Raises:
      ValueError: the book has no price for something that was bought.
    """
    return [_repriced(row, book) for row in rows]


def _repriced(row: LedgerRow, book: PriceBook) -> LedgerRow:
    if row.device_kind:
        price, units = book.device_price(row.device_kind), row.device_hours
    elif row.unit in LABEL_UNITS:
        price, units = book.label_price(_task(row)), row.examples
    elif row.unit in TOKEN_UNITS and row.price_source == SET_BY_USER:
        return row  # a model of the user's own, which no book knows
    elif row.unit in TOKEN_UNITS:
        price, units = book.token_price(row.item, row.unit), row.tokens / 1e6
    else:
        raise ValueError(f"a row of unit {row.unit!r} (stage {row.stage}) cannot be priced anew.")
    return _with_price(row, price, units * price.usd)


def _task(row: LedgerRow) -> str:
    # Rows of an earlier version have their task in the row id alone.
    return row.item or row.row_id.removeprefix(f"{LABELS}-").rpartition("-")[0]


def _with_price(row: LedgerRow, price: Price, dollars: float) -> LedgerRow:
    return dataclasses.replace(
        row,
        price_usd_per_unit=price.usd,
        price_source=price.source,
        price_date=price.date,
        unit=price.unit,
        dollars=dollars,
        tokens_per_dollar=row.tokens / dollars if row.tokens and dollars else None,
    )
