"""FEVER in TFDS: `tfds.load("dora_fever", split="train[:1000]", …)`."""

from __future__ import annotations

from dora_jax.tasks.tfds import building


class DoraFever(building.AuthorsFiles):
    """See `building.py` for splits and orders."""

    TASK = "fever"
    MANUAL_DOWNLOAD_INSTRUCTIONS = building.instructions(TASK)


BUILDER = DoraFever
