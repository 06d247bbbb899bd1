"""MultiPIT_gen in TFDS: `tfds.load("dora_multipit_gen", split="train[:1000]", …)`."""

from __future__ import annotations

from typing import Any

import tensorflow_datasets as tfds

from dora_jax.tasks.rows import Row
from dora_jax.tasks.tfds import building

TASK = "multipit_gen"


class DoraMultipitGen(tfds.core.GeneratorBasedBuilder):
    """See `building.py` for splits and orders."""

    VERSION = building.VERSION
    BUILDER_CONFIGS = building.ORDERS
    url_infos = None  # nothing is downloaded
    MANUAL_DOWNLOAD_INSTRUCTIONS = building.instructions(TASK)

    def _info(self) -> tfds.core.DatasetInfo:
        return building.info(self, TASK)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
        rows = building.splits(self, TASK, dl_manager.manual_dir)
        return {split: self._generate_examples(members) for split, members in rows.items()}

    def _generate_examples(self, rows: list[Row]) -> Any:
        return building.examples(rows)


BUILDER = DoraMultipitGen
