"""Trainers that take each step together, with a `SyncReplicasOptimizer`.

It has a queue of tokens on the ps, and a thread of the chief that fills it: one token for each
trainer when the gradients of all are there. Whoever has no token waits for one. When the chief
leaves it closes the queue, and who waits gets OutOfRange, as of an iterator that has ended.
"""

from __future__ import annotations

import tensorflow as tf

from tfdist.barrier import Barrier
from tfdist.cluster.server import worker_server
from tfdist.repro.actor import Actor
from tfdist.repro.padded_share import PaddedShare
from tfdist.repro.toy import (
    BATCH,
    bare_session,
    global_step,
    gradients,
    in_graph,
    iterator,
    share,
    train_to_the_end,
)
from tfdist.train import graph

# The thread of the chief waits for gradients, and no end of the session wakes it. TensorFlow gives
# it 120 s.
_GRACE_SECS = 0.5
_DEFAULT = -1  # as many tokens as trainers, before anybody has a gradient


@in_graph
def chief_short(actor: Actor) -> None:
    """The chief has 2 batches and the other 5, which takes the closed queue for its own end."""
    _train(actor, [2, 5], num_tokens=0)


@in_graph
def chief_short_fixed(actor: Actor) -> None:
    """All take as many steps as the one that has most."""
    _train_together(actor, [2, 5])


@in_graph
def worker_short(actor: Actor) -> None:
    """The worker has 2 batches and the chief 5, which waits for the gradients of two."""
    _train(actor, [5, 2], num_tokens=0)


@in_graph
def worker_short_fixed(actor: Actor) -> None:
    """All take as many steps as the one that has most."""
    _train_together(actor, [5, 2])


@in_graph
def default_num_tokens(actor: Actor) -> None:
    """All have the same, but with tokens to begin with one may be ahead of the other."""
    _train(actor, [6, 6], num_tokens=_DEFAULT)


@in_graph
def default_num_tokens_fixed(actor: Actor) -> None:
    """Nobody is ahead."""
    _train_together(actor, [6, 6])


@in_graph
def no_extra_tokens(actor: Actor) -> None:
    """All have the same, and nobody is ahead."""
    _train(actor, [6, 6], num_tokens=0)


@in_graph
def no_extra_tokens_fixed(actor: Actor) -> None:
    """The same, without having to have the same."""
    _train_together(actor, [6, 6])


def _train(actor: Actor, batches: list[int], *, num_tokens: int) -> None:
    task, trainers = actor.task, len(actor.task.trainers)
    number = iterator(share(task, batches).batch(BATCH)).get_next()
    count = global_step(task)
    with tf.compat.v1.device(graph.device_setter(task)):
        optimizer = tf.compat.v1.train.SyncReplicasOptimizer(
            tf.compat.v1.train.GradientDescentOptimizer(0.1),
            replicas_to_aggregate=trainers,
            total_num_replicas=trainers,
        )
        step = optimizer.apply_gradients(gradients(task, optimizer, number), global_step=count)
    hook = optimizer.make_session_run_hook(task.is_chief, num_tokens)
    with bare_session(actor, [hook], grace_secs=_GRACE_SECS) as session:
        actor.tell(f"{task.name} came")
        for trainer in task.trainers:
            actor.hear(f"{trainer} came")
        train_to_the_end(actor, session, step, number)


def _train_together(actor: Actor, batches: list[int]) -> None:
    """All have read before anybody writes, and have written before anybody reads again.

    Who has nothing left takes part with nothing, until nobody has.
    """
    task, data = actor.task, PaddedShare(actor, batches)
    count = global_step(task)
    with worker_server(task) as target, Barrier(task, "read", timeout=30) as read:
        with tf.compat.v1.device(graph.device_setter(task)):
            optimizer = tf.compat.v1.train.GradientDescentOptimizer(0.1)
            found = gradients(task, optimizer, data.number, data.weight)
            with tf.control_dependencies([read.op(after=[rows.values for rows, _ in found])]):
                step = graph.apply_if(
                    data.has_value, lambda: optimizer.apply_gradients(found, global_step=count)
                )
        with graph.session(task, target) as session:
            data.train(session, step, together=True)
