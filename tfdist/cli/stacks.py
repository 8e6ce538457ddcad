"""`tfdist stacks`: where the tasks of a job stand, when it stands still."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from tfdist.cli.arguments import add_json, add_run
from tfdist.cli.pids import show_processes
from tfdist.cli.pipe import PipeConsole
from tfdist.cli.summary import describe_end
from tfdist.cli.thread_text import (
    ask_py_spy,
    install_lines,
    kernel_json,
    kernel_lines,
    native_lines,
    stack_lines,
)
from tfdist.cluster.kernel_threads import KernelThreads, kernel_threads
from tfdist.cluster.live_runs import chosen_run, while_it_lasts
from tfdist.cluster.processes import STACKS_FILE
from tfdist.cluster.run_folder import RunFolder, TaskRecord
from tfdist.cluster.sighting import Sighting, sight
from tfdist.cluster.stacks import ANSWER_SECS, ANSWERED, GONE, MEANINGS, Answer, ask
from tfdist.errors import ConfigError

_NOT_ALL_ANSWER = 1

_DESCRIPTION = """\
Asks each task of a job of `tfdist run` where its threads stand, and prints the stacks, the most
recent call first. It works while a task is stuck inside of TensorFlow. Of a job that is over it
says how each task ended.
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
    add_run(parser)
    parser.add_argument("--task", metavar="NAME", help="this one alone, such as worker:1")
    parser.add_argument(
        "--native", action="store_true", help="also the frames of C and C++, by py-spy"
    )
    add_json(parser)
    parser.add_argument(
        "--pid",
        type=int,
        nargs="+",
        metavar="PID",
        help="any processes instead of a run: what the kernel and py-spy tell; they get no signal",
    )
    parser.set_defaults(command_function=command)


@dataclass(frozen=True)
class View:
    """What is known of a task.

    Attributes:
        life: None if the task has not started.
        answer: None if it was not asked.
        sighting: what the answer is a part of; None if it was only asked.
        native: what py-spy printed; None if it was not called, or failed.
        complaint: why there is nothing of py-spy although it was asked for.
    """

    name: str
    life: TaskRecord | None = None
    answer: Answer | None = None
    kernel: KernelThreads | None = None
    native: str | None = None
    complaint: str | None = None
    sighting: Sighting | None = None

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
    console = PipeConsole(highlight=False, markup=False, emoji=False)
    if parsed.pid is not None:
        if parsed.run is not None or parsed.task is not None:
            raise ConfigError("--pid", parsed.pid, "goes with neither RUN nor --task")
        return show_processes(parsed.pid, console, native=parsed.native, as_json=parsed.json)
    run = chosen_run(parsed.run)
    with while_it_lasts(run):
        return _command_of_run(parsed, console, run)


def _command_of_run(parsed: argparse.Namespace, console: Console, run: RunFolder) -> int:
    names = run.about["tasks"]
    if parsed.task is not None:
        if parsed.task not in names:
            raise ConfigError("--task", parsed.task, f"one of {', '.join(names)}")
        names = [parsed.task]
    stacks = stacks_of(run, names, native=parsed.native)
    if parsed.json:
        print(json.dumps(stacks.as_json()))
    else:
        stacks.show(console)
    return stacks.exit_code


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


def stacks_of(run: RunFolder, names: Sequence[str], *, native: bool = False) -> JobStacks:
    """Asks all of these tasks at the same time.

    Args:
        run: whose tasks they are.
        names: of the tasks.
        native: whether py-spy is asked too, which may take longer.
    """
    runs = run.runs
    lives = {life.name: life for life in run.latest()}
    with ThreadPoolExecutor(len(names)) as pool:
        views = pool.map(lambda name: _view(run, name, lives.get(name), native), names)
        return JobStacks(run, runs, list(views))


def sightings_of(run: RunFolder, names: Sequence[str]) -> JobStacks:
    """Looks at all of these tasks at the same time; blocks for a second, or up to five."""
    runs = run.runs
    lives = {life.name: life for life in run.latest()}
    with ThreadPoolExecutor(len(names)) as pool:
        views = pool.map(lambda name: _sighted(run, name, lives.get(name)), names)
        return JobStacks(run, runs, list(views))


def _sighted(run: RunFolder, name: str, life: TaskRecord | None) -> View:
    if life is None or life.ended is not None or life.process is None:
        return _view(run, name, life, False)
    seen = sight(life.process, run.folder_of(name, life.attempt) / STACKS_FILE)
    return View(name, life, seen.answer, seen.kernel, sighting=seen)


def _view(run: RunFolder, name: str, life: TaskRecord | None, native: bool) -> View:
    """Looks at one task; blocks until it has answered or a deadline is over."""
    if life is None or life.ended is not None:
        return View(name, life)
    process = life.process
    if process is None:
        return View(name, life, Answer(GONE))
    kernel = kernel_threads(life.pid)  # before it is woken up by the question
    answer = ask(process, run.folder_of(name, life.attempt) / STACKS_FILE, ANSWER_SECS)
    text, complaint = ask_py_spy(life.pid, native=True) if native else (None, None)
    return View(name, life, answer, kernel, text, complaint)


def _lines(view: View, width: int) -> Iterator[str]:
    life = view.life
    where = "" if life is None else f"  attempt {life.attempt}  pid {life.pid}"
    yield ""
    yield f"{view.name}{where}  {view.state}"
    if view.kernel is not None:
        yield from kernel_lines(view.kernel)
    if view.answer is not None:
        yield from stack_lines(view.answer, width)
    yield from native_lines(view.native, view.complaint)


def _task_json(view: View) -> dict[str, Any]:
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
        "kernel": view.kernel and kernel_json(view.kernel),
        "native": view.native,
        "complaint": view.complaint,
    }
