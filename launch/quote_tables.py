"""Quotes as tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dora_jax.config import RunConfig
from dora_jax.cost.memory import GB
from dora_jax.cost.prices import Price
from dora_jax.cost.quote import RunQuote, StageQuote
from dora_jax.cost.workload import DataFacts
from dora_jax.launch.scale import IN_HALF

if TYPE_CHECKING:
    from dora_jax.launch.quote import Offer

_STAGE_HEADS = ("stage", "GB/device", "steps", "FLOP/step", "GB/step", "ms/step", "bound by")
_STAGE_HEADS += ("beside, h", "hours", "$ on demand", "$ spot")


def print_quotes(
    config: RunConfig, facts: DataFacts, offers: Sequence[Offer], account: dict[str, Any]
) -> None:
    """Prints each offer stage by stage, then all of them in one table, then the cheapest."""
    print(f"{config.data.task} at {config.scale} scale; data {facts.origin}:")
    print(
        f"{facts.labels:,} labels, {facts.unlabeled:,} unlabelled texts, {facts.validation:,} "
        f"validation rows, {facts.test:,} test rows; on average {facts.source_tokens:.0f} + "
        f"{facts.target_tokens:.0f} tokens.\n"
    )
    for one in offers:
        print(_headline(one))
        if one.on_demand.fits:
            print(_stages(one))
        for note in one.notes:
            print(f"  note: {note}")
        print()
    print(_summary(offers))
    quote = offers[0].on_demand
    print(f"\nNot counted: {', '.join(quote.not_counted)}.")
    shares = {(o.on_demand.efficiency, o.on_demand.efficiency_source): None for o in offers}
    reached = "; or ".join(f"{share:.1%} ({source})" for share, source in shares)
    print(
        "Lower hours: the roofline and what stands beside it (compiling, loading, saving, of an "
        f"assumed length). Upper ones, and dollars: the roofline over {reached}, and the same."
    )
    if labels := account["labels"]:
        print(
            f"Besides: {labels['count']:,} labels x {labels['usd_per_label']:g} USD = "
            f"{labels['dollars']:,.2f} USD."
        )
    if account["fit_with_bfloat16_parameters"]:
        print(
            f"{', '.join(account['fit_with_bfloat16_parameters'])} can hold the run with {IN_HALF}."
        )
    if account["cheapest"] is None:
        print("None of this hardware can hold the run.")
    else:
        spot = account["cheapest_on_spot"]
        print(
            f"Cheapest: {account['cheapest']} on demand" + (f", {spot} on spot." if spot else ".")
        )
        print(*_against_budget(config, offers, account), sep="")


def _against_budget(
    config: RunConfig, offers: Sequence[Offer], account: dict[str, Any]
) -> list[str]:
    """Whether the cheapest, labels included, is within the run's budget, if it has one."""
    budget = config.cost.budget_usd
    if budget < 0:
        return []
    cheapest = next(one for one in offers if one.written == account["cheapest"])
    labels = account["labels"]["dollars"] if account["labels"] else 0.0
    whole = cheapest.on_demand.dollars + labels
    place = "within" if whole <= budget else "above"
    return [f"With its labels {whole:,.2f} USD on demand, {place} BUDGET_USD = {budget:,.2f}."]


def _headline(one: Offer) -> str:
    quote = one.on_demand
    largest = max(quote.stages, key=lambda stage: stage.bytes_per_device)
    spare = (quote.planned_bytes - quote.bytes_per_device) / GB
    held = f"{quote.bytes_per_device / GB:.1f} GB a device in stage {largest.stage}"
    planned = f"of {quote.planned_bytes / GB:.1f} GB that may be planned"
    if quote.fits:
        return f"{one.written} fits: {held} {planned}, {spare:.1f} GB to spare"
    failing = [stage.stage for stage in quote.stages if not stage.fits]
    return (
        f"{one.written} does not fit: {held} {planned}, {-spare:.1f} GB too much "
        f"(stages that do not fit: {', '.join(failing)})"
    )


def _stages(one: Offer) -> str:
    spot = {stage.stage: stage for stage in one.spot.stages} if one.spot else {}
    rows: list[tuple[str, ...]] = [_STAGE_HEADS]
    for stage in one.on_demand.stages:
        rows.append(_cells(stage, spot.get(stage.stage)))
    quote = one.on_demand
    rows.append(
        (
            *("all", "", "", "", "", "", ""),
            f"{sum(stage.hours_beside for stage in quote.stages):.2f}",
            *(_hours(quote), f"{quote.dollars:,.2f}", _usd(one.spot)),
        )
    )
    text = aligned(rows)
    outside = quote.hours_low - sum(stage.hours_low for stage in quote.stages)
    if outside > 1e-9:
        text += f"\n  the sum has {outside:.2f} hours outside the program (UNCOUNTED_HOURS)"
    if one.spot:
        text += (
            f"\n  on spot {60 * one.spot.lost_hours:.1f} minutes are expected to be lost to "
            "interruptions; the sum has them"
        )
    price = quote.price
    text += f"\n  {price.usd:g} USD a device-hour: {_origin(price)}"
    if one.spot:
        price = one.spot.price
        text += f"; on spot {price.usd:g}: {_origin(price)}"
    return text


def _origin(price: Price) -> str:
    named = f" ({price.note})" if price.note else ""
    return ", ".join(filter(None, (price.provider, price.source, price.date))) + named


def _cells(stage: StageQuote, spot: StageQuote | None) -> tuple[str, ...]:
    milliseconds = f"{1e3 * stage.step_seconds_low:,.1f}–{1e3 * stage.step_seconds_high:,.1f}"
    return (
        stage.stage,
        f"{stage.bytes_per_device / GB:.1f}" if stage.bytes_per_device else "–",
        f"{stage.steps:,}" if stage.steps else "–",
        f"{stage.flops_per_step:.2g}" if stage.steps else "–",
        f"{stage.bytes_per_step / GB:.1f}" if stage.steps else "–",
        milliseconds if stage.steps else "–",
        stage.bound_by,
        f"{stage.hours_beside:.2f}",
        f"{stage.hours_low:.2f}–{stage.hours_high:.2f}",
        f"{stage.dollars:,.2f}",
        f"{spot.dollars:,.2f}" if spot else "–",
    )


def _summary(offers: Sequence[Offer]) -> str:
    heads = ("hardware", "fits", "GB/device", "hours", "$ on demand", "$ spot", "$/1,000 labelled")
    rows: list[tuple[str, ...]] = [heads]
    for one in offers:
        quote, fits = one.on_demand, one.on_demand.fits
        rows.append(
            (
                one.written,
                "yes" if fits else "no",
                f"{quote.bytes_per_device / GB:.1f} of {quote.planned_bytes / GB:.1f}",
                _hours(quote) if fits else "–",
                _usd(quote) if fits else "–",
                _usd(one.spot) if fits else "–",
                _per_thousand(quote) if fits else "–",
            )
        )
    return aligned(rows)


def _hours(quote: RunQuote) -> str:
    return f"{quote.hours_low:.2f}–{quote.hours_high:.2f}"


def _usd(quote: RunQuote | None) -> str:
    return "–" if quote is None else f"{quote.dollars:,.2f}"


def _per_thousand(quote: RunQuote) -> str:
    usd = quote.dollars_per_1000_labelled
    return "–" if usd is None else f"{usd:,.2f}"


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of text, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first = f"  {row[0]:<{widths[0]}}"
        rest = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)
