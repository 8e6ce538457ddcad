"""The trainers wait for variables that no task initializes."""

from __future__ import annotations

import tensorflow as tf

from tfdist.cluster.server import start_server, worker_server
from tfdist.errors import StartTimeout
from tfdist.repro.case import Actor
from tfdist.repro.toy import (
    BATCH,
    PaddedShare,
    bare_session,
    in_graph,
    iterator,
    share,
    train_to_the_end,
    updates,
)
from tfdist.train import graph

_MISSED_SECS = 0.5


@in_graph
def chief_never_initializes(actor: Actor) -> None:
    """The script knows only ps and workers: every other task joins its server, also the chief."""
    task = actor.task
    if task.task_type != "worker":
        start_server(task).join()
    number = iterator(share(task, [2, 2, 2]).batch(BATCH)).get_next()
    step = updates(task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


def chief_never_initializes_fixed(actor: Actor) -> None:
    """The workers' wait times out and names the chief, which then comes late."""
    task = actor.task
    with worker_server(task) as target:
        if task.is_chief:
            for worker in task.trainers[1:]:
                actor.wait_for(f"{worker} misses {task.name}")
        else:
            try:
                _train(actor, target, [2, 2, 2], timeout=_MISSED_SECS)
            except StartTimeout as error:
                actor.announce(f"{task.name} misses {', '.join(error.missing)}")
        _train(actor, target, [2, 2, 2])


@in_graph
def variable_not_on_ps(actor: Actor) -> None:
    """The global step is created outside the device function, so each trainer has its own."""
    task = actor.task
    tf.compat.v1.train.get_or_create_global_step()
    number = iterator(share(task, [2, 2]).batch(BATCH)).get_next()
    step = updates(task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


def variable_not_on_ps_fixed(actor: Actor) -> None:
    """All variables are created under the device function."""
    with worker_server(actor.task) as target:
        _train(actor, target, [2, 2])


def _train(actor: Actor, target: str, batches: list[int], *, timeout: float = 30) -> None:
    """Trains on this trainer's share, in a new graph."""
    with tf.Graph().as_default():
        task, data = actor.task, PaddedShare(actor, batches)
        step = graph.apply_if(data.has_value, lambda: updates(task, data.number, data.weight))
        with graph.session(task, target, timeout=timeout) as session:
            data.train(session, step)
