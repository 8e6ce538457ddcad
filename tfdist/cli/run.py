"""`tfdist run`: a parameter-server job on this machine."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tfdist.cli.arguments import (
    add_module,
    add_script,
    check_counts,
    check_grace,
    check_script,
    script_of,
)
from tfdist.cli.output import (
    Output,
    PipeConsole,
    ShownRun,
    drop_unread,
    say,
    summary_json,
    summary_table,
)
from tfdist.cli.progress import ProgressView
from tfdist.cluster.fork_server import start_fork_server, stop_fork_server
from tfdist.cluster.identity import ID_VARIABLE
from tfdist.cluster.isolation import is_reachable, isolate
from tfdist.cluster.local import LocalCluster
from tfdist.cluster.processes import Surroundings
from tfdist.cluster.script import GRACE_SECS
from tfdist.cluster.shape import Shape
from tfdist.diagnosis.stall import StallGuard
from tfdist.diagnosis.status import print_table
from tfdist.errors import (
    BY_SIGNAL,
    HELD,
    INTERRUPTED,
    READER_LEFT,
    STALLED,
    TASK_FAILED,
    USAGE,
    ClusterError,
    ConfigError,
    RunTimeout,
    StallError,
    TaskFailed,
    signal_name,
)
from tfdist.lazy import require_tensorflow
from tfdist.runs.folder import TaskRecord
from tfdist.runs.live import linked, temporary_folder
from tfdist.runs.log import show_log
from tfdist.task import Task

_DESCRIPTION = """\
Runs a parameter-server job on this machine: one process for each task, each
with its own TF_CONFIG. The job ends when all trainers have ended. It leaves no
process behind, even after a failure or Ctrl-C. Worker 0 is the chief, unless
--chief or --coordinator adds one. The script needs no branch for the ps,
because tfdist runs the ps itself.
"""


_OPEN = "warning: other machines can reach the TensorFlow servers; use --isolate or a firewall"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `run` to the subcommands."""
    parser = commands.add_parser(
        "run",
        help="run a job on this machine",
        description=_DESCRIPTION,
    )
    _add_cluster(parser.add_argument_group("the cluster"))
    _add_end(parser.add_argument_group("how it ends"))
    _add_output(parser.add_argument_group("what it shows"))
    add_module(parser)
    add_script(parser, "the Python script that every trainer and the evaluator run")
    parser.set_defaults(command_function=command)


def _add_cluster(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--ps", type=int, default=1, metavar="N", help="parameter servers (default: 1)"
    )
    group.add_argument("--workers", type=int, default=2, metavar="N", help="workers (default: 2)")
    group.add_argument(
        "--chief",
        action=argparse.BooleanOptionalAction,
        help="add a task `chief`; otherwise worker 0 is the chief (default: only with "
        "--coordinator)",
    )
    _add_switch(
        group,
        "--evaluator",
        "add an evaluator; it runs the script too, but must not reach run_task: test for "
        'task.task_type == "evaluator" first',
    )
    group.add_argument(
        "--coordinator",
        action="store_true",
        help="for a ClusterCoordinator: only the chief runs the script, the workers are servers, "
        "and the job ends when the chief ends",
    )
    group.add_argument(
        "--builtin-ps",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="tfdist runs the ps itself; with --no-builtin-ps the ps run the script and are "
        "terminated when the others are done (default: yes)",
    )
    _add_switch(
        group,
        "--isolate",
        "run in a private network namespace: no other process reaches the ports of the job, and "
        "the job reaches no network",
    )
    group.add_argument(
        "--classic-flags",
        action="store_true",
        help="pass --ps_hosts, --worker_hosts, --job_name and --task_index to the script",
    )


def _add_end(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="end the job after S seconds, with exit code 70; the clock starts when the ps tasks "
        "have been started",
    )
    group.add_argument(
        "--grace",
        type=float,
        default=GRACE_SECS,
        metavar="S",
        help="seconds between SIGTERM and SIGKILL, in which a task can save; and for its threads "
        "and exit handlers after the end of the script (default: 10)",
    )
    group.add_argument(
        "--stall-timeout",
        type=float,
        metavar="S",
        help="if no task makes progress for S seconds, print a report of all tasks and end the job "
        "with exit code 75; if the job only seems slow, after up to 8 S",
    )
    group.add_argument(
        "--on-stall",
        choices=("end", "report"),
        default="end",
        help="what to do then: end the job, or let it continue after the report (default: end)",
    )
    group.add_argument(
        "--restart",
        type=int,
        default=0,
        metavar="N",
        help="restart a failed task, at most N times per task (default: 0)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--log-dir",
        metavar="DIR",
        help="keep the output and the exit status of all tasks in a new folder in DIR",
    )
    _add_switch(group, "--prefix", "print the name of the task in front of each of its lines", True)
    group.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object about the run on standard output, and everything else on "
        "standard error",
    )
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="show the log of tfdist (INFO); -vv: DEBUG, and the log of TensorFlow",
    )


def _add_switch(
    group: argparse._ArgumentGroup, flag: str, meaning: str, default: bool = False
) -> None:
    text = f"{meaning} (default: {'yes' if default else 'no'})"
    group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)


def command(parsed: argparse.Namespace) -> int:
    """Runs the job that the command line describes and returns the exit code."""
    _check(parsed)
    require_tensorflow("tfdist run")
    show_log(parsed.verbose)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may take only ASCII
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("TF_CONFIG"):
        say(f"TF_CONFIG {_meaning_of_tf_config()}; ignored here")
    isolate_or_say(parsed.isolate)  # before there are ports, processes or threads
    start = time.monotonic()
    code, failure, failed = HELD, None, None
    records: list[TaskRecord] = []
    try:
        _run(parsed, records)
    except (ClusterError, ConfigError, KeyboardInterrupt, _Terminated, _ReaderLeft) as error:
        first = _first(error)
        code, failure = _end_of(first, parsed)
        failed = first if isinstance(first, TaskFailed) else None
    if records and code != USAGE and not parsed.json:
        print_table(PipeConsole(stderr=True), summary_table(records))
    if failure is not None:
        say(failure)
        if failed is not None:
            say(f"exit code {code}, because {failed.how}")
    if parsed.json:
        about = {
            "exit_code": code,
            "seconds": round(time.monotonic() - start, 3),
            "failure": failure,
            "tasks": [summary_json(record) for record in records],
        }
        print(json.dumps(about))
    return code


def _meaning_of_tf_config() -> str:
    try:
        return f"makes this process {Task.from_env().name} of another cluster"
    except ConfigError:
        return "is set, but makes this process no task of a cluster"


def _first(error: BaseException) -> BaseException:
    """The reason for the end of the run: a signal during the grace only ends the grace."""
    context: BaseException | None = error
    while context is not None:
        if isinstance(context, (ClusterError, ConfigError)):
            return context
        context = context.__context__
    return error


def _end_of(error: BaseException, parsed: argparse.Namespace) -> tuple[int, str]:
    """The exit code of a run that ended with this error, and the line that says why."""
    terminated = "all tasks have been terminated"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, f"interrupted; {terminated}"
    if isinstance(error, _Terminated):
        return BY_SIGNAL + error.number, f"received {signal_name(error.number)}; {terminated}"
    if isinstance(error, _ReaderLeft):
        return READER_LEFT, f"no process reads the output any more; {terminated}"
    assert isinstance(error, (ClusterError, ConfigError))
    if isinstance(error, RunTimeout):
        running = f"terminated the tasks that were still running: {', '.join(error.running)}"
        return TASK_FAILED, f"--timeout {parsed.timeout:g} expired; {running}"
    return _exit_code(error), str(error)


def isolate_or_say(wanted: bool) -> None:
    """Isolates this process if `wanted`; prints a line if its ports are open to a network."""
    if wanted:
        try:
            isolate()
        except ClusterError as error:
            say(f"warning: --isolate failed, and other machines can reach the servers: {error}")
    elif is_reachable():
        say(_OPEN)


def _check(parsed: argparse.Namespace) -> None:
    check_counts(parsed)
    if parsed.restart < 0:
        raise ConfigError("--restart", parsed.restart, "must be at least 0")
    for flag, seconds in {
        "--timeout": parsed.timeout,
        "--stall-timeout": parsed.stall_timeout,
    }.items():
        if seconds is not None and not seconds > 0:
            raise ConfigError(flag, seconds, "must be more than 0 seconds")
    check_grace(parsed)
    if parsed.on_stall != "end" and parsed.stall_timeout is None:
        raise ConfigError("--on-stall", parsed.on_stall, "needs --stall-timeout")
    if parsed.coordinator and parsed.chief is False:
        raise ConfigError("--no-chief", True, "cannot be combined with --coordinator")
    if parsed.classic_flags and (parsed.chief or parsed.evaluator or parsed.coordinator):
        other = next(name for name in ("chief", "evaluator", "coordinator") if vars(parsed)[name])
        raise ConfigError(f"--{other}", True, "cannot be combined with --classic-flags")
    check_script(parsed)
    if parsed.log_dir is not None and not os.path.isdir(parsed.log_dir):
        try:
            os.makedirs(parsed.log_dir)
        except OSError as error:
            raise ConfigError(
                "--log-dir", parsed.log_dir, f"cannot create this folder: {error.strerror}"
            ) from error


def _run(parsed: argparse.Namespace, records: list[TaskRecord]) -> None:
    """Runs the job; adds to `records` how each task ended, also if it raises."""
    if parsed.verbose < 2:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    output = Output(prefix=parsed.prefix, all_on_stderr=parsed.json)
    with _ended_by_signals(), _folder(parsed.log_dir) as folder:
        run = ShownRun(folder, output)
        try:
            start_fork_server()
            cluster = _cluster(parsed, run, {"COLUMNS": str(output.columns)})
            with ProgressView(run, cluster.tasks), cluster:
                cluster.run(
                    script_of(parsed),
                    timeout=parsed.timeout,
                    restarts=parsed.restart,
                    watch=_guard(parsed, run),
                )
        finally:
            stop_fork_server()
            records += run.records()
            output.flush()


def _cluster(
    parsed: argparse.Namespace, run: ShownRun, environment: dict[str, str]
) -> LocalCluster:
    """Makes the cluster of the run, not started, and writes `run.json`."""
    identity = f"{run.path.name}-{os.getpid()}"
    if parsed.builtin_ps:
        environment = {**environment, ID_VARIABLE: identity}
    cluster = LocalCluster(
        Shape(parsed.ps, parsed.workers, bool(parsed.chief), parsed.evaluator, parsed.coordinator),
        "processes",
        Surroundings(environment, run),
        None if parsed.builtin_ps else script_of(parsed),
        grace=parsed.grace,
    )
    run.create(cluster.tasks, cluster.trainers, script=parsed.script, id=identity)
    return cluster


def _guard(parsed: argparse.Namespace, run: ShownRun) -> StallGuard | None:
    if parsed.stall_timeout is None:
        return None
    return StallGuard(
        run,
        run.about.trainers,
        parsed.stall_timeout,
        is_kept=parsed.log_dir is not None,
        ends=parsed.on_stall == "end",
    )


@contextmanager
def _folder(log_dir: str | None) -> Iterator[str]:
    """Makes the folder of the run: in `log_dir`, or a temporary one."""
    if log_dir is None:
        with temporary_folder() as folder:
            yield folder
        return
    # An absolute path, because a script may change its directory.
    parent = os.path.abspath(log_dir)
    folder = tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=parent)
    say(f"the logs are in {folder}")
    with linked(folder) as complaint:
        if complaint is not None:
            say(f"tfdist status and stacks need the name of this folder: {complaint}")
        yield folder


def _exit_code(error: ClusterError | ConfigError) -> int:
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, StallError):
        return STALLED
    return TASK_FAILED


class _Terminated(BaseException):
    """Raised on a signal that ends a program by default, as KeyboardInterrupt is on SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class _ReaderLeft(BaseException):
    """Raised on SIGPIPE of a standard stream, to which any thread may have written."""


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Makes signals raise inside the block, so that its end ends every task.

    An ignored signal stays ignored, as SIGHUP is under `nohup`.
    """

    def leave(number: int, frame: object) -> None:
        raise _Terminated(number)

    def leave_unread(number: int, frame: object) -> None:
        # Only once: later output, while the tasks are ended, is discarded.
        if drop_unread():
            raise _ReaderLeft

    handlers = {signal.SIGPIPE: leave_unread} | {
        number: leave for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
