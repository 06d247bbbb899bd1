"""A run of seconds: a store of made-up sentences, one-layer networks, a few updates a stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dora_jax.checkpoints import native
from dora_jax.config import (
    CostConfig,
    DataConfig,
    EvaluateConfig,
    LabelConfig,
    ModelSource,
    OptimizerConfig,
    PretrainConfig,
    RunConfig,
    T5Config,
    TrainConfig,
    to_dict,
)
from dora_jax.data.token_store import SPLITS, Split, TokenStore, concatenate, write_token_store
from dora_jax.data.vocab import Vocabulary, train_sentencepiece
from dora_jax.model.t5 import Params
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, Examples
from dora_jax.stages.context import RunContext, StopRequest, Task
from dora_jax.tasks.task import get_task
from dora_jax.train.step import abstract_params

TRAINED = ("pretrain-student", "annotate", "pretrain-teacher", "teach", "distill")
EVALUATED = ("evaluate-annotate", "evaluate-teacher", "evaluate-distill")
ROWS = {"train": 24, "unlabeled": 24, "validation": 8, "test": 8}
DATA = DataConfig(
    source_length=24,
    target_length=24,
    num_labels=ROWS["train"],
    vocabulary_pieces=310,
    extra_ids=10,
)
NETWORK = T5Config(
    vocab_size=320,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=16,
)
TRAIN = TrainConfig(
    train_steps=6,
    batch_size=8,
    optimizer=OptimizerConfig("adamw", 1e-2),
    row_buckets=1,
    eval_every_steps=3,
    checkpoint_every_steps=2,
    log_every_steps=2,
)


def tiny_stages() -> list[str]:
    """Flags that give a run file networks of one narrow layer.

    Every update has one example, and rates are alike, so that stages share compiled programs.
    """
    fields = {"emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 16}
    fields |= {"num_encoder_layers": 1, "num_decoder_layers": 1}
    rates = ("LEARNING_RATE", "TEACHER_LEARNING_RATE", "PRETRAIN_LEARNING_RATE")
    settings = dict.fromkeys((*rates, "student_pretrain/OptimizerConfig.learning_rate"), 2e-3)
    settings |= dict.fromkeys(("BATCH_SIZE", "PRETRAIN_BATCH_SIZE"), 1)
    return [
        "--gin.TEACHER=@tiny/T5Config()",
        "--gin.STUDENT=@tiny/T5Config()",
        *(f"--gin.tiny/T5Config.{field}={value}" for field, value in fields.items()),
        *(f"--gin.{name}={value}" for name, value in settings.items()),
    ]


def tiny_config(directory: Path, **changes: Any) -> RunConfig:
    """Both strategies, in `directory`; the CPU costs 36 USD an hour, a cent a second."""
    source = ModelSource(NETWORK, pretrain=PretrainConfig(TRAIN))
    settings = {
        "model_dir": str(directory),
        "scale": "rehearsal",
        "data": DATA,
        "teacher": source,
        "student": source,
        "teach": TRAIN,
        "annotate": TRAIN,
        "distill": TRAIN,
        "label": LabelConfig(top_k=8, batch_size=8, shard_examples=8),
        "evaluate": EvaluateConfig(8, validation_examples=8, bootstrap_resamples=20),
        "cost": CostConfig(price_usd_per_device_hour=36.0),
    }
    return RunConfig(**{**settings, **changes})


def sentences(split: str, count: int) -> tuple[list[str], list[str]]:
    """Sources and targets in the manner of WLP; no two splits share a sentence."""
    first = 100 * SPLITS.index(split)
    numbers = range(first, first + count)
    sources = [f"Add {i} ml of buffer {i % 7} ." for i in numbers]
    targets = [f"Add [Action] {i} ml [Amount] buffer {i % 7} [Reagent]" for i in numbers]
    return sources, targets


def write_tiny_store(
    data: DataConfig,
    directory: Path,
    report: Callable[[str], None] = lambda line: None,
    *,
    task: str = "wlp",
    rows: dict[str, int] = ROWS,
) -> TokenStore:
    """What *prepare* would leave, without TensorFlow."""
    texts = {split: sentences(split, rows[split]) for split in SPLITS}
    vocabulary_file = directory.with_name("tiny.model")
    directory.parent.mkdir(parents=True, exist_ok=True)
    train_sentencepiece(sum(texts["train"], []), vocabulary_file, data.vocabulary_pieces)
    vocabulary = Vocabulary.load(vocabulary_file, data.extra_ids)

    def tokens(lines: list[str], limit: int) -> list[list[int]]:
        return [[*row[: limit - 1], EOS_ID] for row in vocabulary.encode(lines)]

    splits = {}
    for split, (sources, targets) in texts.items():
        source_tokens = tokens([f"wlp: {line}" for line in sources], data.source_length)
        target_tokens = tokens(targets, data.target_length)
        if split == "unlabeled":
            targets, target_tokens = [""] * len(sources), [[] for _ in sources]
        examples = Examples(*concatenate(source_tokens), *concatenate(target_tokens))
        splits[split] = Split(sources, targets, examples)
    manifest = {"task": task, "prompt_prefix": "wlp: ", "data": to_dict(data)}
    report(f"{rows['train']} labels")
    return write_token_store(directory, splits, vocabulary_file, data.extra_ids, manifest)


def open_run(
    config: RunConfig,
    prepare: Callable[..., TokenStore] = write_tiny_store,
    report: Callable[[str], None] = lambda line: None,
    task: Task | None = None,
) -> RunContext:
    """The run directory, opened by the engine's own means."""
    return RunContext.open(
        config, task or get_task("wlp"), prepare=prepare, report=report, stop=StopRequest()
    )


def manifest_of(directory: Path, stage: str) -> dict[str, Any]:
    return json.loads((directory / stage / "manifest.json").read_text(encoding="utf-8"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def final_params(directory: Path, stage: str, network: T5Config = NETWORK) -> Params:
    """The parameters a finished stage of a run chose."""
    mesh: Mesh = make_mesh(devices=jax.devices()[:1])
    step = manifest_of(directory, stage)["outputs"]["best_step"]
    return native.restore_best(directory / stage / "best", step, abstract_params(network, mesh))


def assert_same_bits(one: Params, other: Params) -> None:
    places_of_one = jax.tree.leaves_with_path(one)
    places_of_other = jax.tree.leaves_with_path(other)
    assert len(places_of_one) > 10
    assert [path for path, _ in places_of_one] == [path for path, _ in places_of_other]
    for (path, a), (_, b) in zip(places_of_one, places_of_other, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file below a directory with its content."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
