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
from tfdist.data.padding import endless_batches
from tfdist.repro.case import Actor
from tfdist.task import Task
from tfdist.train.epoch import Epoch, EpochResult
from tfdist.train.graph import device_setter

BATCH = 4  # examples
PS = "/job:ps/task:0/device:CPU:0"
_ROWS = 64
_RECOVERY_SECS = 0.5  # 30 s by default in TensorFlow
_CLOSE_SECS = 1.0  # without autotuned input


def in_graph(play: Callable[[Actor], None]) -> Callable[[Actor], None]:
    """Plays a case in a graph of its own."""

    @wraps(play)
    def played(actor: Actor) -> None:
        with tf.Graph().as_default():
            play(actor)

    return played


def share(task: Task, batches: Sequence[int]) -> tf.data.Dataset:
    """The example numbers of this trainer; `batches` has the number of batches of each rank."""
    start = BATCH * sum(batches[: task.rank])
    return tf.data.Dataset.range(start, start + BATCH * batches[task.rank])


def iterator(dataset: tf.data.Dataset, **options: Any) -> Any:
    """An iterator that a `bare_session` initializes on each trainer, as TF1 scripts do.

    Autotuning is off: with it, closing the session may wait up to a minute for the tuning thread
    (`RootDataset::Iterator::~Iterator` of TensorFlow 2.21).
    """
    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    made = tf.compat.v1.data.make_initializable_iterator(dataset.with_options(untuned), **options)
    tf.compat.v1.add_to_collection(tf.compat.v1.GraphKeys.TABLE_INITIALIZERS, made.initializer)
    return made


def gradients(task: Task, optimizer: Any, number: Any, weight: Any = None) -> list[Any]:
    """Gradients of a loss over one row of the table for each example; the table is on the ps."""
    with tf.compat.v1.device(device_setter(task)):
        table = tf.compat.v1.get_variable("table", [_ROWS, 8], use_resource=True)
        rows = tf.gather(table, number % _ROWS)
        losses = tf.reduce_mean(tf.square(rows - 1.0), axis=-1)
        loss = tf.reduce_sum(losses if weight is None else losses * weight)
        found: list[Any] = optimizer.compute_gradients(loss)
        return found


def global_step(task: Task) -> Any:
    """The global step, on the ps."""
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
    """An operation that ends when all trainers have run it: a hand-made barrier of ps queues."""
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

    The one difference: a worker checks twice a second, not every 30 s, whether the chief has
    initialized the variables. `grace_secs` is how long TensorFlow waits for its own threads.
    """
    task = actor.task
    actor.describe(grace_secs=grace_secs, close_secs=_CLOSE_SECS)
    config = tf.compat.v1.ConfigProto(device_filters=task.device_filters if filters else None)
    target = start_server(task).target
    if task.is_chief:
        creator = tf.compat.v1.train.ChiefSessionCreator(master=target, config=config)
    else:
        actor.describe(recovery_secs=_RECOVERY_SECS)
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
    """Trains until the iterator raises OutOfRangeError, as TF1 scripts do."""
    while True:
        try:
            _, read = session.run([step, number])
        except tf.errors.OutOfRangeError:
            return
        actor.step(read)


class PaddedShare:
    """The fix of most cases: this trainer's examples in endless batches, and an agreed end.

    Make it inside the graph.

    Args:
        actor: the trainer.
        batches: how many batches each rank has.

    Attributes:
        number: the example numbers of a batch.
        weight: 1 for an example, 0 for padding.
        has_value: True if the batch holds an example.
    """

    def __init__(self, actor: Actor, batches: Sequence[int]) -> None:
        self._actor, self._expected = actor, BATCH * sum(batches)
        data = endless_batches(share(actor.task, batches), BATCH)
        self._iterator = tf.compat.v1.data.make_initializable_iterator(data)
        self.number, self.weight, self.has_value = self._iterator.get_next()
        self._count = global_step(actor.task)

    def train(
        self,
        session: Any,
        step: Any,
        *,
        together: bool = False,
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        """Trains until all trainers have run out of data; then the chief saves.

        Args:
            session: its variables are initialized.
            step: the operation that trains on a batch.
            together: True if all trainers take as many steps as the one with most data.
            ended: called when this trainer runs out of data.
        """

        def save(result: EpochResult) -> None:
            result.check()
            self._actor.saved(session.run(self._count))

        task, has = self._actor.task, True
        with Epoch(task, "epoch", expected=self._expected, action=save, timeout=30) as epoch:
            session.run(self._iterator.initializer)
            while epoch.should_continue(has) if together else has:
                fetches = [step, self.number, self.weight, self.has_value]
                _, number, weight, has = session.run(fetches)
                self._actor.step(number[weight > 0])
                epoch.read(number[weight > 0])
            ended()
            epoch.finish()
            self._actor.reached(session.run(self._count))


def read_within(seconds: float, values: Iterable[Any], late: Callable[[], object]) -> Iterator[Any]:
    """Yields the values, which a thread reads; calls `late` when one takes longer than `seconds`.

    If `late` raises, the thread stays behind: nothing can end a thread that is stuck in a read.
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
