"""Functions that the chief of tests/chaos/test_split_scheduler.py runs."""

import contextlib
import os
import pathlib
import threading

import tensorflow as tf

import tfdist
from tfdist.splits.scheduler import SplitScheduler
from tfdist.testing import poll_until

BATCH = 7


class Job:
    """A model that counts on the ps how often each record of some files was read."""

    def __init__(self, task, files, records_per_split=100, **settings):
        # Otherwise a call to a lost worker waits for it.
        os.environ["GRPC_FAIL_FAST"] = "use_caller"
        cluster = tf.train.ClusterSpec(task.cluster_spec)
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
        strategy = tf.distribute.ParameterServerStrategy(resolver)
        self.coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        self.files = tfdist.data.FileSet.scan(f"{files}/part-*")
        with strategy.scope():
            self._reads = tf.Variable(tf.zeros([len(self.files)], tf.int32))
        self.splits = SplitScheduler(
            self.coordinator,
            self.files.splits(records_per_split),
            lambda start, stop: self.files.read(start, stop, remote=True),
            self.step,
            batch_size=BATCH,
            **settings,
        )
        self.checkpoint = tf.train.Checkpoint(reads=self._reads, splits=self.splits)

    def step(self, batch, weight):
        number, record = batch
        tf.debugging.assert_equal(tf.strings.to_number(record[0], tf.int64), number[0])
        ones = tf.IndexedSlices(tf.cast(weight, tf.int32), number)
        self._reads.scatter_add(ones)

    @property
    def reads(self):
        return self._reads.numpy().tolist()

    def note_begin(self, path):
        """Starts a thread that makes a file once the next epoch has begun."""
        before = max(self.reads)

        def note():
            poll_until(lambda: max(self.reads) > before, "a record is read", timeout=60)
            path.touch()

        thread = threading.Thread(target=note)
        thread.start()
        return thread


def two_epochs(task, files):
    """Trains for two epochs; returns the report and the counts of reads after each."""
    job = Job(task, files)
    return [(job.splits.run_epoch(timeout=60), job.reads) for _ in range(2)]


def while_disturbed(task, files, folder):
    """Trains for an epoch, and makes `folder`/begun; returns the report and the counts of reads."""
    job = Job(task, files)
    begun = job.note_begin(pathlib.Path(folder, "begun"))
    report = job.splits.run_epoch(timeout=60)
    begun.join()
    return report, job.reads


def stalled(task, files, folder):
    """Trains until an epoch in which a worker is stopped, and on when it is resumed."""
    job = Job(task, files)
    job.splits.run_epoch(timeout=60)  # builds all functions
    begun = job.note_begin(pathlib.Path(folder, "begun"))
    error = None
    while error is None:  # the worker may be stopped only after an epoch has ended
        try:
            job.splits.run_epoch(timeout=2)
        except tfdist.EpochError as caught:
            error = caught
    begun.join()
    pathlib.Path(folder, "stalled").touch()
    return error, job.splits.run_epoch(timeout=60), job.reads


def over_bad_input(task, files):
    """Trains on a file with an unreadable record, and again after the file is repaired."""
    path = pathlib.Path(files, "part-1")
    job = Job(task, files, max_retries=1)
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    reports = []
    for _ in range(3):
        try:
            reports.append((job.splits.run_epoch(timeout=60), ""))
        except tf.errors.OpError as error:
            reports.append((job.splits.report(), str(error)))
    path.write_bytes(data)
    return [*reports, (job.splits.run_epoch(timeout=60), job.reads)]


def saved(task, files, path):
    """Saves in the middle of an epoch in which the input failed."""
    part = pathlib.Path(files, "part-3")
    data = part.read_bytes()
    job = Job(task, files)
    part.write_bytes(data[: len(data) // 2])
    with contextlib.suppress(tf.errors.OpError):
        job.splits.run_epoch(timeout=60)
    part.write_bytes(data)
    return job.checkpoint.save(path), job.splits.report(), job.reads


def restored(task, files, path):
    """Restores and continues the epoch."""
    job = Job(task, files)
    job.checkpoint.restore(path).assert_consumed()
    return job.splits.run_epoch(timeout=60), job.reads
