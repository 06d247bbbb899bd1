"""What distilling costs: the authors' protocol in PyTorch against ours, in one run.

    python benchmarks/distill_cost.py --quick --json=cost.json    # about 15 minutes on 2 CPU cores
    python benchmarks/distill_cost.py                             # twice the turns
    python benchmarks/distill_cost.py --teacher=xxl               # on a GPU that both sides see

Theirs is `authors_protocol.py`. Ours is one labelling pass that keeps 64 entries a token in a
soft-label store, then packed updates from it, on 32 examples each. Both: T5 v1.1 shapes with the
same random weights, the same WLP texts (`DORA_DATA_DIR`, else the bundled sample, and the output
says which), AdamW, dropout 0.1, float32 (on a GPU bfloat16).

Random weights never write EOS, so both sides force it at the length of each row's gold target;
without it ("unforced") every row would have 128 tokens, and those figures stand beside. The sides
take turns. The seconds of a turn are extrapolated stage by stage to a whole job, and the
arithmetic is printed; our compilation is counted, once. Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from authors_protocol import (
    TEMPERATURE,
    AuthorsProtocol,
    matmul_flops_per_second,
    torch_model,
)
from train_step import BATCH, DROPOUT, MAX_TOKENS, wlp_examples

from dora_jax.config import DataConfig, OptimizerConfig, SoftLossConfig, T5Config, TrainConfig
from dora_jax.cost import flops
from dora_jax.cost.prices import PriceBook
from dora_jax.data.loader import (
    EvaluationBatch,
    PackedLoader,
    SoftLabelledSource,
    balanced_row_lengths,
    evaluation_batches,
)
from dora_jax.data.soft_labels import SoftLabelHeader, SoftLabelReader, SoftLabelWriter, SoftRow
from dora_jax.data.token_store import concatenate
from dora_jax.model.decode import generate, likeliest, summarise_logits
from dora_jax.model.decoder_step import make_step_fn, prepare
from dora_jax.model.sizes import NETWORKS
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import EOS_ID, Examples
from dora_jax.tasks.sources import load_splits
from dora_jax.tasks.task import get_task
from dora_jax.train.step import init_params, init_state, make_loss_fn, make_train_step

LEARNING_RATE = 3e-5
TOP_K = 64
# Seconds of theirs for 32 texts, T5-Base teaching T5-Small on a CPU, as they were when the goal
# was set; 69 % of the decoder's positions were padding.
ORIENTATION = {"generate": 14.5, "teacher forward": 7.1, "student update": 12.3}


class Setting(NamedTuple):
    """What both sides work on. A turn is 32 texts; answers end at `lengths_N`, EOS included."""

    sample: Examples
    lengths_N: np.ndarray  # above MAX_TOKENS: never
    teacher: T5Config
    student: T5Config
    teacher_params: Any
    student_params: Any
    device: str  # of torch

    @property
    def turns(self) -> int:
        return len(self.sample) // BATCH


def indices(turn: int) -> range:
    return range(turn * BATCH, (turn + 1) * BATCH)


class Theirs:
    """The authors' protocol on a setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        teacher = torch_model(setting.teacher, setting.teacher_params, setting.device, DROPOUT)
        student = torch_model(setting.student, setting.student_params, setting.device, DROPOUT)
        self.protocol = AuthorsProtocol(
            teacher, student, setting.sample, setting.device, LEARNING_RATE
        )
        self.seconds = self.protocol.seconds

    def label(self, turn: int) -> None:
        self.protocol.generate(indices(turn), MAX_TOKENS, self.setting.lengths_N)

    def update(self, turn: int) -> None:
        self.protocol.update(indices(turn))

    def counts(self, turn: int) -> tuple[flops.TokenCounts, float]:
        """Of one batch, padding counted as work; and the padding share of the decoder."""
        source = max(len(self.setting.sample.source(i)) for i in indices(turn))
        targets = [len(self.protocol.generated[i]) for i in indices(turn)]
        counts = flops.TokenCounts.from_lengths([source] * BATCH, [max(targets)] * BATCH)
        return counts, 1.0 - sum(targets) / (BATCH * max(targets))


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


def say(line: str) -> None:
    print(line, flush=True)


def contest(setting: Setting) -> tuple[Theirs, Ours]:
    """Takes turns stage by stage. Each side's first update is done beforehand, untimed."""
    with tempfile.TemporaryDirectory() as temporary:
        theirs, ours = Theirs(setting), Ours(setting, Path(temporary, "labels"))
        for turn in range(setting.turns):
            for side in (theirs, ours):
                side.label(turn)
            a, b = theirs.seconds["generate"][-1], ours.seconds["label"][-1]
            say(f"  turn {turn + 1}: theirs generates in {a:.1f} s, ours labels in {b:.1f} s")
        ours.prepare_updates()
        for side in (theirs, ours):
            side.update(0)
            side.seconds.pop("student update")
        theirs.seconds.pop("teacher forward")
        for turn in range(setting.turns):
            for side in (theirs, ours):
                side.update(turn)
            a, b = theirs.seconds["teacher forward"][-1], theirs.seconds["student update"][-1]
            c = ours.seconds["student update"][-1]
            say(f"  turn {turn + 1}: theirs updates in {a:.1f} + {b:.1f} s, ours in {c:.2f} s")
        same = [
            np.array_equal(theirs.protocol.generated[i], row.tokens_T)
            for i, row in ours.rows.items()
        ]
        say(f"  both teachers gave the same answer to {np.mean(same):.0%} of the texts")
    return theirs, ours


def report(title: str, theirs: Theirs, ours: Ours, args: argparse.Namespace) -> dict[str, Any]:
    """Prints the arithmetic from turns to a job; returns the figures."""
    first_epoch = args.texts / BATCH
    updates = first_epoch * args.epochs
    compilations = len(ours.seconds["compile"])
    say(f"\n{title}: {args.texts:,} texts, {args.epochs} epochs, {updates:,.0f} updates of {BATCH}")
    per_job = {
        "theirs": {
            "generate": first_epoch,
            "teacher forward": updates,
            "student update": updates,
        },
        "ours": {"compile": compilations, "label": first_epoch, "student update": updates},
    }
    figures: dict[str, Any] = {}
    for name, side in (("theirs", theirs), ("ours", ours)):
        stages, turns = {}, range(side.setting.turns)
        for stage, times in per_job[name].items():
            mean = float(np.mean(side.seconds[stage]))
            dollars = mean * times / 3600 * args.price_usd_per_device_hour
            say(
                f"  {name:7} {stage:16} {mean:8.3f} s (mean of {len(side.seconds[stage])}) x "
                f"{times:9,.1f} = {mean * times:11,.0f} s = {dollars:9.3f} USD"
            )
            stages[stage] = {"seconds": side.seconds[stage], "times": times, "dollars": dollars}
        total = sum(stage["dollars"] for stage in stages.values())
        padding = float(np.mean([side.counts(turn)[1] for turn in turns]))
        say(f"  {name:7} in all {total:.3f} USD; {padding:.0%} of decoder positions are padding")
        figures[name] = {"stages": stages, "dollars": total, "decoder_padding": padding}
    figures["ratio"] = figures["theirs"]["dollars"] / figures["ours"]["dollars"]
    rate = BATCH / float(np.mean(ours.seconds["student update"]))
    say(f"  ratio {figures['ratio']:.2f}; ours trains on {rate:.1f} examples/s")
    return figures


def check_baseline(theirs: Theirs) -> dict[str, Any]:
    """Theirs beside the orientation, and beside what torch's own products reach here."""
    limit = matmul_flops_per_second(theirs.setting.device)
    say(f"\nIs theirs slow? torch multiplies matrices at {limit / 1e9:,.0f} GFLOP/s here.")
    counts = [theirs.counts(turn)[0] for turn in range(theirs.setting.turns)]
    work = {
        "teacher forward": [flops.training_flops(theirs.setting.teacher, c) / 3 for c in counts],
        "student update": [flops.training_flops(theirs.setting.student, c) for c in counts],
    }
    found: dict[str, Any] = {"matmul_flops_per_second": limit}
    for stage, wanted in ORIENTATION.items():
        seconds = float(np.mean(theirs.seconds[stage]))
        found[stage] = {"seconds": seconds, "orientation": wanted}
        line = f"  {stage:16} {seconds:6.1f} s, orientation {wanted:4.1f} s"
        if stage in work:
            found[stage]["share_of_matmul"] = float(np.mean(work[stage])) / seconds / limit
            line += f"; {found[stage]['share_of_matmul']:.0%} of the speed of products alone"
        say(f"{line} ({seconds / wanted - 1:+.0%})")
    return found


def some(examples: Examples, chosen: Sequence[int]) -> Examples:
    """Some examples of a split, in this order."""
    return Examples(
        *concatenate([examples.source(i) for i in chosen]),
        *concatenate([examples.target(i) for i in chosen]),
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="5 turns instead of 10")
    parser.add_argument("--repeats", type=int, default=0, help="turns; 0: as --quick says")
    parser.add_argument("--unforced_repeats", type=int, default=1, help="turns without EOS")
    parser.add_argument("--teacher", choices=("base", "large", "xl", "xxl"), default="base")
    parser.add_argument("--epochs", type=int, default=50, help="of the job")
    parser.add_argument("--texts", type=int, default=0, help="of the job; 0: all unlabelled")
    parser.add_argument("--pieces", type=int, default=4000, help="pieces of the vocabulary")
    parser.add_argument(
        "--price_usd_per_device_hour", type=float, default=-1.0, help="-1: of the price book"
    )
    parser.add_argument("--json", default="", help="file for the figures")
    args = parser.parse_args()
    args.repeats = args.repeats or (5 if args.quick else 10)
    if args.price_usd_per_device_hour < 0:
        price = PriceBook.load().device_price(jax.devices()[0].device_kind)
        args.price_usd_per_device_hour = price.usd if price.is_set else 1.0
        known = f"{price.source}, {price.date}" if price.is_set else "taken, for want of a price"
        say(f"{args.price_usd_per_device_hour} USD an hour: {known}; the ratio is free of it")
    if not args.texts:
        folder = os.environ.get("DORA_DATA_DIR", "")
        data = DataConfig(data_dir=folder, num_labels=1000 if folder else 600)
        args.texts = len(load_splits(get_task("wlp"), data).rows["unlabeled"])
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.set_verbosity_error()
    gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    dtype = "bfloat16" if gpu else "float32"

    def network(size: str) -> T5Config:
        known = NETWORKS[f"t5_1_1_{size}"]
        unroll = 1 if gpu else known.num_encoder_layers
        return dataclasses.replace(known, dtype=dtype, scan_unroll=unroll)

    teacher, student = network(args.teacher), network("small")
    mesh = make_mesh(devices=jax.devices()[:1])
    teacher_params, student_params = init_params(teacher, 0, mesh), init_params(student, 1, mesh)
    if gpu:
        teacher_params = jax.tree.map(lambda leaf: leaf.astype(dtype), teacher_params)
    examples, origin = wlp_examples(args.pieces)
    kind = jax.devices()[0].device_kind
    say(f"WLP from {origin}; {kind}, {dtype}; T5-{args.teacher} v1.1 teaches T5-small v1.1")
    drawn = np.random.default_rng(0).permutation(len(examples)).tolist()
    figures: dict[str, Any] = {}
    for title, turns in (("forced", args.repeats), ("unforced", args.unforced_repeats)):
        if turns:
            sample = some(examples, drawn[: turns * BATCH])
            ends_N = np.diff(sample.target_offsets)
            if title == "unforced":
                ends_N = np.full_like(ends_N, MAX_TOKENS + 1)
            say(f"\n{title}, {turns} turns")
            theirs, ours = contest(
                Setting(
                    sample,
                    ends_N,
                    teacher,
                    student,
                    teacher_params,
                    student_params,
                    "cuda" if gpu else "cpu",
                )
            )
            figures[title] = report(title, theirs, ours, args)
            if title == "forced" and args.teacher == "base" and not gpu:
                figures["baseline"] = check_baseline(theirs)
    if args.json:
        facts = {"origin": origin, "device": kind, "dtype": dtype, "arguments": vars(args)}
        content = {"ratio": figures["forced"]["ratio"], **facts, **figures}
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
