"""Where a network's first parameters come from: a checkpoint, or pretraining in this run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from dora_jax.checkpoints import huggingface
from dora_jax.config import ModelSource, T5Config, fingerprint
from dora_jax.model.t5 import Params
from dora_jax.stages.context import RunContext


@dataclasses.dataclass(frozen=True)
class Start:
    """A network and how to get its first parameters; nothing is read before `params()`."""

    network: T5Config
    fingerprint: str
    params: Callable[[], Params]


def from_checkpoint(context: RunContext, source: ModelSource) -> Start:
    """Parameters of a published or own checkpoint, `source.weights`.

    Raises:
      ValueError: the checkpoint cannot be found or holds another network.
    """

    def read() -> Params:
        with context.meter.phase("checkpoint"):
            return huggingface.load(source.weights, context.mesh, source.network)[1]

    return Start(source.network, fingerprint([source.network, source.weights]), read)
