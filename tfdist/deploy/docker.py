"""A job for docker: a compose file for one machine, or a stack file for a swarm."""

from __future__ import annotations

from typing import Any

from tfdist.deploy.deployment import (
    MERGE,
    WORKING_DIR,
    Anchored,
    Deployment,
    host_of,
    yaml_text,
)
from tfdist.task import Task


def compose_file(job: Deployment) -> str:
    """The text of a compose file: all tasks on one machine."""
    healthcheck = {
        "test": ("CMD", "tfdist", "status", "--local"),
        "interval": "10s",
        "timeout": "10s",
        "retries": 3,
        "start_period": "2m",  # a trainer's server starts when the script starts it
    }
    own = {"tmpfs": ("/tmp",), "security_opt": ("no-new-privileges:true",)}
    task = Anchored("task", _task_settings(job) | own | {"healthcheck": healthcheck})
    services = {
        host_of(each): {MERGE: task, **_identity(each), **_depends_on(job, each)}
        for each in job.tasks()
    }
    document = {
        "x-task": task,
        "services": services,
        "networks": {"cluster": {"internal": True}},
        "volumes": {"checkpoints": None},
    }
    header = [
        f"A job of {job.described()}, all on one machine. Written by",
        f"  {job.made_by('compose')}",
        "Start:  docker compose -f FILE up --abort-on-container-failure",
        "End:    docker compose -f FILE down          (--volumes also deletes the checkpoints)",
        "The network is internal: a TensorFlow server runs any graph that it receives.",
        f"A task may write to {job.checkpoints}, which all tasks share, and to its own /tmp.",
    ]
    return yaml_text(header, [document])


def stack_file(job: Deployment) -> str:
    """The text of a stack file for docker swarm."""
    settings = _task_settings(job)
    own = {
        # `docker stack deploy` ignores the key `tmpfs` without a message.
        "volumes": [*settings["volumes"], {"type": "tmpfs", "target": "/tmp"}],
        # Swarm hides the name of an unhealthy task, and replaces the task.
        "healthcheck": {"disable": True},
        "deploy": {
            # The name resolves to the task itself. Swarm's virtual address would drop a connection
            # that is idle for 15 minutes, and neither end would notice.
            "endpoint_mode": "dnsrr",
            "replicas": 1,
            "restart_policy": {"condition": "none"},
        },
    }
    task = Anchored("task", settings | own)
    document = {
        "version": "3.8",  # `docker stack deploy` requires one
        "x-task": task,
        "services": {host_of(each): {MERGE: task, **_identity(each)} for each in job.tasks()},
        "networks": {"cluster": {"driver": "overlay", "internal": True}},
        "volumes": {"checkpoints": None},
    }
    header = [
        f"A job of {job.described()}, for docker swarm. Written by",
        f"  {job.made_by('swarm')}",
        "Start:  docker stack deploy -c FILE JOB",
        "Watch:  docker stack ps JOB; docker service logs --follow JOB_worker-0",
        "End:    docker stack rm JOB                  (also after a successful run)",
        "The network is internal: a TensorFlow server runs any graph that it receives.",
        "No healthcheck: swarm hides the name of a task until the task is healthy.",
        "dnsrr: swarm's virtual address would drop idle connections without an error.",
        "Each machine has its own volume, so only the chief's files stay together. If other tasks",
        "read or write them, or the chief may move, add `driver_opts` for a file server.",
    ]
    return yaml_text(header, [document])


def _task_settings(job: Deployment) -> dict[str, Any]:
    """What compose and swarm set alike for every task."""
    source = () if job.source is None else (f"{_dollars(_path(job.source))}:{WORKING_DIR}:ro",)
    return {
        "image": _dollars(job.image),
        "command": tuple(_dollars(word) for word in job.command),
        "working_dir": WORKING_DIR,
        "init": True,
        "stop_grace_period": "10s",
        "read_only": True,
        "cap_drop": ("ALL",),
        "networks": ("cluster",),
        "volumes": [*source, f"checkpoints:{_dollars(job.checkpoints)}"],
    }


def _identity(task: Task) -> dict[str, Any]:
    return {"hostname": host_of(task), "environment": {"TF_CONFIG": task.to_env()}}


def _depends_on(job: Deployment, task: Task) -> dict[str, Any]:
    """Makes compose stop the trainers before the servers; a trainer waits for its ps by itself."""
    servers = tuple(host_of(other) for other in job.tasks() if not job.trains(other))
    return {"depends_on": servers} if servers and job.trains(task) else {}


def _path(folder: str) -> str:
    """`folder` in a form that compose does not read as the name of a volume."""
    return folder if folder.startswith((".", "/", "~")) else f"./{folder}"


def _dollars(text: str) -> str:
    """`text` with each dollar doubled, because compose replaces $NAME and ${NAME}."""
    return text.replace("$", "$$")
