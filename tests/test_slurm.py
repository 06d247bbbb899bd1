"""A real SLURM of one node, started in the test's own folder, runs and resumes two processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import manifest_of, read_rows
from whole_runs import OF_HOSTS, SCRIPT, Place, free_port

from dora_jax.cost.ledger import Ledger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.multihost,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("munged", "slurmctld", "slurmd", "sbatch")),
        reason="needs SLURM: apt-get install slurm-wlm",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd starts jobs, which needs root"),
]
HOST = socket.gethostname().partition(".")[0]
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's clients talk to this SLURM."""
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)  # munged insists
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    configuration = CONFIGURATION.format(
        host=HOST,
        folder=folder,
        controller_port=free_port(),
        node_port=free_port(),
        cpus=os.cpu_count(),
    )
    (folder / "slurm.conf").write_text(configuration, encoding="utf-8")
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
    files |= {"log-file": "munged.log", "seed-file": "munge.seed"}
    munge = [f"--{flag}={folder / name}" for flag, name in files.items()]
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    try:
        subprocess.run(["munged", "--force", *munge], check=True)
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon], env=environment, check=True)
        yield environment
    finally:
        for daemon in ("slurmd", "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / f"{daemon}.pid").read_text()), signal.SIGTERM)


def ask(environment: dict[str, str], *command: str) -> str:
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def submit(place: Place, environment: dict[str, str], name: str, *options: str) -> str:
    """Hands a run to SLURM by our own command line; returns the job's number."""
    (place.folder / "logs").mkdir(exist_ok=True)
    lines = ["--nodes=1", "--ntasks-per-node=2", f"--output={place.folder}/logs/{name}", *options]
    flags = ["--cluster=slurm", "--hosts=2", *(f"--cluster_option={line}" for line in lines)]
    command = [sys.executable, str(SCRIPT), *place.arguments(name), *flags]
    environment = environment | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    told = ask(environment | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}, *command)
    return told.split()[-1]


def state(environment: dict[str, str], job: str) -> str:
    fields = ask(environment, "scontrol", "--oneliner", "show", "job", job)
    return fields.partition("JobState=")[2].split()[0]


def test_a_warned_run_is_queued_again_and_ends(
    slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = Place(tmp_path_factory.mktemp("runs"), 8, OF_HOSTS)
    place.make_store()
    job = submit(place, slurm, "job")
    log, until = place.folder / "logs" / "job", time.monotonic() + 500

    def wait(what: str, is_so: bool) -> None:
        told = log.read_text(encoding="utf-8") if log.exists() else "nothing"
        assert time.monotonic() < until, f"no {what} in time; the job told: {told}"
        assert state(slurm, job) not in ("FAILED", "NODE_FAIL", "TIMEOUT"), told
        if not is_so:
            time.sleep(0.5)

    while not (begun := any((place.folder / "job" / "teach" / "checkpoints").glob("3"))):
        wait("checkpoint", begun)
    ask(slurm, "scancel", "--signal=TERM", job)  # to the tasks, as --signal sends it
    while not (saved := "what was done is saved" in log.read_text(encoding="utf-8")):
        wait("message", saved)
    while state(slurm, job) not in ("PENDING", "COMPLETED"):
        wait("requeue", False)
    # A job queued again waits two minutes by itself. Not at once, though: slurmd knows its jobs'
    # credentials by seconds, and would take one of this second for that of the job that ended.
    ask(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now+3")
    while not (ended := state(slurm, job) == "COMPLETED"):
        wait("end", ended)
    told = log.read_text(encoding="utf-8")
    assert f"2 hosts: {HOST}, {HOST}" in told
    assert told.count("student, distill") == 1
    outputs = manifest_of(place.folder / "job", "distill")["outputs"]
    assert outputs["best_step"] > 0
    rows = Ledger(place.folder / "job" / "ledger.jsonl").rows()
    assert {row.devices_held for row in rows if row.devices_held} == {2}
    steps = [row["step"] for row in read_rows(place.folder / "job" / "teach" / "metrics.jsonl")]
    assert steps == sorted(steps)


@pytest.mark.parametrize("options", [(), ("--array=0-2",)])
def test_sbatch_takes_the_script(
    slurm: dict[str, str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    script = ask(
        slurm,
        sys.executable,
        str(SCRIPT),
        "--gin_file=gin/wlp_distill.gin",
        "--cluster=slurm",
        "--dry_run",
        *(f"--cluster_option={option}" for option in options),
    )
    file = tmp_path / "job.sh"
    file.write_text(script, encoding="utf-8")
    told = subprocess.run(
        ["sbatch", "--test-only", str(file)], env=slurm, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert f"on nodes {HOST} in partition all" in told.stderr
