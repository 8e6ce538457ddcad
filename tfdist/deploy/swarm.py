"""A job for docker swarm."""

from __future__ import annotations

from typing import Any

from tfdist.deploy.compose_file import identity, task_settings
from tfdist.deploy.deployment import Deployment, host_of
from tfdist.deploy.yaml_text import MERGE, Anchored, yaml_text


def stack_file(job: Deployment) -> str:
    """The text of a stack file."""
    task = Anchored("task", _common(job))
    document = {
        "version": "3.8",  # `docker stack deploy` wants one
        "x-task": task,
        "services": {host_of(own): {MERGE: task, **identity(own)} for own in job.tasks()},
        "networks": {"cluster": {"driver": "overlay", "internal": True}},
        "volumes": {"checkpoints": None},
    }
    return yaml_text(_header(job), [document])


def _common(job: Deployment) -> dict[str, Any]:
    settings = task_settings(job)
    own = {
        # `docker stack deploy` passes over `tmpfs` in silence.
        "volumes": [*settings["volumes"], {"type": "tmpfs", "target": "/tmp"}],
        # Swarm would hide the name of a task until it is healthy, and replace one that is not.
        "healthcheck": {"disable": True},
        "deploy": {
            # The name is the address of the task. A virtual one in between would drop a
            # connection over which nothing goes for 15 minutes, and tell nobody.
            "endpoint_mode": "dnsrr",
            "replicas": 1,
            "restart_policy": {"condition": "none"},
        },
    }
    return settings | own


def _header(job: Deployment) -> list[str]:
    return [
        f"A job of {job.described()}, for docker swarm. Made by",
        f"  {job.made_by('swarm')}",
        "Start:  docker stack deploy -c FILE JOB",
        "Watch:  docker stack ps JOB; docker service logs --follow JOB_worker-0",
        "End:    docker stack rm JOB                  (also when it is done)",
        "The network has no way out or in, since a TensorFlow server obeys whoever reaches it.",
        "Without a healthcheck: swarm hides the name of a task until that is healthy.",
        "dnsrr: the virtual address that swarm gives otherwise drops idle connections in silence.",
        "The volume is one on each machine, so only what the chief writes stays together. If other",
        "tasks read or write it, or the chief may move, give it `driver_opts` of a file server.",
    ]
