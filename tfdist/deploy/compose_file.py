"""A job for docker compose: all tasks on this machine."""

from __future__ import annotations

from typing import Any

from tfdist.deploy.deployment import WORKING_DIR, Deployment, host_of
from tfdist.deploy.yaml_text import MERGE, Anchored, yaml_text
from tfdist.task import Task


def compose_file(job: Deployment) -> str:
    """The text of a compose file."""
    task = Anchored("task", _common(job))
    document = {
        "x-task": task,
        "services": {host_of(own): {MERGE: task, **_service(job, own)} for own in job.tasks()},
        "networks": {"cluster": {"internal": True}},
        "volumes": {"checkpoints": None},
    }
    return yaml_text(_header(job), [document])


def task_settings(job: Deployment) -> dict[str, Any]:
    """What compose and swarm have in common of what each task gets."""
    source = () if job.source is None else (f"{dollars(_path(job.source))}:{WORKING_DIR}:ro",)
    return {
        "image": dollars(job.image),
        "command": tuple(dollars(word) for word in job.command),
        "working_dir": WORKING_DIR,
        "init": True,
        "stop_grace_period": "10s",
        "read_only": True,
        "cap_drop": ("ALL",),
        "networks": ("cluster",),
        "volumes": [*source, f"checkpoints:{dollars(job.checkpoints)}"],
    }


def identity(task: Task) -> dict[str, Any]:
    """What makes a service this task."""
    return {"hostname": host_of(task), "environment": {"TF_CONFIG": task.to_env()}}


def _path(folder: str) -> str:
    """`folder` so that compose does not take it for the name of a volume."""
    return folder if folder.startswith((".", "/", "~")) else f"./{folder}"


def dollars(text: str) -> str:
    """`text` where a dollar begins the name of a variable."""
    return text.replace("$", "$$")


def _common(job: Deployment) -> dict[str, Any]:
    healthcheck = {
        "test": ("CMD", "tfdist", "status", "--local"),
        "interval": "10s",
        "timeout": "10s",
        "retries": 3,
        "start_period": "2m",  # the server of a trainer begins when the script lets it
    }
    own = {"tmpfs": ("/tmp",), "security_opt": ("no-new-privileges:true",)}
    return task_settings(job) | own | {"healthcheck": healthcheck}


def _service(job: Deployment, task: Task) -> dict[Any, Any]:
    # They wait for the ps by themselves; so they are stopped before those, too.
    servers = tuple(host_of(other) for other in job.tasks() if not job.trains(other))
    waits = {"depends_on": servers} if servers and job.trains(task) else {}
    return identity(task) | waits


def _header(job: Deployment) -> list[str]:
    return [
        f"A job of {job.described()}, all on this machine. Made by",
        f"  {job.made_by('compose')}",
        "Start:  docker compose -f FILE up --abort-on-container-failure",
        "End:    docker compose -f FILE down          (with --volumes the checkpoints go too)",
        "The network has no way out or in, since a TensorFlow server obeys whoever reaches it.",
        f"A task may write below {job.checkpoints}, which all share, and /tmp, its own.",
    ]
