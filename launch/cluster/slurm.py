"""A SLURM batch script: one task a host, warned before its end, queued again to go on."""

from __future__ import annotations

import math

from dora_jax.launch.cluster.job import Job, shell_words
from dora_jax.launch.command_line import EXIT_INTERRUPTED

SUBMIT = ("sbatch",)  # reads the script from stdin


def render(job: Job) -> str:
    """The batch script of a job.

    JAX finds the hosts by SLURM's own variables. `--signal` warns every task before the time is
    over; so do preemption and `scancel`. A run that saved itself ends with 75, and the script
    queues the same job again, under the same number. The run directory must lie on a disk that
    all hosts share.
    """
    minutes = math.ceil(job.hours * 60)
    lines = [
        f"--job-name={job.name}",
        f"--nodes={job.hosts}",
        "--ntasks-per-node=1",
        "--exclusive",
        f"--time={minutes // 60}:{minutes % 60:02}:00",
        f"--signal=TERM@{job.warning_seconds}",
        "--requeue",
        "--open-mode=append",
        f"--output={'%x-%A_%a.out' if job.array_size else '%x-%j.out'}",
    ]
    if job.devices_per_host:
        kind = f"{job.accelerator}:" if job.accelerator else ""
        lines.insert(3, f"--gpus-per-node={kind}{job.devices_per_host}")
    if job.array_size:
        lines.append(f"--array=0-{job.array_size - 1}")
    options = "\n".join(f"#SBATCH {line}" for line in (*lines, *job.extra))
    hosts = " --distributed" if job.hosts > 1 else ""
    command = shell_words(job.command, "${SLURM_ARRAY_TASK_ID}")
    return f"""#!/bin/bash
{options}

# One host that ends must not take the others with it before they have said why.
srun --kill-on-bad-exit=0 {command}{hosts}
status=$?
restarts=${{SLURM_RESTART_COUNT:-0}}
# {EXIT_INTERRUPTED}: saved, or a host was lost; the same command goes on.
if [ "$status" -eq {EXIT_INTERRUPTED} ] && [ "$restarts" -lt {job.restarts} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
