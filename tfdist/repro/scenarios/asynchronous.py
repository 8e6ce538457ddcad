"""Asynchronous training: each trainer runs its own graph at its own pace."""

from __future__ import annotations

import tensorflow as tf

from tfdist.cluster.server import start_server, worker_server
from tfdist.repro.case import Actor
from tfdist.repro.toy import (
    BATCH,
    PS,
    PaddedShare,
    bare_session,
    global_step,
    in_graph,
    iterator,
    share,
    train_to_the_end,
    updates,
)
from tfdist.splits import SplitQueue
from tfdist.train import graph


@in_graph
def chief_short(actor: Actor) -> None:
    """The chief has 3 batches and the worker 12; the chief saves after its own 3."""
    number = iterator(share(actor.task, [3, 12]).batch(BATCH)).get_next()
    step, count = updates(actor.task, number), global_step(actor.task)
    with bare_session(actor) as session:
        if not actor.task.is_chief:
            actor.step(session.run([step, number])[1])
            actor.wait_for("saved")
        train_to_the_end(actor, session, step, number)
        steps = session.run_step_fn(lambda step_context: step_context.session.run(count))
        if actor.task.is_chief:
            actor.saved(steps)
            actor.announce("saved")
        actor.reached(steps)


@in_graph
def chief_short_fixed(actor: Actor) -> None:
    """The chief saves when both have finished, and neither leaves before."""
    _train_padded(actor, [3, 12])


@in_graph
def worker_short(actor: Actor) -> None:
    """The worker has 2 batches and the chief 9; the chief does not need the worker."""
    number = iterator(share(actor.task, [9, 2]).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def worker_short_fixed(actor: Actor) -> None:
    """Both trainers end together."""
    _train_padded(actor, [9, 2])


@in_graph
def no_device_filters(actor: Actor) -> None:
    """The worker's session contacts all tasks, and the chief has already exited."""
    number = iterator(share(actor.task, [3, 3]).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    start_server(actor.task)  # the session of the chief contacts all tasks as well
    if not actor.task.is_chief:
        actor.wait_for("ended worker:0")
    with bare_session(actor, filters=False) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def no_device_filters_fixed(actor: Actor) -> None:
    """With device filters the worker's session contacts only the ps."""
    number = iterator(share(actor.task, [3, 3]).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    if not actor.task.is_chief:
        actor.wait_for("ended worker:0")
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def iterator_on_other_worker(actor: Actor) -> None:
    """The chief reads from an iterator on worker 1, which exits before the chief."""
    task = actor.task
    with tf.device("/job:worker/task:1/device:CPU:0"):
        number = iterator(tf.data.Dataset.range(BATCH * 5).batch(BATCH)).get_next()
    step = updates(task, number)
    with bare_session(actor, filters=False) as session:
        if task.is_chief:
            train_to_the_end(actor, session, step, number)
            actor.announce("read")
            actor.wait_for("ended worker:1")
        else:
            actor.leave()
            actor.wait_for("read")


@in_graph
def iterator_on_other_worker_fixed(actor: Actor) -> None:
    """Each trainer has its own iterator."""
    _train_padded(actor, [5, 0])


@in_graph
def iterator_on_ps(actor: Actor) -> None:
    """Each trainer reads from its own iterator, which is placed on the ps."""
    with tf.device(PS):
        number = iterator(
            share(actor.task, [3, 5]).batch(BATCH), shared_name=actor.task.name
        ).get_next()
    step = updates(actor.task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def iterator_on_ps_fixed(actor: Actor) -> None:
    """The iterators are local, so that no batch crosses the network twice."""
    _train_padded(actor, [3, 5])


@in_graph
def shared_iterator(actor: Actor) -> None:
    """All trainers read from one iterator on the ps; each batch goes to one of them."""
    with tf.device(PS):
        shared = tf.compat.v1.data.make_initializable_iterator(
            tf.data.Dataset.range(BATCH * 10).batch(BATCH), shared_name="shared"
        )
        number = shared.get_next()
    step = updates(actor.task, number)
    with bare_session(actor) as session:
        if actor.task.is_chief:
            session.run_step_fn(lambda step_context: step_context.session.run(shared.initializer))
            actor.announce("initialized")
            actor.wait_for("worker ready")
        actor.wait_for("initialized")
        actor.announce("worker ready")
        train_to_the_end(actor, session, step, number)


@in_graph
def shared_iterator_fixed(actor: Actor) -> None:
    """All trainers claim splits on the ps, so that a trainer that dies loses no data."""
    task = actor.task
    splits = [(start, start + 2 * BATCH) for start in range(0, 10 * BATCH, 2 * BATCH)]
    queue = SplitQueue(task, "splits", splits, batch_size=BATCH, timeout=30)
    first = tf.compat.v1.placeholder(tf.int64, [2])
    number = tf.range(first[0], first[1])
    commit = queue.commit_after([updates(task, number)])
    with worker_server(task) as target, graph.session(task, target) as session:
        for split in queue:
            while not split.finished:
                read = split.next_batch
                split.run(session, commit, feed_dict={first: (read.start, read.stop)})
                actor.step(read)


def _train_padded(actor: Actor, batches: list[int]) -> None:
    """Trains on this trainer's share; all trainers end together, then the chief saves."""
    task, data = actor.task, PaddedShare(actor, batches)
    step = graph.apply_if(data.has_value, lambda: updates(task, data.number, data.weight))
    with worker_server(task) as target, graph.session(task, target) as session:
        data.train(session, step)
