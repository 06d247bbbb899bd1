"""The sizes of a run's data, for a quote: from its token store, from its files, or assumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dora_jax.config import RunConfig
from dora_jax.cost.workload import DataFacts, assumed_facts
from dora_jax.data.token_store import MANIFEST, TokenStore
from dora_jax.tasks.own import task_of
from dora_jax.tasks.sources import load_splits


def data_facts(config: RunConfig, run: Path | None = None) -> DataFacts:
    """How much data the run has, from the nearest thing to its tokens that is there.

    Args:
      config: the run.
      run: its directory; None takes the one that its settings name.

    Raises:
      ValueError: files that are named cannot be read.
    """
    prepared = (run or Path(config.model_dir)) / "prepare" / "tokens"
    if config.data.token_store:
        return _of_store(TokenStore.open(config.data.token_store))
    if (prepared / MANIFEST).exists():
        return _of_store(TokenStore.open(prepared))
    assumed = assumed_facts(config)
    named = config.data.data_dir or config.data.own.train_file
    if config.scale == "paper" and not named:
        return assumed
    rows = load_splits(task_of(config.data, config.cost.price_usd_per_label), config.data).rows
    lengths = f"{assumed.source_tokens:.0f} + {assumed.target_tokens:.0f} tokens"
    return assumed._replace(
        labels=len(rows["train"]),
        unlabeled=len(rows["unlabeled"]),
        validation=len(rows["validation"]),
        test=len(rows["test"]),
        origin=f"rows counted in the task's files; lengths assumed, {lengths} an example",
    )


def _of_store(store: TokenStore) -> DataFacts:
    labelled, texts = store.examples("train"), store.examples("unlabeled")
    sources = np.concatenate([np.diff(labelled.source_offsets), np.diff(texts.source_offsets)])
    return DataFacts(
        labels=len(labelled),
        unlabeled=len(texts),
        validation=len(store.examples("validation")),
        test=len(store.examples("test")),
        source_tokens=float(sources.mean()),
        target_tokens=float(np.diff(labelled.target_offsets).mean()),
        origin=f"counted in the token store {store.directory}",
    )
