"""What distilling costs: the authors' protocol in PyTorch against ours, in one run.

    python benchmarks/distill_cost.py --quick --json=cost.json    # about 15 minutes on 2 CPU cores
    python benchmarks/distill_cost.py                             # twice the turns
    python benchmarks/distill_cost.py --teacher=xxl               # on a GPU that both sides see

Theirs is `authors_protocol.py`. Ours is one labelling pass that keeps 64 entries a token in a
soft-label store, then packed updates from it, on 32 examples each. Both: T5 v1.1 shapes with the
same random weights, the same WLP texts (`DORA_DATA_DIR`, else the bundled sample, and the output
says which), AdamW, dropout 0.1. Ours computes in bfloat16, as `gin/protocols/kang_2023.gin` does,
unless the CPU cannot multiply it; theirs as `transformers` is used: in float32 on a CPU, in
bfloat16 on a GPU. `--dtype=float32`, or `--their_dtype=bfloat16`, compares at one precision.

Random weights never write EOS, so both sides force it at the length of each row's gold target;
without it ("unforced") every row would have 128 tokens, and those figures stand beside. The sides
take turns. The seconds of a turn are extrapolated stage by stage to a whole job, and the
arithmetic is printed; our compilation is counted, once. Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch

import jax
import numpy as np
import torch
import transformers
from authors_protocol import AuthorsProtocol, matmul_flops_per_second, torch_model
from our_protocol import LEARNING_RATE, Ours, Setting, indices
from train_step import BATCH, DROPOUT, MAX_TOKENS, wlp_examples

from dora_jax.config import DataConfig, T5Config
from dora_jax.cost import flops
from dora_jax.cost.prices import PriceBook
from dora_jax.data.token_store import concatenate
from dora_jax.launch.command_line import keep_freed_memory
from dora_jax.model.sizes import NETWORKS
from dora_jax.parallel.mesh import make_mesh
from dora_jax.shapes import Examples
from dora_jax.tasks.sources import load_splits
from dora_jax.tasks.task import get_task
from dora_jax.train.step import init_params

# Seconds of theirs for 32 texts, T5-Base teaching T5-Small on a CPU, as they were when the goal
# was set; 69 % of the decoder's positions were padding.
ORIENTATION = {"generate": 14.5, "teacher forward": 7.1, "student update": 12.3}


DTYPES = ("float32", "bfloat16")


class Theirs:
    """The authors' protocol on a setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        teacher, student = (
            torch_model(
                dataclasses.replace(network, dtype=setting.their_dtype),
                params,
                setting.device,
                DROPOUT,
            )
            for network, params in (
                (setting.teacher, setting.teacher_params),
                (setting.student, setting.student_params),
            )
        )
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


def say(line: str) -> None:
    print(line, flush=True)


def warmed(side: Theirs | Ours, work: Callable[[int], None], turn: int) -> None:
    """Does a turn's work twice and counts the second.

    In a job a side's own work went before; here the other side's did, for seconds to half a
    minute, and took the caches and, on a virtual machine, even the pages.
    """
    before = {stage: list(seconds) for stage, seconds in side.seconds.items()}
    work(turn)
    side.seconds.clear()
    side.seconds.update(before)
    work(turn)


def contest(setting: Setting) -> tuple[Theirs, Ours]:
    """Takes turns stage by stage."""
    with tempfile.TemporaryDirectory() as temporary:
        theirs, ours = Theirs(setting), Ours(setting, Path(temporary, "labels"))
        for turn in range(setting.turns):
            for side in (theirs, ours):
                if turn == 0:
                    warmed(side, side.label, turn)
                else:
                    side.label(turn)
            a, b = theirs.seconds["generate"][-1], ours.seconds["label"][-1]
            say(f"  turn {turn + 1}: theirs generates in {a:.1f} s, ours labels in {b:.1f} s")
        ours.prepare_updates()
        for turn in range(setting.turns):
            for side in (theirs, ours):
                warmed(side, side.update, turn)
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
    say(f"\n{title}: {args.texts:,} texts, {args.epochs} epochs, {updates:,.0f} updates of {BATCH}")
    repeated = {"generate": first_epoch, "teacher forward": updates, "student update": updates}
    kept = {
        "compile": len(ours.seconds["compile"]),
        "label": first_epoch,
        "student update": updates,
    }
    figures: dict[str, Any] = {}
    for name, side, per_job in (("theirs", theirs, repeated), ("ours", ours, kept)):
        stages = {
            stage: _stage(name, stage, side.seconds[stage], times, args)
            for stage, times in per_job.items()
        }
        total = sum(stage["dollars"] for stage in stages.values())
        padding = float(np.mean([side.counts(turn)[1] for turn in range(side.setting.turns)]))
        say(f"  {name:7} in all {total:.3f} USD; {padding:.0%} of decoder positions are padding")
        figures[name] = {"dollars": total, "padding": padding, "stages": stages}
    figures["ratio"] = figures["theirs"]["dollars"] / figures["ours"]["dollars"]
    figures["ratio_by_turn"] = [
        _seconds_of_turn(figures["theirs"], turn) / _seconds_of_turn(figures["ours"], turn)
        for turn in range(ours.setting.turns)
    ]
    rate = BATCH / float(np.mean(ours.seconds["student update"]))
    say(
        f"  ratio {figures['ratio']:.2f} ({min(figures['ratio_by_turn']):.2f} to "
        f"{max(figures['ratio_by_turn']):.2f} by turn); ours trains on {rate:.1f} examples/s"
    )
    return figures


def _stage(
    side: str, stage: str, seconds: list[float], times: float, args: argparse.Namespace
) -> dict[str, Any]:
    """One line of the arithmetic. A job does the stage `times` times."""
    mean = float(np.mean(seconds))
    dollars = mean * times / 3600 * args.price_usd_per_device_hour
    say(
        f"  {side:7} {stage:16} {mean:8.3f} s (mean of {len(seconds)}) x {times:9,.1f} = "
        f"{mean * times:11,.0f} s = {dollars:9.3f} USD"
    )
    return {"seconds": seconds, "times": times, "dollars": dollars}


def _seconds_of_turn(side: dict[str, Any], turn: int) -> float:
    """Of a job in which everything took as long as in one turn; compilation is no turn's."""
    seconds = 0.0
    for name, stage in side["stages"].items():
        times = stage["seconds"]
        seconds += stage["times"] * (float(np.mean(times)) if name == "compile" else times[turn])
    return seconds


def check_baseline(theirs: Theirs) -> dict[str, Any]:
    """Theirs beside the orientation, and beside what torch's own products reach here.

    The orientation is of another day, and maybe another machine. What a machine's speed cannot
    explain away is the proportion of the stages, and the share of the products' own speed.
    """
    limit = matmul_flops_per_second(theirs.setting.device)
    say(f"\nIs theirs slow? torch multiplies matrices at {limit / 1e9:,.0f} GFLOP/s here.")
    counts = [theirs.counts(turn)[0] for turn in range(theirs.setting.turns)]
    work = {
        "teacher forward": [flops.training_flops(theirs.setting.teacher, c) / 3 for c in counts],
        "student update": [flops.training_flops(theirs.setting.student, c) for c in counts],
    }
    mean = {stage: float(np.mean(theirs.seconds[stage])) for stage in ORIENTATION}
    speed = sum(mean.values()) / sum(ORIENTATION.values())
    found: dict[str, Any] = {"matmul_flops_per_second": limit, "times_orientation": speed}
    for stage, wanted in ORIENTATION.items():
        found[stage] = {"seconds": mean[stage], "orientation": wanted}
        line = (
            f"  {stage:16} {mean[stage]:6.1f} s, orientation {wanted:4.1f} s "
            f"({mean[stage] / wanted - 1:+.0%}; {mean[stage] / wanted / speed - 1:+.0%} at this "
            "machine's speed)"
        )
        if stage in work:
            found[stage]["share_of_matmul"] = float(np.mean(work[stage])) / mean[stage] / limit
            line += f"; {found[stage]['share_of_matmul']:.0%} of the speed of products alone"
        say(line)
    positions = float(np.mean([c.encoder_tokens + c.decoder_tokens for c in counts]))
    say(f"  A batch of theirs has {positions:,.0f} positions, padding included.")
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
    parser.add_argument("--dtype", choices=DTYPES, help="ours: bfloat16 where it is multiplied")
    parser.add_argument("--their_dtype", choices=DTYPES, help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument(
        "--price_usd_per_device_hour", type=float, default=-1.0, help="-1: of the price book"
    )
    parser.add_argument("--json", default="", help="file for the figures")
    args = parser.parse_args()
    args.repeats = args.repeats or (5 if args.quick else 10)
    if args.price_usd_per_device_hour < 0:
        usd, known = 1.0, "taken, for want of a price"
        with contextlib.suppress(ValueError):  # of a device that the book does not know
            price = PriceBook.load().device_price(jax.devices()[0].device_kind)
            if price.is_set:
                usd, known = price.usd, f"{price.source}, {price.date}"
        args.price_usd_per_device_hour = usd
        say(f"{args.price_usd_per_device_hour} USD an hour: {known}; the ratio is free of it")
    if not args.texts:
        folder = os.environ.get("DORA_DATA_DIR", "")
        data = DataConfig(data_dir=folder, num_labels=1000 if folder else 600)
        args.texts = len(load_splits(get_task("wlp"), data).rows["unlabeled"])
    return args


def has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 in tiles, several times as fast as float32."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and "amx_bf16" in flags.read_text(encoding="utf-8")


def setting(args: argparse.Namespace) -> Setting:
    """Networks, weights and texts; EOS at the length of the gold target."""
    gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    if args.teacher in ("xl", "xxl") and not gpu:
        sees = f"torch {'sees' if torch.cuda.is_available() else 'does not see'} a GPU, JAX "
        sees += "sees one" if jax.default_backend() == "gpu" else "does not"
        sys.exit(f"--teacher={args.teacher} needs a GPU that both sides see; {sees}.")
    dtype = args.dtype or ("bfloat16" if gpu or has_amx() else "float32")
    their_dtype = args.their_dtype or ("bfloat16" if gpu else "float32")

    def network(size: str) -> T5Config:
        known = NETWORKS[f"t5_1_1_{size}"]
        unroll = 1 if gpu else known.num_encoder_layers
        return dataclasses.replace(known, dtype=dtype, scan_unroll=unroll)

    teacher, student = network(args.teacher), network("small")
    mesh = make_mesh(devices=jax.devices()[:1])
    # Drawn in the dtype that is kept: no whole tree in float32 stands beside it.
    teacher = dataclasses.replace(teacher, param_dtype=dtype)
    teacher_params = init_params(teacher, 0, mesh)
    student_params = init_params(student, 1, mesh)
    examples, origin = wlp_examples(args.pieces)
    say(
        f"WLP from {origin}; {jax.devices()[0].device_kind}, ours in {dtype}, theirs in "
        f"{their_dtype}; T5-{args.teacher} v1.1 teaches T5-small v1.1"
    )
    drawn = np.random.default_rng(0).permutation(len(examples))[: args.repeats * BATCH]
    sample = some(examples, drawn.tolist())
    device = "cuda" if gpu else "cpu"
    ends_N = np.diff(sample.target_offsets)
    return Setting(
        sample, ends_N, teacher, student, teacher_params, student_params, device, their_dtype
    )


def unforced(whole: Setting, turns: int) -> Setting:
    """The first turns of a setting, whose answers never end before MAX_TOKENS."""
    texts = range(turns * BATCH)
    never_N = np.full(len(texts), MAX_TOKENS + 1)
    return whole._replace(sample=some(whole.sample, texts), lengths_N=never_N)


def main() -> None:
    keep_freed_memory()  # as a run does; it serves both sides
    args = parse()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.set_verbosity_error()
    whole = setting(args)
    say(f"\nforced, {args.repeats} turns")
    theirs, ours = contest(whole)
    figures = {"forced": report("forced", theirs, ours, args)}
    if args.teacher == "base" and whole.device == "cpu":
        figures["baseline"] = check_baseline(theirs)
    del theirs, ours
    if args.unforced_repeats:
        say(f"\nunforced, {args.unforced_repeats} turns")
        sides = contest(unforced(whole, min(args.unforced_repeats, args.repeats)))
        figures["unforced"] = report("unforced", *sides, args)
    if args.json:
        facts = {
            "data": "DORA_DATA_DIR" if os.environ.get("DORA_DATA_DIR") else "bundled sample",
            "device": jax.devices()[0].device_kind,
            "dtype": whole.teacher.dtype,
            "their_dtype": whole.their_dtype,
            "arguments": vars(args),
        }
        content = {"ratio": figures["forced"]["ratio"], **facts, **figures}
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
