"""The cluster of `tfdist run`, and what becomes of the news of its tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tfdist.cli.output import Output
from tfdist.cluster.local import LocalCluster
from tfdist.cluster.processes import Surroundings, start_fork_server, stop_fork_server
from tfdist.cluster.script import Script
from tfdist.cluster.shape import Shape
from tfdist.runs.folder import RunFolder, describe_end


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


@contextmanager
def process_cluster(
    shape: Shape,
    serve: Script | None,
    environment: Mapping[str, str],
    launch: Launch,
    grace: float,
) -> Iterator[LocalCluster]:
    """A cluster of processes that is not started; servers run `serve`, or tfdist's own if None."""
    try:
        start_fork_server()
        surroundings = Surroundings(environment, launch)
        yield LocalCluster(shape, "processes", surroundings, serve, grace=grace)
    finally:
        stop_fork_server()
