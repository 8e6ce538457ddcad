"""A call in a process that is forked from the fork server, where TensorFlow is imported already."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tfdist.cluster.environment import SERVER_ENVIRONMENT
from tfdist.cluster.processes import die_with_parent, release_fork_server
from tfdist.errors import ClusterError


def call_in_fork(function: Callable[..., Any], *args: Any, timeout: float) -> Any:
    """Returns what `function(*args)` does there; blocks for `timeout` seconds at most.

    For what needs TensorFlow, and may hang in it. The process is gone when this returns.

    Args:
        function: it must be importable there, and so must what it is given and returns.
        args: what it is given.
        timeout: in seconds. The fork server has been started before.

    Raises:
        ClusterError: the time was over, the function raised, or its process was ended.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args), daemon=True)
    with receiver:
        process.start()
        sender.close()
        try:
            if not receiver.poll(timeout):
                raise ClusterError(f"the process that asks has not ended after {timeout:g} s")
            result, failure = receiver.recv()
        except EOFError:
            result, failure = None, "it ended without a word"
        finally:
            process.kill()
            process.join()
    if failure is not None:
        raise ClusterError(failure)
    return result


def _call(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    die_with_parent()
    release_fork_server()
    os.environ.update(SERVER_ENVIRONMENT)
    try:
        sender.send((function(*args), None))
    except Exception as error:
        sender.send((None, "".join(traceback.format_exception_only(error)).strip()))
    # TensorFlow keeps threads that an orderly end would wait for.
    os._exit(0)
