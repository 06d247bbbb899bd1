"""What the six builders share: all but their names, and when they are built.

`train` holds the rows that may be labelled, in the order in which they get labels, so that
`train[:1000]` are the first 1,000 labels and `train[1000:]` the rows beyond; `validation` is
cut off it by the hash of the source; `test` is the published split. The same as `load_splits`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from dora_jax.config import DataConfig
from dora_jax.tasks.rows import Row
from dora_jax.tasks.sources import (
    HOW_TO_SET_THE_FOLDER,
    describe_files,
    order_of_labels,
    read_pools,
)
from dora_jax.tasks.task import TaskSpec, get_task

SEEDS = range(10)


def order_name(labels_seed: int) -> str:
    """The configuration whose rows stand in the order of a `labels_seed`."""
    return "file_order" if labels_seed == -1 else f"seed_{labels_seed}"


# One configuration for each order of the rows: a plain name, since TFDS finds it by that.
ORDERS = [
    tfds.core.BuilderConfig(name=order_name(-1), description="labels in the order of the file"),
    *(
        tfds.core.BuilderConfig(name=order_name(seed), description=f"labels drawn by seed {seed}")
        for seed in SEEDS
    ),
]
VALIDATION_SHARE = DataConfig().validation_share
_DATA_FINGERPRINT = "data_fingerprint"


def instructions(name: str) -> str:
    """What TFDS tells a user whose `manual_dir` lacks the files."""
    return f"manual_dir is the folder above {get_task(name).folder}/. {HOW_TO_SET_THE_FOLDER}"


class AuthorsFiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Text in, text out, in the order in which rows are written. Each task's builder names it."""

    TASK: str
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = ORDERS
    url_infos = None  # nothing is downloaded

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"source": tfds.features.Text(), "target": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The task {self.TASK!r} of Kang, Xu and Ritter, ACL 2023, from the "
            "authors' files.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("source", "target"),
            homepage="https://github.com/jm-kang/Distill-or-Annotate",
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
        """The rows of each split; notes in the metadata from which bytes they come.

        Raises:
            ValueError: a folder or file that cannot be read, or bad rows.
        """
        folder = os.fspath(dl_manager.manual_dir)
        pools = read_pools(get_task(self.TASK), DataConfig(task=self.TASK, data_dir=folder))
        order, metadata = self.builder_config, self.info.metadata
        assert order is not None and metadata is not None  # ORDERS and `_info` give them
        metadata[_DATA_FINGERPRINT] = describe_files(pools.files)[_DATA_FINGERPRINT]
        seed = next(seed for seed in (-1, *SEEDS) if order_name(seed) == order.name)
        rows = {
            "train": order_of_labels(pools.train, seed),
            "validation": pools.validation,
            "test": pools.test,
        }
        return {split: self._generate_examples(members) for split, members in rows.items()}

    def _generate_examples(self, rows: list[Row]) -> Iterator[tuple[int, dict[str, str]]]:
        """A key, which is the place in the split, and the features."""
        for number, row in enumerate(rows):
            yield number, {"source": row.source, "target": row.target}


def build(
    task: TaskSpec, data: DataConfig, tfds_dir: str | os.PathLike[str]
) -> tfds.core.DatasetBuilder:
    """The task's dataset under `tfds_dir`, built from `data.data_dir` where it is not there yet.

    Raises:
        ValueError: settings a builder does not know, files that cannot be read, bad rows, or a
            dataset that was built from other files.
    """
    _require_what_builders_know(data)
    module = importlib.import_module(f"dora_jax.tasks.tfds.{task.name}")
    builder = module.BUILDER(data_dir=os.fspath(tfds_dir), config=order_name(data.labels_seed))
    if not builder.data_path.exists():
        config: Any = tfds.download.DownloadConfig(manual_dir=data.data_dir)
        builder.download_and_prepare(download_config=config)
    found = builder.info.metadata[_DATA_FINGERPRINT]
    wanted = describe_files(read_pools(task, data).files)[_DATA_FINGERPRINT]
    if found != wanted:
        raise ValueError(
            f"{builder.data_path} was built from other files ({found}) than those that now lie in "
            f"{data.data_dir} ({wanted}). Remove that folder to build it again, or name another "
            "one for TFDS."
        )
    return builder


def _require_what_builders_know(data: DataConfig) -> None:
    if not data.data_dir:
        raise ValueError(f"The TFDS builders read the authors' files. {HOW_TO_SET_THE_FOLDER}")
    if data.validation_share != VALIDATION_SHARE:
        raise ValueError(
            f"The TFDS builders cut {VALIDATION_SHARE:.0%} of train off for validation, not "
            f"validation_share = {data.validation_share}."
        )
    if data.labels_seed not in (-1, *SEEDS):
        raise ValueError(
            f"The TFDS builders know the label orders -1 (of the file) and {SEEDS.start} to "
            f"{SEEDS.stop - 1}, not labels_seed = {data.labels_seed}."
        )
