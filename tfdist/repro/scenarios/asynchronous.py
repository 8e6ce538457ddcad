"""Each trainer trains at its own pace, in a graph of its own."""

from __future__ import annotations

import tensorflow as tf

from tfdist.cluster.server import start_server, worker_server
from tfdist.repro.actor import Actor
from tfdist.repro.padded_share import PaddedShare
from tfdist.repro.toy import (
    BATCH,
    PS,
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
    """The chief has 3 batches and the other 12: it saves when it has ended itself."""
    number = iterator(share(actor.task, [3, 12]).batch(BATCH)).get_next()
    step, count = updates(actor.task, number), global_step(actor.task)
    with bare_session(actor) as session:
        if not actor.task.is_chief:
            actor.step(session.run([step, number])[1])
            actor.hear("saved")
        train_to_the_end(actor, session, step, number)
        steps = session.run_step_fn(lambda step_context: step_context.session.run(count))
        if actor.task.is_chief:
            actor.saved(steps)
            actor.tell("saved")
        actor.steps_in_all(steps)


@in_graph
def chief_short_fixed(actor: Actor) -> None:
    """It saves when all have ended, and nobody leaves before."""
    _train_padded(actor, [3, 12])


@in_graph
def worker_short(actor: Actor) -> None:
    """A worker with less data ends earlier; nobody needs it."""
    number = iterator(share(actor.task, [9, 2]).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def worker_short_fixed(actor: Actor) -> None:
    """The same with an end that all agree on."""
    _train_padded(actor, [9, 2])


@in_graph
def no_device_filters(actor: Actor) -> None:
    """A session without filters talks to all tasks: a worker comes, and the chief has left."""
    number = iterator(share(actor.task, [3, 3]).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    start_server(actor.task)  # for the chief, which talks to all tasks too
    if not actor.task.is_chief:
        actor.hear("ended worker:0")
    with bare_session(actor, filters=False) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def no_device_filters_fixed(actor: Actor) -> None:
    """With filters it talks to the ps alone."""
    number = iterator(share(actor.task, [3, 3]).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    if not actor.task.is_chief:
        actor.hear("ended worker:0")
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def iterator_on_other_worker(actor: Actor) -> None:
    """The chief reads from an iterator of worker 1, which leaves before the chief does."""
    task = actor.task
    with tf.device("/job:worker/task:1/device:CPU:0"):
        number = iterator(tf.data.Dataset.range(BATCH * 5).batch(BATCH)).get_next()
    step = updates(task, number)
    with bare_session(actor, filters=False) as session:
        if task.is_chief:
            train_to_the_end(actor, session, step, number)
            actor.tell("read")
            actor.hear("ended worker:1")
        else:
            actor.leave()
            actor.hear("read")


@in_graph
def iterator_on_other_worker_fixed(actor: Actor) -> None:
    """Each trainer has its own iterator."""
    _train_padded(actor, [5, 0])


@in_graph
def iterator_on_ps(actor: Actor) -> None:
    """Each trainer reads from an iterator of its own on the ps."""
    with tf.device(PS):
        number = iterator(
            share(actor.task, [3, 5]).batch(BATCH), shared_name=actor.task.name
        ).get_next()
    step = updates(actor.task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def iterator_on_ps_fixed(actor: Actor) -> None:
    """The iterators are local: no batch crosses the network twice."""
    _train_padded(actor, [3, 5])


@in_graph
def shared_iterator(actor: Actor) -> None:
    """All read from one iterator on the ps, which the chief starts: each batch goes to one."""
    with tf.device(PS):
        shared = tf.compat.v1.data.make_initializable_iterator(
            tf.data.Dataset.range(BATCH * 10).batch(BATCH), shared_name="shared"
        )
        number = shared.get_next()
    step = updates(actor.task, number)
    with bare_session(actor) as session:
        if actor.task.is_chief:
            session.run_step_fn(lambda step_context: step_context.session.run(shared.initializer))
            actor.tell("initialized")
            actor.hear("came")
        actor.hear("initialized")
        actor.tell("came")
        train_to_the_end(actor, session, step, number)


@in_graph
def shared_iterator_fixed(actor: Actor) -> None:
    """A table of splits on the ps instead: what a trainer that dies had is not lost."""
    task = actor.task
    splits = [(start, start + 2 * BATCH) for start in range(0, 10 * BATCH, 2 * BATCH)]
    queue = SplitQueue(task, "splits", splits, batch_size=BATCH, timeout=30)
    first = tf.compat.v1.placeholder(tf.int64, [2])
    number = tf.range(first[0], first[1])
    commit = queue.commit_after([updates(task, number)])
    with worker_server(task) as target, graph.session(task, target) as session:
        for split in queue:
            while not split.finished:
                read = range(split.offset, split.reserved)
                feed = {first: (read.start, read.stop), **split.feed}
                split.committed(session.run(commit, feed))
                actor.step(read)


def _train_padded(actor: Actor, batches: list[int]) -> None:
    """Each trains on its share, and all end together; then the chief saves."""
    task, data = actor.task, PaddedShare(actor, batches)
    step = graph.apply_if(data.has_value, lambda: updates(task, data.number, data.weight))
    with worker_server(task) as target, graph.session(task, target) as session:
        data.train(session, step)
