"""What a run of a sweep may spend: of its own budget, or of one that all runs share.

Several workers spend from a shared budget at once. What one of them may still spend is held for it
as long as it is at work, so that together they never spend more than there is.
"""

from __future__ import annotations

import fcntl
from collections import defaultdict
from collections.abc import Callable, Mapping

from dora_jax.cost.charging import PREPARE, SHAREABLE, STAGES
from dora_jax.launch.sweep_plan import Plan, PlannedRun
from dora_jax.run_folders import find_runs, paid_rows, read_folder, read_or_empty
from dora_jax.whole_files import write_json

GRANTS_FILE = "grants.json"
_LOCK = ".grants.lock"


def own_cap(plan: Plan, run: PlannedRun) -> float | None:
    """What a budget of the run's own leaves to it in USD; None where it has none.

    That budget is for all that its results need alone, and so for pretraining, which another run
    has paid.
    """
    cap_usd = run.config.cost.budget_usd
    if cap_usd < 0 or not run.needs:
        return None
    needed = {stage for result in run.config.strategies for stage in STAGES[result]}
    needed &= {*SHAREABLE} - {PREPARE}  # which each run does, and pays, by itself
    paid_by = [read_folder(plan.directory / name) for name in run.needs]
    return cap_usd - sum(r.dollars for folder in paid_by for r in folder.rows if r.stage in needed)


def grant(
    plan: Plan,
    run: PlannedRun,
    bills: Mapping[str, float],
    is_open: Callable[[PlannedRun], bool],
    is_held: Callable[[PlannedRun], bool],
) -> float | None:
    """What the sweep's budget leaves to a run, and holds it for the run.

    Args:
      plan: of the sweep, which has a budget.
      run: that is about to begin, held by this worker.
      bills: what each run is expected to cost, where several workers divide the budget: each is
        given as much more than that as all can be given. Without, the run may spend all there is.
      is_open: whether a run is still to be done.
      is_held: whether another worker has it.

    Returns:
      USD, what the run has spent itself included; None while other workers hold all there is.
    """
    assert plan.budget_usd is not None
    plan.directory.mkdir(parents=True, exist_ok=True)
    with open(plan.directory / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        granted = read_or_empty(plan.directory / GRANTS_FILE)
        others = [other for other in plan.runs if other.name != run.name]
        held = [other for other in others if is_held(other)]
        own_usd, others_usd, spent = _spent(plan, run)
        kept = (max(granted.get(o.name, 0.0) - spent[o.name], 0.0) for o in held)
        kept_usd = sum(kept)
        left_usd = plan.budget_usd - others_usd - own_usd - kept_usd
        if left_usd <= 0 and kept_usd > 0:
            return None
        free = [run, *(o for o in others if o not in held and is_open(o))]
        if bills and (expected_usd := sum(bills[o.name] for o in free)) > 0:
            left_usd *= bills[run.name] / expected_usd
        write_json(plan.directory / GRANTS_FILE, granted | {run.name: own_usd + max(left_usd, 0.0)})
        return own_usd + left_usd


def _spent(plan: Plan, run: PlannedRun) -> tuple[float, float, Mapping[str, float]]:
    """Dollars of this run, of all others, and of each by its name.

    Labels that another candidate of the run's search has bought are this run's own.
    """
    search = plan.directory / run.group
    spent: defaultdict[str, float] = defaultdict(float)
    others_usd = 0.0
    for place, row in paid_rows(read_folder(path) for path in find_runs(plan.directory)):
        spent[row.run] += row.dollars
        if row.run != run.name and place.parent != search:
            others_usd += row.dollars
    return spent[run.name], others_usd, spent
