"""All that is to be measured on an NVIDIA GPU, in one command of at most ten minutes.

    python benchmarks/gpu.py --json=gpu.json                 # on one H100 or H200
    python benchmarks/gpu.py --tiny --json=-                 # the plumbing, on a CPU, in minutes

T5-XXL fine-tuning and T5-Small training on rows of 512 + 128 tokens that are filled as packing
fills them, T5-XXL labelling against `transformers.generate` where that is installed, the cost of
an epoch of distillation with cached labels against an epoch with the teacher in every update; then,
as long as time lasts, the same training with XLA's attention, and T5-XXL with bfloat16 parameters.
MFU counts tokens that are no padding, no recomputation, against the device's dense bf16 peak.
Weights are random: speed does not depend on them. Needs no TensorFlow.

Each part is a process of its own, since JAX keeps a GPU's memory, and its figures are written at
once; what does not fit, fails or has no time left is told, and the next part goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dora_jax.config import LabelConfig, OptimizerConfig, T5Config, TrainConfig
from dora_jax.cost import flops, hardware
from dora_jax.cost.memory import Layout
from dora_jax.cost.roofline import passes, rates, update_traffic
from dora_jax.cost.workload import StageWork
from dora_jax.launch.command_line import set_up_jax
from dora_jax.model.sizes import NETWORKS
from dora_jax.parallel import partitioning
from dora_jax.parallel.mesh import make_mesh
from dora_jax.predict import label
from dora_jax.shapes import EOS_ID, Examples, Seq2SeqBatch
from dora_jax.train.step import init_params, init_state, make_loss_fn, make_train_step
from dora_jax.whole_files import write_json

SOURCE, TARGET = 512, 128
MINUTES = 10.0
PART_SHARE = 0.3  # of all the time, for one part: a hanging one leaves the others theirs
THEIRS = "transformers_labelling"
FILL = 0.95  # share of a row that packing fills
TINY = T5Config(emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64, vocab_size=256)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured at which size."""

    teacher: T5Config
    student: T5Config
    teacher_rows: int
    student_rows: int
    source: int
    target: int
    updates: int
    texts: int
    decoded: int  # new tokens a text
    on_cpu: bool = False  # a rehearsal


def setting(tiny: bool) -> Setting:
    """The paper's networks in bfloat16, or ones that a CPU compiles at once."""
    if tiny:
        teacher = dataclasses.replace(TINY, num_encoder_layers=1, num_decoder_layers=1)
        return Setting(teacher, teacher, 2, 2, 16, 8, 2, 4, 4, on_cpu=True)
    xxl, small = (
        dataclasses.replace(NETWORKS[f"t5_1_1_{size}"], dtype="bfloat16", remat_policy=policy)
        for size, policy in (("xxl", "full"), ("small", "none"))
    )
    return Setting(xxl, small, 16, 64, SOURCE, TARGET, 5, 256, 64)


def packed_batch(rows: int, source: int, target: int, vocab: int, soft: int = 0) -> Seq2SeqBatch:
    """Rows of four examples each and a little padding; `soft` entries of a teacher a token."""
    rng = np.random.default_rng(0)

    def side(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        filled = int(FILL * length)
        segments = np.where(np.arange(length) < filled, 1 + 4 * np.arange(length) // filled, 0)
        segments_BN = np.tile(segments.astype(np.int32), (rows, 1))
        tokens_BN = rng.integers(3, vocab, (rows, length), dtype=np.int32) * (segments_BN > 0)
        return tokens_BN, segments_BN, np.zeros_like(tokens_BN)

    encoder, decoder = side(source), side(target)
    weights = (decoder[1] > 0).astype(np.float32)
    labels: tuple = ()
    if soft:
        shape = (rows, target, soft)
        ids = np.broadcast_to(np.arange(soft, dtype=np.int32), shape)
        logits = np.broadcast_to(-np.arange(soft, dtype=np.float16), shape)
        labels = (ids, logits, np.full((rows, target, 1), 1.0, np.float32))
    return Seq2SeqBatch(*encoder, *decoder, decoder[0], weights, *labels)


def training(network: T5Config, rows: int, sizes: Setting, soft: int = 0) -> dict[str, Any]:
    """Seconds of an update, MFU, memory, and what bounds the update by the roofline."""
    train = TrainConfig(
        optimizer=OptimizerConfig("adafactor"), dropout_rate=0.1, vocabulary_block=0
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    params = init_params(network, 0, mesh)
    state, optimizer, shardings = init_state(network, train, params, 0, mesh)
    batch = packed_batch(rows, sizes.source, sizes.target, network.vocab_size, soft)
    placed = jax.device_put(batch, partitioning.batch_sharding(mesh))
    began = time.perf_counter()
    update = (
        jax.jit(
            make_train_step(make_loss_fn(network, train), optimizer),
            donate_argnums=0,
            out_shardings=(shardings, partitioning.replicated(mesh)),
        )
        .lower(state, placed)
        .compile()
    )
    compiled = time.perf_counter() - began

    def one() -> None:
        nonlocal state
        state, metrics = update(state, placed)
        metrics.loss.block_until_ready()

    seconds = timed(one, sizes.updates)
    counts = flops.TokenCounts.from_segments(batch.encoder_segments_BS, batch.decoder_segments_BT)
    return {
        "rows": rows,
        "compile_seconds": compiled,
        "seconds": seconds,
        "tokens_per_second": (counts.encoder_tokens + counts.decoder_tokens) / seconds,
        "mfu": mfu(flops.training_flops(network, counts), seconds),
        "peak_bytes": peak_bytes(),
        "roofline": roofline(network, train, rows, sizes, counts),
    }


def timed(one: Callable[[], None], repeats: int) -> float:
    """The median of several goes, after one that does not count."""
    one()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        one()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def mfu(useful: float, seconds: float) -> float | None:
    return flops.mfu(useful, seconds, jax.devices()[0].device_kind)


def peak_bytes() -> int | None:
    """Of this part so far."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def roofline(
    network: T5Config, train: TrainConfig, rows: int, sizes: Setting, counts: flops.TokenCounts
) -> dict[str, Any] | None:
    """The least an update needs; None where no table has the device."""
    found = hardware.find(jax.devices()[0].device_kind)
    if found is None:
        return None
    work = StageWork(
        "train", network, train, 1, rows, sizes.source, sizes.target, counts, None, 1, 0, 0, False
    )
    parts = rates(found.item).seconds(update_traffic(work, Layout(1, 1, 1)))
    return {
        **parts,
        "bound_by": max(parts, key=lambda name: parts[name]),
        "passes": passes(network),
    }


def texts(sizes: Setting) -> Examples:
    """Sources of half the longest length on average, without targets."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, sizes.source, sizes.texts)
    tokens = rng.integers(3, 200, lengths.sum(), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens[offsets[1:] - 1] = EOS_ID
    nothing = np.zeros(0, np.int32), np.zeros(len(lengths) + 1, np.int64)
    return Examples(tokens, offsets, *nothing)


def in_bfloat16(network: T5Config) -> T5Config:
    """With its parameters too, as `transformers` has them on a GPU; half the memory."""
    return dataclasses.replace(network, param_dtype="bfloat16")


def labelling(sizes: Setting) -> dict[str, Any]:
    """Texts that the teacher labels a second: greedy tokens with 64 entries each."""
    network, mesh = in_bfloat16(sizes.teacher), make_mesh(devices=jax.devices()[:1])
    params, examples = init_params(network, 0, mesh), texts(sizes)
    # As many widths as the other side has batches.
    config = LabelConfig(top_k=64, batch_size=min(128, sizes.texts), widths=2)

    def one() -> None:
        label(
            network,
            params,
            examples,
            range(len(examples)),
            config,
            source_length=sizes.source,
            target_length=sizes.decoded,
            mesh=mesh,
        )

    seconds = timed(one, 1)
    # Random weights hardly ever end a text, so every one has all its tokens.
    return {"texts_per_second": sizes.texts / seconds, "new_tokens": sizes.decoded}


def transformers_labelling(sizes: Setting) -> dict[str, Any]:
    """The same by `transformers.generate` in bfloat16, on the same device."""
    import torch
    from authors_protocol import untrained_torch_model

    network, device = sizes.teacher, "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not sizes.on_cpu:
        raise RuntimeError("torch sees no GPU; install its CUDA build")
    network = dataclasses.replace(network, dtype="bfloat16")
    model = untrained_torch_model(network, device, 0.0).eval()
    examples, batch = texts(sizes), min(128, sizes.texts)
    rows = sorted((examples.source(i) for i in range(len(examples))), key=len, reverse=True)

    def one() -> None:
        for start in range(0, len(rows), batch):
            members = rows[start : start + batch]
            width = -(-len(members[0]) // 16) * 16  # kernels are slow at odd ones
            tokens = np.zeros((len(members), width), np.int64)
            for row, member in enumerate(members):
                tokens[row, : len(member)] = member
            ids = torch.from_numpy(tokens).to(device)
            with torch.inference_mode():
                model.generate(
                    input_ids=ids,
                    attention_mask=(ids > 0).long(),
                    min_new_tokens=sizes.decoded,
                    max_new_tokens=sizes.decoded,
                    do_sample=False,
                    num_beams=1,
                )
        if device == "cuda":
            torch.cuda.synchronize()

    return {"texts_per_second": sizes.texts / timed(one, 1), "new_tokens": sizes.decoded}


def distillation(sizes: Setting) -> dict[str, Any]:
    """An update on cached labels against one with the teacher's forward pass in it."""
    network, mesh = in_bfloat16(sizes.teacher), make_mesh(devices=jax.devices()[:1])
    cached = training(sizes.student, sizes.student_rows, sizes, soft=64)
    params = init_params(network, 0, mesh)
    batch = packed_batch(sizes.student_rows, sizes.source, sizes.target, network.vocab_size)
    loss_fn = make_loss_fn(network, TrainConfig(dropout_rate=0.0, vocabulary_block=4096))
    # The loss stands for the logits: it needs all of them and returns two numbers.
    teach = jax.jit(loss_fn)
    one = lambda: jax.block_until_ready(teach(params, batch, jax.random.key(0)))  # noqa: E731
    teacher = timed(one, 2)
    return {
        "cached": cached,
        "teacher_forward_seconds": teacher,
        "online_over_cached": (cached["seconds"] + teacher) / cached["seconds"],
    }


def parts(sizes: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, the most important first."""

    def changed(network: T5Config, rows: int, **settings: str) -> Callable[[], dict[str, Any]]:
        return lambda: training(dataclasses.replace(network, **settings), rows, sizes)

    teacher, student = (sizes.teacher, sizes.teacher_rows), (sizes.student, sizes.student_rows)
    return {
        "teacher_training": changed(*teacher),
        # Before the others: where 80 GB are all there is, it is the one that fits.
        "teacher_training_bfloat16_parameters": changed(*teacher, param_dtype="bfloat16"),
        "student_training": changed(*student),
        "labelling": lambda: labelling(sizes),
        THEIRS: lambda: transformers_labelling(sizes),
        "distillation": lambda: distillation(sizes),
        "student_training_xla_attention": changed(*student, attention="xla"),
        "teacher_training_xla_attention": changed(*teacher, attention="xla"),
    }


def measured(name: str, sizes: Setting) -> dict[str, Any]:
    """The figures of a part, or why there are none."""
    began = time.perf_counter()
    set_up_jax("")
    try:
        if name != THEIRS and not sizes.on_cpu and jax.default_backend() != "gpu":
            raise RuntimeError("JAX sees no GPU; install jax[cuda], or rehearse with --tiny")
        figures = parts(sizes)[name]()
    except (ImportError, RuntimeError, ValueError) as error:  # no torch, no memory, no cuDNN
        figures = {"error": f"{type(error).__name__}: {error}"[:500]}
    if name != THEIRS:  # there JAX would take the memory
        figures |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    return figures | {"wall_seconds": time.perf_counter() - began}


def in_a_process(name: str, tiny: bool, seconds: float, cache: str) -> dict[str, Any]:
    """`measured`, in a process that ends after so many seconds; `cache` is of compiled kernels."""
    if seconds <= 0:
        return {"error": "no time was left"}
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "part.json")
        command = [sys.executable, __file__, f"--part={name}", f"--json={file}"]
        try:
            ended = subprocess.run(
                command + ["--tiny"] * tiny,
                stdout=sys.stderr,
                env=environment,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done in the {seconds:.0f} s that it may take"}
        if not file.exists():
            return {"error": f"the process ended with status {ended.returncode}"}
        return json.loads(file.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", default="-", help="file, or - for the terminal")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, for a CPU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together")
    parser.add_argument("--part", metavar="NAME", help="measure this one alone, in this process")
    flags = parser.parse_args(arguments)
    sizes = setting(flags.tiny)
    if flags.part and flags.part not in parts(sizes):
        parser.error(f"--part={flags.part}: choose of {', '.join(parts(sizes))}")
    if flags.part:
        write_json(flags.json, measured(flags.part, sizes))
        return 0
    end = time.perf_counter() + 60 * flags.minutes
    figures: dict[str, Any] = {"tiny": flags.tiny, "source": sizes.source, "target": sizes.target}
    most = 60 * flags.minutes * PART_SHARE
    with tempfile.TemporaryDirectory() as cache:
        for name in parts(sizes):
            seconds = min(end - time.perf_counter(), most)
            figures[name] = in_a_process(name, flags.tiny, seconds, cache)
            print(f"{name}: {json.dumps(figures[name])}", file=sys.stderr, flush=True)
            if flags.json != "-":
                write_json(flags.json, figures)
    if flags.json == "-":
        print(json.dumps(figures, indent=2))
    return 0 if any("error" not in figures[name] for name in parts(sizes)) else 1


if __name__ == "__main__":
    sys.exit(main())
