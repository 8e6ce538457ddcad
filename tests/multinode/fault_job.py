"""The training job that tests/multinode/test_fault_matrix.py runs under each fault.

A chief and a worker read the splits of two epochs. Each update counts its examples on the ps, in
the same run that commits them, so the counts cannot differ from what was trained. The chief saves
at the end of each epoch. A trainer that loses the ps opens a new session and resumes from the
checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tensorflow as tf

from tfdist import BrokenBarrierError, SplitLostError, worker_server
from tfdist.repro.case import Actor, event_file
from tfdist.splits import SplitQueue
from tfdist.train import Epoch, EpochResult, graph
from tfdist.train.checkpoint import Checkpointer

BATCH, BATCHES, EPOCHS = 4, 12, 2
RECORDS = BATCH * BATCHES
SPLITS = [(start, start + 2 * BATCH) for start in range(0, RECORDS, 2 * BATCH)]
LEASE_SECS = 1.5
_ATTEMPTS, _WAIT_SECS = 3, 10.0
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, BrokenBarrierError)


def train(actor: Actor) -> None:
    """Trains until all epochs have ended; starts again a few times if the ps was lost."""
    if actor.task.is_chief:
        _moment(actor, "start")
    # The chief gives up first if the ps is missing, so that the verdict is about a job that runs.
    timeout = _WAIT_SECS if actor.task.is_chief else 2 * _WAIT_SECS
    with worker_server(actor.task, timeout=timeout) as target:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with tf.Graph().as_default():
                    _train(actor, target)
                return
            except _LOST as error:
                if attempt == _ATTEMPTS:
                    raise
                print(f"{actor.task.name} starts again: {error}", file=sys.stderr, flush=True)


def _moment(actor: Actor, moment: str) -> None:
    """Requests the fault of this run if this is its moment, once."""
    victim, chosen = actor.settings["victim"], actor.settings["moment"]
    if moment == chosen and not event_file(actor.folder, f"begin {victim}").exists():
        actor.fault("begin", victim)


def _train(actor: Actor, target: str) -> None:
    task = actor.task
    queue = SplitQueue(
        task, "all", SPLITS, batch_size=BATCH, lease_secs=LEASE_SECS, max_retries=9, timeout=20
    )
    with tf.device("/job:ps/task:0"):
        tf.compat.v1.train.get_or_create_global_step()
        counts = tf.compat.v1.get_variable(
            "counts", [EPOCHS, RECORDS], tf.int32, tf.zeros_initializer(), use_resource=True
        )
    batch = tf.compat.v1.placeholder(tf.int32, [3])  # epoch, begin, end
    numbers = tf.range(batch[1], batch[2])
    places = tf.stack([tf.fill(tf.shape(numbers), batch[0]), numbers], axis=1)
    commit = queue.commit_after([counts.scatter_nd_add(places, tf.ones_like(numbers))])
    saver = Checkpointer(actor.settings["folder"] + "/model")

    def restore(session: tf.compat.v1.Session) -> None:
        saver.restore(session)
        queue.recover()

    def save(result: EpochResult) -> None:
        _moment(actor, "checkpoint")
        saver.save(session)
        reads = session.run(counts)[result.number - 1].tolist()
        note = {"reads": reads, "again": queue.report().possible_duplicates}
        counts_file(actor.folder, result.number).write_text(json.dumps(note))
        actor.step()

    with (
        graph.session(task, target, restore=restore) as session,
        Epoch(task, "all", first=queue.first_epoch, action=save, timeout=_WAIT_SECS) as epoch,
    ):
        while epoch.number <= EPOCHS:
            for split in queue.splits(epoch.number):
                try:
                    while not split.finished:
                        _moment(actor, _moment_of(epoch.number, split.reserved))
                        fed = {batch: (epoch.number - 1, split.offset, split.reserved)}
                        split.run(session, commit, feed_dict=fed)
                        actor.step()
                except SplitLostError:
                    continue  # another trainer has it now
            if not task.is_chief:
                _moment(actor, "barrier")
            epoch.finish()
        queue.close()


def _moment_of(epoch: int, stop: int) -> str:
    if epoch == 1 and stop == RECORDS:
        return "last batch"
    return "mid-epoch" if epoch == 1 and stop > RECORDS // 2 else ""


def counts_file(folder: Path, epoch: int) -> Path:
    """The file with how often each record of an epoch was read; the chief writes it."""
    return folder / f"counts-{epoch}.json"
