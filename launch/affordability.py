"""Refuses a run beforehand that its budget cannot pay, and says what it could."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dora_jax.config import RunConfig
from dora_jax.cost.affordable import Unaffordable, fitting, refusal
from dora_jax.cost.quote import quote_run
from dora_jax.cost.run_prices import label_price
from dora_jax.launch.quote_facts import data_facts


def require_affordable(config: RunConfig, device_kind: str, devices: int) -> None:
    """Compares the quote of a run that has not begun with its budget.

    A run that has begun is not asked again, nor one that shares stages, which may be paid
    already: the cap ends them in time.

    Args:
      config: the run.
      device_kind: JAX's name of its devices.
      devices: how many.

    Raises:
      Unaffordable: the upper end of the quote is above the budget.
    """
    cost = config.cost
    if (
        cost.budget_usd < 0
        or config.shared_dir
        or (Path(config.model_dir) / "ledger.jsonl").exists()
    ):
        return
    facts = data_facts(config)
    data = dataclasses.replace(config.data, num_labels=facts.labels)
    config = dataclasses.replace(config, data=data)
    usd_per_label = label_price(cost, config.data.task).usd

    def quote(run: RunConfig) -> float:
        return quote_run(run, device_kind, devices, spot=cost.spot, facts=facts).dollars

    found = fitting(config, cost.budget_usd, usd_per_label, quote)
    if found.bill.total > cost.budget_usd:
        raise Unaffordable(refusal(found, cost.budget_usd, config))
