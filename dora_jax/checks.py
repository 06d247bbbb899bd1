"""Checks that the dataclasses of a run make of their own fields: each names owner and field."""

from __future__ import annotations

from typing import Any


def require(condition: bool, message: str) -> None:
    """Raises a ValueError with `message` where `condition` does not hold."""
    if not condition:
        raise ValueError(message)


def one_of(owner: str, field: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises a ValueError that lists `allowed` where `value` is not among them."""
    require(
        value in allowed,
        f"{owner}.{field} = {value!r} is not known; choose one of {', '.join(map(repr, allowed))}.",
    )


def positive(owner: Any, *fields: str) -> None:
    """Raises a ValueError for the first of the owner's `fields` that is not greater than 0."""
    for field in fields:
        value = getattr(owner, field)
        require(
            value > 0, f"{type(owner).__name__}.{field} = {value!r}; it must be greater than 0."
        )


def not_negative(owner: Any, *fields: str) -> None:
    """Raises a ValueError for the first of the owner's `fields` that is below 0."""
    for field in fields:
        value = getattr(owner, field)
        require(value >= 0, f"{type(owner).__name__}.{field} = {value!r}; it must be 0 or more.")
