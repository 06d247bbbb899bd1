"""The table at the end of a run: quality, with its uncertainty, beside what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from dora_jax.config import RunConfig
from dora_jax.cost.ledger import LedgerRow
from dora_jax.cost.prices import NOT_PRICED
from dora_jax.launch.quote_audit import audit, audit_of
from dora_jax.strategies import Result

NAMES = {
    "annotate": "student, annotate",
    "distill": "student, distill",
    "llm": "student, llm labels",
    "llm_human": "student, llm and human",
    "llm_distill": "student, llm and distill",
}
WIDTH_OF_FILES = 130  # where the output is no terminal


def print_results(
    results: Sequence[Result],
    config: RunConfig,
    rows: Sequence[LedgerRow],
    directory: Path,
) -> None:
    """Prints one line a model, and where the run's record is.

    Args:
      results: of the run's strategies.
      config: of the run.
      rows: of its ledger.
      directory: of the run.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_FILES)
    if results:
        console.print(results_table(results, config))
    shared = {result.name: result.shared_dollars for result in results if result.shared_dollars}
    for name, dollars in shared.items():
        console.print(
            f"{NAMES.get(name, name)}: ${dollars:,.4f} of its compute is for stages that other "
            "runs use too; `launch/ledger.py` divides them.",
            highlight=False,
        )
    if any(row.price_source == NOT_PRICED for row in rows):
        console.print(f"Compute is {NOT_PRICED}.", highlight=False)
    console.print(_audit(config, rows, directory), highlight=False, soft_wrap=True)
    console.print(f"Run directory: {directory}", highlight=False, soft_wrap=True)


def _audit(config: RunConfig, rows: Sequence[LedgerRow], directory: Path) -> str:
    """The run's quote beside its bill; a device that no table knows has no quote."""
    try:
        return audit(audit_of(config, rows, directory))
    except ValueError as error:
        return f"No quote beside the bill: {error}"


def results_table(results: Sequence[Result], config: RunConfig) -> Table:
    """One row a model. Metrics are in percent, intervals by bootstrap, money in USD."""
    sizes = (
        "small networks, no result of the paper's" if config.scale == "rehearsal" else "full size"
    )
    metric = results[0].scores.primary
    table = Table(title=f"{config.data.task}, {config.scale} scale ({sizes})", box=box.SIMPLE)
    table.add_column("model", no_wrap=True)
    share = f"{config.evaluate.confidence:.0%}"
    for heading in (
        f"{metric} [{share}]",
        "as in paper",
        "labels",
        "$ labels",
        "$ compute",
        "$ total",
        "device-h",
        "tokens/s",
        "tokens/$",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(NAMES.get(result.name, result.name), *_cells(result))
    return table


def _cells(result: Result) -> tuple[str, ...]:
    low, high = result.scores.interval
    return (
        f"{result.scores.value:.1f} ({low:.1f}–{high:.1f})",
        _number(result.scores.paper.get(result.scores.primary), ".1f"),
        f"{result.labels:,}",
        f"{result.label_dollars:,.2f}",
        f"{result.compute_dollars:,.2f}",
        f"{result.label_dollars + result.compute_dollars:,.2f}",
        f"{result.device_hours:.3f}",
        _number(result.tokens_per_second, ",.0f"),
        _number(result.tokens_per_dollar, ",.0f"),
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
