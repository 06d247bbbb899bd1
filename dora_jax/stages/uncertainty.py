"""How unsure a trained model is of each of many texts: what active learning asks people about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dora_jax import predict
from dora_jax.checkpoints import tokenizer_files
from dora_jax.config import CHECKPOINTS
from dora_jax.data.token_store import concatenate
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, Examples
from dora_jax.stages import weights


def uncertainty_of(checkpoint: str, prompts: Sequence[str], batch_size: int = 64) -> list[float]:
    """The mean surprise of a model at its own greedy answers, nats a token.

    u = −(1/T) Σ_t log p(y_t | y_<t, x), with y the greedy answer and its end.

    Args:
        checkpoint: as the run's settings name one; without a kind it is a stage of a run.
        prompts: the texts as the model reads them, prompt included.
        batch_size: rows decoded together.

    Raises:
        ValueError: there is no such checkpoint, or it comes without a vocabulary.
    """
    named = checkpoint.partition(":")[0] in CHECKPOINTS
    found = weights.find(checkpoint if named else f"native:{checkpoint}")
    vocabulary = tokenizer_files.chosen(None, found.vocabulary, found.extra_ids)
    if vocabulary is None:
        raise ValueError(f"{checkpoint} comes without a vocabulary; name a stage of a run.")
    source_length, target_length = found.decoding.source_length, found.decoding.target_length
    mesh = make_mesh()
    network, params = found.read(mesh, None)
    sources = [[*ids[: source_length - 1], EOS_ID] for ids in vocabulary.encode(list(prompts))]
    settings = {
        "batch_size": batch_size,
        "source_length": max(map(len, sources)),
        "target_length": target_length,
        "mesh": mesh,
    }
    nothing = concatenate([[]] * len(sources))
    unlabelled = Examples(*concatenate(sources), *nothing)
    answers = predict.decode(network, params, unlabelled, **settings, name="decode")
    ended = [[*answer[: target_length - 1].tolist(), EOS_ID] for answer in answers]
    examples = Examples(*concatenate(sources), *concatenate(ended))
    scores = predict.score(network, params, examples, **settings)
    return [float(-np.mean(score_T)) for score_T in scores]
