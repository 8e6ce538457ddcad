"""`tfdist node`: one task of a job on several machines, started there by another program."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable
from functools import partial

from tfdist.cli.arguments import add_module, add_script, check_grace, check_script, script_of
from tfdist.cli.output import drop_unread, say
from tfdist.cluster.kernel_calls import raise_descriptor_limit
from tfdist.cluster.script import (
    GRACE_SECS,
    end_on_signals,
    end_process,
    import_tensorflow_quietly,
    node_environment,
)
from tfdist.errors import HELD, INTERRUPTED, READER_LEFT, TASK_FAILED, USAGE, ConfigError
from tfdist.lazy import require_tensorflow
from tfdist.runs.log import show_log
from tfdist.runs.outcome import Outcome
from tfdist.task import Task

_DESCRIPTION = """\
Runs one task of a job on several machines: the task that TF_CONFIG names. A ps
serves until every trainer is done; any other task runs the script, as under
`tfdist run`. Use it as the command of a container, or start it on each machine.
"""


_CHILD_FAILED = 1  # of a child that the script has forked, as under `python`


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `node` to the subcommands."""
    parser = commands.add_parser(
        "node",
        help="run the one task that TF_CONFIG names",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "--coordinator",
        action="store_true",
        help="for a ClusterCoordinator: the workers are servers too, and all servers exit when "
        "the script of the chief has succeeded",
    )
    parser.add_argument(
        "--classic-flags",
        action="store_true",
        help="pass --ps_hosts, --worker_hosts, --job_name and --task_index to the script",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE_SECS,
        metavar="S",
        help="seconds that the threads and exit handlers of the script may take after its end "
        "(default: 10)",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="show the log of tfdist (INFO); -vv: DEBUG, and the log of TensorFlow",
    )
    add_module(parser)
    add_script(parser, "the Python script; a server does not run it")
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Runs the task and ends this process with its exit code; never returns.

    Raises:
        ConfigError: the options, TF_CONFIG or the path of the script are wrong.
    """
    task = _task(parsed)
    check_grace(parsed)
    serves = task.task_type == "ps" or (parsed.coordinator and task.task_type == "worker")
    if not serves:
        check_script(parsed)
    require_tensorflow("tfdist node")
    _prepare(task, parsed.verbose)
    script = script_of(parsed)
    end_on_signals()
    if parsed.verbose < 2:
        import_tensorflow_quietly()
    pid = os.getpid()
    code = _exit_code_of(task, _serve if serves else script)
    # A child that the script has forked may come back too, and does not speak for the task.
    trained = code == HELD and not serves and os.getpid() == pid
    release = partial(_exit_code_of, task, partial(_release_servers, parsed.coordinator))
    end_process(code, task.name, parsed.grace, release if trained else None)


def _task(parsed: argparse.Namespace) -> Task:
    if not os.environ.get("TF_CONFIG", "").strip():
        rule = "set it for each task; see docs/deploy.md"
        raise ConfigError("TF_CONFIG", None, rule, missing=True)
    task = Task.from_env()
    types = {*task.cluster_spec, task.task_type}
    if parsed.coordinator and "chief" not in types:
        raise ConfigError(
            "TF_CONFIG.cluster", task.cluster_spec, "must contain a chief, because of --coordinator"
        )
    if parsed.classic_flags and types - {"ps", "worker"}:
        rule = "must contain only ps and workers, because of --classic-flags"
        raise ConfigError("TF_CONFIG", sorted(types), rule)
    return task


def _prepare(task: Task, verbose: int) -> None:
    """Sets TensorFlow's environment variables, and makes the output line-buffered."""
    show_log(verbose)
    if verbose < 2:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    raise_descriptor_limit()
    os.environ.update(node_environment(task, os.environ))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _serve(task: Task) -> None:
    from tfdist.cluster.server import LINGER_SECS, serve

    def announce() -> None:
        say(f"{task.name} serves at {task.address}")

    serve(task, serving=announce)
    time.sleep(LINGER_SECS)  # the answer to the chief that dismissed it has to leave first


def _release_servers(coordinator: bool, task: Task) -> None:
    from tfdist.cluster.server import let_servers_leave

    if silent := let_servers_leave(task, coordinator=coordinator):
        names = ", ".join(silent)
        say(f"{task.name} is done; these servers did not answer: {names}")


def _exit_code_of(task: Task, function: Callable[[Task], object]) -> int:
    """Calls the function and returns the exit code; a failure is printed on standard error."""
    pid = os.getpid()
    try:
        function(task)
        return HELD
    except SystemExit as error:
        outcome = Outcome.of_exit(error)
        outcome.show()
        return outcome.exit_code or HELD
    except ConfigError as error:
        say(str(error))
        return USAGE
    except KeyboardInterrupt:  # of a handler of the script's own
        return INTERRUPTED
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and drop_unread():
            return READER_LEFT
        Outcome.of_error(error).show()
        return TASK_FAILED if os.getpid() == pid else _CHILD_FAILED
