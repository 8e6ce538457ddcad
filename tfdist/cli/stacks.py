"""`tfdist stacks`: where the tasks of a job stand, when it stands still."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from rich.console import Console

from tfdist.cli.summary import describe_end
from tfdist.cluster import py_spy
from tfdist.cluster.kernel_threads import KernelThread, KernelThreads, kernel_threads
from tfdist.cluster.live_runs import chosen_run, while_it_lasts
from tfdist.cluster.processes import STACKS_FILE
from tfdist.cluster.run_folder import RunFolder, TaskRecord
from tfdist.cluster.stacks import ANSWERED, GONE, MEANINGS, Answer, Frame, ask
from tfdist.errors import ClusterError, ConfigError

_NOT_ALL_ANSWER = 1

_DESCRIPTION = """\
Asks each task of a job of `tfdist run` where its threads stand, and prints the stacks, the most
recent call first. It works while a task is stuck inside of TensorFlow, and changes nothing. Of a
job that is over it says how each task ended.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `stacks` to the subcommands."""
    parser = commands.add_parser(
        "stacks",
        help="show where the tasks of a job stand",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="the folder of a run, or of runs (default: the only job of yours that runs)",
    )
    parser.add_argument("--task", metavar="NAME", help="this one alone, such as worker:1")
    parser.add_argument(
        "--native", action="store_true", help="also the frames of C and C++, by py-spy"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
    parser.add_argument(
        "--pid",
        type=int,
        metavar="PID",
        help="any process instead of a run: what the kernel and py-spy tell; it gets no signal",
    )
    parser.set_defaults(command_function=command)


@dataclass(frozen=True)
class _View:
    """What is known of a task, or of a process that is none.

    Attributes:
        life: None if the task has not started.
        answer: None if it was not asked.
        native: what py-spy printed; None if it was not called, or failed.
        complaint: why there is nothing of py-spy although it was asked for.
    """

    name: str
    life: TaskRecord | None = None
    answer: Answer | None = None
    kernel: KernelThreads | None = None
    native: str | None = None
    complaint: str | None = None

    @property
    def state(self) -> str:
        """In a few words, what is known of it."""
        if self.life is None:
            return "has not started"
        if self.life.ended is not None:
            return describe_end(self.life)
        assert self.answer is not None  # it was asked
        return MEANINGS[self.answer.state]

    @property
    def is_well(self) -> bool:
        """Whether it answers, or ended without a failure."""
        if self.complaint is not None or self.life is None:
            return False
        if self.life.ended is not None:
            return self.life.stopped or self.life.exit_code == 0
        return self.answer is not None and self.answer.state == ANSWERED


def command(parsed: argparse.Namespace) -> int:
    """Prints where everybody stands and returns the exit code."""
    console = Console(highlight=False, markup=False, emoji=False)
    if parsed.pid is not None:
        return _command_of_pid(parsed, console)
    run = chosen_run(parsed.run)
    with while_it_lasts(run):
        return _command_of_run(parsed, console, run)


def _command_of_run(parsed: argparse.Namespace, console: Console, run: RunFolder) -> int:
    names = run.about["tasks"]
    if parsed.task is not None:
        if parsed.task not in names:
            raise ConfigError("--task", parsed.task, f"one of {', '.join(names)}")
        names = [parsed.task]
    runs = run.runs
    lives = {life.name: life for life in run.latest()}
    with ThreadPoolExecutor(len(names)) as pool:
        views = list(pool.map(lambda name: _view(run, name, lives.get(name), parsed.native), names))
    code = 0 if all(view.is_well for view in views) else _NOT_ALL_ANSWER
    if parsed.json:
        about = {
            "run": str(run.path),
            "runs": runs,
            "exit_code": code,
            "tasks": [_task_json(view) for view in views],
        }
        print(json.dumps(about))
        return code
    _line(console, f"{run.path}: " + ("runs" if runs else "this job is over; how each task ended:"))
    for view in views:
        _print(console, view)
    return code


def _view(run: RunFolder, name: str, life: TaskRecord | None, native: bool) -> _View:
    """Looks at one task; blocks until it has answered or a deadline is over."""
    if life is None or life.ended is not None:
        return _View(name, life)
    process = life.process
    if process is None:
        return _View(name, life, Answer(GONE))
    kernel = kernel_threads(life.pid)  # before it is woken up by the question
    answer = ask(process, run.folder_of(name, life.attempt) / STACKS_FILE)
    text, complaint = _native(life.pid, native=True) if native else (None, None)
    return _View(name, life, answer, kernel, text, complaint)


def _native(pid: int, *, native: bool) -> tuple[str | None, str | None]:
    """What py-spy says, or why it does not."""
    try:
        return py_spy.dump(pid, native=native), None
    except ClusterError as error:
        return None, str(error)


def _command_of_pid(parsed: argparse.Namespace, console: Console) -> int:
    if parsed.run is not None or parsed.task is not None:
        raise ConfigError("--pid", parsed.pid, "goes with neither RUN nor --task")
    if parsed.pid < 1 or not psutil.pid_exists(parsed.pid):
        raise ConfigError("--pid", parsed.pid, "no such process")
    kernel = kernel_threads(parsed.pid)
    text, complaint = _native(parsed.pid, native=parsed.native)
    # Without py-spy the kernel's word is all there is to get, unless more was asked for.
    is_well = complaint is None or (complaint == py_spy.INSTALL and not parsed.native)
    code = 0 if is_well else _NOT_ALL_ANSWER
    if parsed.json:
        about = {
            "pid": parsed.pid,
            "exit_code": code,
            "kernel": _kernel_json(kernel),
            "native": text,
            "complaint": complaint,
        }
        print(json.dumps(about))
        return code
    _line(console, f"pid {parsed.pid}")
    _print_kernel(console, kernel)
    _print_native(console, text, complaint)
    return code


def _print(console: Console, view: _View) -> None:
    _line(console, "")
    life = view.life
    where = "" if life is None else f"  attempt {life.attempt}  pid {life.pid}"
    _line(console, f"{view.name}{where}  {view.state}")
    if view.kernel is not None:
        _print_kernel(console, view.kernel)
    for stack in view.answer.stacks if view.answer else ():
        others = stack.count - stack.main
        parts = ["main thread"] if stack.main else []
        parts += [f"{others} thread{'' if others == 1 else 's'}"] if others else []
        _line(console, f"  {' and '.join(parts)}")
        for frame in stack.frames:
            _line(console, _frame_text(frame, console.width))
        if not stack.frames:
            _line(console, "    no Python")
        if stack.cut:
            _line(console, "    ... older calls")
    if view.answer is not None and view.answer.more_threads:
        _line(console, "  ... more threads; only 100 are shown, perhaps not the main one")
    _print_native(console, view.native, view.complaint)


def _print_native(console: Console, text: str | None, complaint: str | None) -> None:
    if text is not None:
        _line(console, "  py-spy")
        for line in text.rstrip().splitlines():
            _line(console, f"    {line}")
    elif complaint is not None:
        _line(console, f"  {complaint}")


def _print_kernel(console: Console, kernel: KernelThreads) -> None:
    if kernel.main is not None:
        _line(console, f"  kernel: main thread: {_kernel_text(kernel.main)}")
    for thread, count in kernel.others.most_common():
        _line(console, f"  kernel: {count} more: {_kernel_text(thread)}")
    if kernel.unreadable:
        _line(console, f"  kernel: {kernel.unreadable} more: may not be read")


def _kernel_text(thread: KernelThread) -> str:
    place = (
        " (where is not told)" if thread.wchan is None else thread.wchan and f" in {thread.wchan}"
    )
    return thread.state + place


def _frame_text(frame: Frame, width: int) -> str:
    """One line; a path that is too long for it loses its beginning."""
    start = f"    {frame.function}  "
    end = f":{'?' if frame.line is None else frame.line}"
    path, parts = frame.file, frame.file.split("/")
    while len(start) + len(path) + len(end) > width and len(parts) > 1:
        parts = parts[1:]
        path = "/".join(["...", *parts])
    return start + path + end


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)


def _task_json(view: _View) -> dict[str, Any]:
    life, answer = view.life, view.answer
    return {
        "task": view.name,
        "attempt": life and life.attempt,
        "pid": life and life.pid,
        "answer": answer and answer.state,
        "state": view.state,
        "exit_code": life and life.exit_code,
        "stopped_by_tfdist": bool(life and life.stopped),
        "stacks": [asdict(stack) for stack in answer.stacks] if answer else [],
        "more_threads": bool(answer and answer.more_threads),
        "kernel": view.kernel and _kernel_json(view.kernel),
        "native": view.native,
        "complaint": view.complaint,
    }


def _kernel_json(kernel: KernelThreads) -> dict[str, Any]:
    return {
        "main": kernel.main and asdict(kernel.main),
        "others": [
            {**asdict(thread), "count": count} for thread, count in kernel.others.most_common()
        ],
        "unreadable": kernel.unreadable,
    }
