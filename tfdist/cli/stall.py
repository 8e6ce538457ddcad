"""Ends a job that stands still, having told where everybody stands."""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from tfdist.cli.barriers import Barriers, ask_in_fork
from tfdist.cli.stacks import JobStacks, stacks_of
from tfdist.cli.status import JobStatus, show_barriers, status_of
from tfdist.cluster.life_signs import life_signs
from tfdist.cluster.run_folder import RunFolder
from tfdist.errors import StallError
from tfdist.stall import StallWatch, Standstill

# Who does not answer in this time is in the report as such, which is to come within 5 s.
_ANSWER_SECS = 3.0
_TEXT_FILE, _JSON_FILE = "stall.txt", "stall.json"


class StallGuard:
    """Looks at a run, each time that it is called, and raises once it has stood still too long.

    Args:
        run: that goes on; its launcher is this process.
        trainers: names of the trainers.
        timeout: seconds after which it has.
        is_kept: whether the folder of the run outlives it.
    """

    def __init__(
        self, run: RunFolder, trainers: Sequence[str], timeout: float, *, is_kept: bool
    ) -> None:
        self._run, self._trainers, self._timeout = run, trainers, timeout
        self._is_kept = is_kept
        self._watch = StallWatch()

    def __call__(self) -> None:
        """Looks; if the run has stood still too long, blocks for some seconds, for the report.

        Raises:
            StallError: the report is printed, and lies in the folder of the run.
        """
        if self._look().seconds < self._timeout:
            return
        report = _report_of(self._run)
        standstill = self._look()
        if standstill.seconds < self._timeout:  # it has got on in the last moment
            return
        error = StallError(
            standstill.seconds,
            standstill.last,
            {row.task: row.place for row in report.status.rows if row.task in self._trainers},
            str(self._run.path / _TEXT_FILE) if self._is_kept else None,
        )
        text = f"tfdist: nobody has got on for {standstill.seconds:.1f} s:\n{report.text()}"
        # In one piece: the lines of the tasks do not come in between.
        print(text, end="", file=sys.stderr, flush=True)
        (self._run.path / _TEXT_FILE).write_text(f"{error}\n\n{report.text()}", "utf-8")
        (self._run.path / _JSON_FILE).write_text(json.dumps(report.as_json(error)) + "\n", "utf-8")
        raise error

    def _look(self) -> Standstill:
        return self._watch.look(life_signs(self._run, self._trainers))


@dataclass(frozen=True)
class _Report:
    status: JobStatus
    barriers: Barriers
    stacks: JobStacks

    def text(self) -> str:
        """As `tfdist status` and `tfdist stacks` print it."""
        text, width = io.StringIO(), Console(stderr=True).width
        console = Console(file=text, width=width, highlight=False, markup=False, emoji=False)
        self.status.show_tasks(console)
        show_barriers(self.barriers, console)
        console.print()
        self.stacks.show(console)
        return text.getvalue()

    def as_json(self, error: StallError) -> dict[str, object]:
        return {
            "seconds": round(error.seconds, 3),
            "last": error.last,
            "places": error.places,
            "status": self.status.as_json(self.barriers),
            "stacks": self.stacks.as_json(),
        }


def _report_of(run: RunFolder) -> _Report:
    with ThreadPoolExecutor(1) as pool:
        names = run.about["tasks"]
        stacks = pool.submit(stacks_of, run, names, timeout=_ANSWER_SECS)
        status = status_of(run)
        barriers = status.barriers(functools.partial(ask_in_fork, timeout=_ANSWER_SECS))
        return _Report(status, barriers, stacks.result())
