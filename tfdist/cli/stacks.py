"""`tfdist stacks`: prints the stacks of a job's tasks, and a verdict."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from tfdist.cli.arguments import add_json, add_run
from tfdist.cli.output import PipeConsole
from tfdist.diagnosis.barriers import ask
from tfdist.diagnosis.collect import (
    ProcessView,
    TaskView,
    evidence_of_processes,
    process_of,
    view_job,
    view_processes,
)
from tfdist.diagnosis.report import (
    job_json,
    job_lines,
    process_json,
    process_lines,
    report_of,
)
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.verdict import Verdict
from tfdist.errors import HELD, NOT_HELD, ConfigError
from tfdist.runs.folder import RunFolder
from tfdist.runs.live import chosen_run, while_it_lasts

_DESCRIPTION = """\
Prints the stacks of each task of a job that `tfdist run` started, the most recent call first, even
while a task is stuck in TensorFlow. For a job that has ended it prints how each task ended.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `stacks` to the subcommands."""
    parser = commands.add_parser(
        "stacks",
        help="print the stacks of a job's tasks, and why the job hangs",
        description=_DESCRIPTION,
    )
    add_run(parser)
    parser.add_argument("--task", metavar="NAME", help="only this task, such as worker:1")
    parser.add_argument(
        "--native", action="store_true", help="also print the frames of C and C++, with py-spy"
    )
    parser.add_argument(
        "--verdict",
        action="store_true",
        help="first print why the job hangs; this takes some seconds",
    )
    add_json(parser)
    parser.add_argument(
        "--pid",
        type=int,
        nargs="+",
        metavar="PID",
        help="inspect these processes through /proc and py-spy, without signaling them, instead of "
        "a run",
    )
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Prints the stacks; returns 1 if a task or a process could not be read or is not well."""
    if parsed.pid is not None:
        if parsed.run is not None or parsed.task is not None:
            raise ConfigError("--pid", parsed.pid, "cannot be combined with RUN or --task")
        return _processes(parsed)
    run = chosen_run(parsed.run)
    with while_it_lasts(run):
        return _job(parsed, run)


def _processes(parsed: argparse.Namespace) -> int:
    for pid in parsed.pid:
        process_of(pid)
    verdict = diagnose(evidence_of_processes(parsed.pid)) if parsed.verdict else None
    views = view_processes(parsed.pid, native=parsed.native)
    if parsed.json:
        about = {"exit_code": _code(views), "processes": [*map(process_json, views)]}
        print(json.dumps({**about, "verdict": verdict and asdict(verdict)}))
        return _code(views)
    console = _console()
    _show(console, verdict, process_lines(views, console.width))
    return _code(views)


def _job(parsed: argparse.Namespace, run: RunFolder) -> int:
    names = run.about.tasks
    if parsed.task is not None:
        if parsed.task not in names:
            raise ConfigError("--task", parsed.task, f"must be one of {', '.join(names)}")
        names = (parsed.task,)
    if not parsed.verdict:
        job, verdict = view_job(run, names, native=parsed.native), None
    elif parsed.task is not None:
        raise ConfigError("--verdict", parsed.task, "needs all tasks; leave out --task")
    else:
        report = report_of(run, run.about.trainers, ask, native=parsed.native)
        job, verdict = report.job, report.verdict
    if parsed.json:
        about = {**job_json(job), "exit_code": _code(job.tasks)}
        print(json.dumps({**about, "verdict": verdict and asdict(verdict)}))
        return _code(job.tasks)
    console = _console()
    _show(console, verdict, job_lines(job, console.width))
    return _code(job.tasks)


def _show(console: PipeConsole, verdict: Verdict | None, lines: Iterable[str]) -> None:
    for line in verdict.lines() if verdict else ():
        indent = "    " if line.startswith(" ") else "  "
        wrapped = textwrap.fill(
            line,
            console.width,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        console.print(wrapped, soft_wrap=True)
    for line in lines:
        console.print(line, soft_wrap=True)


def _code(views: Sequence[TaskView | ProcessView]) -> int:
    return HELD if all(view.is_well for view in views) else NOT_HELD


def _console() -> PipeConsole:
    return PipeConsole(highlight=False, markup=False, emoji=False)
