"""A SkyPilot task, for managed jobs that come back after a preemption."""

from __future__ import annotations

import json

from dora_jax.launch.cluster.job import PORT, Job, shell_words
from dora_jax.launch.command_line import EXIT_INTERRUPTED

SUBMIT = ("sky", "jobs", "launch", "--yes")
RUN_INDEX = "RUN_INDEX"


def render(job: Job, index: int = 0) -> str:
    """The task as YAML.

    Args:
      job: what to run; `volume` is a bucket such as gs://my-bucket, mounted at `shared_folder`.
      index: the number of the run in a sweep: SkyPilot has no arrays, so each is a job.

    Raises:
      ValueError: no accelerator is named.
    """
    if job.devices_per_host and not job.accelerator:
        raise ValueError("A SkyPilot job needs --accelerator=NAME, such as A100-80GB or H100.")
    text = json.dumps  # a YAML string in double quotes is a JSON string
    lines = [f"name: {job.name}{f'-{index}' if job.array_size else ''}", f"num_nodes: {job.hosts}"]
    lines += ["resources:", f"  use_spot: {'true' if job.spot else 'false'}", "  job_recovery:"]
    lines += [f"    max_restarts_on_errors: {job.restarts}"]
    lines += [f"    recover_on_exit_codes: [{EXIT_INTERRUPTED}]"]
    if job.devices_per_host:
        accelerators = text(f"{job.accelerator}:{job.devices_per_host}")
        lines.insert(3, f"  accelerators: {accelerators}")
    lines += [f"  {line}" for line in job.extra]
    lines += ["workdir: ."]
    if job.volume:
        lines += ["file_mounts:", f"  {text(job.shared_folder)}:"]
        lines += [f"    source: {text(job.volume)}", "    mode: MOUNT"]
    if job.array_size:
        lines += ["envs:", f'  {RUN_INDEX}: "{index}"']
    extra = "[cuda]" if job.devices_per_host else ""
    lines += ["setup: |", f"  pip install -c constraints.txt -e '.{extra}'", "run: |", "  set -eu"]
    hosts = ""
    if job.hosts > 1:
        lines += ['  first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)']
        hosts = (
            f' --coordinator_address="$first:{PORT}" --num_processes="$SKYPILOT_NUM_NODES"'
            ' --process_id="$SKYPILOT_NODE_RANK"'
        )
    lines += [f"  {shell_words(job.command, '${' + RUN_INDEX + '}')}{hosts}"]
    return "\n".join(lines) + "\n"
