"""Ends a job that stands still, having told where everybody stands."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import deque
from collections.abc import Sequence

from tfdist.diagnosis.barriers import ask_in_fork
from tfdist.diagnosis.report import report_of
from tfdist.diagnosis.signs_of_progress import signs_of_progress
from tfdist.diagnosis.stall_clock import Stall, StallWatch
from tfdist.diagnosis.thread_text import verdict_lines
from tfdist.diagnosis.timeline import Event
from tfdist.diagnosis.verdict import PATIENCE
from tfdist.errors import StallError
from tfdist.runs.events import STEP
from tfdist.runs.folder import RunFolder

# Who does not answer in this time is in the report as such, which is to come within 5 s.
_ANSWER_SECS = 3.0
_EVENTS = 500  # of each task, the last ones, that the page shows
_TEXT_FILE, _JSON_FILE, _PAGE_FILE = "stall.txt", "stall.json", "stall.html"


class StallGuard:
    """Looks at a run, each time that it is called, and raises once it has stood still too long.

    Where somebody works or starts, it is only slow: that is told, and it goes on until it has
    stood still twice as long, PATIENCE times at most.

    Args:
        run: that goes on; its launcher is this process.
        trainers: names of the trainers.
        timeout: seconds after which it has.
        is_kept: whether the folder of the run outlives it.
        ends: whether it raises; else it tells, and the run goes on.
    """

    def __init__(
        self,
        run: RunFolder,
        trainers: Sequence[str],
        timeout: float,
        *,
        is_kept: bool,
        ends: bool = True,
    ) -> None:
        self._run, self._trainers, self._timeout = run, trainers, timeout
        self._is_kept, self._ends = is_kept, ends
        self._watch = StallWatch()
        self._looks = 0  # at this stall
        self._began = run.about.began
        self._seen = {name: deque[Event](maxlen=_EVENTS) for name in run.about.tasks}

    def __call__(self) -> None:
        """Looks; if the run has stood still too long, blocks for some seconds, for the report.

        Raises:
            StallError: the report is printed, and lies in the folder of the run.
        """
        stall = self._look()
        if stall.seconds < self._timeout:
            self._looks = 0
        if stall.seconds < self._timeout * 2**self._looks:
            return
        asks = functools.partial(ask_in_fork, timeout=_ANSWER_SECS)
        report = report_of(self._run, self._trainers, asks, seconds=stall.seconds)
        now = self._look()
        if now.seconds < stall.seconds:  # it has got on in the last moment
            return
        self._looks += 1
        if report.verdict.name.is_slow and self._looks <= PATIENCE:
            print(f"tfdist: {_since(now)}: {report.verdict}", file=sys.stderr, flush=True)
            return
        error = StallError(
            now.seconds,
            now.last,
            {row.task: row.place for row in report.status.rows if row.task in self._trainers},
            str(self._run.path / _TEXT_FILE) if self._is_kept else None,
            report.verdict,
        )
        # In one piece: the lines of the tasks do not come in between.
        verdict = "".join(f"tfdist: {line}\n" for line in verdict_lines(report.verdict))
        print(f"{verdict}{_since(now)}:\n{report.text()}", end="", file=sys.stderr, flush=True)
        (self._run.path / _TEXT_FILE).write_text(f"{error}\n\n{report.text()}", "utf-8")
        about = {"seconds": round(error.seconds, 3), "last": error.last, "places": error.places}
        text = json.dumps({**about, **report.as_json()}) + "\n"
        (self._run.path / _JSON_FILE).write_text(text, "utf-8")
        (self._run.path / _PAGE_FILE).write_text(report.page(self._seen), "utf-8")
        if self._ends:
            raise error

    def _look(self) -> Stall:
        stall = self._watch.look(signs_of_progress(self._run, self._trainers))
        at = time.time() - self._began
        for name, what in stall.news.items():
            self._seen[name].append(Event(at, STEP, what))
        return stall


def _since(stall: Stall) -> str:
    return f"nobody has got on for {stall.seconds:.1f} s"
