"""What `tfdist run` does with the news of its tasks: it prints them and keeps them."""

from __future__ import annotations

import sys

from tfdist.cli.output import Output
from tfdist.cli.summary import describe_end
from tfdist.cluster.run_folder import RunFolder


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
                life for life in self.lives() if (life.name, life.attempt) == (name, attempt - 1)
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
