"""The id of the cluster that a server belongs to.

A server that an earlier run left behind at the same address looks like the right one. So each ps
keeps its cluster's id in a variable, and a trainer reads it before it uses that ps.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from tfdist.cluster.mailbox import session_with
from tfdist.deadline import Deadline
from tfdist.errors import ClusterError
from tfdist.task import Task

_log = logging.getLogger(__name__)

# A text that no other run has, the same for all tasks. `tfdist run` sets it; elsewhere you do.
ID_VARIABLE = "TFDIST_CLUSTER_ID"

_ANSWER_SECS = 5.0
_LAST_ANSWER_SECS = 0.5
_POLL_SECS = 0.05


def show_identity(own: Task, target: str) -> None:
    """Stores the id where `read_identity` finds it; does nothing if the id is not set."""
    if identity := os.environ.get(ID_VARIABLE):
        import tensorflow as tf

        with tf.Graph().as_default() as graph:
            write = tf.raw_ops.AssignVariableOp(resource=_variable_on(own), value=identity)
            with session_with(own, graph, timeout=_ANSWER_SECS, target=target) as session:
                session.run(write)


def read_identity(of: Task, timeout: float = _ANSWER_SECS) -> str | None:
    """The id that a server shows, or None; blocks for at most `timeout` seconds.

    Raises:
        tf.errors.UnavailableError: no process listens there.
        tf.errors.DeadlineExceededError: no answer; perhaps it is no TensorFlow server.
    """
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        variable = _variable_on(of)
        is_there = tf.raw_ops.VarIsInitializedOp(resource=variable)
        read = tf.raw_ops.ReadVariableOp(resource=variable, dtype=tf.string)
        with session_with(of, graph, timeout=timeout) as session:
            if not session.run(is_there):
                return None
            identity: bytes = session.run(read)
            return identity.decode()


def check_identity(of: Task, deadline: Deadline) -> None:
    """Returns once the server shows our id; immediately if our id is not set.

    Raises:
        ClusterError: it shows another id, or none until the deadline, or it is another task.
    """
    identity = os.environ.get(ID_VARIABLE)
    if not identity:
        return
    # A server that has just started listens a moment before it shows its id.
    while (shown := _shown(of, deadline)) is None and not deadline.expired:
        if deadline.notice_due():
            _log.warning(
                "no answer from %s at %s, after %.0f s", of.name, of.address, deadline.elapsed
            )
        time.sleep(_POLL_SECS)
    if shown != identity:
        what = "no cluster that tfdist knows" if shown is None else f"cluster {shown!r}"
        raise ClusterError(
            f"{of.name} at {of.address} belongs to {what}, not to {identity!r} ({ID_VARIABLE}): "
            "probably a server that an earlier run left behind; end it, or take another port"
        )


def _shown(of: Task, deadline: Deadline) -> str | None:
    import tensorflow as tf

    try:
        return read_identity(of, min(max(deadline.remaining, _LAST_ANSWER_SECS), _ANSWER_SECS))
    except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError):
        return None
    except tf.errors.InvalidArgumentError as error:  # the server has no such device
        what = f"{of.name} at {of.address} serves as another task"
        raise ClusterError(f"{what}; end it, or take another port") from error


def _variable_on(task: Task) -> Any:
    import tensorflow as tf

    with tf.compat.v1.device(f"{task.device}/device:CPU:0"):
        return tf.raw_ops.VarHandleOp(dtype=tf.string, shape=[], shared_name="tfdist/cluster_id")
