"""Collects the evidence for a verdict: from the tasks of a run, or from any processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from tfdist.diagnosis.barriers import Barriers
from tfdist.diagnosis.evidence import BarrierEvidence, Evidence, Place, Stack, State, TaskEvidence
from tfdist.diagnosis.kernel import KernelThreads, kernel_threads
from tfdist.diagnosis.sample import Sample, name_peers, sample_foreign, take_sample
from tfdist.diagnosis.stacks import (
    ANSWER_SECS,
    ANSWERED,
    FOREIGN,
    GONE,
    INSTALL_PY_SPY,
    MEANINGS,
    Answer,
    ask,
    is_foreign,
    py_spy_stacks,
)
from tfdist.diagnosis.waits import losses_in, shortages_in
from tfdist.errors import ClusterError, ConfigError, printable, reason_of
from tfdist.runs import events
from tfdist.runs.barrier_notes import passed_at
from tfdist.runs.events import NOTES_FILE, Noted, noted
from tfdist.runs.files import read_file, status_of_file
from tfdist.runs.folder import (
    PROGRESS_FILE,
    STACKS_FILE,
    STREAMS,
    RunFolder,
    TaskRecord,
    describe_end,
)
from tfdist.runs.outcome import oom_kills
from tfdist.runs.progress import ProgressNote

_MOST_THREADS = 256
_SAID_BYTES = 2**18
_MOST_SAID_BYTES = 2**24  # if it grows meanwhile
UNREADABLE = "has a record that cannot be read"


@dataclass(frozen=True)
class TaskView:
    """What is known of a task.

    Attributes:
        record: None if the task has not started, or if its record cannot be read.
        unreadable: whether its record cannot be read.
        sample: of its process; None if it has none, or is ending.
        notes: what the task noted, if it is one of the lab.
        native: its stacks with the frames of C and C++; empty unless py-spy read them.
        complaint: why py-spy, if it was asked for, read nothing.
    """

    name: str
    record: TaskRecord | None = None
    unreadable: bool = False
    sample: Sample | None = None
    notes: Noted = field(default_factory=Noted)
    native: tuple[Stack, ...] = ()
    complaint: str | None = None

    @property
    def state(self) -> str:
        """Its state in a few words."""
        if self.record is None:
            return UNREADABLE if self.unreadable else "has not started"
        if self.record.ended is not None:
            return describe_end(self.record)
        return "is ending" if self.sample is None else MEANINGS[self.sample.answer.state]

    @property
    def is_well(self) -> bool:
        """Whether it answers, or ended without a failure."""
        if self.complaint is not None or self.record is None:
            return False
        if self.record.ended is not None:
            return self.record.terminated or self.record.exit_code == 0
        return self.sample is None or self.sample.answer.state == ANSWERED


@dataclass(frozen=True)
class JobView:
    """What is known of the tasks of a run.

    Attributes:
        run: the run.
        runs: whether its launcher runs.
        tasks: those that were asked for.
    """

    run: RunFolder
    runs: bool
    tasks: list[TaskView]


def view_job(
    run: RunFolder, names: Sequence[str], *, native: bool = False, sampled: bool = False
) -> JobView:
    """Asks these tasks for their stacks, all at the same time; blocks for up to 5 s.

    Args:
        run: the run.
        names: of the tasks.
        native: whether to read the frames of C and C++ by py-spy too, which may take longer.
        sampled: whether to sample the tasks for a verdict too, which takes a second more.
    """
    runs, notes = run.runs, noted(run)
    records = dict(run.attempts())

    def view(name: str) -> TaskView:
        record, unreadable = records.get(name), name in records and records[name] is None
        one = TaskView(name, record, unreadable, notes=notes.get(name, Noted()))
        return _looked_at(run, one, native, sampled)

    with ThreadPoolExecutor(min(len(names), _MOST_THREADS)) as pool:
        return JobView(run, runs, list(pool.map(view, names)))


def _looked_at(run: RunFolder, view: TaskView, native: bool, sampled: bool) -> TaskView:
    record = view.record
    if record is None or record.ended is not None or _noted_end(view.notes) is not None:
        return view
    process, file = record.process, run.folder_of(view.name, record.attempt) / STACKS_FILE
    if process is None:
        return replace(view, sample=Sample(Answer(GONE)))
    if is_foreign(process, file):
        return replace(view, sample=Sample(Answer(FOREIGN)))
    if sampled:
        sample = take_sample(process, file)
    else:
        kernel = kernel_threads(record.pid)  # before the signal wakes a thread
        sample = Sample(ask(process, file, ANSWER_SECS), kernel)
    stacks, complaint = _ask_py_spy(record.pid, native=True) if native else ((), None)
    return replace(view, sample=sample, native=stacks, complaint=complaint)


def evidence_of(
    job: JobView,
    trainers: Collection[str],
    barriers: Barriers | None = None,
    seconds: float | None = None,
) -> Evidence:
    """The evidence of a run that has stalled or ended.

    Args:
        job: all its tasks, sampled.
        trainers: names of the tasks that train.
        barriers: of the run.
        seconds: since the last progress; None for the most recent note of a trainer.
    """
    reports = barriers.reports if barriers is not None else ()
    places = [place for report in reports for place in report.places]
    resigned = {place.trainer for place in places if place.state == "resigned"}
    # A trainer that resigned from one barrier may wait at another.
    resigned -= {place.trainer for place in places if place.state == "arrived"}
    tasks = name_peers(
        [_task(job, view, view.name in trainers, view.name in resigned) for view in job.tasks],
        {view.name: view.sample for view in job.tasks if view.sample is not None},
    )
    if seconds is None:
        seconds = min((task.quiet_secs for task in tasks if task.trains), default=0.0)
    waits = [
        BarrierEvidence(report.name, report.trainers("arrived"), report.trainers("missing"))
        for report in reports
        if report.places
    ]
    about = job.run.about
    before, now = about.oom_kills, oom_kills(about.launcher.pid) if job.runs else None
    return Evidence(
        tasks=tasks,
        over=not job.runs,
        seconds=seconds,
        oom_kills=0 if before is None or now is None else max(0, now - before),
        barriers=tuple(waits),
    )


def _task(job: JobView, view: TaskView, trains: bool, resigned: bool) -> TaskEvidence:
    record, notes = view.record, view.notes
    if record is None:
        # A task whose record cannot be read has started; how it is doing is not known.
        return TaskEvidence(view.name, trains, State.RUNS if view.unreadable else State.ABSENT)
    known: dict[str, Any] = {
        "name": view.name,
        "trains": trains,
        "left": resigned or notes.last(events.LEFT) is not None,
        "steps": _steps(job.run, view, record),
        "quiet_secs": _quiet_secs(job.run, view, record),
        **{key: value for key, value in notes.about().items() if key != "global_step"},
        **_said(job.run, record),
    }
    if (end := _noted_end(notes)) is not None:
        state = State.FAILED if end.kind == events.FAILED else State.ENDED
        ago, error = time.monotonic() - end.at, end.values.get("error")
        return TaskEvidence(**known, state=state, ended_secs=ago, error=error)
    if record.ended is not None:
        return TaskEvidence(
            **known,
            state=_end_state(job, record, trains),
            ended_secs=time.time() - record.ended,
            exit_code=record.exit_code,
            error=_error(job.run, record),
        )
    if view.sample is None:
        return TaskEvidence(**known, state=State.DEAD)
    if view.sample.state is State.DEAD and not job.run.runs:
        # tfdist ends the tasks of a launcher that was killed, which no longer noted their ends.
        error = "the launcher of the job was killed or has crashed"
        return TaskEvidence(**known, state=State.TERMINATED, error=error)
    return view.sample.evidence(**known)


def _said(run: RunFolder, record: TaskRecord) -> dict[str, tuple[str, ...]]:
    """What the end of its standard error says of its threads and of what the machine lacked."""
    path = run.folder_of(record.name, record.attempt) / STREAMS[2]
    status = status_of_file(path)
    start = 0 if status is None else max(0, status.st_size - _SAID_BYTES)
    data = run.readable(lambda: read_file(path, start=start, most=_MOST_SAID_BYTES)) or b""
    text = data.decode("utf-8", "replace")
    losses = tuple(printable(loss) for loss in losses_in(text))
    return {"losses": losses, "shortages": shortages_in(text)}


def _noted_end(notes: Noted) -> events.Note | None:
    return notes.last(events.FAILED) or notes.last(events.ENDED)


def _end_state(job: JobView, record: TaskRecord, trains: bool) -> State:
    code = record.exit_code or 0
    # While the launcher runs, SIGKILL of a trainer is a fault that a test or the lab injected: the
    # end of a run begins with SIGTERM. After a run of the lab its launcher still runs.
    is_end = not job.run.runs or (job.runs and code != -signal.SIGKILL)
    if record.terminated and is_end:
        return State.TERMINATED if trains else State.ENDED
    # At the end of a run tfdist terminates the servers.
    if code == 0 or (record.terminated and not trains and not job.runs):
        return State.ENDED
    return State.DEAD if code < 0 else State.FAILED


def _error(run: RunFolder, record: TaskRecord) -> str | None:
    failure = run.failure(record.name, record.attempt)
    return reason_of(failure.message) or None if failure is not None else None


def _steps(run: RunFolder, view: TaskView, record: TaskRecord) -> int | None:
    folder = run.folder_of(view.name, record.attempt)
    if status_of_file(folder / NOTES_FILE) is not None:
        return len(view.notes.all(events.STEP))
    progress = run.readable(lambda: ProgressNote.parse(folder / PROGRESS_FILE))
    return progress.done if progress is not None else None


def _quiet_secs(run: RunFolder, view: TaskView, record: TaskRecord) -> float:
    """Seconds since its last note, since it passed a barrier, or since it began."""
    if view.notes.attempts and view.notes.attempts[-1]:
        return time.monotonic() - view.notes.attempts[-1][-1].at
    folder = run.folder_of(view.name, record.attempt)
    times = [record.began]
    if (passed := passed_at(folder)) is not None:
        times.append(passed / 1e9)
    if (progress := status_of_file(folder / PROGRESS_FILE)) is not None:
        times.append(progress.st_mtime)
    return max(0.0, time.time() - max(times))


@dataclass(frozen=True)
class ProcessView:
    """What is known of a process that tfdist need not have started.

    Attributes:
        stacks: as py-spy read them; empty if it failed.
        complaint: why py-spy read nothing.
        native: whether the frames of C and C++ were asked for.
    """

    pid: int
    kernel: KernelThreads
    stacks: tuple[Stack, ...]
    complaint: str | None
    native: bool

    @property
    def is_gone(self) -> bool:
        """Whether it had no thread any more."""
        return self.kernel == KernelThreads()

    @property
    def is_well(self) -> bool:
        """Whether all that was asked for could be read."""
        # The kernel's report is enough where py-spy is missing, unless --native asked for it.
        is_enough = self.complaint == INSTALL_PY_SPY and not self.native
        return not self.is_gone and (self.complaint is None or is_enough)


def view_processes(pids: Sequence[int], *, native: bool) -> list[ProcessView]:
    """Reads /proc and asks py-spy, for all processes at the same time; sends no signal."""

    def view(pid: int) -> ProcessView:
        kernel = kernel_threads(pid)
        return ProcessView(pid, kernel, *_ask_py_spy(pid, native=native), native)

    with ThreadPoolExecutor(len(pids)) as pool:
        return list(pool.map(view, pids))


def evidence_of_processes(pids: Sequence[int]) -> Evidence:
    """The evidence of these processes, which need not be all of their job; blocks for seconds.

    Raises:
        ConfigError: a process does not exist, or py-spy cannot read it.
    """
    processes = [process_of(pid) for pid in pids]
    with ThreadPoolExecutor(len(processes)) as pool:
        names = [f"pid {process.pid}" for process in processes]
        samples = dict(zip(names, pool.map(_sample_foreign, processes), strict=True))
    tasks = (sample.evidence(name=name) for name, sample in samples.items())
    trainers = (replace(task, trains=task.place is not Place.SERVER) for task in tasks)
    return Evidence(name_peers(trainers, samples), whole=False)


def process_of(pid: int) -> psutil.Process:
    """The process.

    Raises:
        ConfigError: it does not exist.
    """
    try:
        return psutil.Process(pid)
    except (psutil.NoSuchProcess, ValueError):
        raise ConfigError("--pid", pid, "no such process") from None


def _sample_foreign(process: psutil.Process) -> Sample:
    try:
        return sample_foreign(process)
    except ClusterError as error:
        raise ConfigError("--verdict", process.pid, f"py-spy cannot read it: {error}") from None


def _ask_py_spy(pid: int, *, native: bool) -> tuple[tuple[Stack, ...], str | None]:
    """The stacks that py-spy reads, and why it reads none."""
    try:
        return py_spy_stacks(pid, native=native), None
    except ClusterError as error:
        return (), str(error)
