"""Our side of distill_cost.py: one labelling pass into a soft-label store, then packed updates.

The programs are those of a run: the decoder's step with the record that labelling keeps, and the
training step on soft labels. Only the end of an answer is given (`label_until`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from authors_protocol import TEMPERATURE
from train_step import BATCH, DROPOUT, MAX_TOKENS

from dora_jax.config import OptimizerConfig, SoftLossConfig, T5Config, TrainConfig
from dora_jax.cost import flops
from dora_jax.data.loader import (
    EvaluationBatch,
    PackedLoader,
    SoftLabelledSource,
    balanced_row_lengths,
    evaluation_batches,
)
from dora_jax.data.soft_labels import SoftLabelHeader, SoftLabelReader, SoftLabelWriter, SoftRow
from dora_jax.model.decode import generate, likeliest, summarise_logits
from dora_jax.model.decoder_step import make_step_fn, prepare
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, Examples
from dora_jax.train.step import init_state, make_loss_fn, make_train_step

LEARNING_RATE = 3e-5
TOP_K = 64


class Setting(NamedTuple):
    """What both sides work on. A turn is 32 texts; answers end at `lengths_N`, EOS included."""

    sample: Examples
    lengths_N: np.ndarray  # above MAX_TOKENS: never
    teacher: T5Config
    student: T5Config
    teacher_params: Any
    student_params: Any
    device: str  # of torch
    their_dtype: str  # torch's

    @property
    def turns(self) -> int:
        return len(self.sample) // BATCH


def indices(turn: int) -> range:
    return range(turn * BATCH, (turn + 1) * BATCH)


@functools.partial(jax.jit, static_argnums=(0, 4))
def label_until(
    network: T5Config, params: Any, tokens_BS: Any, lengths_B: Any, max_length: int
) -> Any:
    """`decode.greedy_label`, with EOS at the given lengths and nowhere else."""
    step_fn, cache = make_step_fn(network, params, tokens_BS, max_length)
    is_eos_V = jnp.arange(network.vocab_size) == EOS_ID

    def choose(logits_BV: jax.Array, position: jax.Array) -> jax.Array:
        free_B = likeliest(jnp.where(is_eos_V[None], -jnp.inf, logits_BV))
        return jnp.where(position + 1 == lengths_B, EOS_ID, free_B)

    record = functools.partial(summarise_logits, top_k=TOP_K, temperatures=(1.0, TEMPERATURE))
    return generate(step_fn, cache, len(tokens_BS), max_length, choose=choose, record=record)


class Ours:
    """One labelling pass into a store, then packed updates from it. Compiles ahead, timed."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting = setting
        self.folder = folder
        self.seconds: dict[str, list[float]] = {"compile": []}
        self.batches = list(evaluation_batches(setting.sample, BATCH, MAX_TOKENS))
        self.teacher_params = prepare(setting.teacher, setting.teacher_params)
        self.rows: dict[int, SoftRow] = {}
        self.programs: dict[tuple[str, int], Any] = {}
        for batch in self.batches:
            self._compile(
                ("label", batch.encoder_tokens_BS.shape[1]),
                lambda batch=batch: label_until.lower(
                    setting.teacher, self.teacher_params, *self._inputs(batch), MAX_TOKENS
                ),
            )

    def _compile(self, key: tuple[str, int], lower: Callable[[], Any]) -> None:
        if key not in self.programs:
            began = time.perf_counter()
            self.programs[key] = lower().compile()
            self.seconds["compile"].append(time.perf_counter() - began)

    def _inputs(self, batch: EvaluationBatch) -> tuple[np.ndarray, np.ndarray]:
        return batch.encoder_tokens_BS, self.setting.lengths_N[batch.indices_B].astype(np.int32)

    def label(self, turn: int) -> None:
        began = time.perf_counter()
        tokens_BS, lengths_B = self._inputs(self.batches[turn])
        program = self.programs["label", tokens_BS.shape[1]]
        tokens_BT, soft = jax.device_get(program(self.teacher_params, tokens_BS, lengths_B))
        for row, i in enumerate(self.batches[turn].indices_B.tolist()):
            length = lengths_B[row]
            self.rows[i] = SoftRow(
                tokens_BT[row, :length],
                soft.topk_ids_BTK[row, :length],
                soft.topk_logits_BTK[row, :length],
                soft.logz_BTZ[row, :length],
                soft.row_max_BT[row, :length],
            )
        self.seconds.setdefault("label", []).append(time.perf_counter() - began)

    def prepare_updates(self) -> None:
        """Writes the store, opens it as training does, and compiles the updates."""
        setting, count = self.setting, len(self.setting.sample)
        vocab, temperatures = setting.teacher.vocab_size, (1.0, TEMPERATURE)
        header = SoftLabelHeader("t", "d", "v", vocab, TOP_K, temperatures, "EOS forced")
        began = time.perf_counter()
        writer = SoftLabelWriter(self.folder, header, count, count)
        writer.write_shard(0, [self.rows[i] for i in range(count)])
        writer.finish()
        reader = SoftLabelReader.open(self.folder, {"teacher_fingerprint": "t"})
        self.seconds["label"][-1] += time.perf_counter() - began
        source = SoftLabelledSource(setting.sample, reader)
        source_length, target_length = balanced_row_lengths(source, MAX_TOKENS, MAX_TOKENS)
        self.loader = PackedLoader(
            source,
            batch_size=BATCH,
            source_length=source_length,
            target_length=target_length,
            seed=0,
        )
        config = TrainConfig(
            batch_size=BATCH,
            dropout_rate=DROPOUT,
            soft_loss=SoftLossConfig(temperature=TEMPERATURE),
            optimizer=OptimizerConfig("adamw", LEARNING_RATE),
        )
        mesh = make_mesh(devices=jax.devices()[:1])
        params = jax.tree.map(jnp.copy, setting.student_params)  # updates are donated theirs
        self.state, optimizer, _ = init_state(setting.student, config, params, 0, mesh)
        loss_fn = make_loss_fn(setting.student, config, reader.temperature_index(TEMPERATURE))
        self.step = jax.jit(make_train_step(loss_fn, optimizer), donate_argnums=0)
        for turn in range(setting.turns):
            batch = self.loader.batch(turn).batch
            key = "update", len(batch.targets_BT)
            self._compile(key, lambda batch=batch: self.step.lower(self.state, batch))

    def update(self, turn: int) -> None:
        began = time.perf_counter()
        batch = self.loader.batch(turn).batch
        program = self.programs["update", len(batch.targets_BT)]
        self.state, metrics = program(self.state, batch)
        metrics.loss.block_until_ready()
        self.seconds.setdefault("student update", []).append(time.perf_counter() - began)

    def counts(self, turn: int) -> tuple[flops.TokenCounts, float]:
        batch = self.loader.batch(turn).batch
        (rows, source), target = batch.encoder_tokens_BS.shape, batch.targets_BT.shape[1]
        counts = flops.TokenCounts.from_lengths([source] * rows, [target] * rows)
        return counts, 1.0 - float(batch.weights_BT.sum()) / batch.targets_BT.size
