"""Synchronous training with a `SyncReplicasOptimizer`.

The optimizer keeps a token queue on the ps. A thread of the chief adds one token for each trainer
when the gradients of all trainers have arrived, and a trainer takes a token before its next step.
When the chief ends it closes the queue. A waiting trainer then gets OutOfRangeError, the same error
as at the end of its own iterator.
"""

from __future__ import annotations

import tensorflow as tf

from tfdist.barrier.interface import Barrier
from tfdist.cluster.server import worker_server
from tfdist.repro.case import Actor
from tfdist.repro.toy import (
    BATCH,
    PaddedShare,
    bare_session,
    global_step,
    gradients,
    in_graph,
    iterator,
    share,
    train_to_the_end,
)
from tfdist.train import graph

# The chief's thread waits for gradients even while the session closes, up to 120 s by default.
_GRACE_SECS = 0.5
_DEFAULT = -1  # one token for each trainer before the first gradients


@in_graph
def chief_short(actor: Actor) -> None:
    """The chief has 2 batches and the worker 5; the closed queue ends the worker too."""
    _train(actor, [2, 5], num_tokens=0)


@in_graph
def chief_short_fixed(actor: Actor) -> None:
    """Both trainers take 5 steps."""
    _train_together(actor, [2, 5])


@in_graph
def worker_short(actor: Actor) -> None:
    """The worker has 2 batches and the chief 5; the chief waits for the worker's gradients."""
    _train(actor, [5, 2], num_tokens=0)


@in_graph
def worker_short_fixed(actor: Actor) -> None:
    """Both trainers take 5 steps."""
    _train_together(actor, [5, 2])


@in_graph
def default_num_tokens(actor: Actor) -> None:
    """Both have 6 batches, but the initial tokens let one trainer run ahead."""
    _train(actor, [6, 6], num_tokens=_DEFAULT)


@in_graph
def default_num_tokens_fixed(actor: Actor) -> None:
    """The trainers stay in step."""
    _train_together(actor, [6, 6])


@in_graph
def no_extra_tokens(actor: Actor) -> None:
    """Both have 6 batches, and no trainer can run ahead."""
    _train(actor, [6, 6], num_tokens=0)


@in_graph
def no_extra_tokens_fixed(actor: Actor) -> None:
    """The trainers stay in step; they could also have unequal numbers of batches."""
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
        actor.announce(f"{task.name} ready")
        for trainer in task.trainers:
            actor.wait_for(f"{trainer} ready")
        train_to_the_end(actor, session, step, number)


def _train_together(actor: Actor, batches: list[int]) -> None:
    """Each step has two phases: all trainers read the variables, then all update them.

    A trainer without data takes part with empty steps until no trainer has data left.
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
