"""The small job of most cases: a table on the ps, trained on numbers, in TensorFlow 1 graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from queue import Empty, SimpleQueue
from typing import Any

import tensorflow as tf

from tfdist.cluster.server import start_server
from tfdist.repro.actor import Actor
from tfdist.task import Task
from tfdist.train.graph import device_setter

BATCH = 4  # examples
PS = "/job:ps/task:0/device:CPU:0"
_ROWS = 64
_RECOVERY_SECS = 0.5  # TensorFlow has 30
_CLOSE_SECS = 1.0  # with an input that does not tune itself


def in_graph(play: Callable[[Actor], None]) -> Callable[[Actor], None]:
    """Plays in a graph of its own."""

    @wraps(play)
    def played(actor: Actor) -> None:
        with tf.Graph().as_default():
            play(actor)

    return played


def share(task: Task, batches: Sequence[int]) -> tf.data.Dataset:
    """The numbers of this trainer's examples; `batches` are how many batches each rank has."""
    start = BATCH * sum(batches[: task.rank])
    return tf.data.Dataset.range(start, start + BATCH * batches[task.rank])


def iterator(dataset: tf.data.Dataset, **options: Any) -> Any:
    """One that a `bare_session` initialises on each trainer, as it was usual.

    It does not tune itself. Else the end of the session may wait for a minute for the thread that
    does (`RootDataset::Iterator::~Iterator` of TensorFlow 2.21).
    """
    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    made = tf.compat.v1.data.make_initializable_iterator(dataset.with_options(untuned), **options)
    tf.compat.v1.add_to_collection(tf.compat.v1.GraphKeys.TABLE_INITIALIZERS, made.initializer)
    return made


def gradients(task: Task, optimizer: Any, number: Any, weight: Any = None) -> list[Any]:
    """Of a loss over rows of a table on the ps, one for each example."""
    with tf.compat.v1.device(device_setter(task)):
        table = tf.compat.v1.get_variable("table", [_ROWS, 8], use_resource=True)
        rows = tf.gather(table, number % _ROWS)
        losses = tf.reduce_mean(tf.square(rows - 1.0), axis=-1)
        loss = tf.reduce_sum(losses if weight is None else losses * weight)
        found: list[Any] = optimizer.compute_gradients(loss)
        return found


def global_step(task: Task) -> Any:
    """On the ps."""
    with tf.compat.v1.device(device_setter(task)):
        return tf.compat.v1.train.get_or_create_global_step()


def updates(task: Task, number: Any, weight: Any = None) -> Any:
    """The operation that trains on a batch."""
    step = global_step(task)
    with tf.compat.v1.device(device_setter(task)):
        optimizer = tf.compat.v1.train.GradientDescentOptimizer(0.1)
        return optimizer.apply_gradients(
            gradients(task, optimizer, number, weight), global_step=step
        )


def wait_for_all(task: Task, after: Any) -> Any:
    """The operation that ends when all have come there, by queues on the ps, as it was usual."""
    with tf.device(PS):
        arrived = [
            tf.queue.FIFOQueue(100, tf.int32, shapes=[()], shared_name=f"arrived_{rank}")
            for rank in range(len(task.trainers))
        ]
    with tf.control_dependencies([after]):
        arrive = tf.group([tokens.enqueue(0) for tokens in arrived])
    with tf.control_dependencies([arrive]):
        return arrived[task.rank].dequeue_many(len(arrived))


@contextmanager
def bare_session(
    actor: Actor, hooks: Sequence[Any] = (), *, filters: bool = True, grace_secs: float = 120.0
) -> Iterator[Any]:
    """A `MonitoredSession` of plain TensorFlow on this trainer's own server.

    Only that the others look each half second whether the chief has initialised, instead of
    each 30 s. TensorFlow gives its own threads `grace_secs` to end.
    """
    task = actor.task
    actor.about(grace_secs=grace_secs, close_secs=_CLOSE_SECS)
    config = tf.compat.v1.ConfigProto(device_filters=task.device_filters if filters else None)
    target = start_server(task).target
    if task.is_chief:
        creator = tf.compat.v1.train.ChiefSessionCreator(master=target, config=config)
    else:
        actor.about(recovery_secs=_RECOVERY_SECS)
        creator = _WorkerSessionCreator(target, config)
    with tf.compat.v1.train.MonitoredSession(
        creator, hooks, stop_grace_period_secs=grace_secs
    ) as session:
        yield session


class _WorkerSessionCreator(tf.compat.v1.train.SessionCreator):
    def __init__(self, target: str, config: Any) -> None:
        self._target, self._config = target, config

    def create_session(self) -> Any:
        scaffold = tf.compat.v1.train.Scaffold().finalize()
        manager = tf.compat.v1.train.SessionManager(
            local_init_op=scaffold.local_init_op,
            ready_op=scaffold.ready_op,
            ready_for_local_init_op=scaffold.ready_for_local_init_op,
            graph=tf.compat.v1.get_default_graph(),
            recovery_wait_secs=_RECOVERY_SECS,
        )
        return manager.wait_for_session(self._target, config=self._config)


def train_to_the_end(actor: Actor, session: Any, step: Any, number: Any) -> None:
    """Steps until the iterator raises that it has ended, as it was usual."""
    while True:
        try:
            _, read = session.run([step, number])
        except tf.errors.OutOfRangeError:
            return
        actor.step(read)


def read_within(seconds: float, values: Iterable[Any], late: Callable[[], object]) -> Iterator[Any]:
    """The same values, which a thread reads; calls `late` when the next one takes longer.

    If that raises, the thread is left alone: nothing can end it as long as it is stuck.
    """
    read: SimpleQueue[tuple[Any, ...]] = SimpleQueue()

    def read_all() -> None:
        for value in values:
            read.put((value,))
        read.put(())

    threading.Thread(target=read_all, name="input", daemon=True).start()
    while True:
        try:
            value = read.get(timeout=seconds)
        except Empty:
            late()
            continue
        if not value:
            return
        yield value[0]
