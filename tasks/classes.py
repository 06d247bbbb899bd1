"""What is wrong with a target that should be a class, or a text."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def check_class(target: str, /, labels: Sequence[str]) -> str | None:
    """What is wrong with a gold class, or None: it must be one of `labels`, letter by letter."""
    if target in labels:
        return None
    by_lower = {label.lower(): label for label in labels}
    close = difflib.get_close_matches(target.strip().lower(), by_lower, n=3)
    if close:
        hint = f"did you mean {' or '.join(repr(by_lower[name]) for name in close)}?"
    else:
        hint = f"labels are {', '.join(map(repr, labels))}."
    return f"the label {target!r} is not known; {hint}"


def check_text(target: str, /) -> str | None:
    """What is wrong with a gold text, or None: it must not be empty."""
    return None if target.strip() else "the target is empty; write the expected text."
