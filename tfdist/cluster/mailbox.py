"""The mailbox of a task that serves: a queue on it, by which others say that they are done."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from tfdist.ps.retry import retry_duplicate_request
from tfdist.task import Task, session_target

if TYPE_CHECKING:
    import tensorflow as tf

DONE, KNOWS, DISMISS = range(3)


def send(to: Task, message: int, rank: int, *, timeout: float) -> None:
    """Puts a message of the trainer `rank` into the mailbox; blocks for `timeout` seconds at most.

    Raises:
        tf.errors.UnavailableError: the task is gone.
        tf.errors.DeadlineExceededError: it does not answer.
    """
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        put = _queue_of(to).enqueue((message, rank))
        config = own_config(to, timeout)
        target = session_target(to.address)
        with tf.compat.v1.Session(target, graph=graph, config=config) as session:
            retry_duplicate_request(session.run, put)


def receive(target: str, own: Task, received: queue.SimpleQueue[tuple[int, int]]) -> None:
    """Passes on what comes, until it is dismissed or all trainers know that they may leave."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        take = _queue_of(own).dequeue()
        with tf.compat.v1.Session(target, graph=graph, config=own_config(own)) as session:
            unaware = set(range(len(own.trainers)))
            while unaware:
                message, rank = (int(part) for part in retry_duplicate_request(session.run, take))
                received.put((message, rank))
                if message == DISMISS:
                    return
                if message == KNOWS:
                    unaware.discard(rank)


def own_config(task: Task, timeout: float = 0.0) -> tf.compat.v1.ConfigProto:
    """Of a session that depends on that task alone; no run of it takes longer, unless 0 seconds."""
    import tensorflow as tf

    return tf.compat.v1.ConfigProto(
        device_filters=[task.device], operation_timeout_in_ms=int(timeout * 1000)
    )


def _queue_of(task: Task) -> Any:
    import tensorflow as tf

    with tf.compat.v1.device(f"{task.device}/device:CPU:0"):
        return tf.queue.FIFOQueue(
            capacity=2**31 - 1,
            dtypes=[tf.int32, tf.int32],
            shapes=[[], []],
            shared_name=f"tfdist/done/{task.task_type}/{task.task_index}",
        )
