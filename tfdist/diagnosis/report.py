"""The report of a job: verdict, status and stacks, as text, as JSON and as a page."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from tfdist.diagnosis.barriers import Barriers, Question
from tfdist.diagnosis.collect import JobView, ProcessView, TaskView, evidence_of, view_job
from tfdist.diagnosis.evidence import Evidence, Frame, Stack, State
from tfdist.diagnosis.kernel import KernelThread, KernelThreads
from tfdist.diagnosis.page import Event, Report, page_of, timeline
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.stacks import INSTALL_PY_SPY, Answer
from tfdist.diagnosis.status import (
    JobStatus,
    SafeConsole,
    line_width,
    show_barriers,
    status_of,
)
from tfdist.diagnosis.verdict import Confidence, Name, Verdict
from tfdist.runs.files import parse_record, read_json
from tfdist.runs.folder import RunFolder

STALL_FILE = "stall.json"  # in the folder of a run: the report on its stall
_STALL_BYTES = 2**26


@dataclass(frozen=True)
class JobReport:
    """What is known of a run, and the verdict on it."""

    status: JobStatus
    barriers: Barriers
    job: JobView
    evidence: Evidence
    verdict: Verdict

    def text(self) -> str:
        """What `tfdist status` and `tfdist stacks` print."""
        text, width = io.StringIO(), line_width(Console(stderr=True))
        console = SafeConsole(file=text, width=width, highlight=False, markup=False, emoji=False)
        self.status.show_tasks(console)
        show_barriers(self.barriers, console)
        console.print()
        for line in job_lines(self.job, console.width):
            console.print(line, soft_wrap=True)
        return text.getvalue()

    def as_json(self) -> dict[str, Any]:
        """The verdict, and what `tfdist status --json` and `tfdist stacks --json` print."""
        return {
            "verdict": asdict(self.verdict),
            "status": self.status.as_json(self.barriers),
            "stacks": job_json(self.job),
        }

    def page(self, events: Mapping[str, Sequence[Event]]) -> str:
        """An HTML page; `events` are the signs of progress of each task."""
        seconds, script = self.status.seconds, self.status.about.script
        return page_of(
            Report(
                title=f"{os.path.basename(script) or 'a job'}, after {seconds:.0f} s",
                verdict=self.verdict,
                evidence=self.evidence,
                tracks=timeline(self.status.run, seconds, events),
                seconds=seconds,
                script=script,
            )
        )


def report_of(
    run: RunFolder,
    trainers: Collection[str],
    asks: Callable[[Question], Barriers],
    *,
    seconds: float | None = None,
    native: bool = False,
) -> JobReport:
    """Samples all tasks of a run; blocks for a second, or up to five, or as long as `asks` does.

    Args:
        run: that goes on, or has ended.
        trainers: names of the tasks that train.
        asks: reads its barriers; see `tfdist.diagnosis.barriers`.
        seconds: since the last progress; None for the most recent note of a trainer.
        native: whether to ask py-spy too.
    """
    with ThreadPoolExecutor(1) as pool:
        viewed = pool.submit(view_job, run, run.about.tasks, native=native, sampled=True)
        status = status_of(run)
        barriers = status.barriers(asks)
        job = viewed.result()
    evidence = evidence_of(job, trainers, barriers, seconds)
    verdict = diagnose(evidence)
    if evidence.over and any(task.state is State.TERMINATED for task in evidence.tasks):
        verdict = _verdict_of_stall(run) or verdict
    unreadable = [view.name for view in job.tasks if view.unreadable]
    return JobReport(status, barriers, job, evidence, _without_records(verdict, unreadable))


def _without_records(verdict: Verdict, unreadable: Sequence[str]) -> Verdict:
    """The verdict, if the records of these tasks cannot be read: it is a guess then."""
    if not unreadable:
        return verdict
    missing = f"the record of {', '.join(unreadable)} cannot be read"
    name = Name.UNKNOWN if verdict.name is Name.FINE else verdict.name
    because = (*verdict.because, missing)
    return replace(verdict, name=name, because=because, confidence=Confidence.GUESS)


def _verdict_of_stall(run: RunFolder) -> Verdict | None:
    """The verdict for which tfdist ended the run; None if it did not stall, or cannot be read."""
    file = run.path / STALL_FILE

    def read() -> Verdict:
        values = read_json(file, most=_STALL_BYTES)
        verdict = values.get("verdict") if isinstance(values, dict) else None
        return parse_record(Verdict, file, verdict)

    verdict = run.readable(read)
    if verdict is None:
        return None
    reason = f"tfdist terminated the job after this verdict, which is in {file}"
    return replace(verdict, because=(*verdict.because, reason))


# --- the tasks of a job


def job_lines(job: JobView, width: int) -> Iterator[str]:
    """The state and the stacks of each task."""
    state = "running" if job.runs else "this job has ended; how each task ended:"
    yield f"{job.run.path}: {state}"
    for view in job.tasks:
        where = f"  attempt {view.record.attempt}  pid {view.record.pid}" if view.record else ""
        yield ""
        yield f"{view.name}{where}  {view.state}"
        if view.sample is not None:
            yield from kernel_lines(view.sample.kernel)
            yield from answer_lines(view.sample.answer, width)
        yield from _py_spy_lines(view.native, view.complaint, width)
    yield from _install_lines(job.tasks)


def job_json(job: JobView) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "run": str(job.run.path),
        "runs": job.runs,
        "tasks": [_task_json(view) for view in job.tasks],
    }


def _task_json(view: TaskView) -> dict[str, Any]:
    record, sample = view.record, view.sample
    return {
        "task": view.name,
        "attempt": record and record.attempt,
        "pid": record and record.pid,
        "answer": sample and sample.answer.state,
        "state": view.state,
        "exit_code": record and record.exit_code,
        "terminated_by_tfdist": bool(record and record.terminated),
        "stacks": [asdict(stack) for stack in sample.answer.stacks] if sample else [],
        "more_threads": bool(sample and sample.answer.more_threads),
        "kernel": sample and _kernel_json(sample.kernel),
        "native": [asdict(stack) for stack in view.native],
        "complaint": view.complaint,
    }


# --- any processes


def process_lines(views: Sequence[ProcessView], width: int) -> Iterator[str]:
    """The threads and the stacks of each process."""
    yield "processes given by --pid get no signal; this is what /proc and py-spy show:"
    for view in views:
        yield ""
        yield f"pid {view.pid}" + (" is gone" if view.is_gone else "")
        yield from kernel_lines(view.kernel)
        yield from _py_spy_lines(view.stacks, view.complaint, width)
    yield from _install_lines(views)


def process_json(view: ProcessView) -> dict[str, Any]:
    """The same as plain data, for one process."""
    return {
        "pid": view.pid,
        "gone": view.is_gone,
        "kernel": _kernel_json(view.kernel),
        "stacks": [asdict(stack) for stack in view.stacks],
        "complaint": view.complaint,
    }


# --- the threads of a process


def answer_lines(answer: Answer, width: int) -> Iterator[str]:
    """The stacks that the process wrote."""
    yield from _stack_lines(answer.stacks, width)
    if answer.more_threads:
        yield "  ... more threads; only 100 are shown, perhaps without the main thread"


def _stack_lines(stacks: Sequence[Stack], width: int) -> Iterator[str]:
    for stack in stacks:
        yield f"  {stack.threads}"
        for frame in stack.frames:
            yield _frame_line(frame, width)
        if not stack.frames:
            yield "    no Python"
        if stack.cut:
            yield "    ... older calls"


def _frame_line(frame: Frame, width: int) -> str:
    """One line; a path that does not fit loses its beginning."""
    start = f"    {frame.function}  "
    end = f":{'?' if frame.line is None else frame.line}"
    path, parts = frame.file, frame.file.split("/")
    while len(start) + len(path) + len(end) > width and len(parts) > 1:
        parts = parts[1:]
        path = "/".join(["...", *parts])
    return start + path + end


def kernel_lines(kernel: KernelThreads) -> Iterator[str]:
    """The kernel's report of the threads; threads that wait at the same place are one line."""
    if kernel.main is not None:
        yield f"  kernel: main thread: {_kernel_text(kernel.main)}"
    counts = Counter[str]()
    for thread, count in kernel.others.items():
        counts[_kernel_text(thread)] += count
    for text, count in counts.most_common():
        yield f"  kernel: {count} other thread{'' if count == 1 else 's'}: {text}"
    if kernel.unreadable:
        yield f"  kernel: {kernel.unreadable} other threads: permission denied"


def _kernel_text(thread: KernelThread) -> str:
    if thread.denied:
        return f"{thread.state} (where: permission denied)"
    if not thread.wchan and thread.syscall is not None:
        return f"{thread.state} in system call {thread.syscall}"
    return thread.state + (f" in {thread.wchan}" if thread.wchan else "")


def _kernel_json(kernel: KernelThreads) -> dict[str, Any]:
    return {
        "main": kernel.main and asdict(kernel.main),
        "others": [
            {**asdict(thread), "count": count} for thread, count in kernel.others.most_common()
        ],
        "unreadable": kernel.unreadable,
    }


def _py_spy_lines(stacks: Sequence[Stack], complaint: str | None, width: int) -> Iterator[str]:
    if stacks:
        yield "  py-spy:"
        yield from _stack_lines(stacks, width)
    elif complaint is not None and complaint != INSTALL_PY_SPY:
        yield f"  {complaint}"


def _install_lines(views: Sequence[TaskView | ProcessView]) -> Iterator[str]:
    """How to install py-spy, once for all processes, if it is missing."""
    if any(view.complaint == INSTALL_PY_SPY for view in views):
        yield ""
        yield INSTALL_PY_SPY
