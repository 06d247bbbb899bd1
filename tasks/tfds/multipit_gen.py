"""MultiPIT_gen in TFDS: `tfds.load("dora_multipit_gen", split="train[:1000]", …)`."""

from __future__ import annotations

from dora_jax.tasks.tfds import building


class DoraMultipitGen(building.AuthorsFiles):
    """See `building.py` for splits and orders."""

    TASK = "multipit_gen"
    MANUAL_DOWNLOAD_INSTRUCTIONS = building.instructions(TASK)


BUILDER = DoraMultipitGen
