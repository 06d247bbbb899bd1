"""WLP in TFDS: `tfds.load("dora_wlp", split="train[:1000]", …)`."""

from __future__ import annotations

from dora_jax.tasks.tfds import building


class DoraWlp(building.AuthorsFiles):
    """See `building.py` for splits and orders."""

    TASK = "wlp"
    MANUAL_DOWNLOAD_INSTRUCTIONS = building.instructions(TASK)


BUILDER = DoraWlp
