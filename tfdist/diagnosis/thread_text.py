"""Where the threads of a process stand, as lines of text and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from tfdist.diagnosis import py_spy
from tfdist.diagnosis.evidence import Frame, Stack
from tfdist.diagnosis.kernel_threads import KernelThread, KernelThreads
from tfdist.diagnosis.stacks import Answer
from tfdist.diagnosis.verdict import Verdict
from tfdist.errors import ClusterError


def ask_py_spy(pid: int, *, native: bool) -> tuple[tuple[Stack, ...], str | None]:
    """What py-spy says, and why it says nothing."""
    try:
        return py_spy.dump(pid, native=native), None
    except ClusterError as error:
        return (), str(error)


def answer_lines(answer: Answer, width: int) -> Iterator[str]:
    """What the process says of its Python."""
    yield from stack_lines(answer.stacks, width)
    if answer.more_threads:
        yield "  ... more threads; only 100 are shown, perhaps not the main one"


def stack_lines(stacks: Sequence[Stack], width: int) -> Iterator[str]:
    """Where its threads stand."""
    for stack in stacks:
        others = stack.count - stack.main
        parts = ["main thread"] if stack.main else []
        parts += [f"{others} thread{'' if others == 1 else 's'}"] if others else []
        yield f"  {' and '.join(parts)}"
        for frame in stack.frames:
            yield _frame_text(frame, width)
        if not stack.frames:
            yield "    no Python"
        if stack.cut:
            yield "    ... older calls"


def _frame_text(frame: Frame, width: int) -> str:
    """One line; a path that is too long for it loses its beginning."""
    start = f"    {frame.function}  "
    end = f":{'?' if frame.line is None else frame.line}"
    path, parts = frame.file, frame.file.split("/")
    while len(start) + len(path) + len(end) > width and len(parts) > 1:
        parts = parts[1:]
        path = "/".join(["...", *parts])
    return start + path + end


def kernel_lines(kernel: KernelThreads) -> Iterator[str]:
    """What the kernel says of its threads; those that wait at the same place are one line."""
    if kernel.main is not None:
        yield f"  kernel: main thread: {_kernel_text(kernel.main)}"
    counts = Counter[str]()
    for thread, count in kernel.others.items():
        counts[_kernel_text(thread)] += count
    for text, count in counts.most_common():
        yield f"  kernel: {count} more: {text}"
    if kernel.unreadable:
        yield f"  kernel: {kernel.unreadable} more: may not be read"


def _kernel_text(thread: KernelThread) -> str:
    if thread.denied:
        return f"{thread.state} (where: permission denied)"
    if not thread.wchan and thread.syscall is not None:
        return f"{thread.state} in system call {thread.syscall}"
    return thread.state + (f" in {thread.wchan}" if thread.wchan else "")


def py_spy_lines(stacks: Sequence[Stack], complaint: str | None, width: int) -> Iterator[str]:
    """What py-spy says; that it is not installed is left to `install_lines`."""
    if stacks:
        yield "  py-spy:"
        yield from stack_lines(stacks, width)
    elif complaint is not None and complaint != py_spy.INSTALL:
        yield f"  {complaint}"


def install_lines(complaints: Sequence[str | None]) -> Iterator[str]:
    """How to install py-spy, once for all processes, if that was the complaint."""
    if py_spy.INSTALL in complaints:
        yield ""
        yield py_spy.INSTALL


def kernel_json(kernel: KernelThreads) -> dict[str, Any]:
    """The same as `kernel_lines` as plain data, and with all that tells threads apart."""
    return {
        "main": kernel.main and asdict(kernel.main),
        "others": [
            {**asdict(thread), "count": count} for thread, count in kernel.others.most_common()
        ],
        "unreadable": kernel.unreadable,
    }


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """A verdict, and what helps."""
    yield str(verdict)
    yield f"what helps: {verdict.name.advice} (docs/hang.md)"
