"""prepare: task text to tokens, once. The work itself is SeqIO's and comes in from outside."""

from __future__ import annotations

from dora_jax.data.token_store import TokenStore
from dora_jax.stages import manifest
from dora_jax.stages.context import RunContext

STAGE = "prepare"


def prepare(context: RunContext) -> TokenStore:
    """The run's token store: the one named in the config, or one made now or earlier.

    Raises:
      ValueError: the named store is of another task, or holds other rows than asked for.
    """
    data = context.config.data
    if data.token_store:
        store = TokenStore.open(data.token_store)
        found = store.manifest["task"]
        if found != data.task:
            raise ValueError(
                f"The token store {data.token_store} holds the task {found!r}; this run is for "
                f"{data.task!r}. Set TOKEN_STORE to another one, or to '' to prepare one."
            )
        context.report(f"token store: {data.token_store}, prepared before")
        return store
    with context.stage(STAGE, "shared") as directory:
        outputs = manifest.begin(directory, {"data": data})
        if outputs is not None:
            return TokenStore.open(directory / outputs["tokens"])
        with context.meter.phase("prepare"):
            store = context.prepare(data, directory / "tokens", context.report)
            manifest.finish(directory, {"tokens": "tokens", "fingerprint": store.fingerprint})
        return store
