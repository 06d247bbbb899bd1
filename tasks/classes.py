"""What is wrong with a target that should be a class, or a text; labels that none can be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dora_jax.metrics.text import normalise

if TYPE_CHECKING:  # it imports JAX, which takes a second; most who check labels have none
    from dora_jax.data.vocab import Vocabulary

_SHOWN = 20


def check_class(target: str, /, labels: Sequence[str]) -> str | None:
    """What is wrong with a gold class, or None: it must be one of `labels`, letter by letter."""
    if target in labels:
        return None
    plain = normalise(target)
    shown = repr(target) if plain == target else ascii(target)  # two forms of "ü" look alike
    by_lower = {label.lower(): label for label in labels}
    close = difflib.get_close_matches(plain.lower(), by_lower, n=3)
    if close:
        hint = f"did you mean {' or '.join(repr(by_lower[name]) for name in close)}?"
    else:
        more = f" and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else ""
        hint = f"labels are {', '.join(map(repr, labels[:_SHOWN]))}{more}."
    return f"the label {shown} is not known; {hint}"


def check_text(target: str, /) -> str | None:
    """What is wrong with a gold text, or None: it must not be empty."""
    return None if target.strip() else "the target is empty; write the expected text."


def require_writable(labels: Sequence[str], vocabulary: Vocabulary) -> None:
    """Refuses labels that the vocabulary cannot write: no answer could ever be right.

    T5's own has no piece for "{", "~", "<", most alphabets and all emoji.

    Raises:
        ValueError: such a label, and as what it comes back.
    """
    for label, ids in zip(labels, vocabulary.encode(labels), strict=True):
        written = vocabulary.decode(ids)
        if normalise(written) != label:
            raise ValueError(
                f"The label {label!r} cannot be written in the vocabulary {vocabulary.path}: it "
                f"comes back as {written!r}. Give the label another name, in the files and in "
                "TASK_LABELS."
            )
