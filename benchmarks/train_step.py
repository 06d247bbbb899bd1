"""A student's training step, packed in JAX, against a plain PyTorch loop, in one run.

    python benchmarks/train_step.py                      # about 10 minutes on 2 CPU cores
    python benchmarks/train_step.py --json=result.json --repeats=7 --optimizer=adafactor

Both sides train T5-Small v1.1 (77 M parameters, 32,128 ids) in float32 with dropout 0.1 and
the same optimizer on the same 32 examples an update, from WLP (`DORA_DATA_DIR`, else the
bundled sample, and the output says which). transformers pads each batch to its longest row;
we pack. They take turns, so that a change of the machine's speed meets both; the figures are
medians over the repeats. Needs the `test` extra (torch, transformers).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from dora_jax.config import DataConfig, OptimizerConfig, T5Config, TrainConfig
from dora_jax.data.loader import LabelledSource, PackedLoader, balanced_row_lengths
from dora_jax.data.packing import Example
from dora_jax.data.token_store import concatenate
from dora_jax.data.vocab import Vocabulary, train_sentencepiece
from dora_jax.launch.command_line import keep_freed_memory
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, Examples
from dora_jax.tasks.sources import load_splits
from dora_jax.tasks.task import get_task
from dora_jax.train.step import init_params, init_state, make_loss_fn, make_train_step

BATCH = 32
MAX_TOKENS = 128
DROPOUT = 0.1
LEARNING_RATE = 1e-4


def wlp_examples(pieces: int, split: str = "train") -> tuple[Examples, str]:
    """Labelled WLP rows as tokens of a small vocabulary trained on them, and their origin."""
    folder = os.environ.get("DORA_DATA_DIR", "")
    data = DataConfig(data_dir=folder, num_labels=4000 if folder else 600)
    splits = load_splits(get_task("wlp"), data).rows
    rows = splits[split]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "vocabulary.model")
        texts = [text for row in splits["train"] for text in (row.source, row.target)]
        train_sentencepiece(texts, path, pieces)
        vocabulary = Vocabulary.load(path, extra_ids=100)

    def tokens(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return concatenate([ids[: MAX_TOKENS - 1] + [EOS_ID] for ids in vocabulary.encode(texts)])

    sources = tokens([f"wlp: {row.source}" for row in rows])
    targets = tokens([row.target for row in rows])
    return Examples(*sources, *targets), "DORA_DATA_DIR" if folder else "the bundled sample"


@dataclasses.dataclass
class Side:
    """One contestant: runs update `step` and waits for it."""

    name: str
    update: Callable[[int], None]
    padding_share: Callable[[int], float]
    seconds: list[float] = dataclasses.field(default_factory=list)


def our_side(loader: PackedLoader, optimizer: OptimizerConfig) -> Side:
    network = T5Config(num_heads=6, scan_unroll=8, dropout_rate=DROPOUT)
    config = TrainConfig(batch_size=BATCH, dropout_rate=DROPOUT, optimizer=optimizer)
    mesh = make_mesh()
    state, transformation, _ = init_state(network, config, init_params(network, 0, mesh), 0, mesh)
    step_fn = jax.jit(
        make_train_step(make_loss_fn(network, config), transformation), donate_argnums=0
    )

    def update(step: int) -> None:
        nonlocal state
        state, metrics = step_fn(state, loader.batch(step).batch)
        metrics.loss.block_until_ready()

    def padding_share(step: int) -> float:
        batch = loader.batch(step)
        return batch.padding_tokens / (batch.padding_tokens + batch.tokens)

    return Side("dora_jax, packed, float32", update, padding_share)


def torch_t5_small(dropout: float) -> transformers.T5ForConditionalGeneration:
    """T5-Small v1.1 with random weights."""
    torch.manual_seed(0)
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config.from_dict(
            {
                "vocab_size": 32128,
                "d_model": 512,
                "d_kv": 64,
                "d_ff": 1024,
                "num_layers": 8,
                "num_heads": 6,
                "dropout_rate": dropout,
                "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": False,
                "decoder_start_token_id": 0,
            }
        )
    )


def padded(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A batch as `transformers` takes it, each side as wide as its longest row."""
    source_width = max(len(e.source) for e in examples)
    target_width = max(len(e.target) for e in examples)
    tokens = torch.zeros(len(examples), source_width, dtype=torch.long)
    labels = torch.full((len(examples), target_width), -100)
    for row, example in enumerate(examples):
        tokens[row, : len(example.source)] = torch.from_numpy(example.source)
        labels[row, : len(example.target)] = torch.from_numpy(example.target)
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "labels": labels}


def torch_side(name: str, loader: PackedLoader, optimizer: OptimizerConfig, bf16: bool) -> Side:
    model = torch_t5_small(DROPOUT).train()
    if optimizer.name == "adafactor":
        stepper = torch.optim.Adafactor(model.parameters(), lr=LEARNING_RATE)
    else:
        # The fused kernel is torch's fastest on a CPU.
        stepper = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )

    def update(step: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**padded(loader.examples(step))).loss
        loss.backward()
        stepper.step()
        stepper.zero_grad(set_to_none=True)

    def padding_share(step: int) -> float:
        batch = padded(loader.examples(step))
        tokens = int((batch["input_ids"] != 0).sum() + (batch["labels"] != -100).sum())
        return 1.0 - tokens / (batch["input_ids"].numel() + batch["labels"].numel())

    return Side(name, update, padding_share)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each side")
    parser.add_argument("--updates", type=int, default=4, help="updates a turn")
    parser.add_argument("--pieces", type=int, default=4000, help="pieces of the vocabulary")
    parser.add_argument("--optimizer", choices=("adamw", "adafactor"), default="adamw")
    parser.add_argument("--json", default="", help="file for the figures")
    args = parser.parse_args()

    keep_freed_memory()  # as a run does; it serves both sides
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    examples, origin = wlp_examples(args.pieces)
    source = LabelledSource(examples)
    source_length, target_length = balanced_row_lengths(source, MAX_TOKENS, MAX_TOKENS)
    loader = PackedLoader(
        source,
        batch_size=BATCH,
        source_length=source_length,
        target_length=target_length,
        seed=0,
    )
    optimizer = OptimizerConfig(args.optimizer, LEARNING_RATE)
    sides = [
        our_side(loader, optimizer),
        torch_side("transformers, padded, float32", loader, optimizer, bf16=False),
        torch_side("transformers, padded, bf16 autocast", loader, optimizer, bf16=True),
    ]
    print(f"WLP from {origin}, rows of {source_length} + {target_length}, {args.optimizer}")
    # Every update once beforehand: all shapes are compiled, all buffers allocated.
    steps = [range(turn * args.updates, (turn + 1) * args.updates) for turn in range(args.repeats)]
    for side in sides:
        for step in range(args.repeats * args.updates if side is sides[0] else 2):
            side.update(step)
    for turn in steps:
        for side in sides:
            began = time.perf_counter()
            for step in turn:
                side.update(step)
            side.seconds.append(time.perf_counter() - began)
    tokens = [sum(loader.batch(step).tokens for step in turn) for turn in steps]
    report(sides, tokens, args)


def report(sides: list[Side], tokens: list[int], args: argparse.Namespace) -> None:
    """Prints and keeps medians; the ratio is taken turn by turn."""
    figures = []
    for side in sides:
        rates = [count / seconds for count, seconds in zip(tokens, side.seconds, strict=True)]
        shares = [side.padding_share(step) for step in range(args.repeats * args.updates)]
        ratios = [s / ours for s, ours in zip(side.seconds, sides[0].seconds, strict=True)]
        figures.append(
            {
                "side": side.name,
                "tokens_per_second": statistics.median(rates),
                "examples_per_second": BATCH * args.updates / statistics.median(side.seconds),
                "padding_share": statistics.mean(shares),
                "times_ours": statistics.median(ratios),
                "times_ours_min_max": [min(ratios), max(ratios)],
            }
        )
        row = figures[-1]
        print(
            f"{side.name:38} {row['tokens_per_second']:8,.0f} non-padding tokens/s "
            f"{row['examples_per_second']:6.2f} examples/s  {row['padding_share']:4.0%} padding  "
            f"{row['times_ours']:5.2f} x our time"
        )
    if args.json:
        content = {"ratio": figures[1]["times_ours"], "figures": figures, "arguments": vars(args)}
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
