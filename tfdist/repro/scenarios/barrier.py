"""A barrier in each step, as an operation of the training graph."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

from tfdist.barrier.interface import Barrier
from tfdist.cluster.server import worker_server
from tfdist.repro.case import Actor
from tfdist.repro.toy import (
    BATCH,
    PS,
    PaddedShare,
    bare_session,
    in_graph,
    iterator,
    share,
    train_to_the_end,
    updates,
)
from tfdist.task import Task
from tfdist.train import graph


@in_graph
def uneven(actor: Actor) -> None:
    """The worker has 2 batches and the chief 5; the chief waits for a token of the worker."""
    _train(actor, [5, 2], tf.device(PS))


@in_graph
def uneven_fixed(actor: Actor) -> None:
    """The worker resigns from the barrier when its data ends."""
    _train_and_resign(actor, [5, 2])


@in_graph
def misplaced_queue(actor: Actor) -> None:
    """The device function places variables on the ps, but leaves queues on the trainer."""
    _train(actor, [3, 3], tf.compat.v1.device(graph.device_setter(actor.task)))


@in_graph
def misplaced_queue_fixed(actor: Actor) -> None:
    """A `Barrier` keeps its state on ps 0, whatever the device function says."""
    with tf.compat.v1.device(graph.device_setter(actor.task)):
        _train_and_resign(actor, [3, 3])


def _train(actor: Actor, batches: list[int], place: AbstractContextManager[Any]) -> None:
    number = iterator(share(actor.task, batches).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    with place:
        tokens = _tokens_of_others(actor.task, step)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, tokens, number)


def _tokens_of_others(task: Task, after: Any) -> Any:
    """Each trainer puts a token into the queue of every other, and takes as many from its own.

    This is `add_sync_queues_and_barrier` of TensorFlow's CNN benchmarks.
    """
    others = len(task.trainers) - 1
    queues = [
        tf.queue.FIFOQueue(others, tf.bool, [[]], shared_name=f"tokens_{rank}")
        for rank in range(others + 1)
    ]
    mine = queues.pop(task.rank)
    with tf.control_dependencies([after]):
        put = [queue.enqueue(True) for queue in queues]
    with tf.control_dependencies(put):
        return mine.dequeue_many(others)


def _train_and_resign(actor: Actor, batches: list[int]) -> None:
    """The trainers meet in each step until their data ends, and once more at the end."""
    task, data = actor.task, PaddedShare(actor, batches)
    update = graph.apply_if(data.has_value, lambda: updates(task, data.number, data.weight))
    with worker_server(task) as target, Barrier(task, "step", timeout=30) as barrier:
        step = barrier.op(after=[update])
        with graph.session(task, target) as session:
            data.train(session, step, ended=barrier.resign)
