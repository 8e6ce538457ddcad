"""A chief schedules functions with a `ClusterCoordinator`; the workers are servers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfdist.cluster.ports import HeldPorts
from tfdist.errors import EpochError
from tfdist.repro.case import Actor
from tfdist.repro.toy import BATCH
from tfdist.splits.scheduler import SplitScheduler

_EXAMPLES = 48
_WORKERS = 2
_SHARE = _EXAMPLES // _WORKERS
_TOO_MANY = _EXAMPLES // BATCH + 1  # steps


class _Job:
    """The chief's coordinator, and a count on the ps of how often each example was read.

    The results of the functions are no such count: a cancelled function may have done its update.
    """

    def __init__(self, resolver: Any = None) -> None:
        strategy = tf.distribute.ParameterServerStrategy(
            resolver or tf.distribute.cluster_resolver.TFConfigClusterResolver()
        )
        self.coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        with strategy.scope():
            self._reads = tf.Variable(tf.zeros([_EXAMPLES], tf.int64))
            self._shares = tf.Variable(0, dtype=tf.int64)

    def train(self, number: Any, weight: Any = 1) -> None:
        """Trains on a batch; runs on a worker."""
        ones = tf.ones_like(number) * tf.cast(weight, tf.int64)
        self._reads.scatter_add(tf.IndexedSlices(ones, number))

    def read(self, times_before: int = 0) -> list[int]:
        """Each example number as often as it was read, without the first reads of each."""
        reads = enumerate(self._reads.numpy() - times_before)
        return [number for number, count in reads for _ in range(count)]

    def batches(self) -> Any:
        """An iterator for each worker, over a share of its own, such as files on its own disk."""

        def share() -> tf.data.Dataset:
            start = (self._shares.assign_add(1) - 1) * _SHARE
            return tf.data.Dataset.range(start, start + _SHARE).batch(BATCH)

        return iter(self.coordinator.create_per_worker_dataset(share))

    def run(self, step: Any, *calls: Any) -> None:
        """Schedules a step for each of the arguments, and waits until all have ended."""
        for argument in calls:
            self.coordinator.schedule(step, args=(argument,))
        self.coordinator.join()


def finite_data(actor: Actor) -> None:
    """The workers have 12 batches together, and the chief schedules 13 steps."""
    job = _Job()
    step = tf.function(lambda batches: job.train(next(batches)))
    try:
        job.run(step, *[job.batches()] * _TOO_MANY)
    finally:
        actor.step(job.read())


def finite_data_fixed(actor: Actor) -> None:
    """Each function reads one split, and no iterator that may end."""
    _read_splits(actor, _Job())


def slow_worker_loses_data(actor: Actor) -> None:
    """The chief stops at the end of the fast worker; the slow one has 2 batches left."""
    job = _Job()
    has_done_4, slow_disk = _queue_on_ps("has_done_4"), _queue_on_ps("slow_disk")

    @tf.function
    def step(batches: Any) -> None:
        number = next(batches)
        place = number[0] // BATCH
        if place == 10:  # the fifth batch of the slow worker
            has_done_4.enqueue(place)
        last_of_fast, rest_of_slow = tf.equal(place, 5), place >= 10
        turn = tf.case(
            [(last_of_fast, has_done_4.dequeue), (rest_of_slow, slow_disk.dequeue)],
            default=lambda: place,
        )
        with tf.control_dependencies([turn]):
            job.train(number)

    try:
        job.run(step, *[job.batches()] * _TOO_MANY)
    except tf.errors.OutOfRangeError:
        actor.step(job.read())


def slow_worker_loses_data_fixed(actor: Actor) -> None:
    """The faster worker reads more splits, and the end of a split is no error."""
    _read_splits(actor, _Job())


def blocking_barrier(actor: Actor) -> None:
    """Each of 3 functions waits for all 3, but there are 2 workers."""
    job = _Job()
    job.run(_meeting(_WORKERS + 1), *tf.range(_WORKERS + 1))


def blocking_barrier_fixed(actor: Actor) -> None:
    """No function waits for another one; the chief waits for all of them."""
    _read_splits(actor, _Job())


def worker_stopped(actor: Actor) -> None:
    """A worker is stopped, and its function goes to no other worker."""
    job = _Job()
    step = _meeting(_WORKERS)  # so that each worker runs one
    job.run(step, *tf.range(_WORKERS))
    actor.step()
    actor.fault("pause", "worker:1")
    job.run(step, *tf.range(_WORKERS))


def worker_stopped_fixed(actor: Actor) -> None:
    """run_epoch times out, the chief kills the stopped worker, and the other reads its split.

    The fault comes in the third epoch. Until then the chief traces functions and registers them
    on all workers; it would wait forever for a stopped one.
    """
    job = _Job()
    actor.step()
    scheduler = _scheduler(job)
    for _ in range(2):
        scheduler.run_epoch(timeout=30)
    actor.step()
    actor.fault("pause", "worker:1")
    try:
        scheduler.run_epoch(timeout=1)
    except EpochError:
        actor.fault("kill", "worker:1")
        job.coordinator.join()
    actor.step(job.read(times_before=2))


def default_threads(actor: Actor) -> None:
    """All servers run in one process with 2 threads, as by default on 2 cores."""
    job = _Job(_servers(actor, threads=_WORKERS))
    step = tf.function(lambda batches: job.train(next(batches)))
    job.run(step, *[job.batches()] * (_EXAMPLES // BATCH))
    actor.step(job.read())


def default_threads_fixed(actor: Actor) -> None:
    """The servers have one thread more than there are workers."""
    _read_splits(actor, _Job(_servers(actor, threads=_WORKERS + 1)))


def _servers(actor: Actor, threads: int) -> Any:
    """Starts a ps and the workers in this process."""
    held = HeldPorts(_WORKERS + 1)
    ps, *workers = [f"127.0.0.1:{port}" for port in held.ports]
    cluster = tf.train.ClusterSpec({"ps": [ps], "worker": workers})
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=threads)
    for job in cluster.jobs:
        for index in range(cluster.num_tasks(job)):
            tf.distribute.Server(cluster, job_name=job, task_index=index, config=config)
    actor.describe(servers=len(held.ports), pool=threads)
    return tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")


def _queue_on_ps(name: str) -> Any:
    with tf.device("/job:ps/task:0/device:CPU:0"):
        return tf.queue.FIFOQueue(_EXAMPLES, [tf.int64], [[]], shared_name=name)


def _meeting(parties: int) -> Any:
    """A function that returns once it was called with every number below `parties`."""
    gate = _queue_on_ps("gate")

    @tf.function
    def meet(number: Any) -> None:
        if number == parties - 1:
            gate.enqueue_many(tf.range(parties, dtype=tf.int64))
        gate.dequeue()

    return meet


def _scheduler(job: _Job) -> SplitScheduler:
    splits = [(start, start + 2 * BATCH) for start in range(0, _EXAMPLES, 2 * BATCH)]
    read = tf.data.Dataset.range
    return SplitScheduler(job.coordinator, splits, read, job.train, batch_size=BATCH)


def _read_splits(actor: Actor, job: _Job) -> None:
    actor.step()
    _scheduler(job).run_epoch(timeout=30)
    actor.step(job.read())
