"""Natural Questions in TFDS: `tfds.load("dora_nq", split="train[:1000]", …)`."""

from __future__ import annotations

from dora_jax.tasks.tfds import building


class DoraNq(building.AuthorsFiles):
    """See `building.py` for splits and orders."""

    TASK = "nq"
    MANUAL_DOWNLOAD_INSTRUCTIONS = building.instructions(TASK)


BUILDER = DoraNq
