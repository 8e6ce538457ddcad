"""Between-graph replication: trainers build the same graph and share the variables on the ps."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import tensorflow as tf

from tfdist.data.padding import scalar_bool
from tfdist.deadline import Deadline
from tfdist.errors import ConfigError, StartTimeout, checked_action, checked_timeout
from tfdist.ps.session import is_refused
from tfdist.task import Task, checked_task

_log = logging.getLogger(__name__)

_POLL_SECS, _LOOK_SECS = 0.05, 1.0
_CLOSE_SECS = 2.0
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"  # a key in every checkpoint of tf.train.Checkpoint


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
    if not checked_task(task).num_ps:
        raise ConfigError("task.cluster.ps", [], "tfdist.train needs at least one ps")


def replica_graph(task: Task) -> AbstractContextManager[tf.Graph]:
    """A new default graph for one trainer: variables go to the ps in turn, all else to the trainer.

    Build the model and open the `session` inside it.

    Raises:
        ConfigError: the cluster has no ps.
    """
    return _graph_with(device_setter(task))  # a wrong task is found at the call


@contextmanager
def _graph_with(setter: Callable[[Any], str]) -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph, tf.compat.v1.device(setter):
        yield graph


def apply_if(has_value: Any, apply: Callable[[], Any]) -> Any:
    """The operation that runs what `apply` builds if `has_value` is true, and else changes nothing.

    Gradients of zero would still move the slots of an optimizer and the global step. So build the
    whole update inside `apply`; the variables that it creates there lie outside the condition.

    Args:
        has_value: a bool scalar tensor.
        apply: builds the update, for example ``optimizer.apply_gradients(...)``.

    Raises:
        ConfigError: an argument is wrong.
    """
    has_value = scalar_bool("has_value", has_value)
    checked_action("apply", apply, "that builds the update", may_be_none=False)
    return tf.cond(has_value, lambda: tf.group(apply()), tf.no_op)


def minimize_if(has_value: Any, optimizer: tf.compat.v1.train.Optimizer, loss: Any) -> Any:
    """The operation of one training step: like `optimizer.minimize`, but only if `has_value`.

    Without a value it changes nothing, as `apply_if` does. It counts the global step, and creates
    that where the graph has none.

    Args:
        has_value: a bool scalar tensor, as `endless_batches` yields it.
        optimizer: of `tf.compat.v1.train`.
        loss: a scalar tensor, in which padding has weight 0.

    Raises:
        ConfigError: an argument is wrong.
    """
    has_value = scalar_bool("has_value", has_value)
    if not callable(getattr(optimizer, "compute_gradients", None)):
        raise ConfigError("optimizer", optimizer, "must be an optimizer of tf.compat.v1.train")
    if not tf.is_tensor(loss):
        raise ConfigError("loss", loss, "must be a scalar tensor")
    global_step = tf.compat.v1.train.get_or_create_global_step()
    gradients = optimizer.compute_gradients(loss)
    return apply_if(has_value, lambda: optimizer.apply_gradients(gradients, global_step))


def global_step() -> Any:
    """The global step of the default graph; raises ConfigError if it has none."""
    graph = tf.compat.v1.get_default_graph()
    try:
        step = tf.compat.v1.train.get_global_step()
    except (TypeError, ValueError) as error:  # no integer, or no scalar
        raise ConfigError("graph", graph, f"must contain a global step; {error}") from error
    if step is None:
        raise ConfigError("graph", graph, "must contain a global step, which names a checkpoint")
    return step


def saved_variables(save: Any) -> dict[str, tuple[Any, Any]]:
    """Shape and type of each variable that a SaveV2 operation saves; of a slice, of the whole."""
    _, names, specs, *tensors = save.inputs
    found = {}
    for name, spec, tensor in zip(
        tf.get_static_value(names), tf.get_static_value(specs), tensors, strict=True
    ):
        whole = spec.decode().split()[:-1]
        shape = tf.TensorShape([int(size) for size in whole]) if whole else tensor.shape
        found[name.decode()] = (shape, tensor.dtype.base_dtype)
    return found


def differences(variables: Mapping[str, tuple[Any, Any]], reader: Any) -> list[str]:
    """How a checkpoint differs from the `saved_variables` of a graph; empty if it fits."""
    shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    if _OBJECTS in shapes:
        return []  # its keys are no names of variables; the Saver translates them
    found = []
    for key, (shape, dtype) in variables.items():
        if key not in shapes:
            found.append(f"lacks {key}")
        elif not shape.is_compatible_with(shapes[key]):
            found.append(f"has {key} with shape {shapes[key]} instead of {shape.as_list()}")
        elif dtype != types[key]:
            found.append(f"has {key} as {types[key].name} instead of {dtype.name}")
    return found


def session(
    task: Task,
    target: str,
    *,
    restore: Callable[[tf.compat.v1.Session], object] | None = None,
    timeout: float = 60.0,
) -> AbstractContextManager[tf.compat.v1.Session]:
    """A session on the current graph in which all variables have their values.

    The chief initializes them, unless an earlier incarnation of it did; the other trainers wait for
    that. So a trainer may start late or restart, and so may a ps. The graph must be complete; it is
    finalized.

    Args:
        task: a chief or a worker.
        target: of this trainer's server.
        restore: called on the chief after the initialization, before any trainer trains.
        timeout: seconds that this trainer waits for every ps and, unless it is the chief, for the
            chief.

    Raises:
        StartTimeout: a ps has not answered, or the chief has not initialized the variables in time.
        ConfigError: the cluster has no ps, or an argument is wrong.
    """
    _check_ps(task)
    if not isinstance(target, str):
        raise ConfigError("target", target, "must be the target of this trainer's server")
    checked_action("restore", restore, "of a session")
    return _session(task, target, restore, checked_timeout(timeout))


@contextmanager
def _session(
    task: Task,
    target: str,
    restore: Callable[[tf.compat.v1.Session], object] | None,
    timeout: float | None,
) -> Iterator[tf.compat.v1.Session]:
    # A variable that is initialized is not enough: the chief may be about to restore it.
    ready = Mark("ready", "/job:ps/task:0")
    # Those of a ps that are in no checkpoint, such as the tables of a sampler, are local variables.
    initialize = tf.group(
        tf.compat.v1.global_variables_initializer(), tf.compat.v1.local_variables_initializer()
    )
    graph = tf.compat.v1.get_default_graph()
    graph.finalize()
    config = tf.compat.v1.ConfigProto(device_filters=task.device_filters)
    opened = tf.compat.v1.Session(target, graph=graph, config=config)
    deadline = Deadline(timeout)
    try:
        with graph.as_default(), opened.as_default():
            is_ready = _make_session(opened, ready, task, deadline)
            if not task.is_chief:
                _wait_until_ready(opened, ready, task, deadline)
            elif not is_ready:
                opened.run(initialize)
                if restore is not None:
                    restore(opened)
                ready.set(opened)
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


class Mark:
    """Texts on a task that last as long as its variables, and are in no checkpoint."""

    def __init__(self, name: str, device: str) -> None:
        with tf.device(None), tf.device(device), tf.device("/device:CPU:0"):
            mark = tf.raw_ops.VarHandleOp(
                dtype=tf.string, shape=tf.TensorShape(None), shared_name=f"tfdist/{name}"
            )
            self._texts = tf.compat.v1.placeholder(tf.string, [None])
            self._is_set = tf.raw_ops.VarIsInitializedOp(resource=mark)
            self._get = tf.raw_ops.ReadVariableOp(resource=mark, dtype=tf.string)
            self._set = tf.raw_ops.AssignVariableOp(resource=mark, value=self._texts)

    def get(self, session: tf.compat.v1.Session) -> tuple[bytes, ...] | None:
        """The texts; None if they are not set, or were lost with the variables."""
        return tuple(session.run(self._get)) if session.run(self._is_set) else None

    def set(self, session: tf.compat.v1.Session, texts: Sequence[bytes] = ()) -> None:
        """Sets the texts."""
        session.run(self._set, {self._texts: texts})


def _make_session(
    opened: tf.compat.v1.Session, ready: Mark, task: Task, deadline: Deadline
) -> bool:
    """Whether the variables are ready; this first run makes the session on the servers.

    There TensorFlow waits for ever for a ps that has ended after this trainer last saw it, in a
    call that nothing interrupts (2.21). So another thread makes it.
    """
    answers: queue.SimpleQueue[bool | BaseException] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(ready.get(opened) is not None)
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=ask, name="make the session", daemon=True).start()
    while True:
        with suppress(queue.Empty):
            answer = answers.get(timeout=min(deadline.remaining, _LOOK_SECS))
            break
        if deadline.expired or deadline.notice_due():
            names = [f"ps:{index}" for index in range(task.num_ps)]
            addresses = task.cluster_spec["ps"]
            gone = [name for name, at in zip(names, addresses, strict=True) if is_refused(at)]
            if deadline.expired:
                hint = "A session needs every ps. Check that it runs, and is reached from here."
                raise StartTimeout(gone or names, deadline.elapsed, hint)
            _log.warning(
                "%s has waited %.0f s for a session, which needs every ps%s",
                task.name,
                deadline.elapsed,
                f"; nothing listens at {', '.join(gone)}" if gone else "",
            )
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _wait_until_ready(
    opened: tf.compat.v1.Session, ready: Mark, task: Task, deadline: Deadline
) -> None:
    while ready.get(opened) is None:
        if deadline.expired:
            raise StartTimeout(
                [task.trainers[0]],
                deadline.elapsed,
                "It is the chief, and has not initialized the model.",
            )
        time.sleep(_POLL_SECS)
