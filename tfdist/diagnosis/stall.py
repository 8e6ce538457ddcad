"""Detects a stall: a job whose tasks run, but make no progress.

A job that hangs raises no error, since a call into TensorFlow that waits for an absent task waits
for ever. From outside one can see only that no sign of progress appears any more. `StallClock`
counts the time since the last sign; `StallMonitor` adds the diagnosis, and patience with a job that
is only slow; `StallGuard` is the monitor of `tfdist run`. The Watchdog and the lab use the monitor
too.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from tfdist.diagnosis.barriers import ask_in_fork
from tfdist.diagnosis.page import Event
from tfdist.diagnosis.report import STALL_FILE, JobReport, report_of
from tfdist.diagnosis.verdict import Confidence, Name, Verdict
from tfdist.errors import DataError, StallError, described, printable
from tfdist.runs.barrier_notes import passed_at
from tfdist.runs.events import STEP
from tfdist.runs.files import read_file, status_of_file, write_file
from tfdist.runs.folder import PROGRESS_FILE, STREAMS, RunFolder
from tfdist.runs.log import logged_at

# How often a slow job gets more time, each time twice as much.
PATIENCE = 3
# Shorter than the 5 s in which the report is due; a ps that takes longer is reported as silent.
_ANSWER_SECS = 3.0
_EVENTS = 500  # the page shows the last ones of each task
_TEXT_FILE, _PAGE_FILE = "stall.txt", "stall.html"

_Details = TypeVar("_Details")


@dataclass(frozen=True)
class Signs:
    """The signs of progress of a task at one moment.

    Attributes:
        attempt: of the task, from 1.
        ended: whether that attempt has ended.
        progress: the last note of progress of a trainer, as it is in its file; None if there is
            none, and for a task that does not train.
        passed_at: when it last passed a barrier, by any clock; None if it never did.
        printed: number of bytes that it has printed.
        logged_at: when tfdist last logged something in it, by any clock; None if it never did.
    """

    attempt: int
    ended: bool = False
    progress: str | None = None
    passed_at: int | None = None
    printed: int = 0
    logged_at: int | None = None


def signs_in(folder: Path) -> Signs:
    """The notes of progress and of barriers in the folder of a task."""
    progress = ""
    with suppress(FileNotFoundError, DataError):
        line, _, _ = read_file(folder / PROGRESS_FILE).partition(b"\n")
        progress = line.decode("utf-8", "backslashreplace")
    return Signs(
        attempt=1,
        progress=progress or None,
        passed_at=passed_at(folder),
        logged_at=logged_at(folder),
    )


def signs_of_run(run: RunFolder, trainers: Collection[str]) -> dict[str, Signs]:
    """The signs of each task that has started, by name.

    Args:
        run: the run.
        trainers: names of the tasks whose notes of progress count.
    """
    signs = {}
    for record in run.latest():
        folder = run.folder_of(record.name, record.attempt)
        noted = signs_in(folder)
        signs[record.name] = Signs(
            attempt=record.attempt,
            ended=record.ended is not None,
            progress=noted.progress if record.name in trainers else None,
            passed_at=noted.passed_at,
            logged_at=noted.logged_at,
            printed=sum(_size(folder / stream) for stream in STREAMS.values()),
        )
    return signs


def _size(path: Path) -> int:
    status = status_of_file(path)
    return 0 if status is None else status.st_size


@dataclass(frozen=True)
class Stall:
    """The time since the last progress.

    Attributes:
        seconds: since the last sign of any task.
        last: that sign, such as "worker:1 passed a barrier"; several if they came together.
        news: what each task has done since the previous look, by name.
    """

    seconds: float
    last: tuple[str, ...] = ()
    news: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"no task has made progress for {self.seconds:.1f} s"


class StallClock:
    """Measures the time since the last sign of progress; it is shown the signs at intervals.

    A sign of progress is that a task starts or ends, that a trainer notes progress that differs
    from its last note, or that it passes a barrier. Until a trainer has noted progress, the output
    of a task is one too: a script without notes has no other sign. The log of tfdist is not: it
    reports that a task waits.

    Args:
        clock: returns seconds that never decrease.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._before: Mapping[str, Signs] = {}
        self._last: tuple[str, ...] = ()
        self._notes_are_made = False

    def look(self, signs: Mapping[str, Signs]) -> Stall:
        """The time since the last progress, now that these are the signs of the tasks, by name."""
        now = self._clock()
        self._notes_are_made |= any(sign.progress is not None for sign in signs.values())
        seen = {name: self._news(self._before.get(name), sign) for name, sign in signs.items()}
        news = {name: what for name, what in seen.items() if what is not None}
        if news:
            self._since = now
            self._last = tuple(f"{name} {what}" for name, what in news.items())
        self._before = dict(signs)
        return Stall(now - self._since, self._last, news)

    def _news(self, before: Signs | None, now: Signs) -> str | None:
        """What a task has done between two looks, in a few words."""
        if before is None or before.attempt != now.attempt:
            return "ended" if now.ended else "started"
        if before.ended != now.ended:
            return "ended"
        if before.progress != now.progress:
            return "noted progress"
        if before.passed_at != now.passed_at:
            return "passed a barrier"
        is_logged = before.logged_at != now.logged_at
        if before.printed != now.printed and not is_logged and not self._notes_are_made:
            return "printed something"
        return None


@dataclass(frozen=True)
class Diagnosed(Generic[_Details]):
    """A stall and its verdict.

    Attributes:
        stall: as it was after the diagnosis.
        verdict: on the job.
        details: from which the verdict was made.
        gets_time: whether the job is only slow, and is diagnosed again later.
        most_secs: without progress that a slow job gets.
    """

    stall: Stall
    verdict: Verdict
    details: _Details
    gets_time: bool
    most_secs: float

    def text(self, stalled: str) -> str:
        """In one line, that the job has stalled, why, and that it gets more time."""
        return f"{stalled}; a job that seems slow gets {self.most_secs:g} s: {self.verdict}"


class StallMonitor(Generic[_Details]):
    """Diagnoses a job once no task has made progress for `timeout` seconds.

    A job that is only slow gets more time: it is diagnosed again after twice the time, and so on.

    Args:
        timeout: in seconds.
        read_signs: returns the signs of all tasks, by name.
        diagnose: makes the verdict, and what it was made from, for so many seconds of stall.
        patience: how often a slow job gets more time.
        on_news: called at each look with what each task has done since the previous look.
        clock: returns seconds that never decrease.
    """

    def __init__(
        self,
        timeout: float,
        read_signs: Callable[[], Mapping[str, Signs]],
        diagnose: Callable[[float], tuple[Verdict, _Details]],
        *,
        patience: float = PATIENCE,
        on_news: Callable[[Mapping[str, str]], None] = lambda news: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout, self._patience, self._on_news = timeout, patience, on_news
        self._read_signs, self._diagnose = read_signs, diagnose
        self._clock = StallClock(clock)
        self._diagnoses = 0  # of this stall

    def look(self) -> Stall:
        """The time since the last progress."""
        stall = self._clock.look(self._read_signs())
        self._on_news(stall.news)
        return stall

    def check(self, *, patient: bool = True) -> Diagnosed[_Details] | None:
        """Diagnoses the job if that is due; blocks as long as the diagnosis takes.

        Args:
            patient: whether a slow job gets more time.

        Returns:
            None if no diagnosis is due, or if a task made progress during the diagnosis.
        """
        stall = self.look()
        if stall.seconds < self._timeout:
            self._diagnoses = 0
        if stall.seconds < self._timeout * (2**self._diagnoses if patient else 1):
            return None
        verdict, details = self._diagnose(stall.seconds)
        now = self.look()
        if now.seconds < stall.seconds:
            return None
        self._diagnoses += 1
        gets_time = patient and verdict.name.is_slow and self._diagnoses <= self._patience
        most_secs = self._timeout * 2**self._patience
        return Diagnosed(now, verdict, details, gets_time, most_secs)


def failed_diagnosis(error: Exception) -> Verdict:
    """The verdict on a job that has stalled, if the diagnosis itself raised this error."""
    why = f"the report failed: {described(error)}"
    return Verdict(Name.UNKNOWN, (), (why,), Confidence.GUESS, "run tfdist stacks --native")


class StallGuard:
    """Watches a run for its launcher, which calls it at intervals: reports a stall, and ends it.

    A report is a courtesy: if it fails, or cannot be written, a line says so, and the job goes on
    or ends as after a whole report.

    Args:
        run: the run; its launcher is this process.
        trainers: names of the trainers.
        timeout: seconds without progress.
        is_kept: whether the folder of the run outlives the run.
        ends: whether to raise after the report; otherwise the run goes on.
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
        signs = functools.partial(signs_of_run, run, trainers)
        self._monitor: StallMonitor[JobReport | None] = StallMonitor(
            timeout, signs, self._report, on_news=self._note
        )
        self._began = run.about.began
        self._events = {name: deque[Event](maxlen=_EVENTS) for name in run.about.tasks}

    def __call__(self) -> None:
        """Checks the run; if it has stalled, blocks for some seconds to make the report.

        Raises:
            StallError: the report is printed, and is in the folder of the run.
        """
        found = self._monitor.check()
        if found is None:
            return
        stall, report, verdict = found.stall, found.details, found.verdict
        if found.gets_time:
            _say(f"tfdist: {found.text(str(stall))}\n")
            return
        if self._ends and verdict.name.is_slow:
            verdict = verdict.overdue(stall.seconds, self._timeout)
        if report is not None:
            report = replace(report, verdict=verdict)
        rows = [] if report is None else report.status.rows
        places = {row.task: row.place for row in rows if row.task in self._trainers}
        path = str(self._run.path / _TEXT_FILE) if self._is_kept else None
        error = StallError(stall.seconds, stall.last, places, path, verdict)
        text = "" if report is None else _text(report)
        # In one write, so that no line of a task comes in between.
        lines = "".join(f"tfdist: {line}\n" for line in verdict.lines())
        _say(f"{lines}{stall}:\n{text}")
        if report is None or not self._keep(error, text, report):
            error = StallError(stall.seconds, stall.last, places, None, verdict)
        if self._ends:
            raise error

    def _keep(self, error: StallError, text: str, report: JobReport) -> bool:
        """Writes the files of the report; returns whether the text is there."""
        about = {"seconds": round(error.seconds, 3), "last": error.last, "places": error.places}
        files: dict[str, Callable[[], str]] = {
            _TEXT_FILE: lambda: f"{error}\n\n{text}",
            STALL_FILE: lambda: json.dumps({**about, **report.as_json()}) + "\n",
            _PAGE_FILE: lambda: report.page(self._events),
        }
        lost: dict[str, str] = {}
        for name, make in files.items():
            path = self._run.path / name
            try:
                write_file(path, make())
            except Exception as failure:
                lost[name] = described(failure)
                with suppress(OSError):
                    path.unlink()  # half of it
        if lost:
            reasons = "; ".join(dict.fromkeys(lost.values()))
            _say(f"tfdist: the report is not in {', '.join(lost)}: {reasons}\n")
        return _TEXT_FILE not in lost

    def _note(self, news: Mapping[str, str]) -> None:
        at = time.time() - self._began
        for name, what in news.items():
            self._events[name].append(Event(at, STEP, what))

    def _report(self, seconds: float) -> tuple[Verdict, JobReport | None]:
        asks = functools.partial(ask_in_fork, timeout=_ANSWER_SECS)
        try:
            report = report_of(self._run, self._trainers, asks, seconds=seconds)
        except Exception as error:
            return failed_diagnosis(error), None
        return report.verdict, report


def _text(report: JobReport) -> str:
    """The text of the report; a line that says why, if it cannot be made."""
    try:
        return report.text()
    except Exception as error:
        return f"tfdist: the report cannot be shown: {described(error)}\n"


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # the stream is full, or closed
        print(printable(text), end="", file=sys.stderr, flush=True)
