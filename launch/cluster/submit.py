"""`--cluster`: the flags, the job they describe, and its way to the scheduler."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dora_jax.launch.cluster import kubernetes, skypilot, slurm
from dora_jax.launch.cluster.job import Job, job_name

CLUSTERS = ("slurm", "kubernetes", "skypilot")
# Flags that choose where a run goes, and so are not part of what it is, with their defaults.
_DEFAULTS = {
    "dry_run": False,
    "hosts": 1,
    "accelerator": "",
    "devices_per_host": 0,
    "hours": 24.0,
    "spot": False,
    "image": "",
    "volume": "",
    "topology": "",
    "job_name": "",
    "cluster_option": [],
}


# Flags that not every scheduler has a word for.
_ONLY_OF = {
    "hours": ("slurm",),
    "spot": ("kubernetes", "skypilot"),
    "image": ("kubernetes",),
    "topology": ("kubernetes",),
    "volume": ("kubernetes", "skypilot"),
    "cluster_option": ("slurm", "skypilot"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that hand a run to a scheduler."""
    group = parser.add_argument_group("to hand the run to a scheduler")
    group.add_argument("--cluster", choices=CLUSTERS, help="submit it there, by its own client")
    group.add_argument("--dry_run", action="store_true", help="print what would be submitted")
    group.add_argument("--hosts", type=int, metavar="N", help="how many (default 1)")
    group.add_argument("--devices_per_host", type=int, metavar="N", help="accelerators (default 0)")
    group.add_argument("--accelerator", metavar="NAME", help="as the scheduler calls it")
    group.add_argument("--hours", type=float, help="time limit (SLURM; default 24)")
    group.add_argument("--spot", action="store_true", help="machines that may be taken away")
    group.add_argument("--image", help="container image (Kubernetes)")
    group.add_argument("--volume", help="claim (Kubernetes) or bucket (SkyPilot) for the runs")
    group.add_argument("--topology", help="of a TPU slice, such as 4x4 (Kubernetes)")
    group.add_argument("--job_name", metavar="NAME", help="default: after the gin file")
    group.add_argument(
        "--cluster_option",
        action="append",
        metavar="LINE",
        help="one more option: of sbatch (--partition=gpu), or a line of SkyPilot's resources",
    )
    parser.set_defaults(**_DEFAULTS)


def job_of(
    flags: argparse.Namespace,
    program: Sequence[str],
    arguments: Sequence[str],
    array_size: int = 0,
) -> Job:
    """The job that a command line with `--cluster` describes.

    Args:
      flags: of `add_flags`, and `gin_file`.
      program: what runs on each host; where a container or a fresh machine runs it, the
        installed `dora-jax` takes the place of this machine's Python.
      arguments: the command line; the flags that choose the place are left out.
      array_size: runs of a sweep; one of the arguments then holds `{index}`.

    Raises:
      ValueError: a flag is out of its range, or of another scheduler.
    """
    for name in _given(flags):
        known = _ONLY_OF.get(name, CLUSTERS)
        if flags.cluster not in known:
            raise ValueError(
                f"--{name} says nothing to --cluster={flags.cluster}; it is for "
                f"{' and '.join(known)}. Leave it out; what else the scheduler knows can be "
                "written into the job that --dry_run prints."
            )
    if array_size and flags.hosts > 1:
        raise ValueError(
            f"--hosts={flags.hosts}: each worker of a sweep is one host. Leave it out, and set "
            "--workers to as many as there are."
        )
    if flags.cluster != "slurm":
        program = ("dora-jax", Path(program[-1]).stem)  # of run.py, or of `dora-jax run`
    return Job(
        name=flags.job_name or job_name(flags.gin_file),
        command=(*program, *what_runs(arguments)),
        hosts=flags.hosts,
        devices_per_host=flags.devices_per_host,
        accelerator=flags.accelerator,
        hours=flags.hours,
        array_size=array_size,
        spot=flags.spot,
        image=flags.image,
        topology=flags.topology,
        volume=flags.volume,
        extra=tuple(flags.cluster_option),
    )


def require_cluster(flags: argparse.Namespace) -> None:
    """Refuses flags that would be of no effect, since no scheduler is named."""
    for name in _given(flags):
        raise ValueError(f"--{name} is for --cluster={'|'.join(CLUSTERS)}, which is not given.")


def _given(flags: argparse.Namespace) -> list[str]:
    """The flags of a job that differ from their defaults."""
    return [name for name, default in _DEFAULTS.items() if getattr(flags, name) != default]


def what_runs(arguments: Sequence[str]) -> list[str]:
    """A command line without the flags that choose the place, in both of their spellings."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and name[2:] in ("cluster", *_DEFAULTS)):
            kept.append(word)
        elif not equals and name not in ("--dry_run", "--spot"):
            next(words, None)  # its value
    return kept


def launch(cluster: str, job: Job, dry_run: bool) -> int:
    """Prints a job as its scheduler takes it, or submits it. Returns the client's exit status.

    Raises:
      ValueError: the scheduler's client is not installed here.
    """
    if cluster == "skypilot":
        texts = [skypilot.render(job, index) for index in range(max(job.array_size, 1))]
        client = skypilot.SUBMIT
    elif cluster == "kubernetes":
        texts, client = [kubernetes.render(job)], kubernetes.SUBMIT
    else:
        texts, client = [slurm.render(job)], slurm.SUBMIT
    if dry_run:
        sys.stdout.write("---\n".join(texts))
        return 0
    if shutil.which(client[0]) is None:
        raise ValueError(
            f"--cluster={cluster} submits with {client[0]!r}, which is not installed here. Submit "
            "from a machine that has it, or print the job with --dry_run."
        )
    return max(_submit(cluster, client, text) for text in texts)


def _submit(cluster: str, client: Sequence[str], text: str) -> int:
    if cluster != "skypilot":
        return subprocess.run(client, input=text, text=True, check=False).returncode
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:  # sky reads files alone
        file.write(text)
        file.flush()
        return subprocess.run([*client, file.name], check=False).returncode
