"""What a task is to the rest of the project: a name, a prompt, a price, a way to score.

No TensorFlow here: evaluate, predict and annotate need prompts, parsers and metrics on hosts
that have none.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Protocol

from dora_jax.metrics.measurement import Measurement
from dora_jax.metrics.scores import Scores

KINDS = ("spans", "classification", "text")
# What an annotator is asked to do where a task says nothing of its own.
INSTRUCTIONS = {
    "spans": "Mark the entities of a text, each with its type.",
    "classification": "Assign a text to exactly one class.",
    "text": "Answer a text with the text that belongs to it.",
}
PRICES = "Kang, Xu and Ritter, ACL 2023 (arXiv 2305.01645)"

# targets, predictions, sources, all in the same order
Measure = Callable[[Sequence[str], Sequence[str], Sequence[str]], Measurement]


class TargetCheck(Protocol):
    """Says what is wrong with a gold target, or None where it is fine."""

    def __call__(self, target: str, /) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task: what is asked, what an answer may be, what it costs and how it is scored.

    Attributes:
        name: as users write it, and as SeqIO registers it.
        kind: what a target is: "spans" (entities with types), "classification" (one of
            `labels`) or "text".
        prompt_prefix: put before every source.
        folder: of the task's files, in the authors' data and in the bundled sample.
        labels: the types or classes a target may name; none for "text".
        price_usd_per_label: what one human label costs, in USD.
        price_source: where that price comes from.
        primary_metric: the strict metric a run selects and reports by.
        measure: counts of targets, predictions and sources, from which the metrics follow.
        check_target: see `TargetCheck`.
        instruction: what an annotator is asked to do with a text; "" takes that of the kind.
        test_split: how the authors' files call the split that is scored: "test" or "dev".
        selection: targets and predictions → percent, larger is better: what training selects
            by where `primary_metric` is too slow for that; None selects by `primary_metric`.
        measure_with: `measure` with another encoder for BERTScore, given its folder or name; None
            where the metrics need no encoder.
    """

    name: str
    kind: str
    prompt_prefix: str
    folder: str
    labels: tuple[str, ...]
    price_usd_per_label: float
    price_source: str
    primary_metric: str
    measure: Measure
    check_target: TargetCheck
    instruction: str = ""
    test_split: str = "test"
    selection: Callable[[Sequence[str], Sequence[str]], float] | None = None
    measure_with: Callable[[str], Measure] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"TaskSpec.kind = {self.kind!r}; it must be {' or '.join(KINDS)}.")
        if not self.instruction:
            object.__setattr__(self, "instruction", INSTRUCTIONS[self.kind])

    def score(
        self,
        targets: Sequence[str],
        predictions: Sequence[str],
        sources: Sequence[str],
        *,
        resamples: int = 10_000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> Scores:
        """Strict and paper metrics with bootstrap intervals, in percent.

        Args:
            targets: gold texts.
            predictions: predicted texts, in the same order.
            sources: what was asked, without the prompt prefix, in the same order.
            resamples: of the bootstrap; 0 leaves the intervals out.
            confidence: coverage of the intervals.
            seed: of the bootstrap.

        Raises:
            ValueError: no examples, lists of different lengths, or targets that are no gold.
        """
        measured = self.measure(targets, predictions, sources)
        return measured.scores(resamples=resamples, confidence=confidence, seed=seed)

    def selection_value(
        self, targets: Sequence[str], predictions: Sequence[str], sources: Sequence[str]
    ) -> float:
        """What training selects the best update by: percent, larger is better."""
        if self.selection is not None:
            return self.selection(targets, predictions)
        return self.measure(targets, predictions, sources).metrics()[self.primary_metric]

    def with_scorer_model(self, scorer_model: str) -> TaskSpec:
        """The task with another BERTScore encoder; itself where its metrics need none."""
        if self.measure_with is None:
            return self
        return dataclasses.replace(self, measure=self.measure_with(scorer_model))


def get_task(name: str) -> TaskSpec:
    """The task of that name, or with files in a folder of that name ("multipit").

    Raises:
        ValueError: there is no such task; the message lists those there are.
    """
    # Imported here because every corpus imports `TaskSpec` from this module.
    from dora_jax.tasks.fever import FEVER
    from dora_jax.tasks.multipit import MULTIPIT_GEN, MULTIPIT_ID
    from dora_jax.tasks.nq import NQ
    from dora_jax.tasks.stanceosaurus import STANCEOSAURUS
    from dora_jax.tasks.wlp import WLP

    specs = (FEVER, MULTIPIT_GEN, MULTIPIT_ID, NQ, STANCEOSAURUS, WLP)
    tasks = {task.name: task for task in specs}
    tasks_by_folder = {task.folder: task for task in specs}
    if name in tasks or name in tasks_by_folder:
        return tasks.get(name) or tasks_by_folder[name]
    nearest = difflib.get_close_matches(name.lower(), tasks, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"There is no task {name!r}.{hint} Tasks: {', '.join(sorted(tasks))}.")
