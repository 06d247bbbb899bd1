"""WLP: entity recognition in wet-lab protocols, written as text.

    source  Incubate at 4°C for 30 min.
    target  Incubate [Action] 4°C [Temperature] 30 min [Time]

Source: Tabassum et al., WNUT 2020 shared task 1 (the corpus); Kang, Xu and Ritter, ACL 2023
(the text form and the split).
"""

from __future__ import annotations

import difflib
import functools
import re

from dora_jax.metrics.spans import score_spans
from dora_jax.tasks.task import TaskSpec

ENTITY_TYPES = (
    "Action",
    "Amount",
    "Concentration",
    "Device",
    "Generic-Measure",
    "Location",
    "Measure-Type",
    "Mention",
    "Method",
    "Modifier",
    "Numerical",
    "Reagent",
    "Seal",
    "Size",
    "Speed",
    "Temperature",
    "Time",
    "pH",
)

# The classes of the authors' script: two more than the corpus has; the first stands in for
# a missing prediction.
PAPER_TYPES = (
    "AMOUNT",
    *(name.upper() for name in ENTITY_TYPES if name != "Amount"),
    "MISC",
    "UNIT",
)

# Words that stand in brackets in the published train file and are part of an entity's text:
# "[viral] fraction", "HINDIII [lambda] DNA".
TEXT_IN_BRACKETS = ("viral", "lambda")

_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
_TAG_LIKE = re.compile(r"(?<!\S)\[[A-Za-z][A-Za-z _-]*\](?!\S)")


def check_target(target: str) -> str | None:
    """What is wrong with a gold target, or None.

    A bracket is taken for a tag if it stands between spaces and holds letters and hyphens
    only; any other ("[6.2]", "[32P]dCTP") is text. An empty target is a sentence without
    entities, which is legal.
    """
    start = 0
    for match in _BRACKETED.finditer(target):
        tag = match[1]
        if tag in ENTITY_TYPES:
            if not target[start : match.start()].strip():
                return f"the tag [{tag}] has no entity before it"
            start = match.end()
            continue
        if _TAG_LIKE.match(target, match.start()) and tag not in TEXT_IN_BRACKETS:
            return f"the tag [{tag}] is not known; {_nearest(tag)}"
    if target[start:].strip():
        return f"the text {target[start:].strip()!r} at the end has no tag; write `entity [Type]`"
    return None


def _nearest(tag: str) -> str:
    by_lower = {name.lower(): name for name in ENTITY_TYPES}
    close = difflib.get_close_matches(tag.lower(), by_lower, n=3)
    if close:
        return f"did you mean {' or '.join(f'[{by_lower[name]}]' for name in close)}?"
    return f"tags are {', '.join(f'[{name}]' for name in ENTITY_TYPES)}"


WLP = TaskSpec(
    name="wlp",
    kind="spans",
    prompt_prefix="wlp: ",
    folder="wlp",
    labels=ENTITY_TYPES,
    price_usd_per_label=0.26,
    price_source="Kang, Xu and Ritter, ACL 2023 (arXiv 2305.01645)",
    primary_metric="micro_f1",
    score=functools.partial(score_spans, entity_types=ENTITY_TYPES, paper_types=PAPER_TYPES),
    check_target=check_target,
)
