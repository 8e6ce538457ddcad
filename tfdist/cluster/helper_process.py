"""Calls that need TensorFlow, made in a helper process.

So this process does not import TensorFlow, and cannot hang in it: a late helper is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tfdist.cluster.fork_server import (
    SAFE_PATH,
    context,
    die_with_parent,
    release_fork_server,
)
from tfdist.cluster.server import SERVER_ENVIRONMENT
from tfdist.errors import ClusterError

# Most of this is for the import of TensorFlow on a busy machine.
_ANSWER_SECS = 60.0
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", SAFE_PATH: "1"}


def ask_helper_process(module: str, question: object) -> Any:
    """Sends `question` to `python -m MODULE` as JSON and returns the JSON value that it prints.

    Blocks for 60 s at most.

    Raises:
        ClusterError: the helper process did not end in time, or failed.
    """
    try:
        ended = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECS,
            check=False,
            env={**os.environ, **SERVER_ENVIRONMENT, **_QUIET},
        )
    except subprocess.TimeoutExpired:
        what = f"the process that asks the ps did not end within {_ANSWER_SECS:g} s"
        raise ClusterError(what) from None
    if ended.returncode != 0:
        last = ended.stderr.strip().rpartition("\n")[2]
        raise ClusterError(
            f"the process that asks the ps failed (exit code {ended.returncode}): {last}"
        )
    return json.loads(ended.stdout)


def call_in_fork(function: Callable[..., Any], *args: Any, timeout: float) -> Any:
    """Calls `function(*args)` in a process forked from the fork server, and returns the result.

    TensorFlow is already imported there. Blocks for `timeout` seconds at most; the process has
    ended when this returns.

    Args:
        function: a module-level function; its arguments and its result must pickle.
        args: its arguments.
        timeout: in seconds, not counting the start of the fork server.

    Raises:
        ClusterError: the call took too long or raised, or its process was killed.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args), daemon=True)
    with receiver:
        process.start()
        sender.close()
        try:
            if not receiver.poll(timeout):
                raise ClusterError(f"the helper process did not answer within {timeout:g} s")
            result, failure = receiver.recv()
        except EOFError:
            result, failure = None, "the helper process ended without an error message"
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
    # Not sys.exit, which would wait for TensorFlow's threads.
    os._exit(0)
