"""WLP: entity recognition in wet-lab protocols, written as text.

    source  Incubate at 4°C for 30 min.
    target  Incubate [Action] 4°C [Temperature] 30 min [Time]

Source: Tabassum et al., WNUT 2020 shared task 1 (the corpus); Kang, Xu and Ritter, ACL 2023
(the text form and the split).
"""

from __future__ import annotations

import functools

from dora_jax.metrics.spans import measure_spans
from dora_jax.tasks.span_targets import check_span_target
from dora_jax.tasks.task import PRICES, TaskSpec

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

check_target = functools.partial(
    check_span_target, entity_types=ENTITY_TYPES, text_in_brackets=TEXT_IN_BRACKETS
)

WLP = TaskSpec(
    name="wlp",
    kind="spans",
    prompt_prefix="wlp: ",
    folder="wlp",
    labels=ENTITY_TYPES,
    price_usd_per_label=0.26,
    price_source=PRICES,
    primary_metric="micro_f1",
    measure=functools.partial(measure_spans, entity_types=ENTITY_TYPES, paper_types=PAPER_TYPES),
    check_target=check_target,
    instruction=(
        "Mark the entities in a sentence of a wet-lab protocol, in the order in which they stand "
        "there. An entity is the shortest run of words that names the thing, copied letter by "
        "letter: what is done (Action), substances and samples (Reagent), where they are held or "
        "put (Location), tools and machines (Device), and the conditions: amount, concentration, "
        "time, temperature, speed, size, pH and so on. A number with its unit is one entity."
    ),
)
