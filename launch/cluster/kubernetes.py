"""A Kubernetes JobSet, for GPUs and for TPUs on GKE.

Source: jobset.sigs.k8s.io, API jobset.x-k8s.io/v1alpha2; cloud.google.com/kubernetes-engine,
"Deploy TPU workloads in GKE".
"""

from __future__ import annotations

import json
from typing import Any

from dora_jax.launch.cluster.job import INDEX, PORT, TPUS, Job

SUBMIT = ("kubectl", "create", "-f", "-")
_RUN_INDEX = "RUN_INDEX"


def render(job: Job) -> str:
    """The JobSet as JSON, which every reader of YAML reads too.

    A run of a sweep is a replica with hosts of its own. Where one pod fails, the whole set is
    made anew and finds its place, `restarts` times at most. The run directory lies on `volume`, a
    claim that many pods may write.

    Raises:
      ValueError: there is no image, volume or, for TPUs, topology.
    """
    _require(job, "image", "--image=REPOSITORY/IMAGE:TAG, with dora_jax installed")
    _require(job, "volume", "--volume=CLAIM, a PersistentVolumeClaim that many pods may write")
    if job.accelerator in TPUS:
        _require(job, "topology", "--topology=4x4, the slice of chips")
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.warning_seconds,
        **_nodes(job),
        "containers": [_container(job)],
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": job.volume}}],
    }
    hosts_of_a_run = {
        "parallelism": job.hosts,
        "completions": job.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    replicated = {
        "name": "run",
        "replicas": max(job.array_size, 1),
        "template": {"spec": hosts_of_a_run},
    }
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name},
        "spec": {
            "failurePolicy": {"maxRestarts": job.restarts},
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [replicated],
        },
    }
    return json.dumps(manifest, indent=2) + "\n"


def _require(job: Job, field: str, flag: str) -> None:
    if not getattr(job, field):
        raise ValueError(f"A Kubernetes job needs {flag}.")


def _nodes(job: Job) -> dict[str, Any]:
    selector = {}
    if job.accelerator in TPUS:
        selector["cloud.google.com/gke-tpu-accelerator"] = TPUS[job.accelerator][0]
        selector["cloud.google.com/gke-tpu-topology"] = job.topology
    elif job.accelerator:
        selector["cloud.google.com/gke-accelerator"] = job.accelerator
    if job.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    return {"nodeSelector": selector} if selector else {}


def _container(job: Job) -> dict[str, Any]:
    # Kubernetes puts variables in the place of $(NAME), and $( in the place of $$(.
    words = [word.replace("$(", "$$(").replace(INDEX, f"$({_RUN_INDEX})") for word in job.command]
    resource = "google.com/tpu" if job.accelerator in TPUS else "nvidia.com/gpu"
    container: dict[str, Any] = {
        "name": "run",
        "image": job.image,
        "command": words + _finding_hosts(job),
        "workingDir": job.shared_folder,
        "volumeMounts": [{"name": "runs", "mountPath": job.shared_folder}],
        "env": [
            {
                "name": _RUN_INDEX,
                "valueFrom": {
                    "fieldRef": {
                        "fieldPath": "metadata.annotations['jobset.sigs.k8s.io/job-index']"
                    }
                },
            }
        ],
    }
    if job.devices_per_host:
        container["resources"] = {"limits": {resource: job.devices_per_host}}
    return container


def _finding_hosts(job: Job) -> list[str]:
    if job.hosts == 1:
        return []
    if job.accelerator in TPUS:
        return ["--distributed"]  # GKE tells every pod of a slice its place
    first = f"{job.name}-run-$({_RUN_INDEX})-0.{job.name}"
    return [
        f"--coordinator_address={first}:{PORT}",
        f"--num_processes={job.hosts}",
        "--process_id=$(JOB_COMPLETION_INDEX)",  # Kubernetes sets it in every pod of such a job
    ]
