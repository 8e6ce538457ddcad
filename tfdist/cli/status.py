"""`tfdist status`: shows the tasks of a job, and which trainers each barrier waits for."""

from __future__ import annotations

import argparse
import json
import os

from tfdist.cli.arguments import add_json, add_run
from tfdist.cli.output import PipeConsole
from tfdist.cluster.ports import is_listening
from tfdist.diagnosis.barriers import ask
from tfdist.diagnosis.status import show_barriers, status_of
from tfdist.errors import ConfigError
from tfdist.runs.folder import RunFolder
from tfdist.runs.live import chosen_run, while_it_lasts
from tfdist.task import Task, parse_address

_NOT_WELL = 1

_DESCRIPTION = """\
Shows how each task of a job of `tfdist run` is: whether it runs, what it uses, how far it is, and
whether its server listens; and who has arrived at each of its barriers, and who is missing. Of a
job that is over it says how each task ended.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `status` to the subcommands."""
    parser = commands.add_parser(
        "status",
        help="show how the tasks of a job are",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run(parser)
    add_json(parser)
    parser.add_argument(
        "--local",
        action="store_true",
        help="no job: exit code 0 if the server of the task that TF_CONFIG names listens, 1 if not",
    )
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Prints the tables and returns the exit code.

    It is 1 if a task is stopped, gone or has failed, or if the ps does not tell of the barriers.
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
        print(json.dumps(status.as_json(barriers)))
        return status.exit_code(barriers)
    console = PipeConsole(highlight=False, markup=False, emoji=False)
    status.show_tasks(console)
    # The first table does not wait for TensorFlow, which the second one needs.
    barriers = status.barriers(ask)
    show_barriers(barriers, console)
    return status.exit_code(barriers)


def _local(parsed: argparse.Namespace) -> int:
    if parsed.run is not None:
        raise ConfigError("RUN", parsed.run, "does not go with --local")
    if not os.environ.get("TF_CONFIG"):
        raise ConfigError("TF_CONFIG", None, "--local needs it, to know which task it is")
    task = Task.from_env()
    if task.task_type == "evaluator":
        raise ConfigError("TF_CONFIG.task.type", task.task_type, "an evaluator has no server")
    listens = is_listening(*parse_address(task.address))
    if parsed.json:
        print(json.dumps({"task": task.name, "address": task.address, "listens": listens}))
    else:
        print(f"{task.name}: {'listens' if listens else 'nobody listens'} at {task.address}")
    return 0 if listens else _NOT_WELL
