"""`tfdist run`: a parameter-server job on this machine."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tfdist.cli.output import Output
from tfdist.cli.progress import ProgressView
from tfdist.cluster.local import LocalCluster
from tfdist.cluster.processes import Surroundings, start_fork_server, stop_fork_server
from tfdist.cluster.script import Script
from tfdist.errors import ClusterError, ConfigError, TaskFailed
from tfdist.task import Task

_BAD_INPUT = 2
_TASK_FAILED = 70
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_TERMINATED = 143  # 128 + SIGTERM

_DESCRIPTION = """\
Starts the ps and the workers of a job on this machine, each as a process with its own TF_CONFIG,
and ends when the workers have: every process is gone then, after a failure and after Ctrl-C too.
Worker 0 is the chief. The script needs no branch for the ps: tfdist runs those itself.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `run` to the subcommands."""
    parser = commands.add_parser(
        "run",
        help="run a job on this machine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--ps", type=int, default=1, help="parameter servers (default: 1)")
    parser.add_argument("--workers", type=int, default=2, help="workers (default: 2)")
    parser.add_argument(
        "--prefix",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put the task's name in front of each of its lines (default: yes)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object about the run on standard output, and all else on standard "
        "error",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show what TensorFlow logs",
    )
    parser.add_argument("script", help="the Python script that every worker runs")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="arguments of the script, after -- if you like"
    )
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Runs the job that the command line describes and returns the exit code."""
    if parsed.ps < 0:
        raise ConfigError("--ps", parsed.ps, "at least 0")
    if parsed.workers < 1:
        raise ConfigError("--workers", parsed.workers, "at least 1")
    if not os.path.isfile(parsed.script):
        raise ConfigError("script", parsed.script, "no such file")
    if os.environ.get("TF_CONFIG"):
        task = Task.from_env()
        print(
            f"tfdist: TF_CONFIG makes this process {task.name} of another cluster; ignored here",
            file=sys.stderr,
        )
    arguments = parsed.arguments[1:] if parsed.arguments[:1] == ["--"] else parsed.arguments
    start = time.monotonic()
    code, failure = 0, None
    try:
        _run(parsed, arguments)
    except (ClusterError, ConfigError) as error:
        code, failure = _exit_code(error), str(error)
    except KeyboardInterrupt:
        code, failure = _INTERRUPTED, "interrupted; every task has been ended"
    except _Terminated:
        code, failure = _TERMINATED, "terminated; every task has been ended"
    if failure is not None:
        print(f"tfdist: {failure}", file=sys.stderr)
    if parsed.json:
        seconds = round(time.monotonic() - start, 3)
        print(json.dumps({"exit_code": code, "seconds": seconds, "failure": failure}))
    return code


def _run(parsed: argparse.Namespace, arguments: list[str]) -> None:
    if not parsed.verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    output = Output(prefix=parsed.prefix, all_on_stderr=parsed.json)
    with _terminable(), tempfile.TemporaryDirectory(prefix="tfdist-") as folder:
        script = Script(parsed.script, arguments, folder)
        environment = {"COLUMNS": str(output.columns)}
        surroundings = Surroundings(environment, output.write)
        try:
            start_fork_server()
            cluster = LocalCluster(parsed.ps, parsed.workers, "processes", surroundings)
            with ProgressView(folder, [task.name for task in cluster.trainers]), cluster:
                cluster.run(script)
        finally:
            stop_fork_server()
            output.flush()


def _exit_code(error: ClusterError | ConfigError) -> int:
    if isinstance(error, ConfigError):
        return _BAD_INPUT
    # What a script ends with on purpose is passed on; a traceback or a signal is a failed task.
    on_purpose = isinstance(error, TaskFailed) and error.__cause__ is None and error.exit_code
    return on_purpose if on_purpose and on_purpose > 0 else _TASK_FAILED


class _Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside it SIGTERM raises, so that every task is ended on the way out."""

    def leave(number: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
