"""*prepare*: a task's files → SeqIO → token store. Runs once, on any CPU host."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dora_jax.config import DataConfig, to_dict
from dora_jax.data.token_store import Split, TokenStore, concatenate, write_token_store
from dora_jax.data.vocab import Vocabulary, train_sentencepiece
from dora_jax.shapes import Examples
from dora_jax.tasks.classes import require_writable
from dora_jax.tasks.seqio_registry import build_task, native_stderr_held_back
from dora_jax.tasks.sources import LoadedSplits, Row, load_splits
from dora_jax.tasks.task import TaskSpec

if TYPE_CHECKING:  # seqio_registry imports SeqIO; it knows how to keep TensorFlow quiet
    import seqio

# SeqIO's feature → the token store's side.
SIDES = {"inputs": "source", "targets": "target"}


def prepare(
    task: TaskSpec,
    data: DataConfig,
    directory: str | os.PathLike[str],
    report: Callable[[str], None],
) -> TokenStore:
    """Tokenises a task once and writes its token store.

    Args:
        task: the task.
        data: which files, how many rows, which lengths and vocabulary; without a vocabulary
            file one of `vocabulary_pieces` pieces is trained on the task's own text.
        directory: where the store shall be; it must not exist yet.
        report: takes lines for the user: rows of each split, what was left out or truncated.

    Raises:
        ValueError: bad rows, folders, counts or vocabulary, each saying what to change.
    """
    loaded = load_splits(task, data)
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary_file = data.vocabulary
        if not vocabulary_file:
            vocabulary_file = str(Path(scratch) / "vocabulary.model")
            _train_vocabulary(loaded, vocabulary_file, data.vocabulary_pieces)
        vocabulary = Vocabulary.load(vocabulary_file, data.extra_ids)
        require_writable(task.labels, vocabulary)
        seqio_task = build_task(task, loaded.rows, vocabulary_file, data.extra_ids)
        feature_lengths = {"inputs": data.source_length, "targets": data.target_length}
        splits: dict[str, Split] = {}
        lengths: dict[str, dict[str, Any]] = {}
        for name, rows in loaded.rows.items():
            splits[name], full_lengths = _tokenise(seqio_task, name, rows, feature_lengths)
            lengths[name] = {
                side: _describe_lengths(full_lengths[feature], feature_lengths[feature])
                for feature, side in SIDES.items()
                if not (name == "unlabeled" and side == "target")
            }
        manifest = {
            "task": task.name,
            "task_kind": task.kind,
            "task_labels": list(task.labels),
            "prompt_prefix": task.prompt_prefix,
            "labels": len(loaded.rows["train"]),
            "price_usd_per_label": task.price_usd_per_label,
            "price_source": task.price_source,
            "vocabulary": {
                "fingerprint": vocabulary.fingerprint,
                "pieces": vocabulary.pieces,
                "size": vocabulary.size,
                "origin": data.vocabulary or "trained on the task's own text",
            },
            "lengths": lengths,
            "data": to_dict(data),
            **loaded.provenance,
        }
        store = write_token_store(directory, splits, vocabulary_file, data.extra_ids, manifest)
    for line in describe(store):
        report(line)
    return store


def describe(store: TokenStore) -> list[str]:
    """What a person should know of a token store: one line a matter."""
    facts = store.manifest
    rows = " · ".join(f"{name} {count:,}" for name, count in facts["rows"].items())
    lines = [f"{facts['task']} from the {facts['origin']}: rows {rows}"]
    ids = facts["vocabulary"]
    lines.append(f"vocabulary: {ids['size']:,} ids ({ids['origin']}), {ids['fingerprint']}")
    if facts["label_counts"]:
        counts = facts["label_counts"]["train"].items()
        lines.append(f"labels: {' · '.join(f'{label} {count:,}' for label, count in counts)}")
    if facts["unlabeled_duplicates_dropped"]:
        lines.append(
            f"unlabeled: {facts['unlabeled_duplicates_dropped']:,} repeated sources left out"
        )
    if facts["skipped_rows"]:
        lines.append(f"bad rows left out: {len(facts['skipped_rows']):,}")
        lines += [f"  {complaint}" for complaint in facts["skipped_summary"]]
    lines += _leaks(facts)
    for split, sides in facts["lengths"].items():
        for side, of_side in sides.items():
            if of_side["truncated_rows"]:
                lines.append(
                    f"truncated to {of_side['limit']} tokens: {of_side['truncated_rows']:,} of the "
                    f"{split} {side}s ({of_side['truncated_share']:.2%}), the longest of "
                    f"{of_side['max']}"
                )
    return lines


def _leaks(facts: dict[str, Any]) -> list[str]:
    """Warnings of rows that a model is judged by and has seen."""
    test, validation = facts["rows"]["test"], facts["rows"]["validation"]
    seen = facts["test_rows_also_in_train_or_unlabeled"]
    lines = []
    if seen:
        lines.append(
            f"warning: {seen:,} of the {test:,} test texts ({seen / test:.2%}) are also in the "
            f"train ({facts['test_rows_also_in_train']:,}) or unlabelled text; scores on them tell "
            "of memory"
        )
    if seen := facts["validation_rows_also_in_train"]:
        lines.append(
            f"warning: {seen:,} of the {validation:,} validation texts are also in train; the "
            "checkpoint is chosen by them"
        )
    return lines


def _train_vocabulary(loaded: LoadedSplits, path: str, pieces: int) -> None:
    labelled, unlabeled = loaded.rows["train"], loaded.rows["unlabeled"]
    # dict.fromkeys: each text once, in file order, so that repeated rows gain no weight.
    sources = list(dict.fromkeys(row.source for row in [*labelled, *unlabeled]))
    targets = [row.target for row in labelled]
    symbols = answer_words(sources, targets, limit=pieces // 10)
    train_sentencepiece([*sources, *targets], path, pieces, symbols)


def answer_words(sources: Sequence[str], targets: Sequence[str], limit: int) -> list[str]:
    """Words of at least two targets that no source contains: the answer language of a task.

    Markers ("[Reagent]") and classes ("SUPPORTS") become one piece each this way, where
    SentencePiece would cut "[Reagent]" into three: WLP targets are 40 % shorter for it.

    Returns:
        the `limit` most frequent of them, the most frequent first, ties in alphabetical order.
    """
    counts = Counter(word for target in targets for word in set(target.split()))
    text = "\n".join(sources)
    words = [word for word, count in counts.items() if count > 1 and word not in text]
    return sorted(words, key=lambda word: (-counts[word], word))[:limit]


def _tokenise(
    task: seqio.Task, name: str, rows: Sequence[Row], feature_lengths: dict[str, int]
) -> tuple[Split, dict[str, np.ndarray]]:
    """One split's tokens, at most `feature_lengths` long, and their full lengths."""
    with native_stderr_held_back():
        dataset = task.get_dataset(feature_lengths, split=name, shuffle=False)
        batches = list(dataset.ragged_batch(1024))  # row by row takes TensorFlow five times as long

    def gather(feature: str) -> list[np.ndarray]:
        return [row for batch in batches for row in batch[feature].numpy()]

    full_lengths = {feature: np.array(gather(f"{feature}_length"), np.int64) for feature in SIDES}
    targets = gather("targets")
    if name == "unlabeled":  # SeqIO had to end them with EOS, which would say "nothing is there"
        targets = [target[:0] for target in targets]
    tokens = Examples(*concatenate(gather("inputs")), *concatenate(targets))
    return Split([row.source for row in rows], [row.target for row in rows], tokens), full_lengths


def _describe_lengths(lengths: np.ndarray, limit: int) -> dict[str, Any]:
    """Percentiles of lengths in tokens, EOS included and prompt too, before truncation."""
    truncated = int((lengths > limit).sum())
    filled = lengths if len(lengths) else np.zeros(1, np.int64)
    p50, p90, p99 = (int(p) for p in np.percentile(filled, (50, 90, 99), method="higher"))
    return {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": int(filled.max()),
        "limit": limit,
        "truncated_rows": truncated,
        "truncated_share": truncated / max(len(lengths), 1),
    }
