"""Stanceosaurus in TFDS: `tfds.load("dora_stanceosaurus", split="train[:1000]", …)`."""

from __future__ import annotations

from dora_jax.tasks.tfds import building


class DoraStanceosaurus(building.AuthorsFiles):
    """See `building.py` for splits and orders."""

    TASK = "stanceosaurus"
    MANUAL_DOWNLOAD_INSTRUCTIONS = building.instructions(TASK)


BUILDER = DoraStanceosaurus
