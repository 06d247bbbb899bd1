"""What a target of a span task may be: `entity [Type] entity [Type] …`, or nothing.

source  Incubate at 4°C for 30 min.
target  Incubate [Action] 4°C [Temperature] 30 min [Time]
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
_TAG_LIKE = re.compile(r"(?<!\S)\[([^\W\d_][\w -]*)\](?!\S)")


def check_span_target(
    target: str, entity_types: Sequence[str], text_in_brackets: Collection[str] = ()
) -> str | None:
    """What is wrong with a gold target, or None.

    A bracket is taken for a tag if it stands between spaces, begins with a letter and holds
    letters, digits and hyphens only; any other ("[6.2]", "[32P] dCTP") is text. An empty target
    is a text without entities, which is legal.

    Args:
        target: the gold text.
        entity_types: the tags there are.
        text_in_brackets: what looks like a tag and is part of an entity's text.
    """
    start = 0
    for match in _BRACKETED.finditer(target):
        tag = match[1]
        if tag in entity_types:
            if not target[start : match.start()].strip():
                return f"the tag [{tag}] has no entity before it"
            start = match.end()
            continue
        if _TAG_LIKE.match(target, match.start()) and tag not in text_in_brackets:
            return f"the tag [{tag}] is not known; {_nearest(tag, entity_types)}"
    if target[start:].strip():
        return f"the text {target[start:].strip()!r} at the end has no tag; write `entity [Type]`"
    return None


def tags_in(targets: Iterable[str]) -> Counter[str]:
    """How often each bracket that looks like a tag occurs."""
    return Counter(tag for target in targets for tag in _TAG_LIKE.findall(target))


def _nearest(tag: str, entity_types: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in entity_types}
    close = difflib.get_close_matches(tag.lower(), by_lower, n=3)
    if close:
        return f"did you mean {' or '.join(f'[{by_lower[name]}]' for name in close)}?"
    return f"tags are {', '.join(f'[{name}]' for name in entity_types)}"
