"""A job for Kubernetes: plain Jobs, or a TFJob for Kubeflow's training operator."""

from __future__ import annotations

from typing import Any

from tfdist.deploy.deployment import PORT, WORKING_DIR, Deployment, host_of, yaml_text
from tfdist.task import Task

_USER = 10001  # the user of the image that docker/Dockerfile builds

_POLICY_LINES = (
    "A TensorFlow server runs any graph that it receives. The NetworkPolicy admits only the pods",
    "of this job to its port, if your cluster's network enforces policies: test it.",
)


def kubernetes_manifest(job: Deployment) -> str:
    """The text of a manifest: a Job for each task, and a headless Service for their names."""
    labels = {"app.kubernetes.io/name": "tfdist", "app.kubernetes.io/instance": job.name}
    documents = [
        _network_policy(job, labels),
        _service(job, labels),
        _volume_claim(job, labels, "ReadWriteOnce"),
        *(_job(job, task, labels) for task in job.tasks(f".{job.name}")),
    ]
    label = f"app.kubernetes.io/instance={job.name}"
    header = [
        f"A job of {job.described()}, for Kubernetes: a Job for each task. Written by",
        f"  {job.made_by('kubernetes')}",
        "Start:  kubectl apply -f FILE",
        f"Watch:  kubectl get pods -l {label}; kubectl logs -f job/{job.name}-worker-0",
        "End:    kubectl delete -f FILE     (also after a task has failed, because the ps keep",
        "        running; this deletes the PersistentVolumeClaim and the checkpoints in it)",
        *_POLICY_LINES,
        "A Job fails when its first pod fails; `backoffLimit` is how often a task may restart.",
        "Only the chief mounts the volume. If other tasks need it too, add the claim to them, with",
        "ReadWriteMany.",
    ]
    return yaml_text(header, documents)


def tfjob_manifest(job: Deployment) -> str:
    """The text of a manifest for Kubeflow's training operator, which sets TF_CONFIG itself."""
    labels = {"training.kubeflow.org/job-name": job.name}  # the operator puts it on each pod
    # Without a chief worker 0 saves, and the operator makes all workers from one template.
    many = not job.shape.num_chiefs and job.shape.num_workers > 1
    documents = [
        _network_policy(job, labels),
        _volume_claim(job, labels, "ReadWriteMany" if many else "ReadWriteOnce"),
        _tfjob(job),
    ]
    header = [
        f"A job of {job.described()}, for Kubeflow's training operator (TFJob). Written by",
        f"  {job.made_by('tfjob')}",
        "Start:  kubectl apply -f FILE",
        f"Watch:  kubectl get tfjob {job.name}; kubectl logs -f {job.name}-worker-0",
        "End:    kubectl delete -f FILE     (this deletes the PersistentVolumeClaim and the",
        "        checkpoints in it)",
        *_POLICY_LINES,
    ]
    if many:
        header += ["Worker 0 saves, but all workers have one template, so the volume has to be"]
        header += ["ReadWriteMany. With a chief, only the chief would mount it."]
    if job.shape.num_chiefs:
        header += ["The job is over when its chief ends; the operator then ends the other tasks."]
    return yaml_text(header, documents)


def _network_policy(job: Deployment, labels: dict[str, str]) -> dict[str, Any]:
    """Admits only the pods of this job, and only to TensorFlow's port."""
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


def _volume_claim(job: Deployment, labels: dict[str, str], mode: str) -> dict[str, Any]:
    """A volume for the checkpoints that outlives the job's pods."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{job.name}-checkpoints", "labels": labels},
        "spec": {"accessModes": (mode,), "resources": {"requests": {"storage": "10Gi"}}},
    }


def _pod_spec(job: Deployment, container: dict[str, Any], *, keeps: bool) -> dict[str, Any]:
    """A pod with the least privileges that a task needs.

    Args:
        job: the job of the task.
        container: the keys that differ between the two formats.
        keeps: whether the pod mounts the volume of the checkpoints, or an empty folder instead.
    """
    claim = {"persistentVolumeClaim": {"claimName": f"{job.name}-checkpoints"}}
    return {
        "restartPolicy": "Never",
        # A client of a TensorFlow server can read the files of its pod, a token among them.
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
            # Tasks call one another before they are ready.
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
    pod = names | _pod_spec(job, container, keeps=task.is_chief)
    # An evicted trainer may restart, because it resumes where it was. A ps may not: its variables
    # are lost.
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
            # By default the operator ends the job when worker 0 ends.
            "successPolicy": "AllWorkers",
            "tfReplicaSpecs": {
                kind: _replicas(job, count, keeps=kind == keeper)
                for kind, count in counts.items()
                if count
            },
        },
    }


def _replicas(job: Deployment, count: int, *, keeps: bool) -> dict[str, Any]:
    # The operator requires these two names. No readinessProbe: the operator's services do not
    # publish the name of a pod that is not ready.
    container = {
        "name": "tensorflow",
        "ports": [{"name": "tfjob-port", "containerPort": PORT}],
    }
    spec = _pod_spec(job, container, keeps=keeps)
    del spec["restartPolicy"]  # the operator's own overrides it
    return {"replicas": count, "restartPolicy": "Never", "template": {"spec": spec}}


def _dollars(text: str) -> str:
    """`text` with each dollar doubled, because Kubernetes replaces $(NAME)."""
    return text.replace("$", "$$")
