"""A job for Kubeflow's training operator, which sets TF_CONFIG itself."""

from __future__ import annotations

from typing import Any

from tfdist.deploy.deployment import PORT, Deployment
from tfdist.deploy.kubernetes import (
    POLICY_LINES,
    network_policy,
    pod_spec,
    volume_claim,
)
from tfdist.deploy.yaml_text import yaml_text


def tfjob_manifest(job: Deployment) -> str:
    """The text of a manifest."""
    labels = {"training.kubeflow.org/job-name": job.name}  # which the operator gives each pod
    # Without a chief, worker 0 saves; and its pod is made like those of the other workers.
    many = not job.shape.num_chiefs and job.shape.num_workers > 1
    documents = [
        network_policy(job, labels),
        volume_claim(job, labels, "ReadWriteMany" if many else "ReadWriteOnce"),
        _tfjob(job),
    ]
    return yaml_text(_header(job, many), documents)


def _tfjob(job: Deployment) -> dict[str, Any]:
    shape = job.shape
    counts = {"PS": shape.num_ps, "Chief": shape.num_chiefs, "Worker": shape.num_workers}
    keeper = "Chief" if shape.num_chiefs else "Worker"
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": job.name},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "Running", "backoffLimit": 0},
            # Else the job would be over, and the others ended, when worker 0 is done.
            "successPolicy": "AllWorkers",
            "tfReplicaSpecs": {
                kind: _replicas(job, count, keeps=kind == keeper)
                for kind, count in counts.items()
                if count
            },
        },
    }


def _replicas(job: Deployment, count: int, *, keeps: bool) -> dict[str, Any]:
    # The operator looks for these two names. No readinessProbe: its services do not publish the
    # name of a pod that is not ready.
    container = {
        "name": "tensorflow",
        "ports": [{"name": "tfjob-port", "containerPort": PORT}],
    }
    spec = pod_spec(job, container, keeps=keeps)
    del spec["restartPolicy"]  # the operator's own overrides it
    return {"replicas": count, "restartPolicy": "Never", "template": {"spec": spec}}


def _header(job: Deployment, many: bool) -> list[str]:
    lines = [
        f"A job of {job.described()}, for Kubeflow's training operator (TFJob). Made by",
        f"  {job.made_by('tfjob')}",
        "Start:  kubectl apply -f FILE",
        f"Watch:  kubectl get tfjob {job.name}; kubectl logs -f {job.name}-worker-0",
        "End:    kubectl delete -f FILE     (the PersistentVolumeClaim goes with it, and the",
        "        checkpoints with that)",
        *POLICY_LINES,
    ]
    if many:
        lines += ["Worker 0 saves, but all workers are made alike, so the volume has to be one"]
        lines += ["that many machines may use (ReadWriteMany). A chief alone would have it."]
    if job.shape.num_chiefs:
        lines += ["The job is over when its chief is: the operator ends what still runs then."]
    return lines
