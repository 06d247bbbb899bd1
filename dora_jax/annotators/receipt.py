"""What labels of a language model came to: how many, how dear, how good. One JSON file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.annotators.calls import Spent
from dora_jax.annotators.chat import Usage
from dora_jax.annotators.token_prices import Estimate, TokenPrices
from dora_jax.metrics.scores import Scores

Row = Mapping[str, Any]


class LabelFiles(NamedTuple):
    """The files that belong to one file of labels."""

    labelled: Path
    set_aside: Path
    calls: Path
    ledger: Path
    receipt: Path
    audit: Path
    audit_set_aside: Path

    @classmethod
    def beside(cls, output: Path) -> LabelFiles:
        """Their names: labels.jsonl has labels.receipt.json beside it, and so on.

        Raises:
            ValueError: the name does not end in .jsonl.
        """
        if output.suffix != ".jsonl":
            raise ValueError(f"--output={output}; expected a name that ends in .jsonl.")
        endings = (
            "set_aside.jsonl",
            "calls.jsonl",
            "ledger.jsonl",
            "receipt.json",
            "audit.jsonl",
            "audit_set_aside.jsonl",
        )
        return cls(output, *(output.with_suffix(f".{ending}") for ending in endings))


class Paid(NamedTuple):
    """Tokens and dollars of rows, those once paid by another output file included."""

    usage: Usage
    usd: float


def paid(rows: Sequence[Row]) -> Paid:
    """Sums over rows of labels."""
    prompt = sum(row["prompt_tokens"] for row in rows)
    completion = sum(row["completion_tokens"] for row in rows)
    return Paid(Usage(prompt, completion), sum(row["usd"] for row in rows))


def predictions(ids: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The labels that texts got; "" for those set aside, which no task takes for right."""
    targets = {row["id"]: row["target"] for row in rows}
    return [targets.get(row_id, "") for row_id in ids]


def make_receipt(
    *,
    task: str,
    annotator: Mapping[str, Any],
    prices: TokenPrices,
    labelled: Sequence[Row],
    set_aside: Sequence[Row],
    missing: int,
    spent: Spent,
    estimated: Estimate,
    shown: Sequence[str],
    audit: Mapping[str, Any] | None,
    why_stopped: str,
) -> dict[str, Any]:
    """The receipt, JSON-able.

    Args:
        task: that was labelled.
        annotator: model, address, parameters and prompt.
        prices: of the model.
        labelled, set_aside: rows of both files.
        missing: texts that have not ended.
        spent: of all calls, the audit's included.
        estimated: before the first call of this start.
        shown: ids of the human labels that prompts showed; they were bought too.
        audit: what `audited` says, or None.
        why_stopped: "" where all texts were gone through.
    """
    of_labels = paid([*labelled, *set_aside])
    return {
        "task": task,
        **annotator,
        "rows": {"labelled": len(labelled), "set_aside": len(set_aside), "missing": missing},
        "why_stopped": why_stopped,
        # What these labels are worth: answers without use are paid by those with.
        "prompt_tokens": of_labels.usage.prompt_tokens,
        "completion_tokens": of_labels.usage.completion_tokens,
        "usd": of_labels.usd,
        "usd_per_label": of_labels.usd / len(labelled) if labelled else None,
        "human_labels_shown": len(shown),
        "shown_ids": sorted(shown),
        "prices": {
            "input": dataclasses.asdict(prices.input),
            "output": dataclasses.asdict(prices.output),
        },
        "spent": spent._asdict(),
        "estimate_of_last_start": {
            "texts": estimated.texts,
            "expected": {**estimated.expected._asdict(), "usd": estimated.expected_usd},
            "at_most": {**estimated.at_most._asdict(), "usd": estimated.at_most_usd},
        },
        "audit": audit,
    }


def audited(scores: Scores, rows: Sequence[Row], set_aside: Sequence[Row]) -> dict[str, Any]:
    """How good the labels are, by texts that a human labelled too.

    Args:
        scores: of the model's labels against the human ones, in percent.
        rows, set_aside: of the audit's texts.
    """
    return {
        "rows": len(rows) + len(set_aside),
        "set_aside": len(set_aside),
        "metric": scores.primary,
        "value": scores.value,
        "interval": list(scores.interval),
        "error_rate": (100.0 - scores.value) / 100.0,
        "metrics": scores.strict,
        "usd": paid([*rows, *set_aside]).usd,
    }
