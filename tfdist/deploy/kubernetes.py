"""A job for Kubernetes itself: a Job for each task, and a headless Service for their names."""

from __future__ import annotations

from typing import Any

from tfdist.deploy.deployment import PORT, WORKING_DIR, Deployment, host_of
from tfdist.deploy.yaml_text import yaml_text
from tfdist.task import Task

_USER = 10001  # of the image that docker/Dockerfile makes

POLICY_LINES = (
    "A TensorFlow server obeys whoever reaches it. The NetworkPolicy closes its port to all",
    "but the pods of the job, if the network of your cluster enforces such policies: try it.",
)


def kubernetes_manifest(job: Deployment) -> str:
    """The text of a manifest."""
    labels = {"app.kubernetes.io/name": "tfdist", "app.kubernetes.io/instance": job.name}
    documents = [
        network_policy(job, labels),
        _service(job, labels),
        volume_claim(job, labels, "ReadWriteOnce"),
        *(_job(job, task, labels) for task in job.tasks(f".{job.name}")),
    ]
    return yaml_text(_header(job), documents)


def network_policy(job: Deployment, labels: dict[str, str]) -> dict[str, Any]:
    """Lets only the pods of the job reach one another, at TensorFlow's port alone."""
    own = {"podSelector": {"matchLabels": labels}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": job.name, "labels": labels},
        "spec": {
            **own,
            "policyTypes": ("Ingress",),
            "ingress": [{"from": [own], "ports": [{"port": PORT, "protocol": "TCP"}]}],
        },
    }


def volume_claim(job: Deployment, labels: dict[str, str], mode: str) -> dict[str, Any]:
    """A place for the checkpoints that outlives the job's pods."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{job.name}-checkpoints", "labels": labels},
        "spec": {"accessModes": (mode,), "resources": {"requests": {"storage": "10Gi"}}},
    }


def pod_spec(job: Deployment, container: dict[str, Any], *, keeps: bool) -> dict[str, Any]:
    """A pod that may do as little as a task needs.

    Args:
        job: whose task it is.
        container: what only this kind of job says of it.
        keeps: whether it has the folder of the checkpoints; else an empty one in its place.
    """
    claim = {"persistentVolumeClaim": {"claimName": f"{job.name}-checkpoints"}}
    return {
        "restartPolicy": "Never",
        # Whoever reaches a TensorFlow server may read the files of its pod.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                **container,
                "image": job.image,
                "command": tuple(_dollars(word) for word in job.command),
                "workingDir": WORKING_DIR,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ("ALL",)},
                },
                "volumeMounts": [
                    {"name": "checkpoints", "mountPath": job.checkpoints},
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
            }
        ],
        "volumes": [
            {"name": "checkpoints", **(claim if keeps else {"emptyDir": {}})},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _service(job: Deployment, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name, "labels": labels},
        "spec": {
            "clusterIP": "None",
            # Tasks look for one another before they are ready.
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": [{"name": "tensorflow", "port": PORT}],
        },
    }


def _job(job: Deployment, task: Task, labels: dict[str, str]) -> dict[str, Any]:
    host = host_of(task)
    own = {**labels, "app.kubernetes.io/component": host}
    container = {
        "name": "task",
        "env": [{"name": "TF_CONFIG", "value": _dollars(task.to_env())}],
        "ports": [{"name": "tensorflow", "containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 10},
    }
    names = {"hostname": host, "subdomain": job.name}
    pod = names | pod_spec(job, container, keeps=task.is_chief)
    # A pod that had to make room is started again, and its trainer finds its place. A ps would
    # have lost the variables.
    condition = {"type": "DisruptionTarget", "status": "True"}
    evicted = {"action": "Ignore", "onPodConditions": [condition]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{job.name}-{host}", "labels": own},
        "spec": {
            "backoffLimit": 0,
            **({"podFailurePolicy": {"rules": [evicted]}} if job.trains(task) else {}),
            "template": {"metadata": {"labels": own}, "spec": pod},
        },
    }


def _dollars(text: str) -> str:
    """`text` where $(NAME) is a variable."""
    return text.replace("$", "$$")


def _header(job: Deployment) -> list[str]:
    label = f"app.kubernetes.io/instance={job.name}"
    return [
        f"A job of {job.described()}, for Kubernetes: a Job for each task. Made by",
        f"  {job.made_by('kubernetes')}",
        "Start:  kubectl apply -f FILE",
        f"Watch:  kubectl get pods -l {label}; kubectl logs -f job/{job.name}-worker-0",
        "End:    kubectl delete -f FILE     (also when a task has failed: the ps go on; the",
        "        PersistentVolumeClaim goes with it, and the checkpoints with that)",
        *POLICY_LINES,
        "A Job fails with its first pod: `backoffLimit` is how often a task may be started again.",
        "Only the chief has the volume. Where other tasks need it too, let them claim it as well,",
        "with ReadWriteMany.",
    ]
