"""What schedulers are handed: goldens, what the shell makes of it, and what is refused."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from dora_jax.launch import run
from dora_jax.launch.cluster import kubernetes, skypilot, slurm, submit
from dora_jax.launch.cluster.job import Job, job_name

GOLDENS = Path(__file__).with_name("golden_jobs")
COMMAND = ("dora-jax", "run", "--gin_file=gin/wlp_distill.gin", "--gin.MODEL_DIR='/runs/it''s'")
ONE = Job("dora-wlp-distill", COMMAND, hosts=4, devices_per_host=8)
SWEEP = dataclasses.replace(
    ONE, command=(*COMMAND, "--gin.SEED={index}"), hosts=2, array_size=3, hours=1.51
)
ON_KUBERNETES = {"image": "registry/dora:1", "volume": "runs"}
JOBS = {
    "slurm.sh": slurm.render(dataclasses.replace(ONE, extra=("--partition=gpu",))),
    "slurm_sweep.sh": slurm.render(dataclasses.replace(SWEEP, accelerator="a100")),
    "jobset_gpu.json": kubernetes.render(
        dataclasses.replace(SWEEP, accelerator="nvidia-h100-80gb", spot=True, **ON_KUBERNETES)
    ),
    "jobset_tpu.json": kubernetes.render(
        dataclasses.replace(
            ONE, devices_per_host=4, accelerator="v5e", topology="4x4", **ON_KUBERNETES
        )
    ),
    "skypilot.yaml": skypilot.render(
        dataclasses.replace(ONE, accelerator="A100-80GB", spot=True, volume="gs://my-bucket")
    ),
    "skypilot_sweep.yaml": skypilot.render(
        dataclasses.replace(SWEEP, accelerator="H100", volume="gs://my-bucket"), index=2
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_rendered_as_its_golden(name: str) -> None:
    """A changed golden is a changed promise: check it with the scheduler (docs/scaling.md)."""
    assert JOBS[name] == (GOLDENS / name).read_text(encoding="utf-8")


# --- SLURM: the script is run by bash, with stand-ins for srun and scontrol


def run_script(
    text: str, folder: Path, status: int, **environment: str
) -> tuple[int, list[str], list[str]]:
    """The script's status, the words that srun got, and those that scontrol got."""
    for name, code in (("srun", status), ("scontrol", 0)):
        stand_in = folder / name
        stand_in.write_text(
            f'#!/bin/bash\nprintf "%s\\n" "$@" > {folder}/{name}.words\nexit {code}'
        )
        stand_in.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", text], env={"PATH": path, "SLURM_JOB_ID": "7", **environment}, check=False
    )
    words = [folder / f"{name}.words" for name in ("srun", "scontrol")]
    srun, scontrol = (file.read_text().splitlines() if file.exists() else [] for file in words)
    return ended.returncode, srun, scontrol


def test_the_script_runs_the_very_command(tmp_path: Path) -> None:
    status, srun, scontrol = run_script(
        JOBS["slurm_sweep.sh"], tmp_path, 0, SLURM_ARRAY_TASK_ID="2"
    )
    assert srun == ["--kill-on-bad-exit=0", *COMMAND, "--gin.SEED=2", "--distributed"]
    assert (status, scontrol) == (0, [])


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(75, "", True), (75, "19", True), (75, "20", False), (2, "", False), (137, "", False)],
)
def test_only_a_run_that_can_go_on_is_queued_again(
    tmp_path: Path, status: int, restarts: str, requeued: bool
) -> None:
    environment = {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    ended, _, scontrol = run_script(JOBS["slurm.sh"], tmp_path, status, **environment)
    assert ended == status
    assert scontrol == (["requeue", "7"] if requeued else [])


def test_a_time_limit_is_rounded_up_to_minutes() -> None:
    assert "#SBATCH --time=1:31:00\n" in JOBS["slurm_sweep.sh"]  # 1.51 hours


# --- Kubernetes


def test_every_host_of_a_replica_finds_its_own_first_host() -> None:
    jobset = json.loads(JOBS["jobset_gpu.json"])
    [replicated] = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 3
    spec = replicated["template"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (2, 2)
    [container] = spec["template"]["spec"]["containers"]
    *command, seed, coordinator, count, process = container["command"]
    assert tuple(command) == COMMAND
    assert seed == "--gin.SEED=$(RUN_INDEX)"
    name, replica = jobset["metadata"]["name"], f"{replicated['name']}-$(RUN_INDEX)"
    assert coordinator == f"--coordinator_address={name}-{replica}-0.{name}:8476"
    assert (count, process) == ("--num_processes=2", "--process_id=$(JOB_COMPLETION_INDEX)")


def test_kubernetes_variables_in_a_command_stay_text() -> None:
    job = dataclasses.replace(ONE, command=("run", "--x=$(HOME)"), **ON_KUBERNETES)
    assert '"--x=$$(HOME)"' in kubernetes.render(job)


@pytest.mark.parametrize("field", ["image", "volume", "topology"])
def test_what_a_jobset_needs_is_asked_for(field: str) -> None:
    whole = {**ON_KUBERNETES, "topology": "4x4", "accelerator": "v5e"}
    with pytest.raises(ValueError, match=f"needs --{field}="):
        kubernetes.render(dataclasses.replace(ONE, **{**whole, field: ""}))


# --- The job, and the flags


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "Not_a_name"}, "job name 'Not_a_name'"),
        ({"hosts": 0}, "hosts = 0"),
        ({"hours": 0.03}, "hours = 0.03 is no longer than the 120 seconds"),
        ({"array_size": 2}, "does not hold {index}"),
        ({"command": ("run", "--seed={index}")}, "holds {index}, and array_size is 0"),
        ({"command": ("run", "a\nb")}, "line break"),
    ],
)
def test_a_job_that_cannot_be_is_refused(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(ONE, **changes)


@pytest.mark.parametrize(
    ("gin_file", "name"),
    [
        ("gin/wlp_distill.gin", "dora-wlp-distill"),
        ("/a/My Task__v2.gin", "dora-my-task-v2"),
        ("_.gin", "dora-run"),
    ],
)
def test_a_job_is_named_after_its_gin_file(gin_file: str, name: str) -> None:
    assert job_name(gin_file) == name


def dry_run(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    arguments = ["--gin_file=gin/wlp_distill.gin", "--gin.SEED=3", "--dry_run", *flags]
    assert run.main(arguments) == 0
    return capsys.readouterr().out


def test_dry_run_prints_the_script_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out = dry_run(capsys, "--cluster=slurm", "--hosts", "4", "--cluster_option=--account=me")
    assert "#SBATCH --nodes=4\n" in out
    assert "#SBATCH --account=me\n" in out
    [line] = [line for line in out.splitlines() if line.startswith("srun")]
    words = shlex.split(line)
    assert words[-3:] == ["--gin_file=gin/wlp_distill.gin", "--gin.SEED=3", "--distributed"]
    assert Path(words[2]).name.startswith("python")


def test_elsewhere_the_installed_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    out = dry_run(capsys, "--cluster=skypilot", "--spot")
    assert "  dora-jax run --gin_file=gin/wlp_distill.gin --gin.SEED=3\n" in out
    assert "use_spot: true" in out


def test_a_worker_of_a_sweep_is_one_host() -> None:
    parser = argparse.ArgumentParser()
    submit.add_flags(parser)
    parser.set_defaults(gin_file="my.gin")
    program, sweep = ["python", "launch/sweep.py"], ["--gin_file=my.gin", "--worker={index}"]
    job = submit.job_of(parser.parse_args(["--cluster=slurm"]), program, sweep, array_size=4)
    assert "#SBATCH --array=0-3\n" in slurm.render(job)
    flags = parser.parse_args(["--cluster=slurm", "--hosts=2"])
    with pytest.raises(ValueError, match="--hosts=2: each worker of a sweep is one host"):
        submit.job_of(flags, program, sweep, array_size=4)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--hosts=4"], "--hosts is for --cluster="),
        (["--dry_run"], "--dry_run is for --cluster="),
        (["--cluster=slurm", "--image=x"], "--image says nothing to --cluster=slurm"),
        (["--cluster=kubernetes", "--hours=3"], "--hours says nothing to --cluster=kubernetes"),
        (["--cluster=slurm", "--gin.TRAIN_STEPS=-1"], "train_steps"),
        (["--num_processes=2"], "--num_processes needs --coordinator_address and --process_id"),
        (
            ["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 with --num_processes=2",
        ),
        (
            ["--coordinator_address=a", "--num_processes=2", "--process_id=0"],
            "--coordinator_address=a; expected HOST:PORT",
        ),
    ],
)
def test_flags_that_mean_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    assert run.main(["--gin_file=gin/wlp_distill.gin", *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_scheduler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="submits with 'sbatch', which is not installed"):
        submit.launch("slurm", ONE, dry_run=False)


def test_a_job_reaches_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins that keep what they are given; SkyPilot's gets a job for each run of a sweep."""
    for name in ("sbatch", "sky"):
        client = tmp_path / name
        client.write_text(
            f'#!/bin/bash\nfor file; do :; done\ncat "${{file:--}}" >> {tmp_path}/{name}.got'
        )
        client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert submit.launch("slurm", ONE, dry_run=False) == 0
    assert (tmp_path / "sbatch.got").read_text() == slurm.render(ONE)
    sweep = dataclasses.replace(SWEEP, accelerator="H100")
    assert submit.launch("skypilot", sweep, dry_run=False) == 0
    got = (tmp_path / "sky.got").read_text()
    assert got == "".join(skypilot.render(sweep, index) for index in range(3))
