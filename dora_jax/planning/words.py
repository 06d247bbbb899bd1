"""A plan in sentences, the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dora_jax.planning.arms import labels_text
from dora_jax.planning.curves import Scatter
from dora_jax.planning.decision import DECIDED, BreakEven, Plan, Region
from dora_jax.planning.dollars import price_text, usd_text
from dora_jax.planning.next_measurement import Measurement

MISFIT_WORTH_TELLING = 1.0  # points
NO_TURNS = "nothing to compare, since fewer than two strategies or no curve were measured."


def decided(best: Sequence[Plan]) -> bool:
    """Whether the first plan is known to be the best, by curves and not by single points."""
    return bool(best) and best[0].chance >= DECIDED and best[0].measured != "points"


def chance_text(chance: float) -> str:
    """In percent, and never more certain than a bootstrap can tell."""
    if chance > 0.99:
        return "> 99 %"
    return "< 1 %" if chance < 0.01 else f"{100 * chance:.0f} %"


def best_text(plan: Plan) -> str:
    """The chance that a plan is the best; single runs say nothing of how seeds scatter."""
    return "–" if plan.measured == "points" else chance_text(plan.chance)


def columns_of(metric: str, llm: bool) -> tuple[str, ...]:
    """The heads of `line_of`."""
    labels, usd = (
        (("labels", "LLM labels"), ("$ labels", "$ LLM")) if llm else (("labels",), ("$ labels",))
    )
    return ("plan", metric, "95 %", "best", *labels, *usd, "$ compute", "$", "from")


def line_of(plan: Plan, llm: bool) -> tuple[str, ...]:
    """A plan's line in a table; `llm` says whether language models' labels have columns."""
    labels, llm_labels = f"{plan.labels:,}", f"{plan.llm_labels:,}"
    usd, llm_usd = usd_text(plan.label_usd), usd_text(plan.llm_usd)
    return (
        plan.arm,
        f"{plan.value:.1f}",
        f"{plan.interval[0]:.1f}–{plan.interval[1]:.1f}",
        best_text(plan),
        *((labels, llm_labels, usd, llm_usd) if llm else (labels, usd)),
        usd_text(plan.work_usd),
        usd_text(plan.usd),
        {"points": "single runs", "beyond": "curve, beyond runs"}.get(plan.measured, "curve"),
    )


def verdict(best: Sequence[Plan], metric: str, budget_usd: float) -> str:
    """The answer in two sentences."""
    if not best:
        return f"${budget_usd:,.2f} pays for none of the plans that were measured."
    first, (low, high) = best[0], best[0].interval
    text = (
        f"For ${budget_usd:,.2f}: {first.arm}, {labels_text(first.labels, first.llm_labels)}, "
        f"expected {metric} {first.value:.1f} ({low:.1f}–{high:.1f}) for ${usd_text(first.usd)}."
    )
    if first.measured == "points":
        return f"{text} Runs are too few for a curve: this is the best that was measured."
    if first.measured == "beyond":
        text += " That is beyond what was measured."
    if len(best) == 1:
        return f"{text} Nothing else was measured that the budget pays."
    if decided(best):
        return f"{text} Chance that nothing else measured is better: {chance_text(first.chance)}."
    return (
        f"{text} Not decided: the chance that it is the best is {chance_text(first.chance)}; "
        f"{best[1].arm} is expected at {best[1].value:.1f}."
    )


def misfit_text(scatter: Scatter) -> list[str]:
    """What a reader must know where the runs do not lie on curves of this form."""
    if scatter.misfit < MISFIT_WORTH_TELLING:
        return []
    return [
        f"The runs lie about {scatter.misfit:.1f} points off curves of the form that is fitted, "
        "beyond what seeds explain. Intervals allow for it; beyond the runs take them with care."
    ]


class Turn(NamedTuple):
    """A break-even in words: of what, its value now, beyond where who wins, and how sure."""

    of: str
    now: str
    at: str
    winner: str
    interval: str
    chance: str


def turn(found: BreakEven) -> Turn:
    """Where the winner changes, or that it does not."""

    def show(value: float) -> str:
        if found.of in ("label price", "LLM label price"):
            return f"${price_text(value)}"
        return f"{value:.3g}" + " × today's" * (found.of == "device price")

    low, high = (show(end) for end in found.searched)
    at, interval = f"no change from {low} to {high}", ""
    if found.at is not None:
        at = f"{'above' if found.at > found.now else 'below'} {show(found.at)}"
    if found.interval is not None:
        interval = " to ".join(map(show, found.interval))
    return Turn(found.of, show(found.now), at, found.winner, interval, chance_text(found.chance))


def break_even_text(found: BreakEven) -> str:
    """The same in one sentence."""
    words = turn(found)
    interval = f" ({words.interval})" if words.interval else ""
    winner = f"{words.winner} wins " if words.winner else ""
    return (
        f"{words.of}, now {words.now}: {winner}{words.at}{interval}; "
        f"chance of a change: {words.chance}"
    )


def measurement_text(measurement: Measurement) -> str:
    """A run worth making, in words."""
    doubt = ""
    if measurement.doubt is not None:
        before, after = measurement.doubt
        doubt = f" (standard deviation of the lead: {before:.2f} → {after:.2f} points)"
    return (
        f"{measurement.arm} with {labels_text(measurement.labels, measurement.llm_labels)}, about "
        f"${usd_text(measurement.usd)}: {measurement.why}{doubt}"
    )


def nothing_next_text(best: Sequence[Plan]) -> str:
    """Why no run is named to be made next."""
    if len(best) < 2:
        return "no two plans can be paid, so no run would decide between them."
    return "no further run is needed, the winner is decided."


def region_text(region: Region) -> str:
    """Which dollars and labels of an arm are nearly as good as the best plan."""
    least, most = map(usd_text, region.usd)
    usd, counts = _range(least, most, "$"), list[str]()
    for kind, (few, many) in (("labels", region.labels), ("LLM labels", region.llm_labels)):
        if many or (kind == "labels" and not region.llm_labels[1]):
            counts.append(f"{_range(f'{few:,}', f'{many:,}')} {kind}")
    return f"{region.arm}: {usd}, {' and '.join(counts)}"


def _range(low: str, high: str, unit: str = "") -> str:
    return f"{unit}{low}" if low == high else f"{unit}{low} to {unit}{high}"
