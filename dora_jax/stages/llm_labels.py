"""llm-labels: a language model's labels, bought before the run, as examples for training.

`launch/annotate.py` wrote the labels and, beside them, the receipt with what they cost. Here they
are checked, tokenised as *prepare* tokenises, and entered into the run's own receipt: tokens in,
tokens out, and for `llm` the human labels that prompts showed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.annotators.appended import read_appended
from dora_jax.annotators.llm import row_ids
from dora_jax.annotators.receipt import LabelFiles
from dora_jax.cost.charging import LLM_LABELS as STAGE
from dora_jax.cost.charging import LLM_SHOTS
from dora_jax.cost.ledger import LedgerRow, labels_row, tokens_row
from dora_jax.cost.prices import Price
from dora_jax.data.token_store import TokenStore, concatenate
from dora_jax.fingerprints import fingerprint
from dora_jax.shapes import EOS_ID, Examples
from dora_jax.stages import manifest
from dora_jax.stages.context import RunContext


class LabelSet(NamedTuple):
    """Labelled examples that are not the run's human ones alone, and what decided them."""

    examples: Examples
    fingerprint: str


def llm_labels(context: RunContext, store: TokenStore) -> LabelSet:
    """The labels of `LLM_LABELS`, paid for in the run's ledger.

    Raises:
      ValueError: there is no such file or receipt, it is of another task, a label is none of the
        task's, fewer are there than asked for, or the budget is too small.
    """
    config = context.config.llm
    files = LabelFiles.beside(Path(config.labels))
    receipt = _receipt(files.receipt, context.task.name)
    rows = _rows(context, store, files.labelled, receipt)
    chosen = fingerprint([[row["source"], row["target"]] for row in rows])
    with context.stage(STAGE, "llm") as directory:
        if manifest.begin(directory, {"labels": chosen, "data": store.fingerprint}) is None:
            share = len(rows) / receipt["rows"]["labelled"]
            for row in _purchases(context, receipt, len(rows), share, chosen):
                context.buy(row, "NUM_LLM_LABELS")
            facts = {name: receipt.get(name) for name in ("model", "usd_per_label", "audit")}
            manifest.finish(directory, {"rows": len(rows), **facts})
    context.report(_told(receipt, len(rows)))
    if "llm_human" in context.config.strategies or "llm_distill" in context.config.strategies:
        _tell_unpaid(context, store, receipt)
    return LabelSet(_tokens(context, store, rows), chosen)


def with_human(store: TokenStore, labels: LabelSet) -> LabelSet:
    """Both kinds of labels in one set."""
    parts = (labels.examples, store.examples("train"))
    sources = [split.source(i) for split in parts for i in range(len(split))]
    targets = [split.target(i) for split in parts for i in range(len(split))]
    examples = Examples(*concatenate(sources), *concatenate(targets))
    return LabelSet(examples, fingerprint([labels.fingerprint, "human"]))


def _receipt(path: Path, task: str) -> dict[str, Any]:
    try:
        receipt = json.loads(path.read_text(encoding="utf-8"))
        found, labelled = receipt["task"], receipt["rows"]["labelled"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, the receipt of LLM_LABELS, cannot be read ({error}). Labels and receipt are "
            "made together by launch/annotate.py --model=…"
        ) from error
    if found != task:
        raise ValueError(f"LLM_LABELS are of the task {found!r}; this run is for {task!r}.")
    if not labelled:
        raise ValueError(f"{path} says that no text was labelled; there is nothing to learn from.")
    return receipt


def _rows(
    context: RunContext, store: TokenStore, path: Path, receipt: dict[str, Any]
) -> list[dict[str, str]]:
    """The first of them by id, which is a hash: more labels hold all of fewer."""
    found, _ = read_appended(path)
    if len(found) != receipt["rows"]["labelled"]:
        raise ValueError(
            f"{path} holds {len(found):,} labels, its receipt speaks of "
            f"{receipt['rows']['labelled']:,}; let launch/annotate.py come to its end."
        )
    for number, row in enumerate(found, start=1):
        complaint = context.task.check_target(row["target"])
        if complaint:
            raise ValueError(f"{path}:{number}: {complaint}")
    judged = {*store.sources("validation"), *store.sources("test")}
    usable = sorted((row for row in found if row["source"] not in judged), key=_id)
    if len(usable) < len(found):
        context.report(
            f"llm labels: {len(found) - len(usable):,} texts are left out, which the run is "
            "judged by"
        )
    wanted = context.config.llm.num_labels
    if wanted > len(usable) or not usable:
        raise ValueError(
            f"NUM_LLM_LABELS = {wanted}, but {path} has {len(usable):,} labels that may be used; "
            "ask for so many or fewer, or for -1, which takes them all."
        )
    return usable if wanted == -1 else usable[:wanted]


def _id(row: dict[str, str]) -> str:
    return row["id"]


def _purchases(
    context: RunContext, receipt: dict[str, Any], labels: int, share: float, chosen: str
) -> Iterable[LedgerRow]:
    """What a share of the labels cost; answers of no use and lost texts are paid by the others."""
    for side, tokens in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        price = Price(**receipt["prices"][side])
        row = tokens_row(
            context.facts,
            STAGE,
            f"{STAGE}-{side}-{chosen}",
            round(share * receipt[tokens]),
            price,
            strategy="llm",
        )
        yield dataclasses.replace(row, examples=labels)
    shown = receipt["human_labels_shown"]
    if shown and "llm" in context.config.strategies:  # the others have them among their own
        row = labels_row(context.facts, context.task.name, shown, context.label_price(), "llm")
        yield dataclasses.replace(row, stage=LLM_SHOTS, row_id=f"{LLM_SHOTS}-{chosen}")


def _tell_unpaid(context: RunContext, store: TokenStore, receipt: dict[str, Any]) -> None:
    """Strategies with human labels pay for their own alone; prompts should show no others."""
    shown, own = receipt.get("shown_ids", ()), {*row_ids(store.sources("train"))}
    if others := len({*shown} - own):
        context.report(
            f"llm labels: prompts showed {others:,} human labels that this run has not bought, and "
            "that llm_human and llm_distill do not pay for; buy labels with its NUM_LABELS: "
            f"launch/annotate.py --gin.NUM_LABELS={len(own)}"
        )


def _told(receipt: dict[str, Any], labels: int) -> str:
    audit, audited = receipt.get("audit"), "not audited"
    if audit:
        audited = f"{audit['metric']} {audit['value']:.1f} on {audit['rows']:,} audited texts"
    return (
        f"llm labels: {labels:,} of {receipt['model']} at ${receipt['usd_per_label']:.6f} each; "
        f"{audited}"
    )


def _tokens(context: RunContext, store: TokenStore, rows: Sequence[dict[str, str]]) -> Examples:
    """As *prepare* has it: prompt, cut to length, closed by EOS."""
    data, prefix = context.config.data, store.manifest["prompt_prefix"]

    def encode(texts: list[str], limit: int) -> list[list[int]]:
        return [[*ids[: limit - 1], EOS_ID] for ids in store.vocabulary.encode(texts)]

    sources = encode([f"{prefix}{row['source']}" for row in rows], data.source_length)
    targets = encode([row["target"] for row in rows], data.target_length)
    return Examples(*concatenate(sources), *concatenate(targets))
