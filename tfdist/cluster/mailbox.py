"""The mailbox of a serving task: a queue on it to which trainers report that they are done."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from tfdist.deadline import Deadline
from tfdist.task import Task

if TYPE_CHECKING:
    from tfdist.ps.session import DirectSession

DONE, KNOWS, DISMISS = range(3)

# TensorFlow goes on trying a task that is gone until the run times out; a shorter one notices it.
_RECHECK_SECS = 2.0


def send(to: Task, message: int, rank: int, *, timeout: float) -> None:
    """Puts a message from trainer `rank` into the mailbox; blocks for about `timeout` seconds.

    A task without an answer may get the message twice, which changes nothing.

    Raises:
        tf.errors.UnavailableError: the task is gone.
        tf.errors.DeadlineExceededError: it does not answer.
    """
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        put = _queue_of(to).enqueue((message, rank))
        deadline = Deadline(timeout)
        with session_with(to, graph, timeout=min(timeout, _RECHECK_SECS)) as session:
            while True:
                try:
                    session.run(put)
                    return
                except tf.errors.DeadlineExceededError:
                    if deadline.expired:
                        raise


def receive(target: str, own: Task, received: queue.SimpleQueue[tuple[int, int]]) -> None:
    """Passes messages on, until the task is dismissed or all trainers know that they may leave."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        take = _queue_of(own).dequeue()
        with session_with(own, graph, timeout=0, target=target) as session:
            unaware = set(range(len(own.trainers)))
            while unaware:
                message, rank = (int(part) for part in session.run(take))
                received.put((message, rank))
                if message == DISMISS:
                    return
                if message == KNOWS:
                    unaware.discard(rank)


def session_with(
    task: Task, graph: Any, *, timeout: float, target: str | None = None
) -> DirectSession:
    """A session with `task` alone, through `target` if given; `timeout=0` means no limit."""
    from tfdist.ps.session import DirectSession

    return DirectSession(
        task.address, graph, timeout=timeout, task_device=task.device, target=target
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
