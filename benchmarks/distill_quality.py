"""Whether the cheap student is as good: the authors' protocol in PyTorch against ours.

    python benchmarks/distill_quality.py --run=runs/wlp_distill-rehearsal     # minutes on a CPU

Takes a finished rehearsal's teacher, the student as distillation starts from it, and its texts.
Theirs (`authors_protocol.py`): the teacher runs in every update, over padded rows. Ours: one
labelling pass, then packed updates on the entries kept. Both take the same number of updates of 32
texts, the run's learning rates and no human label. `--dtype` is of our activations, of teacher and
student; theirs stay float32, and so do all parameters. Both students decode the test split, and the
difference stands with its paired bootstrap interval: ours shall not be below it. Needs the `test`
extra.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from authors_protocol import AuthorsProtocol, torch_model

from dora_jax.checkpoints import names, placement
from dora_jax.config import (
    LabelConfig,
    OptimizerConfig,
    SoftLossConfig,
    T5Config,
    TrainConfig,
)
from dora_jax.data.loader import PackedLoader, SoftLabelledSource, balanced_row_lengths
from dora_jax.data.soft_labels import SoftLabelHeader, SoftLabelReader, SoftLabelWriter
from dora_jax.data.token_store import TokenStore
from dora_jax.metrics.measurement import Measurement, compare
from dora_jax.parallel.mesh import make_mesh
from dora_jax.predict import decode, label
from dora_jax.stages import manifest, weights
from dora_jax.tasks.task import get_task
from dora_jax.train.optim import make_schedule
from dora_jax.train.step import init_state, make_loss_fn, make_train_step

BATCH = 32
NEEDED = ("pretrain-student", "teach")  # the run's stages whose networks are read


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both sides get."""

    teacher: T5Config
    teacher_params: Any
    student: T5Config
    student_params: Any
    store: TokenStore
    source_length: int
    target_length: int
    optimizer: OptimizerConfig
    dropout_rate: float
    updates: int
    top_k: int


def read(run: Path, updates: int) -> Setting:
    """The run's networks, texts and settings; the networks in float32."""
    config = manifest.read_json(run / "config.json")
    mesh = make_mesh(devices=jax.devices()[:1])
    teacher, teacher_params = weights.trained(run, "teach").read(mesh, None)
    student, student_params = weights.trained(run, "pretrain-student").read(mesh, None)
    distill = config["distill"]
    return Setting(
        teacher,
        teacher_params,
        student,
        student_params,
        TokenStore.open(config["data"]["token_store"] or run / "prepare" / "tokens"),
        config["data"]["source_length"],
        config["data"]["target_length"],
        OptimizerConfig(**distill["optimizer"]),
        distill["dropout_rate"],
        updates or distill["train_steps"],
        config["label"]["top_k"],
    )


def their_student(setting: Setting) -> Any:
    """The student's parameters after the authors' protocol, as our tree."""
    texts = setting.store.examples("unlabeled")
    protocol = AuthorsProtocol(
        torch_model(setting.teacher, setting.teacher_params, "cpu", setting.dropout_rate),
        torch_model(setting.student, setting.student_params, "cpu", setting.dropout_rate),
        texts,
        "cpu",
        setting.optimizer.learning_rate,
    )
    rate = make_schedule(setting.optimizer, setting.updates)
    rng = np.random.default_rng(0)
    order = np.concatenate(
        [rng.permutation(len(texts)) for _ in range(-(-setting.updates * BATCH // len(texts)))]
    )
    for step in range(setting.updates):
        indices = order[step * BATCH : (step + 1) * BATCH].tolist()
        unknown = [i for i in indices if i not in protocol.generated]
        if unknown:
            protocol.generate(unknown, setting.target_length)
        for group in protocol.optimizer.param_groups:
            group["lr"] = float(np.asarray(rate(step)))
        loss = protocol.update(indices)
        if step % 50 == 0:
            print(f"  theirs, update {step}: loss {loss:.3f}", flush=True)
    return our_params(setting.student, protocol.student)


def our_params(network: T5Config, model: Any) -> Any:
    """The parameters of a network in transformers, as our tree."""
    tensors = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    tree: dict[str, Any] = {}
    for path, sources in names.sources(placement.shapes(network)).items():
        layers = [
            tensors[source.name].T if names.is_transposed(path) else tensors[source.name]
            for source in sources
        ]
        *folders, last = path.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = layers[0] if sources[0].layer is None else np.stack(layers)
    return tree


def our_student(setting: Setting, folder: Path, dtype: str) -> Any:
    """The student's parameters after one labelling pass and packed updates, computed in `dtype`."""
    setting = dataclasses.replace(
        setting,
        teacher=dataclasses.replace(setting.teacher, dtype=dtype),
        student=dataclasses.replace(setting.student, dtype=dtype),
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    texts = setting.store.examples("unlabeled")
    config = LabelConfig(top_k=setting.top_k)
    rows = label(
        setting.teacher,
        setting.teacher_params,
        texts,
        range(len(texts)),
        config,
        source_length=setting.source_length,
        target_length=setting.target_length,
        mesh=mesh,
    )
    header = SoftLabelHeader(
        "t", "d", "v", setting.teacher.vocab_size, setting.top_k, config.temperatures, "greedy"
    )
    writer = SoftLabelWriter(folder, header, len(rows), len(rows))
    writer.write_shard(0, rows)
    writer.finish()
    reader = SoftLabelReader.open(folder, {"teacher_fingerprint": "t"})
    source = SoftLabelledSource(texts, reader)
    widths = balanced_row_lengths(source, setting.source_length, setting.target_length)
    loader = PackedLoader(
        source,
        batch_size=BATCH,
        source_length=widths[0],
        target_length=widths[1],
        seed=0,
        max_row_buckets=1,
    )
    train = TrainConfig(
        train_steps=setting.updates,
        batch_size=BATCH,
        optimizer=setting.optimizer,
        dropout_rate=setting.dropout_rate,
        soft_loss=SoftLossConfig(),
    )
    state, optimizer, _ = init_state(setting.student, train, setting.student_params, 0, mesh)
    loss_fn = make_loss_fn(setting.student, train, reader.temperature_index(2.0))
    step_fn = jax.jit(make_train_step(loss_fn, optimizer))
    for step, batch in enumerate(loader.iterate(0, setting.updates)):
        state, metrics = step_fn(state, batch.batch)
        if step % 50 == 0:
            print(f"  ours, update {step}: loss {float(metrics.loss):.3f}", flush=True)
    return state.params


def measure(setting: Setting, params: Any, network: T5Config, task: str) -> Measurement:
    store, mesh = setting.store, make_mesh(devices=jax.devices()[:1])
    outputs = decode(
        network,
        params,
        store.examples("test"),
        batch_size=100,
        source_length=setting.source_length,
        target_length=setting.target_length,
        mesh=mesh,
    )
    predictions = [store.vocabulary.decode(tokens.tolist()) for tokens in outputs]
    return get_task(task).measure(store.targets("test"), predictions, store.sources("test"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="a finished run whose networks fit a CPU")
    parser.add_argument("--updates", type=int, default=0, help="0: as many as the run took")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", default="", help="file for the figures")
    args = parser.parse_args()
    run = Path(args.run)
    missing = [name for name in NEEDED if not manifest.is_finished(run / name)]
    if missing:
        parser.error(
            f"--run={run} has no finished {', '.join(missing)}. Make one: python launch/run.py "
            "--gin_file=gin/wlp_distill.gin --scale=rehearsal"
        )
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.set_verbosity_error()
    setting = read(run, args.updates)
    task = setting.store.manifest["task"]
    measured, seconds = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in (
            ("theirs", lambda: their_student(setting)),
            ("ours", lambda: our_student(setting, Path(temporary, "labels"), args.dtype)),
        ):
            began = time.perf_counter()
            params = make()
            seconds[name] = time.perf_counter() - began
            measured[name] = measure(setting, params, setting.student, task)
    measured["teacher"] = measure(setting, setting.teacher_params, setting.teacher, task)
    metric = measured["ours"].primary
    values = {name: one.metrics()[metric] for name, one in measured.items()}
    paired = compare(measured["ours"], measured["theirs"])[metric]
    low, high = paired.interval
    print(
        f"{task} {metric}, {setting.updates} updates: teacher {values['teacher']:.1f}, their "
        f"student {values['theirs']:.1f} ({seconds['theirs']:.0f} s), ours {values['ours']:.1f} "
        f"({seconds['ours']:.0f} s, {args.dtype})\nours - theirs = {paired.difference:+.2f} "
        f"[{low:+.2f}, {high:+.2f}], p = {paired.p_value:.3f}: "
        + ("ours is worse" if high < 0 else "ours is not worse")
    )
    if args.json:
        content = {
            "metric": metric,
            "dtype": args.dtype,
            "values": values,
            "seconds": seconds,
            **paired._asdict(),
        }
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
