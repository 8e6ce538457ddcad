"""A user's script as the function of a task."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tfdist.task import Task


@dataclass(frozen=True)
class Script:
    """Runs `path` with `arguments` as `python path arguments...` would, as each task.

    Attributes:
        path: of the script.
        arguments: what it finds in ``sys.argv[1:]``.
        classic_flags: whether the flags of TensorFlow 1 scripts, which `Task.from_flags` reads,
            come after them.
    """

    path: str
    arguments: Sequence[str]
    classic_flags: bool = False

    def __call__(self, task: Task) -> None:
        """Runs it; `TF_CONFIG` names the task."""
        flags = _classic_flags(task) if self.classic_flags else []
        sys.argv = [self.path, *self.arguments, *flags]
        sys.path.insert(0, os.path.dirname(os.path.abspath(self.path)))
        runpy.run_path(self.path, run_name="__main__")


def _classic_flags(task: Task) -> list[str]:
    hosts = {key: ",".join(task.cluster_spec.get(key, [])) for key in ("ps", "worker")}
    return [
        f"--ps_hosts={hosts['ps']}",
        f"--worker_hosts={hosts['worker']}",
        f"--job_name={task.task_type}",
        f"--task_index={task.task_index}",
    ]
