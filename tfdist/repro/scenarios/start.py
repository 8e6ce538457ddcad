"""The trainers wait for the chief to initialise the variables."""

from __future__ import annotations

import tensorflow as tf

from tfdist.cluster.server import start_server, worker_server
from tfdist.errors import StartTimeout
from tfdist.repro.actor import Actor
from tfdist.repro.padded_share import PaddedShare
from tfdist.repro.toy import (
    BATCH,
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
def chief_never_came(actor: Actor) -> None:
    """A script that knows ps and workers alone: whoever is no worker serves, the chief too."""
    task = actor.task
    if task.task_type != "worker":
        start_server(task).join()
    number = iterator(share(task, [2, 2, 2]).batch(BATCH)).get_next()
    step = updates(task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


def chief_never_came_fixed(actor: Actor) -> None:
    """Who misses the chief for too long hears its name; it comes late, and all is well."""
    task = actor.task
    with worker_server(task) as target:
        if task.is_chief:
            for worker in task.trainers[1:]:
                actor.hear(f"{worker} misses {task.name}")
        else:
            try:
                _train(actor, target, [2, 2, 2], timeout=_MISSED_SECS)
            except StartTimeout as error:
                actor.tell(f"{task.name} misses {', '.join(error.missing)}")
        _train(actor, target, [2, 2, 2])


@in_graph
def variable_off_the_ps(actor: Actor) -> None:
    """The global step is made where nothing says that it belongs on the ps: each has its own."""
    task = actor.task
    tf.compat.v1.train.get_or_create_global_step()
    number = iterator(share(task, [2, 2]).batch(BATCH)).get_next()
    step = updates(task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


def variable_off_the_ps_fixed(actor: Actor) -> None:
    """All variables are made under the device function."""
    with worker_server(actor.task) as target:
        _train(actor, target, [2, 2])


def _train(actor: Actor, target: str, batches: list[int], *, timeout: float = 30) -> None:
    """Each trains on its share, in a graph of its own."""
    with tf.Graph().as_default():
        task, data = actor.task, PaddedShare(actor, batches)
        step = graph.apply_if(data.has_value, lambda: updates(task, data.number, data.weight))
        with graph.session(task, target, timeout=timeout) as session:
            data.train(session, step)
