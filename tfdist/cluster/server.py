"""The TensorFlow server of a task: how it starts, and how it exits when the job is done.

A ps of plain TensorFlow never exits. Here each trainer reports to every ps that it is done, and a
ps exits when all trainers are done. But if it exited on the last report, its reply would be lost
and that trainer would hang. So a trainer sends two messages: that it is done, and then that it has
the reply. It does not need the reply to the second message.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tfdist.cluster import mailbox
from tfdist.cluster.identity import check_identity, show_identity
from tfdist.cluster.ports import is_listening, is_taken
from tfdist.deadline import Deadline
from tfdist.errors import USAGE, ConfigError, StartTimeout, checked_action, checked_timeout
from tfdist.task import PROGRESS_VARIABLE, Task, checked_task, parse_address

if TYPE_CHECKING:
    # Imported in functions: a wrong port or address is found before the seconds of this import.
    import tensorflow as tf

_GRACE_SECS = 5.0  # for the second messages, after all first messages
LINGER_SECS = 0.2  # for the last replies to be sent; without one a trainer waits longer
_ANSWER_SECS = 10.0
_LAST_ANSWER_SECS = 1.0
_POLL_SECS = 0.05
_LOOK_SECS = 5.0

_log = logging.getLogger(__name__)

# Environment variables of TensorFlow's servers.
FAIL_FAST = {"GRPC_FAIL_FAST": "use_caller"}  # makes a call to a task that has ended fail
# The same for a cluster on this machine.
SERVER_ENVIRONMENT = {
    **FAIL_FAST,
    "TF_GRPC_REUSE_PORT": "1",  # because the launcher reserves the ports
    "no_grpc_proxy": "127.0.0.1,localhost",  # a proxy would break calls to this machine
}

# The servers of this process by address. TensorFlow cannot stop a server inside its process, and a
# second one on the same port would take half of the connections.
_servers: dict[str, tf.distribute.Server] = {}

_done: set[str] = set()  # TF_CONFIG of the trainers of this process that are done with every ps


def start_server(task: Task, config: tf.compat.v1.ConfigProto | None = None) -> Any:
    """Starts the task's TensorFlow server, or returns the one that this process has started.

    Raises:
        ConfigError: another program has taken the task's port.
    """
    if task.address not in _servers:
        port = parse_address(task.address).port
        if is_taken(port):
            field = f"cluster.{task.task_type}[{task.task_index}]"
            raise ConfigError(field, task.address, "another program has taken this port")
        import tensorflow as tf

        _servers[task.address] = tf.distribute.Server(
            tf.train.ClusterSpec(task.cluster_spec),
            job_name=task.task_type,
            task_index=task.task_index,
            config=config,
        )
    return _servers[task.address]


def parameter_server(
    task: Task,
    config: tf.compat.v1.ConfigProto | None = None,
    *,
    serving: Callable[[], object] | None = None,
) -> None:
    """Serves as a ps until every trainer has reported that it is done.

    Blocks until then; a signal ends it earlier.

    Args:
        task: a ps.
        config: config of its server.
        serving: called once the server serves.

    Raises:
        ConfigError: the task is no ps, or its port is taken.
    """
    if checked_task(task).task_type != "ps":
        raise ConfigError("task", task.name, "only a ps can call parameter_server")
    _check_config(config)
    checked_action("serving", serving)
    serve(task, config, serving=serving)


def serve(
    task: Task,
    config: tf.compat.v1.ConfigProto | None = None,
    *,
    serving: Callable[[], object] | None = None,
) -> None:
    """Serves a ps, or a worker of a coordinator, until it is dismissed."""
    server = start_server(task, config)
    show_identity(task, server.target)
    received: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    # In a thread, because the main thread would not see Ctrl-C inside TensorFlow.
    receiving = threading.Thread(
        target=mailbox.receive,
        args=(server.target, task, received),
        name=f"{task.name} done",
        daemon=True,
    )
    receiving.start()
    if serving is not None:
        serving()
    training = set(range(len(task.trainers)))
    unaware = set(training)
    deadline, waiting = Deadline(None), None
    while unaware:
        if not training and deadline.remaining == float("inf"):
            deadline = Deadline(_GRACE_SECS)
        try:
            message, rank = received.get(timeout=min(deadline.remaining, _LOOK_SECS))
        except queue.Empty:
            if deadline.expired:
                return  # a trainer died between its two messages
            if waiting is not None and training and waiting.notice_due():
                names = ", ".join(task.trainers[rank] for rank in sorted(training))
                _log.warning(
                    "%s has waited %.0f s for %s since the first trainer was done; it exits when "
                    "all trainers are done",
                    task.name,
                    waiting.elapsed,
                    names,
                )
            continue
        if message == mailbox.DISMISS:
            break
        (training if message == mailbox.DONE else unaware).discard(rank)
        waiting = waiting or Deadline(None)
    else:
        time.sleep(LINGER_SECS)
    # It closes its session. A thread that comes back from TensorFlow while Python ends aborts the
    # process: "exception not rethrown".
    receiving.join(_ANSWER_SECS)


def worker_server(
    task: Task, *, timeout: float | None = 60.0, config: tf.compat.v1.ConfigProto | None = None
) -> AbstractContextManager[str]:
    """Starts the server of a trainer; at the end of the block reports to every ps that it is done.

    Blocks at the start until every ps answers. If the block raises, nothing is reported: the
    trainer may be restarted. Only `sys.exit()` and `sys.exit(0)` are good ends.

    Args:
        task: a chief or a worker.
        timeout: seconds to wait for the ps; None for no limit.
        config: config of the server.

    Yields:
        The target for the training's `Session`.

    Raises:
        ConfigError: the task is no trainer, or its port is taken.
        StartTimeout: some ps does not answer.
        ClusterError: some ps belongs to another cluster (if TFDIST_CLUSTER_ID is set).
    """
    if not checked_task(task).is_trainer:
        raise ConfigError("task", task.name, "only a chief or a worker can train")
    _check_config(config)
    return _worker_server(task, checked_timeout(timeout), config)


def _check_config(config: Any) -> None:
    if config is None:
        return
    import tensorflow as tf

    if not isinstance(config, tf.compat.v1.ConfigProto):
        raise ConfigError("config", config, "must be a tf.compat.v1.ConfigProto, or None")


@contextmanager
def _worker_server(
    task: Task, timeout: float | None, config: tf.compat.v1.ConfigProto | None
) -> Iterator[str]:
    server = start_server(task, config)
    _wait_for_ps(task, timeout)
    good_end: SystemExit | None = None
    try:
        yield server.target
    except SystemExit as end:
        if end.code:
            raise
        good_end = end
    for ps in _ps_of(task):
        _say_done(task, ps)
    _done.add(task.to_env())
    if good_end is not None:
        raise good_end


def run_task(train: Callable[..., object], *args: object) -> None:
    """Runs the task that `TF_CONFIG` names: a ps serves, a trainer trains. For the end of a script.

    A trainer calls ``train(task, target, *args)`` inside its `worker_server`. Bad input ends the
    program with one line and exit code 2 instead of a traceback; under `tfdist run` the launcher
    prints that line, once for all tasks. An evaluator must not reach this call: let the script
    evaluate instead, ``if task.task_type == "evaluator"``.

    Args:
        train: the training of one trainer.
        *args: passed on to it, such as the arguments of the command line.

    Raises:
        StartTimeout: some ps does not answer.
        ConfigError: under `tfdist run`, for bad input or an evaluator.
    """
    checked_action("train", train, "of a task and a target", may_be_none=False)
    try:
        task = Task.from_env()
        if task.task_type == "evaluator":
            rule = "run_task does not evaluate; call your own evaluation instead of it"
            raise ConfigError("task", task.name, rule)
        if task.task_type == "ps":
            parameter_server(task)
        else:
            with worker_server(task) as target:
                train(task, target, *args)
    except ConfigError as error:
        if PROGRESS_VARIABLE in os.environ:  # set by the launcher
            raise
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        sys.exit(USAGE)


def let_servers_leave(task: Task, *, coordinator: bool) -> list[str]:
    """Reports to the servers of a job that a trainer is done, unless `worker_server` has.

    For a trainer whose script is plain TensorFlow and reports nothing. Blocks for 10 s at most
    for each server that does not answer.

    Args:
        task: a trainer that has succeeded.
        coordinator: whether it is a coordinator, which dismisses all ps and all workers.

    Returns:
        The names of the servers that did not answer.
    """
    if has_reported(task) or not task.is_trainer:
        return []
    servers = _ps_of(task)
    if coordinator:
        servers += [Task("worker", index, task.cluster_spec) for index in range(task.num_workers)]
    if not servers:
        return []
    import tensorflow as tf

    silent = []
    for server in servers:
        try:
            if coordinator:
                dismiss(server)
            else:
                _say_done(task, server)
        except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError):
            silent.append(server.name)
    return silent


def has_reported(task: Task) -> bool:
    """Whether `worker_server` has reported to every ps that this trainer is done."""
    return task.to_env() in _done


def dismiss(task: Task) -> None:
    """Makes the server of `task` exit, whether or not the trainers are done."""
    mailbox.send(task, mailbox.DISMISS, 0, timeout=_ANSWER_SECS)


def _say_done(task: Task, ps: Task) -> None:
    import tensorflow as tf

    mailbox.send(ps, mailbox.DONE, task.rank, timeout=_ANSWER_SECS)
    # The ps may have exited already, which it only does when all trainers are done.
    with suppress(tf.errors.UnavailableError, tf.errors.DeadlineExceededError):
        mailbox.send(ps, mailbox.KNOWS, task.rank, timeout=_LAST_ANSWER_SECS)


def _wait_for_ps(task: Task, timeout: float | None) -> None:
    deadline = Deadline(timeout)
    missing = _ps_of(task)
    while True:
        missing = [ps for ps in missing if not is_listening(*parse_address(ps.address))]
        if not missing:
            break
        if deadline.expired:
            addresses = ", ".join(ps.address for ps in missing)
            raise StartTimeout(
                [ps.name for ps in missing],
                deadline.elapsed,
                f"No process listens at {addresses}. Check that the ps is started, and that this "
                "host can reach it",
            )
        if deadline.notice_due():
            _log.warning(
                "%s has waited %.0f s for %s: no process listens at %s; %s",
                task.name,
                deadline.elapsed,
                ", ".join(ps.name for ps in missing),
                ", ".join(ps.address for ps in missing),
                "never gives up" if timeout is None else f"gives up after {timeout:g} s",
            )
        time.sleep(_POLL_SECS)
    for ps in _ps_of(task):
        check_identity(ps, deadline)


def _ps_of(task: Task) -> list[Task]:
    return [Task("ps", index, task.cluster_spec) for index in range(task.num_ps)]
