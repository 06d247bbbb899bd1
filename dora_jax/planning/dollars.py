"""Dollars as people read them."""

from __future__ import annotations

import math


def usd_text(usd: float) -> str:
    """An amount to the cent; a small one to two digits that count."""
    return f"{usd:,.2f}" if usd >= 0.1 or usd <= 0 else _digits(usd, 2)


def price_text(usd: float) -> str:
    """A price to three digits that count, however small."""
    return f"{usd:,.2f}" if usd >= 10 or usd <= 0 else _digits(usd, 3)


def _digits(usd: float, count: int) -> str:
    """Never as 3e-05."""
    text = f"{usd:.{count - 1 - math.floor(math.log10(usd))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
