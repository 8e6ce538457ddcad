"""Between-graph replication: trainers build the same graph and share the variables on the ps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfdist.deadline import Deadline
from tfdist.errors import ConfigError, StartTimeout
from tfdist.task import Task

_POLL_SECS = 0.05
_CLOSE_SECS = 2.0


def device_setter(task: Task) -> Callable[[Any], str]:
    """The device function that puts variables on the ps in turn and all else on this trainer.

    Use it as ``with tf.compat.v1.device(device_setter(task)):``; `tf.device` takes no functions.

    Raises:
        ConfigError: the cluster has no ps.
    """
    _check_ps(task)
    setter: Callable[[Any], str] = tf.compat.v1.train.replica_device_setter(
        cluster=tf.train.ClusterSpec(task.cluster_spec),
        worker_device=task.device,
    )
    return setter


def _check_ps(task: Task) -> None:
    if not task.num_ps:
        raise ConfigError("task.cluster.ps", [], "tfdist.train needs at least one ps")


@contextmanager
def replica_graph(task: Task) -> Iterator[tf.Graph]:
    """A new default graph for one trainer: variables go to the ps in turn, all else to the trainer.

    Build the model and open the `session` inside it.
    """
    with tf.Graph().as_default() as graph, tf.compat.v1.device(device_setter(task)):
        yield graph


def apply_if(has_value: Any, apply: Callable[[], Any]) -> Any:
    """The operation that runs what `apply` builds if `has_value` is true, and else changes nothing.

    Gradients of zero would still move the slots of an optimizer and the global step. So build the
    whole update inside `apply`; the variables that it creates there lie outside the condition.

    Args:
        has_value: a bool scalar tensor.
        apply: builds the update, for example ``optimizer.apply_gradients(...)``.
    """
    return tf.cond(has_value, lambda: tf.group(apply()), tf.no_op)


def minimize_if(has_value: Any, optimizer: tf.compat.v1.train.Optimizer, loss: Any) -> Any:
    """The operation of one training step: like `optimizer.minimize`, but only if `has_value`.

    Without a value it changes nothing, as `apply_if` does. It counts the global step, and creates
    that where the graph has none.

    Args:
        has_value: a bool scalar tensor, as `endless_batches` yields it.
        optimizer: of `tf.compat.v1.train`.
        loss: a scalar tensor, in which padding has weight 0.
    """
    global_step = tf.compat.v1.train.get_or_create_global_step()
    gradients = optimizer.compute_gradients(loss)
    return apply_if(has_value, lambda: optimizer.apply_gradients(gradients, global_step))


@contextmanager
def session(
    task: Task,
    target: str,
    *,
    restore: Callable[[tf.compat.v1.Session], object] | None = None,
    timeout: float = 60.0,
) -> Iterator[tf.compat.v1.Session]:
    """A session on the current graph in which all variables have their values.

    The chief initializes them, unless an earlier incarnation of it did; the other trainers wait for
    that. So a trainer may start late or restart. The graph must be complete; it is finalized.

    Args:
        task: a chief or a worker.
        target: of this trainer's server.
        restore: called on the chief after the initialization, before any trainer trains.
        timeout: seconds that the other trainers wait for the chief.

    Raises:
        StartTimeout: the chief has not initialized the variables in time.
        ConfigError: the cluster has no ps.
    """
    _check_ps(task)
    ready = _Ready()
    initialize = tf.compat.v1.global_variables_initializer()
    graph = tf.compat.v1.get_default_graph()
    graph.finalize()
    config = tf.compat.v1.ConfigProto(device_filters=task.device_filters)
    opened = tf.compat.v1.Session(target, graph=graph, config=config)
    try:
        with graph.as_default(), opened.as_default():
            if not task.is_chief:
                _wait_until_ready(opened, ready, task, timeout)
            elif not opened.run(ready.is_set):
                opened.run(initialize)
                if restore is not None:
                    restore(opened)
                opened.run(ready.set)
            yield opened
    finally:
        _close(opened)


def _close(opened: tf.compat.v1.Session) -> None:
    """Closes the session, and stops waiting for that after 2 s.

    After the loss of a ps `Session.close` blocks for 30 s (TensorFlow 2.21), and the error that the
    program is about to raise must not wait so long.
    """
    closing = threading.Thread(target=opened.close, name="close the session", daemon=True)
    closing.start()
    closing.join(_CLOSE_SECS)


class _Ready:
    """A mark on ps 0 that says that all variables have their values.

    A variable that is initialized is not enough: the chief may be about to restore it.
    """

    def __init__(self) -> None:
        with tf.compat.v1.device("/job:ps/task:0/device:CPU:0"):
            mark = tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=[], shared_name="tfdist/ready")
            self.is_set = tf.raw_ops.VarIsInitializedOp(resource=mark)
            self.set = tf.raw_ops.AssignVariableOp(resource=mark, value=tf.constant(True))


def _wait_until_ready(
    opened: tf.compat.v1.Session, ready: _Ready, task: Task, timeout: float
) -> None:
    deadline = Deadline(timeout)
    while not opened.run(ready.is_set):
        if deadline.expired:
            raise StartTimeout(
                [task.trainers[0]], timeout, "It is the chief, and has not initialized the model."
            )
        time.sleep(_POLL_SECS)
