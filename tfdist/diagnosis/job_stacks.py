"""Where the tasks of a job stand: what each answers, and what the kernel and py-spy tell of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from tfdist.diagnosis.evidence import Stack
from tfdist.diagnosis.kernel_threads import kernel_threads
from tfdist.diagnosis.sample import Sighting, sight
from tfdist.diagnosis.stacks import ANSWER_SECS, ANSWERED, GONE, MEANINGS, Answer, ask
from tfdist.diagnosis.thread_text import (
    answer_lines,
    ask_py_spy,
    install_lines,
    kernel_json,
    kernel_lines,
    py_spy_lines,
)
from tfdist.runs.folder import STACKS_FILE, RunFolder, TaskRecord, describe_end

_NOT_ALL_ANSWER = 1


@dataclass(frozen=True)
class View:
    """What is known of a task.

    Attributes:
        record: None if the task has not started.
        seen: of its process; None if it has none.
        native: the frames of C and C++ too; none if py-spy was not called, or failed.
        complaint: why there is nothing of py-spy although it was asked for.
    """

    name: str
    record: TaskRecord | None = None
    seen: Sighting | None = None
    native: tuple[Stack, ...] = ()
    complaint: str | None = None

    @property
    def state(self) -> str:
        """In a few words, what is known of it."""
        if self.record is None:
            return "has not started"
        if self.record.ended is not None:
            return describe_end(self.record)
        assert self.seen is not None  # it was asked
        return MEANINGS[self.seen.answer.state]

    @property
    def is_well(self) -> bool:
        """Whether it answers, or ended without a failure."""
        if self.complaint is not None or self.record is None:
            return False
        if self.record.ended is not None:
            return self.record.terminated or self.record.exit_code == 0
        return self.seen is not None and self.seen.answer.state == ANSWERED


@dataclass(frozen=True)
class JobStacks:
    """Where the tasks of a run stand.

    Attributes:
        run: whose tasks they are.
        runs: whether it goes on.
        views: of those tasks that were asked for.
    """

    run: RunFolder
    runs: bool
    views: list[View]

    @property
    def exit_code(self) -> int:
        """0 if everybody answers, or ended well."""
        return 0 if all(view.is_well for view in self.views) else _NOT_ALL_ANSWER

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "run": str(self.run.path),
            "runs": self.runs,
            "exit_code": self.exit_code,
            "tasks": [_task_json(view) for view in self.views],
        }

    def show(self, console: Console) -> None:
        """Prints it."""
        state = "runs" if self.runs else "this job is over; how each task ended:"
        lines = [f"{self.run.path}: {state}"]
        for view in self.views:
            lines += _lines(view, console.width)
        for line in (*lines, *install_lines([view.complaint for view in self.views])):
            console.print(line, soft_wrap=True)


def stacks_of(
    run: RunFolder, names: Sequence[str], *, native: bool = False, diagnosed: bool = False
) -> JobStacks:
    """Asks all of these tasks at the same time.

    Args:
        run: whose tasks they are.
        names: of the tasks.
        native: whether py-spy is asked too, which may take longer.
        diagnosed: whether they are looked at for a second more, or up to five, as a verdict needs
            it.
    """
    runs = run.runs
    records = {record.name: record for record in run.latest()}
    with ThreadPoolExecutor(len(names)) as pool:
        views = pool.map(lambda name: _view(run, name, records.get(name), native, diagnosed), names)
        return JobStacks(run, runs, list(views))


def _view(
    run: RunFolder, name: str, record: TaskRecord | None, native: bool, diagnosed: bool
) -> View:
    """Looks at one task; blocks until it has answered or a deadline is over."""
    if record is None or record.ended is not None:
        return View(name, record)
    process, file = record.process, run.folder_of(name, record.attempt) / STACKS_FILE
    if process is None:
        return View(name, record, Sighting(Answer(GONE)))
    if diagnosed:
        seen = sight(process, file)
    else:
        kernel = kernel_threads(record.pid)  # before it is woken up by the question
        seen = Sighting(ask(process, file, ANSWER_SECS), kernel)
    stacks, complaint = ask_py_spy(record.pid, native=True) if native else ((), None)
    return View(name, record, seen, stacks, complaint)


def _lines(view: View, width: int) -> Iterator[str]:
    record = view.record
    where = "" if record is None else f"  attempt {record.attempt}  pid {record.pid}"
    yield ""
    yield f"{view.name}{where}  {view.state}"
    if view.seen is not None:
        yield from kernel_lines(view.seen.kernel)
        yield from answer_lines(view.seen.answer, width)
    yield from py_spy_lines(view.native, view.complaint, width)


def _task_json(view: View) -> dict[str, Any]:
    record, seen = view.record, view.seen
    return {
        "task": view.name,
        "attempt": record and record.attempt,
        "pid": record and record.pid,
        "answer": seen and seen.answer.state,
        "state": view.state,
        "exit_code": record and record.exit_code,
        "terminated_by_tfdist": bool(record and record.terminated),
        "stacks": [asdict(stack) for stack in seen.answer.stacks] if seen else [],
        "more_threads": bool(seen and seen.answer.more_threads),
        "kernel": seen and kernel_json(seen.kernel),
        "native": [asdict(stack) for stack in view.native],
        "complaint": view.complaint,
    }
