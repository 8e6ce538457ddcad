"""A task is killed or stopped while the others train.

The fixed jobs lose no example: another trainer, or the restarted one, continues a lost split.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfdist.cluster.server import worker_server
from tfdist.errors import BarrierTimeout
from tfdist.repro.case import Actor
from tfdist.repro.toy import (
    BATCH,
    PS,
    bare_session,
    in_graph,
    iterator,
    share,
    train_to_the_end,
    updates,
    wait_for_all,
)
from tfdist.splits import Split, SplitQueue
from tfdist.task import Task
from tfdist.train import graph
from tfdist.train.checkpoint import Checkpointer
from tfdist.train.epoch import Epoch

STEPS = 6  # batches of each trainer
BEFORE = 2  # steps before the fault
LEASE_SECS = 0.7
_WAIT_SECS = 0.7  # for the other trainer, in a step


@in_graph
def worker_killed_async(actor: Actor) -> None:
    """Each trainer has a fixed share; no other trainer reads the rest of a killed one's."""
    number = iterator(share(actor.task, [STEPS, STEPS]).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    with bare_session(actor) as session:
        if not actor.task.is_chief:
            _train_and_be_lost(actor, session, step, number, "kill")
        train_to_the_end(actor, session, step, number)


@in_graph
def worker_killed_async_fixed(actor: Actor) -> None:
    """The chief continues the worker's split when the lease has ended."""
    model = Model(actor)
    queue = split_queue(actor.task, "splits", 2 * STEPS, lease_secs=LEASE_SECS)
    commit = queue.commit_after([model.update])
    with worker_server(actor.task) as target, graph.session(actor.task, target) as session:
        if actor.task.is_chief:
            actor.wait_for("ended worker:1")
        for split in queue:
            while not split.finished:
                model.train(session, commit, split)
                if not actor.task.is_chief:
                    actor.fault("kill", "worker:1")


@in_graph
def worker_killed_sync(actor: Actor) -> None:
    """The chief's step waits for the worker, which is killed."""
    _train_in_step(actor, "kill")


@in_graph
def worker_killed_sync_fixed(actor: Actor) -> None:
    """The chief's wait times out and names the worker, and the worker is restarted."""
    _train_in_step_and_wait(actor, "worker:1", "kill", "restart")


@in_graph
def worker_stopped_sync(actor: Actor) -> None:
    """The chief's step waits for the worker, which is stopped."""
    _train_in_step(actor, "pause")


@in_graph
def worker_stopped_sync_fixed(actor: Actor) -> None:
    """The chief's wait times out and names the worker, and the worker is resumed."""
    _train_in_step_and_wait(actor, "worker:1", "pause", "resume")


@in_graph
def ps_killed(actor: Actor) -> None:
    """The ps is killed during a step; closing a session then waits for the ps."""
    number = iterator(share(actor.task, [STEPS, STEPS]).batch(BATCH)).get_next()
    with tf.device(PS):
        begun, tokens = (_queue(name) for name in ("begun", "tokens"))
        begin = begun.enqueue(0)
    with tf.control_dependencies([begin]):
        token = tokens.dequeue()
    with tf.control_dependencies([token]):
        step = updates(actor.task, number)
    others = begun.dequeue()
    with bare_session(actor) as session:
        if actor.task.is_chief:
            train_to_the_end(actor, session, step, number)
        else:
            session.run(others)
            actor.fault("kill", "ps:0")


def ps_killed_fixed(actor: Actor) -> None:
    """Each trainer makes a new session, and the chief restores its checkpoint."""
    with worker_server(actor.task) as target:
        for attempt in itertools.count():
            try:
                with tf.Graph().as_default():
                    _train_on_splits(actor, target, loses_ps=attempt == 0)
                return
            except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
                print(f"{actor.task.name} makes a new session: {error}", file=sys.stderr)


@in_graph
def ps_stopped(actor: Actor) -> None:
    """The ps is stopped; its connections stay open, and no step ends."""
    number = iterator(share(actor.task, [STEPS, STEPS]).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    with bare_session(actor) as session:
        if not actor.task.is_chief:
            actor.step(session.run([step, number])[1])
            actor.fault("pause", "ps:0")
        else:
            actor.wait_for("pause ps:0")
        train_to_the_end(actor, session, step, number)


@in_graph
def ps_stopped_fixed(actor: Actor) -> None:
    """The wait of a trainer times out and names the ps, and the ps is resumed."""
    _train_in_step_and_wait(actor, "ps:0", "pause", "resume")


def _train_in_step(actor: Actor, fault: str) -> None:
    """Each step waits for all trainers, in queues on the ps; the worker is lost after 2 steps."""
    task = actor.task
    number = iterator(share(task, [STEPS, STEPS]).batch(BATCH)).get_next()
    step = wait_for_all(task, updates(task, number))
    with bare_session(actor) as session:
        if not task.is_chief:
            _train_and_be_lost(actor, session, step, number, fault)
        train_to_the_end(actor, session, step, number)


def _train_and_be_lost(actor: Actor, session: Any, step: Any, number: Any, fault: str) -> None:
    for _ in range(BEFORE):
        actor.step(session.run([step, number])[1])
    actor.fault(fault, actor.task.name)


def _train_in_step_and_wait(actor: Actor, lost: str, fault: str, fix: str) -> None:
    """Each step waits for all trainers, with a timeout that names the missing task.

    That task is restarted or resumed. Each trainer's offset in its share is kept on the ps.
    """
    task, model = actor.task, Model(actor)
    queues = [
        split_queue(task, f"share_{rank}", STEPS, first=STEPS * rank)
        for rank in range(len(task.trainers))
    ]
    commit = queues[task.rank].commit_after([model.update])
    with worker_server(task) as target, graph.session(task, target) as session:
        actor.announce(f"{task.name} ready")
        for trainer in task.trainers:
            actor.wait_for(f"{trainer} ready")
        epoch = Epoch(task, "epoch", timeout=30)
        split = next(splits := iter(queues[task.rank]), None)
        while _should_continue(actor, epoch, split is not None, fix):
            if split is None:
                continue
            model.train(session, commit, split)
            is_lost = split.offset == BATCH * (STEPS + BEFORE)  # of worker 1
            if split.finished:
                split = next(splits, None)
            if is_lost:
                actor.fault(fault, lost)


def _should_continue(actor: Actor, epoch: Epoch, has_value: bool, fix: str) -> bool:
    try:
        return epoch.should_continue(has_value, timeout=_WAIT_SECS)
    except BarrierTimeout as error:
        for name in error.missing:
            actor.fault(fix, name)
        return epoch.should_continue(has_value)


def _train_on_splits(actor: Actor, target: str, *, loses_ps: bool) -> None:
    task, model = actor.task, Model(actor)
    queue = split_queue(task, "splits", 2 * STEPS)
    commit = queue.commit_after([model.update])
    saver = Checkpointer(actor.folder / "model")

    def restore(session: Any) -> None:
        saver.restore(session)
        queue.recover()

    with graph.session(task, target, restore=restore) as session:
        events = _lose_ps(actor, queue, lambda: saver.save(session)) if loses_ps else iter(())
        for split in queue:
            while not split.finished:
                model.train(session, commit, split)
                next(events, None)


def _lose_ps(actor: Actor, queue: SplitQueue, save: Callable[[], object]) -> Iterator[None]:
    """What each trainer does after a batch until the ps is lost; the last batch is not saved."""
    if actor.task.is_chief:
        actor.wait_for("worker:1 ready")
        with queue.frozen():
            save()
        actor.announce("saved")
        actor.wait_for("worker:1 has trained")
        actor.fault("kill", "ps:0")
        actor.fault("restart", "ps:0")
    else:
        actor.announce("worker:1 ready")
        actor.wait_for("saved")
        yield
        actor.announce("worker:1 has trained")
        actor.wait_for("restart ps:0")


class Model:
    """A model that trains on a range of example numbers, which is fed."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._range = tf.compat.v1.placeholder(tf.int64, [2])
        self.update = updates(actor.task, tf.range(self._range[0], self._range[1]))

    def train(self, session: Any, commit: Any, split: Split) -> None:
        """Trains on the reserved batch of the split, commits it and reports the step."""
        read = range(split.offset, split.reserved)
        fed = {self._range: (read.start, read.stop), **split.feed}
        answer = session.run(commit, fed)
        self._actor.step(read)
        split.committed(answer)


def split_queue(
    task: Task, name: str, batches: int, *, first: int = 0, lease_secs: float = 30.0
) -> SplitQueue:
    """A queue of splits with two batches each."""
    splits = [(BATCH * batch, BATCH * (batch + 2)) for batch in range(first, first + batches, 2)]
    return SplitQueue(task, name, splits, batch_size=BATCH, lease_secs=lease_secs, timeout=30)


def _queue(name: str) -> Any:
    return tf.queue.FIFOQueue(100, tf.int32, shapes=[()], shared_name=name)
