"""The cluster of `tfdist run`, and what becomes of the news of its tasks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tfdist.cli.output import Output
from tfdist.cluster.local import LocalCluster
from tfdist.cluster.processes import (
    PROGRESS_FILE,
    Surroundings,
    start_fork_server,
    stop_fork_server,
)
from tfdist.cluster.script import Script
from tfdist.cluster.shape import Shape
from tfdist.runs.folder import RunFolder, describe_end
from tfdist.task import PROGRESS_VARIABLE, Task


class Launch(RunFolder):
    """A run's folder whose tasks' output also goes to this process's streams."""

    def __init__(self, path: str, output: Output) -> None:
        super().__init__(path)
        self._output = output

    def started(self, name: str, attempt: int, pid: int) -> None:
        """Notes it; says so of one that was started again."""
        super().started(name, attempt, pid)
        if attempt > 1:
            before = next(
                record
                for record in self.records()
                if (record.name, record.attempt) == (name, attempt - 1)
            )
            print(
                f"tfdist: {name} was started again (attempt {attempt}); "
                f"the last one: {describe_end(before)}",
                file=sys.stderr,
                flush=True,
            )

    def output(self, name: str, attempt: int, stream: int, data: bytes) -> None:
        """Prints it and keeps it."""
        super().output(name, attempt, stream, data)
        self._output.write(name, stream, data)


# A cluster that has not begun, and what those of its tasks run that the script is for.
_Cluster = tuple[LocalCluster, Callable[[Task], object]]


@contextmanager
def process_cluster(
    shape: Shape,
    script: Script,
    serve: Script | None,
    environment: Mapping[str, str],
    launch: Launch,
) -> Iterator[_Cluster]:
    """Each task is a process; those that serve run `serve`, or tfdist's own server if None."""
    try:
        start_fork_server()
        yield LocalCluster(shape, "processes", Surroundings(environment, launch), serve), script
    finally:
        stop_fork_server()


@contextmanager
def thread_cluster(
    shape: Shape,
    script: Script,
    serve: Script | None,
    environment: Mapping[str, str],
    launch: Launch,
) -> Iterator[_Cluster]:
    """Each task is a thread of this process, which imports TensorFlow."""
    from tfdist.cluster import preload  # noqa: F401  # TensorFlow, quietly
    from tfdist.cluster.shared_process import ThreadScript, shared_process

    def variables(task: Task) -> dict[str, str]:
        return {PROGRESS_VARIABLE: str(launch.folder_of(task.name, 1) / PROGRESS_FILE)}

    def write(name: str, stream: int, data: bytes) -> None:
        launch.output(name, 1, stream, data)

    job = ThreadScript(script, variables)
    os.environ.update(environment)
    with shared_process(script, write):
        surroundings = Surroundings(observer=launch)
        yield LocalCluster(shape, "threads", surroundings, serve and job), job
