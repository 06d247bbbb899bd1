"""MultiPIT_id in TFDS: `tfds.load("dora_multipit_id", split="train[:1000]", …)`."""

from __future__ import annotations

from dora_jax.tasks.tfds import building


class DoraMultipitId(building.AuthorsFiles):
    """See `building.py` for splits and orders."""

    TASK = "multipit_id"
    MANUAL_DOWNLOAD_INSTRUCTIONS = building.instructions(TASK)


BUILDER = DoraMultipitId
