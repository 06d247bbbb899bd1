"""evaluate: decode the test split with a finished model, keep the predictions, score them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dora_jax.cost import flops
from dora_jax.data.token_store import TokenStore
from dora_jax.metrics.scores import Scores
from dora_jax.parallel import hosts
from dora_jax.predict import decode
from dora_jax.stages import manifest
from dora_jax.stages.context import RunContext
from dora_jax.stages.train import Model
from dora_jax.whole_files import write_json, write_whole


def evaluate(
    context: RunContext, store: TokenStore, model: Model, name: str, strategy: str
) -> Scores:
    """Scores a model on the test split: `predictions.jsonl` and `scores.json` in its folder."""
    config = context.config
    settings = {
        "evaluate": config.evaluate,
        "model": model.fingerprint,
        "data": store.fingerprint,
    }
    _forget_another_step(context.directory / f"evaluate-{name}", model)
    with context.stage(f"evaluate-{name}", strategy, settings) as directory:
        outputs = manifest.begin(directory, settings)
        if outputs is None:
            predictions = _predict(context, store, model, name)
            sources, targets = store.sources("test"), store.targets("test")

            def score() -> dict[str, Any]:
                write_predictions(directory / "predictions.jsonl", sources, targets, predictions)
                scores = context.task.score(
                    targets,
                    predictions,
                    sources,
                    resamples=config.evaluate.bootstrap_resamples,
                    confidence=config.evaluate.confidence,
                    seed=config.seed,
                ).to_json()
                write_json(directory / "scores.json", scores)
                return scores

            with context.meter.phase("evaluate"):
                scores = hosts.from_first(score)
            cut = {"stopped_by": model.stopped_by, "last_step": model.last_step}
            outputs = manifest.finish(
                directory, {"scores": scores} | (cut if model.stopped_by else {})
            )
    return Scores.from_json(outputs["scores"])


def _forget_another_step(directory: Path, model: Model) -> None:
    """Scores of a model whose training the budget had cut short do not hold for more of it."""
    if manifest.is_finished(directory):
        outputs = manifest.read(directory)["outputs"]
        if outputs.get("last_step") != model.last_step:
            manifest.reopen(directory)


def _predict(context: RunContext, store: TokenStore, model: Model, name: str) -> list[str]:
    data, examples = context.config.data, store.examples("test")
    params = model.params(context)
    with context.meter.phase("evaluate"):
        outputs = decode(
            model.network,
            params,
            examples,
            batch_size=context.config.evaluate.batch_size,
            source_length=data.source_length,
            target_length=data.target_length,
            mesh=context.mesh,
            no_repeat_ngram_size=context.config.evaluate.no_repeat_ngram_size,
            after_batch=context.check,
            name=f"evaluate {name}",
        )
    counts = flops.TokenCounts.from_lengths(
        [len(examples.source(i)) for i in range(len(examples))], [len(row) for row in outputs]
    )
    context.meter.count(
        examples=len(outputs),
        tokens=counts.encoder_tokens + counts.decoder_tokens,
        flops=flops.decoding_flops(model.network, counts),
    )
    return [store.vocabulary.decode(tokens.tolist()) for tokens in outputs]


def write_predictions(
    path: Path, sources: list[str], targets: list[str], predictions: list[str]
) -> None:
    """JSON lines with `source`, `target`, `prediction`."""
    rows = [
        {"source": source, "target": target, "prediction": prediction}
        for source, target, prediction in zip(sources, targets, predictions, strict=True)
    ]
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
