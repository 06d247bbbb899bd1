"""A plan in sentences, the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dora_jax.planning.decision import DECIDED, BreakEven, Plan, Region
from dora_jax.planning.next_measurement import Measurement


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


def line_of(plan: Plan) -> tuple[str, ...]:
    """A plan's line in a table, but for what it rests on."""
    return (
        plan.arm,
        f"{plan.value:.1f}",
        f"{plan.interval[0]:.1f}–{plan.interval[1]:.1f}",
        best_text(plan),
        f"{plan.labels:,}",
        f"{plan.label_usd:,.2f}",
        f"{plan.work_usd:,.2f}",
        f"{plan.usd:,.2f}",
    )


def verdict(best: Sequence[Plan], metric: str, budget_usd: float) -> str:
    """The answer in two sentences."""
    if not best:
        return f"${budget_usd:,.2f} pays for none of the plans that were measured."
    first, (low, high) = best[0], best[0].interval
    text = (
        f"For ${budget_usd:,.2f}: {first.arm}, {first.labels:,} labels, expected {metric} "
        f"{first.value:.1f} ({low:.1f}–{high:.1f}) for ${first.usd:,.2f}."
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


class Turn(NamedTuple):
    """A break-even in words: of what, its value now, who wins beyond where, and how sure."""

    of: str
    now: str
    winner: str
    at: str
    interval: str
    chance: str


def turn(found: BreakEven) -> Turn:
    """Where the winner changes, or that it does not."""
    form = {"label price": "${:,.3g}", "device price": "{:.3g} × today's"}
    show = form.get(found.of, "{:.3g}").format
    low, high = (show(end) for end in found.searched)
    at, interval = f"no change from {low} to {high}", ""
    if found.at is not None:
        at = f"{'above' if found.at > found.now else 'below'} {show(found.at)}"
    if found.interval is not None:
        interval = " to ".join(map(show, found.interval))
    return Turn(found.of, show(found.now), found.winner, at, interval, chance_text(found.chance))


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
        f"{measurement.arm} with {measurement.labels:,} labels, about ${measurement.usd:,.2f}: "
        f"{measurement.why}{doubt}"
    )


def region_text(region: Region) -> str:
    """Which dollars and labels of an arm are nearly as good as the best plan."""
    (low, high), (few, many) = region.usd, region.labels
    return f"{region.arm}: ${low:,.2f} to ${high:,.2f}, {few:,} to {many:,} labels"
