"""What a task is to the rest of the project: a name, a prompt, a price, a way to score.

No TensorFlow here: evaluate, predict and annotate need prompts, parsers and metrics on hosts
that have none.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Protocol

from dora_jax.metrics.scores import Scores


class Scorer(Protocol):
    """Scores predictions against gold targets; all lists are in the same order."""

    def __call__(
        self,
        targets: Sequence[str],
        predictions: Sequence[str],
        sources: Sequence[str],
        *,
        resamples: int = 10_000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> Scores: ...


class TargetCheck(Protocol):
    """Says what is wrong with a gold target, or None where it is fine."""

    def __call__(self, target: str, /) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task of the paper.

    Attributes:
        name: as users write it, and as SeqIO registers it.
        kind: what a target is: "spans" (entities with types).
        prompt_prefix: put before every source.
        folder: of the task's files, in the authors' data and in the bundled sample.
        labels: the types or classes a target may name.
        price_usd_per_label: what one human label costs, in USD.
        price_source: where that price comes from.
        primary_metric: the strict metric a run selects and reports by.
        score: see `Scorer`.
        check_target: see `TargetCheck`.
    """

    name: str
    kind: str
    prompt_prefix: str
    folder: str
    labels: tuple[str, ...]
    price_usd_per_label: float
    price_source: str
    primary_metric: str
    score: Scorer
    check_target: TargetCheck


def get_task(name: str) -> TaskSpec:
    """The task of that name.

    Raises:
        ValueError: there is no such task; the message lists those there are.
    """
    # Imported here because every corpus imports `TaskSpec` from this module.
    from dora_jax.tasks.wlp import WLP

    tasks = {task.name: task for task in (WLP,)}
    if name in tasks:
        return tasks[name]
    nearest = difflib.get_close_matches(name.lower(), tasks, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"There is no task {name!r}.{hint} Tasks: {', '.join(sorted(tasks))}.")
