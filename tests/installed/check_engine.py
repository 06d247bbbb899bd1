"""The engine alone: teach → label → distill → evaluate where TensorFlow cannot be imported.

`make engine-test` runs it in two environments, with the installed package and a scratch folder:

    python check_engine.py prepare FOLDER    # the full one: SeqIO makes a token store
    python check_engine.py run FOLDER        # the engine's: everything else, from that store
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any, NoReturn

from dora_jax import config as configs
from dora_jax.tasks.task import get_task

ABSENT = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "gin", "torch")
STAGES = ("teach", "label", "distill", "evaluate-teacher", "evaluate-distill")
DATA = configs.DataConfig(
    source_length=48,
    target_length=48,
    num_labels=64,
    num_unlabeled=96,
    num_validation=16,
    num_test=16,
    vocabulary_pieces=600,
)


def main(step: str, folder: Path) -> None:
    """Carries out one of the two steps, `prepare` or `run`."""
    if step == "prepare":
        from dora_jax.tasks.prepare import prepare

        prepare(get_task(DATA.task), DATA, folder / "tokens", print)
        return
    present = [name for name in ABSENT if importlib.util.find_spec(name)]
    assert not present, f"this environment must not have {present}: see requirements-engine.txt"
    carry_out(folder)
    check_results(folder / "run")
    print(f"engine-test: {', '.join(STAGES)} done without {', '.join(ABSENT)}")


def carry_out(folder: Path) -> None:
    """Runs the distill strategy in `folder / "run"`."""
    from dora_jax import strategies
    from dora_jax.stages.context import RunContext, StopRequest

    config = tiny_run(folder)
    context = RunContext.open(
        config, get_task(DATA.task), prepare=refuse_to_prepare, report=print, stop=StopRequest()
    )
    with context:
        results = strategies.run(context)
    assert [result.name for result in results] == ["teacher", "distill"]
    for result in results:
        assert result.scores.examples == DATA.num_test
        assert 0 <= result.scores.value <= 100
        assert result.device_hours > 0


def check_results(run: Path) -> None:
    """What the run directory then holds is sound: every stage billed, losses going down."""
    billed = {row["stage"] for row in read_rows(run / "ledger.jsonl")}
    assert set(STAGES) <= billed, billed
    for stage in ("teach", "distill"):
        rows = read_rows(run / stage / "metrics.jsonl")
        losses = [row["loss"] for row in rows if "loss" in row]
        assert all(map(math.isfinite, losses)), (stage, losses)
        assert losses[-1] < losses[0], (stage, losses)
    assert len(read_rows(run / "evaluate-distill" / "predictions.jsonl")) == DATA.num_test


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tiny_run(folder: Path) -> configs.RunConfig:
    """A run of seconds from the prepared store."""
    store = json.loads((folder / "tokens" / "manifest.json").read_text(encoding="utf-8"))
    network = configs.T5Config(
        vocab_size=-(-store["vocabulary"]["size"] // 128) * 128,
        emb_dim=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=16,
        mlp_dim=64,
    )
    train = configs.TrainConfig(
        train_steps=12,
        batch_size=16,
        row_buckets=1,
        optimizer=configs.OptimizerConfig(learning_rate=1e-2),
        dropout_rate=0.0,
        log_every_steps=4,
    )
    source = configs.ModelSource(network, pretrain=configs.PretrainConfig(train))
    return configs.RunConfig(
        model_dir=str(folder / "run"),
        scale="rehearsal",
        strategies=("distill",),
        data=configs.DataConfig(**{**vars(DATA), "token_store": str(folder / "tokens")}),
        teacher=source,
        student=source,
        teach=train,
        distill=train,
        label=configs.LabelConfig(top_k=8, batch_size=32, shard_examples=64),
        evaluate=configs.EvaluateConfig(batch_size=16, bootstrap_resamples=50),
    )


def refuse_to_prepare(*arguments: object) -> NoReturn:
    raise AssertionError("the run has a prepared token store and must not prepare one")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
