"""`tfdist stacks`: where the tasks of a job stand, when it stands still."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from rich.console import Console

from tfdist.cli.arguments import add_json, add_run
from tfdist.cli.output import PipeConsole
from tfdist.diagnosis.barriers import ask
from tfdist.diagnosis.foreign import show_processes
from tfdist.diagnosis.job_stacks import stacks_of
from tfdist.diagnosis.report import report_of
from tfdist.diagnosis.thread_text import verdict_lines
from tfdist.errors import ConfigError
from tfdist.runs.folder import RunFolder
from tfdist.runs.live import chosen_run, while_it_lasts

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
    parser.add_argument(
        "--verdict",
        action="store_true",
        help="also what the matter is, if it stands still; looks for some seconds",
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


def command(parsed: argparse.Namespace) -> int:
    """Prints where everybody stands and returns the exit code."""
    console = PipeConsole(highlight=False, markup=False, emoji=False)
    if parsed.pid is not None:
        if parsed.run is not None or parsed.task is not None:
            raise ConfigError("--pid", parsed.pid, "goes with neither RUN nor --task")
        return show_processes(
            parsed.pid,
            console,
            native=parsed.native,
            diagnosed=parsed.verdict,
            as_json=parsed.json,
        )
    run = chosen_run(parsed.run)
    with while_it_lasts(run):
        return _command_of_run(parsed, console, run)


def _command_of_run(parsed: argparse.Namespace, console: Console, run: RunFolder) -> int:
    names = run.about.tasks
    if parsed.task is not None:
        if parsed.task not in names:
            raise ConfigError("--task", parsed.task, f"one of {', '.join(names)}")
        names = (parsed.task,)
    if not parsed.verdict:
        stacks, verdict = stacks_of(run, names, native=parsed.native), None
    elif parsed.task is not None:
        raise ConfigError("--verdict", parsed.task, "is on all tasks; it goes without --task")
    else:
        report = report_of(run, run.about.trainers, ask, native=parsed.native)
        stacks, verdict = report.stacks, report.verdict
    if parsed.json:
        print(json.dumps({**stacks.as_json(), "verdict": verdict and asdict(verdict)}))
        return stacks.exit_code
    for line in verdict_lines(verdict) if verdict is not None else ():
        console.print(line, soft_wrap=True)
    stacks.show(console)
    return stacks.exit_code
