"""prepare: task text to tokens, once. The work itself is SeqIO's and comes in from outside."""

from __future__ import annotations

from dora_jax.config import DataConfig, RunConfig, to_dict
from dora_jax.data.token_store import TokenStore
from dora_jax.data.vocab import Vocabulary
from dora_jax.parallel import hosts
from dora_jax.stages import manifest, weights
from dora_jax.stages.context import RunContext

STAGE = "prepare"
# Where a store's rows came from: of no concern to a run that names the store itself.
_ORIGIN = ("token_store", "data_dir", "own", "vocabulary", "vocabulary_pieces", "on_bad_row")


def prepare(context: RunContext) -> TokenStore:
    """The run's token store: the one named in the config, or one made now or earlier.

    Raises:
      ValueError: the named store is of another task, or holds other rows than asked for; there
        is no unlabelled text to distil on; a network is too small for the vocabulary, or its
        checkpoint has another.
    """
    data = context.config.data
    if data.token_store:
        store = TokenStore.open(data.token_store)
        _require_rows_asked_for(store, data)
        context.report(f"token store: {data.token_store}, prepared before")
    else:
        store = _prepare(context, data)
    _require_what_the_run_needs(store, context.config)
    return store


def _prepare(context: RunContext, data: DataConfig) -> TokenStore:
    settings = {"data": data}
    with context.stage(STAGE, "shared", settings) as directory:
        tokens = directory / "tokens"
        if manifest.begin(directory, settings) is not None:
            return TokenStore.open(tokens)
        with context.meter.phase("prepare"):
            # A store under its name is whole: a crash came before the manifest knew of it.
            if not hosts.from_first(tokens.exists):
                hosts.on_first(lambda: context.prepare(data, tokens, context.report))
            store = TokenStore.open(tokens)
            manifest.finish(directory, {"tokens": "tokens", "fingerprint": store.fingerprint})
        return store


def _require_rows_asked_for(store: TokenStore, data: DataConfig) -> None:
    found = store.manifest["task"]
    if found != data.task:
        raise ValueError(
            f"The token store {data.token_store} holds the task {found!r}; this run is for "
            f"{data.task!r}. Set TOKEN_STORE to another one, or to '' to prepare one."
        )
    prepared = store.manifest["data"]
    differences = [
        f"  {name}: {prepared.get(name)!r} in the store, {wanted!r} now"
        for name, wanted in to_dict(data).items()
        if name not in _ORIGIN and prepared.get(name) != wanted
    ]
    if differences:
        listed = "\n".join(differences)
        raise ValueError(
            f"The token store {data.token_store} holds other rows than this run asks for:\n"
            f"{listed}\nTake the store's settings, name another one, or set TOKEN_STORE to '' to "
            "prepare one."
        )


def _require_what_the_run_needs(store: TokenStore, config: RunConfig) -> None:
    """Tells at the start what would stop the run after it has been paid for in part."""
    sources = [config.student] + [config.teacher] * ("distill" in config.strategies)
    for source in sources:
        store.vocabulary.check_size(source.network.vocab_size)
        if source.weights:
            _require_its_vocabulary(store.vocabulary, source.weights)
    if "distill" in config.strategies and len(store.examples("unlabeled")) == 0:
        raise ValueError(
            "There is no unlabelled text to distil on. Lower NUM_LABELS, so that the sources of "
            "the other rows become unlabelled text, or bring more text."
        )


def _require_its_vocabulary(used: Vocabulary, checkpoint: str) -> None:
    file = weights.find(checkpoint).vocabulary
    # How many sentinels follow the pieces is of no concern: only pretraining speaks them.
    if file and Vocabulary.load(file, used.extra_ids).fingerprint != used.fingerprint:
        raise ValueError(
            f"{checkpoint} was trained with the vocabulary {file}, but the data are in that of "
            f"{used.path}: every id would mean something else to it. Set VOCABULARY to {file}, and "
            "prepare the data anew."
        )
