"""The input comes from a tf.data service, and one server of the service is killed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tfdist.cluster.server import worker_server
from tfdist.repro.case import Actor
from tfdist.repro.scenarios.faults import LEASE_SECS, Model, split_queue
from tfdist.repro.toy import BATCH, in_graph, read_within
from tfdist.task import Task, parse_address
from tfdist.train import graph

BATCHES = 50  # more than the client reads ahead
DISPATCHER, READER = "worker:1", "worker:2"  # the chief trains
_ANSWER_SECS = 0.7
# Keeps the servers: TensorFlow 2.21 takes 100 s to destroy a dispatcher.
_servers: list[Any] = []


def worker_killed(actor: Actor) -> None:
    """The worker of the service is killed, and the trainer waits for its batches."""
    if actor.task.is_chief:
        _train(actor, _served(actor), READER)
    else:
        _serve(actor)


@in_graph
def worker_killed_fixed(actor: Actor) -> None:
    """There is no service: all three tasks train, and read their own splits."""
    task, model = actor.task, Model(actor)
    queue = split_queue(task, "splits", BATCHES, lease_secs=LEASE_SECS)
    commit = queue.commit_after([model.update])
    with worker_server(task) as target, graph.session(task, target) as session:
        if task.name != READER:
            actor.wait_for(f"ended {READER}")
        for split in queue:
            while not split.finished:
                model.train(session, commit, split)
                if task.name == READER:
                    actor.fault("kill", READER)


def dispatcher_killed(actor: Actor) -> None:
    """The dispatcher is killed; the trainer gets all batches, but never the end of the data."""
    if actor.task.is_chief:
        _train(actor, _served(actor), DISPATCHER)
    else:
        _serve(actor)


def dispatcher_killed_fixed(actor: Actor) -> None:
    """The dispatcher keeps a journal, and is restarted when the input takes too long."""
    if actor.task.is_chief:
        batches = read_within(
            _ANSWER_SECS, _served(actor), late=lambda: actor.fault("restart", DISPATCHER)
        )
        _train(actor, batches, DISPATCHER)
    else:
        _serve(actor, work_dir=str(actor.folder / "journal"), fault_tolerant_mode=True)


def _train(actor: Actor, batches: Iterable[Any], lost: str) -> None:
    """Trains, and has the task `lost` killed after the first step."""
    total = tf.Variable(0.0)
    for step, number in enumerate(batches):
        total.assign_add(tf.reduce_sum(tf.cast(number, tf.float32)))
        actor.step(number.numpy())
        if step == 0:
            actor.fault("kill", lost)
    actor.announce("trained")


def _served(actor: Actor) -> tf.data.Dataset:
    """The example numbers, from the service."""
    actor.wait_for(f"{READER} serves")
    service = f"grpc://{_address(actor.task, DISPATCHER)}"
    distribute = tf.data.experimental.service.distribute("parallel_epochs", service)
    return tf.data.Dataset.range(BATCHES * BATCH).batch(BATCH).apply(distribute)


def _serve(actor: Actor, **dispatcher: Any) -> None:
    """Serves as the dispatcher or as its worker until the training ends."""
    actor.describe(trains=False)
    task, service = actor.task, tf.data.experimental.service
    port = parse_address(task.address).port
    if task.name == DISPATCHER:
        _servers.append(service.DispatchServer(service.DispatcherConfig(port=port, **dispatcher)))
    else:
        actor.wait_for(f"{DISPATCHER} serves")
        config = service.WorkerConfig(
            _address(task, DISPATCHER),
            worker_address=task.address,
            port=port,
            heartbeat_interval_ms=100,
        )
        _servers.append(service.WorkerServer(config))
    actor.announce(f"{task.name} serves")
    actor.wait_for("trained")


def _address(task: Task, name: str) -> str:
    return task.cluster_spec["worker"][task.trainers.index(name)]
