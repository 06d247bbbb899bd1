"""The tasks as SeqIO knows them: source, prompt, tokens, metrics.

`register` puts a task under its public name ("wlp") into SeqIO's registry, where T5X and
everything else that speaks SeqIO finds it; *prepare* runs the same `seqio.Task` once to fill
the token store. This, `prepare.py` and `tfds/` are the only modules that need TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dora_jax.config import DataConfig
from dora_jax.tasks.sources import Row, load_splits
from dora_jax.tasks.task import TaskSpec


@contextlib.contextmanager
def native_stderr_held_back() -> Iterator[None]:
    """Keeps what compiled code writes to stderr from the user unless the block fails.

    TensorFlow greets with ten lines about oneDNN and missing CUDA drivers, and tensorflow_text
    logs a line for each thread that tokenises; TF_CPP_MIN_LOG_LEVEL reaches neither.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(original, held.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with native_stderr_held_back():
    import seqio
    import tensorflow as tf

    # TensorFlow takes all the memory of every GPU it sees; those are JAX's.
    tf.config.set_visible_devices([], "GPU")


class Gold(NamedTuple):
    """What a metric compares a prediction with; SeqIO hands metrics nothing but targets."""

    source: str
    target: str


def build_task(
    task: TaskSpec, rows: Mapping[str, Sequence[Row]], vocabulary_file: str, extra_ids: int
) -> seqio.Task:
    """A `seqio.Task` over `rows`, one SeqIO split for each of their splits.

    Beside `inputs` and `targets` its examples hold both as text (`…_pretokenized`), the text
    without its prompt (`source`), and how long both were, EOS included, before they were cut
    to their feature lengths (`…_length`).
    """

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # one list in a fixed order; SeqIO shuffles examples itself
        texts = rows[split]
        # Any: TensorFlow's type stubs do not know that a dict of tensors is sliced as one.
        features: Any = {
            "source": tf.constant([row.source for row in texts], tf.string),
            "target": tf.constant([row.target for row in texts], tf.string),
        }
        return tf.data.Dataset.from_tensor_slices(features)

    counts = {split: len(members) for split, members in rows.items()}
    source = seqio.FunctionDataSource(dataset, splits=tuple(rows), num_input_examples=counts)
    return _task_over(source, task, vocabulary_file, extra_ids)


def register(task: TaskSpec, data: DataConfig, vocabulary_file: str) -> seqio.Task:
    """Makes `task` known to SeqIO under its own name, in place of what had that name before."""
    rows = load_splits(task, data).rows
    return _registered(build_task(task, rows, vocabulary_file, data.extra_ids))


def register_tfds(
    task: TaskSpec, data: DataConfig, vocabulary_file: str, tfds_dir: str | os.PathLike[str]
) -> seqio.Task:
    """Like `register`, with a `seqio.TfdsDataSource`, which many hosts can read in parts.

    Its splits are those of `register`, but that "unlabeled" keeps the labels and repetitions
    of its rows: it is `train[N:]` of the dataset, where "train" is `train[:N]`.

    Args:
        task: one of the paper's.
        data: its rows; `data_dir` names the authors' files.
        vocabulary_file: a SentencePiece model.
        tfds_dir: where the dataset lies, or is to be built now.

    Raises:
        ValueError: what `tfds.building.build` refuses.
    """
    from dora_jax.tasks.tfds import building

    builder = building.build(task, data, tfds_dir)
    available = builder.info.splits["train"].num_examples
    labels = min(data.num_labels, available) if data.num_labels > 0 else available
    splits = {
        "train": f"train[:{labels}]",
        "validation": _first("validation", data.num_validation),
        "test": _first("test", data.num_test),
    }
    if labels < available:
        splits["unlabeled"] = f"train[{labels}:]"
    name = f"{builder.name}/{building.order_name(data.labels_seed)}:{builder.version}"
    source = seqio.TfdsDataSource(name, tfds_data_dir=os.fspath(tfds_dir), splits=splits)
    return _registered(_task_over(source, task, vocabulary_file, data.extra_ids))


def _first(split: str, count: int) -> str:
    return split if count == -1 else f"{split}[:{count}]"


def _registered(task: seqio.Task) -> seqio.Task:
    if task.name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
    return task


def _task_over(
    source: seqio.DataSource, task: TaskSpec, vocabulary_file: str, extra_ids: int
) -> seqio.Task:
    """The one way from a source of {"source", "target"} to tokens and metrics."""

    @seqio.map_over_dataset
    def add_prompt(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {
            "inputs": tf.strings.join([task.prompt_prefix, example["source"]]),
            "targets": example["target"],
            "source": example["source"],
        }

    vocabulary = seqio.SentencePieceVocabulary(vocabulary_file, extra_ids=extra_ids)
    return seqio.Task(
        task.name,
        source=source,
        preprocessors=[
            add_prompt,
            seqio.preprocessors.tokenize,
            _add_lengths,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            name: seqio.Feature(vocabulary, add_eos=True) for name in ("inputs", "targets")
        },
        postprocess_fn=_gold_in_full,
        metric_fns=[_metric(task)],
    )


@seqio.map_over_dataset
def _add_lengths(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return example | {
        f"{name}_length": tf.size(example[name]) + 1 for name in ("inputs", "targets")
    }


def _gold_in_full(
    decoded: str, *, example: Mapping[str, Any], is_target: bool = False
) -> str | Gold:
    """Predictions as decoded, but source and gold as they stand in the file, never truncated."""
    if not is_target:
        return decoded
    text = tf.compat.as_text
    return Gold(text(example["source"]), text(example["targets_pretokenized"]))


def _metric(task: TaskSpec) -> Any:
    def scores(targets: Sequence[Gold], predictions: Sequence[str]) -> dict[str, float]:
        scored = task.score(
            [gold.target for gold in targets],
            list(predictions),
            [gold.source for gold in targets],
            resamples=0,
        )
        return {f"strict/{name}": value for name, value in scored.strict.items()} | {
            f"paper/{name}": value for name, value in scored.paper.items()
        }

    return scores
