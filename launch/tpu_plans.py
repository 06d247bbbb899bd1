"""Compiles a run's programs for TPU slices that are not here, and tells what a chip will hold."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import importlib
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dora_jax.cost import hardware
from dora_jax.cost.memory import GB, Layout, stages_memory
from dora_jax.cost.workload import StageWork, assumed_facts, stages_work
from dora_jax.launch import gin_config
from dora_jax.launch.command_line import exit_status, parse, require_place
from dora_jax.whole_files import write_json

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from dora_jax.config import RunConfig

# A slice by its name in the cloud: kind, topology as libtpu names it. Names of v4 and v5p count
# TensorCores, two a chip; a JAX device is a chip on all of them.
SLICES = {
    "v5e-16": ("v5e", "v5e:4x4"),
    "v5e-32": ("v5e", "v5e:4x8"),
    "v5e-64": ("v5e", "v5e:8x8"),
    "v5e-128": ("v5e", "v5e:8x16"),
    "v5e-256": ("v5e", "v5e:16x16"),
    "v4-64": ("v4", "v4:2x4x4"),
    "v5p-64": ("v5p", "v5p:2x4x4"),
}
STAGES = ("teach", "label", "distill")
_CHIP_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
DESCRIPTION = """\
Compiles the programs of a run at paper scale for TPU slices, without a TPU: T5-XXL's update, its
labelling step, T5-Small's distillation update. Prints what each chip will hold, beside the
analytic count that quotes go by, and what a chip sends in a step (decoding: in a batch). Needs
libtpu, which `make tpu-plans` installs; one such program at a time.

  make tpu-plans
  make tpu-plans ARGS="--slice=v5e-64 --stage=teach"
"""


class Plan(NamedTuple):
    """One compiled program. Bytes are of one chip."""

    slice: str
    chips: int
    stage: str
    compile_seconds: float
    rows: int
    fits: bool
    bytes_per_chip: int
    argument_bytes: int
    temporary_bytes: int
    analytic_bytes: float
    usable_bytes: float
    collectives: dict[str, float]  # bytes that a chip sends in a step, by kind


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, 1 where a program does not fit, 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _plans(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/tpu_plans.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--slice",
        default="v5e-64",
        metavar="NAME,…",
        help=f"{', '.join(SLICES)}, or all (default: %(default)s)",
    )
    parser.add_argument(
        "--stage",
        default=",".join(STAGES),
        metavar="STAGE,…",
        help="which programs (default: %(default)s)",
    )
    parser.add_argument("--gin_file", default="wlp_distill.gin", metavar="FILE", help="the run")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--hlo", metavar="DIR", help="write the compiled programs there, as text")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _plans(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    slices = list(SLICES) if flags.slice == "all" else _chosen("slice", flags.slice, SLICES)
    stages = _chosen("stage", flags.stage, STAGES)
    if flags.json:
        require_place("--json", flags.json)
    config = gin_config.build(flags.gin_file, "paper", overrides).config
    print(
        f"{'slice':<9}{'stage':<9}{'compiled':>9}{'a chip holds':>14}{'counted':>10}{'sends':>10}"
    )
    plans = []
    for name in slices:
        for stage in stages:
            plans.append(plan(config, name, stage, flags.hlo))
            _print(plans[-1])
            if flags.json:  # after each: all of them take half an hour
                write_json(flags.json, {"plans": [each._asdict() for each in plans]})
    return 0 if all(each.fits for each in plans) else 1


def _chosen(flag: str, text: str, known: Sequence[str] | dict[str, Any]) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in known:
            raise ValueError(
                f"--{flag}={text}: there is no {name!r}; choose of {', '.join(known)}."
            )
    return chosen


def _print(one: Plan) -> None:
    sent = sum(one.collectives.values())
    print(
        f"{one.slice:<9}{one.stage:<9}{one.compile_seconds:>7.0f} s"
        f"{one.bytes_per_chip / GB:>11.2f} GB"
        f"{one.analytic_bytes / GB:>7.2f} GB{sent / GB:>7.2f} GB"
        f"{'' if one.fits else '  does not fit'}",
        flush=True,
    )


def topology_devices(name: str) -> list[Any]:
    """The devices of a slice, for compiling only.

    Raises:
      ValueError: libtpu is not installed.
    """
    # Else libtpu asks Google's metadata server who its hosts are, for minutes.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        importlib.import_module("libtpu")
    except ModuleNotFoundError:
        raise ValueError(
            "Compiling for TPUs needs libtpu, which `make tpu-plans` installs and uses. Without it "
            "launch/quote.py counts by arithmetic."
        ) from None
    from jax.experimental import topologies

    kind, topology = SLICES[name]
    options = _CHIP_OPTIONS.get(kind, {})
    return topologies.get_topology_desc(topology, "tpu", **options).devices


def plan(config: RunConfig, name: str, stage: str, hlo: str | None = None) -> Plan:
    """Compiles one program of a run for a slice.

    Args:
      config: the run.
      name: of `SLICES`.
      stage: of `STAGES`.
      hlo: a folder for the compiled program's text; None for none.

    Raises:
      ValueError: libtpu is not installed.
    """
    from dora_jax.model.backend import compiling_for
    from dora_jax.parallel import collectives
    from dora_jax.parallel.mesh import make_mesh

    devices = topology_devices(name)
    mesh = make_mesh(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor, devices=devices)
    layout = Layout.of(config.mesh, len(devices))
    work = {w.stage: w for w in stages_work(config, assumed_facts(config), layout.row_shards)}[
        stage
    ]
    need = {memory.stage: memory for memory in stages_memory(config)}[stage]
    with compiling_for("tpu"):
        lower = _lowered_labelling if stage == "label" else _lowered_update
        lowered = lower(config, work, mesh)
        began = time.monotonic()
        compiled = lowered.compile()
        seconds = time.monotonic() - began
    memory = compiled.memory_analysis()
    held = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    text = compiled.as_text() or ""
    if hlo:
        Path(hlo).mkdir(parents=True, exist_ok=True)
        Path(hlo, f"{name}-{stage}.txt").write_text(text, encoding="utf-8")
    usable = hardware.table()[SLICES[name][0]].usable_bytes
    return Plan(
        slice=name,
        chips=len(devices),
        stage=stage,
        compile_seconds=seconds,
        rows=work.rows or (work.decoding.rows if work.decoding else 0),
        fits=held <= usable,
        bytes_per_chip=held,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        analytic_bytes=need.bytes_per_device(layout.row_shards, layout.sharing(work.network)),
        usable_bytes=usable,
        collectives=collectives.bytes_sent(text, config.data.target_length),
    )


def _lowered_update(config: RunConfig, work: StageWork, mesh: Mesh) -> Any:
    """The update that `train.loop` compiles, on shapes alone."""
    import jax
    import jax.numpy as jnp

    from dora_jax.parallel import partitioning
    from dora_jax.train import step
    from dora_jax.train.optim import make_optimizer

    assert work.train is not None
    optimizer = make_optimizer(work.train.optimizer, work.train.train_steps)
    shardings = step.state_shardings(work.network, optimizer, mesh)
    params = step.abstract_params(work.network, mesh)
    counters: tuple[Any, Any] = (
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.uint32),
    )
    opt_state = jax.eval_shape(optimizer.init, params)
    state = step.TrainState(counters[0], params, opt_state, counters[1])
    batch = _batch(config, work, jnp)
    train_step = step.make_train_step(step.make_loss_fn(work.network, work.train), optimizer)
    batch_sharding = jax.tree.map(lambda _: partitioning.batch_sharding(mesh), batch)
    jitted = jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding),
        out_shardings=(shardings, partitioning.replicated(mesh)),
        donate_argnums=0,
    )
    with partitioning.split_over(mesh):
        return jitted.lower(state, batch)


def _batch(config: RunConfig, work: StageWork, jnp: Any) -> Any:
    import jax

    from dora_jax.shapes import Seq2SeqBatch

    def side(length: int, dtype: Any = jnp.int32, *rest: int) -> Any:
        return jax.ShapeDtypeStruct((work.rows, length, *rest), dtype)

    source, target = side(work.source_length), side(work.target_length)
    soft: tuple = (None, None, None)
    if work.stage == "distill":
        label, length = config.label, work.target_length
        soft = (
            side(length, jnp.int32, label.top_k),
            side(length, jnp.float16, label.top_k),
            side(length, jnp.float32, len(label.temperatures)),
        )
    weights = side(work.target_length, jnp.float32)
    return Seq2SeqBatch(source, source, source, target, target, target, target, weights, *soft)


def _lowered_labelling(config: RunConfig, work: StageWork, mesh: Mesh) -> Any:
    """The teacher's pass over one batch, as `predict.label` runs it."""
    import jax
    import jax.numpy as jnp

    from dora_jax.model.decode import greedy_label
    from dora_jax.parallel import partitioning
    from dora_jax.train import step

    assert work.decoding is not None
    label = config.label
    tokens_BS = jax.ShapeDtypeStruct(
        (work.decoding.rows, config.data.source_length),
        jnp.int32,
        sharding=partitioning.batch_sharding(mesh),
    )
    params = step.abstract_params(work.network, mesh)
    with partitioning.split_over(mesh):
        return greedy_label.lower(
            work.network,
            params,
            tokens_BS,
            config.data.target_length,
            label.top_k,
            label.temperatures,
            label.no_repeat_ngram_size,
        )


if __name__ == "__main__":
    sys.exit(main())
