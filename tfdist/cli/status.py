"""`tfdist status`: prints the tasks of a job, and the trainers that each barrier waits for."""

from __future__ import annotations

import argparse
import json
import os

from tfdist.cli.arguments import add_json, add_run
from tfdist.cli.output import PipeConsole
from tfdist.cluster.ports import is_listening
from tfdist.diagnosis.barriers import ask
from tfdist.diagnosis.status import show_barriers, status_of
from tfdist.errors import HELD, NOT_HELD, ConfigError
from tfdist.runs.folder import RunFolder
from tfdist.runs.live import chosen_run, while_it_lasts
from tfdist.task import Task, parse_address

_DESCRIPTION = """\
Prints the state of each task of a job that `tfdist run` started: its CPU time, memory and progress,
and whether its server listens. Prints for each barrier the trainers that have arrived and those
that are missing. For a job that has ended it prints how each task ended.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `status` to the subcommands."""
    parser = commands.add_parser(
        "status",
        help="print the state of a job's tasks, and the trainers that a barrier waits for",
        description=_DESCRIPTION,
    )
    add_run(parser)
    add_json(parser)
    parser.add_argument(
        "--local",
        action="store_true",
        help="check only the server of the task in TF_CONFIG: 0 if it listens, 1 if not",
    )
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Prints the tables and returns the exit code.

    It is 1 if a task is stopped, gone or has failed, or if the ps does not report the barriers.
    """
    if parsed.local:
        return _local(parsed)
    run = chosen_run(parsed.run)
    with while_it_lasts(run):
        return _status(parsed, run)


def _status(parsed: argparse.Namespace, run: RunFolder) -> int:
    status = status_of(run)
    if parsed.json:
        barriers = status.barriers(ask)
        code = HELD if status.is_well(barriers) else NOT_HELD
        print(json.dumps({**status.as_json(barriers), "exit_code": code}))
        return code
    console = PipeConsole(highlight=False, markup=False, emoji=False)
    status.show_tasks(console)
    # Only the second table needs TensorFlow, which takes seconds to import.
    barriers = status.barriers(ask)
    show_barriers(barriers, console)
    return HELD if status.is_well(barriers) else NOT_HELD


def _local(parsed: argparse.Namespace) -> int:
    if parsed.run is not None:
        raise ConfigError("RUN", parsed.run, "cannot be combined with --local")
    if not os.environ.get("TF_CONFIG"):
        raise ConfigError("TF_CONFIG", None, "--local reads the task from it", missing=True)
    task = Task.from_env()
    if task.task_type == "evaluator":
        raise ConfigError("TF_CONFIG.task.type", task.task_type, "an evaluator has no server")
    listens = is_listening(*parse_address(task.address))
    if parsed.json:
        print(json.dumps({"task": task.name, "address": task.address, "listens": listens}))
    else:
        print(f"{task.name}: {'listens' if listens else 'does not listen'} at {task.address}")
    return HELD if listens else NOT_HELD
