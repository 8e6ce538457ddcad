"""The ways to feed a training epoch: plain tf.data, the tf.data service, and tfdist."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import tfdist
from benchmarks._input_model import BATCH, Model, parse
from tfdist.train import graph

SPLIT = 16 * BATCH  # records
STALL_SECS = 60.0
_PREFETCH = 2  # batches


class Done(NamedTuple):
    """What a worker did in an epoch.

    Attributes:
        steps: number of steps with examples.
        reads: CPU seconds in `Epoch.read`.
        begins: seconds to claim each split and start reading it.
    """

    steps: int
    reads: float = 0.0
    begins: tuple[float, ...] = ()


def batches(files: Any) -> Any:
    """The batches of the files in a dataset of paths, as a user of plain tf.data reads them."""
    import tensorflow as tf

    return files.flat_map(tf.data.TFRecordDataset).batch(BATCH).map(parse)


class PlainPeers:
    """The peers without tfdist's input: update until OutOfRangeError.

    Args:
        task: this worker.
        model: the model to train.
        paths: all files.
        dispatcher: target of the tf.data service.
    """

    def __init__(
        self, task: tfdist.Task, model: Model, paths: Sequence[str], dispatcher: str
    ) -> None:
        import tensorflow as tf

        service = tf.data.experimental.service
        self._barrier = tfdist.Barrier(task, "plain/step", timeout=STALL_SECS)
        self._job = tf.compat.v1.placeholder(tf.string, [])
        with tf.device(task.device):
            share = list(paths)[task.rank :: len(task.trainers)]
            data = batches(tf.data.Dataset.from_tensor_slices(share))
            served = service.from_dataset_id(
                service.ShardingPolicy.DYNAMIC,
                dispatcher,
                self._job,
                element_spec=data.element_spec,
                job_name="epoch",
            )
            options = tf.data.Options()
            # As in `tfdist.data.endless_batches`: an epoch might wait for the tuning thread.
            options.autotune.enabled = False
            self._share, self._served = (
                tf.compat.v1.data.make_initializable_iterator(
                    source.prefetch(_PREFETCH).with_options(options)
                )
                for source in (data, served)
            )
        self._update, self._update_served = (
            model.apply(model.gradients(iterator.get_next()))
            for iterator in (self._share, self._served)
        )

    def run(self, session: Any, job: str) -> Done:
        """Trains on the worker's share of the files."""
        session.run(self._share.initializer)
        return _until_end(session, self._update)

    def run_service(self, session: Any, job: str) -> Done:
        """Trains on what the service sends this worker."""
        session.run(self._served.initializer, {self._job: job})
        return _until_end(session, self._update_served)

    def run_in_step(self, session: Any, job: str) -> Done:
        """Trains on the worker's share; all workers wait for one another after each step."""
        import tensorflow as tf

        session.run(self._share.initializer)
        steps = 0
        while True:
            try:
                session.run(self._update)
            except tf.errors.OutOfRangeError:
                return Done(steps)
            self._barrier.wait()
            steps += 1


def _until_end(session: Any, update: Any) -> Done:
    import tensorflow as tf

    steps = 0
    while True:
        try:
            session.run(update)
        except tf.errors.OutOfRangeError:
            return Done(steps)
        steps += 1


class TfdistPeers:
    """The peers with tfdist: numbered records, padding, a ledger and an agreed end of the epoch.

    Args:
        task: this worker.
        model: the model to train.
        index: path of the saved `FileSet`.
    """

    def __init__(self, task: tfdist.Task, model: Model, index: str) -> None:
        import tensorflow as tf

        files = tfdist.data.FileSet.load(index)
        size = len(files) // len(task.trainers)
        self._mine = task.rank * size, (task.rank + 1) * size  # equal shares for the peer in step
        self._queue = tfdist.splits.SplitQueue(
            task, "train", files.splits(SPLIT), batch_size=BATCH, timeout=STALL_SECS
        )
        self._epoch, self._epoch_in_step = (
            tfdist.train.Epoch(task, name, expected=len(files), timeout=STALL_SECS)
            for name in ("train", "step")
        )
        self._batches = tfdist.splits.SplitBatches(
            self._queue,
            files,
            lambda number, record: (number, parse(record)),
            prefetch=_PREFETCH,
        )
        self._read, features = self._batches.batch
        gradients = model.gradients(features, self._batches.weight)
        self._commit = self._queue.commit_after([model.apply(gradients)])
        with tf.device(task.device):
            data = tfdist.data.endless_batches(files.read(*self._mine), BATCH).map(
                lambda batch, weight, has_value: (batch[0], parse(batch[1]), weight, has_value)
            )
            self._iterator = tf.compat.v1.data.make_initializable_iterator(data.prefetch(_PREFETCH))
            self._number, features, self._weight, self._has_value = self._iterator.get_next()
        gradients = model.gradients(features, self._weight)
        self._step = graph.apply_if(self._has_value, lambda: model.apply(gradients))

    def run(self, session: Any, job: str) -> Done:
        """Trains on splits; the update and the commit are one run."""
        steps, reads, begins, ended = 0, 0.0, list[float](), time.monotonic()
        for split in self._batches.splits(session):
            begins.append(time.monotonic() - ended)
            while not split.finished:
                fetched = [self._read, self._batches.weight]
                number, weight = split.run(session, self._commit, fetched)
                reads += _read(self._epoch, number, weight)
                steps += 1
            ended = time.monotonic()
        self._epoch.finish().check()
        return Done(steps, reads, tuple(begins))

    def run_in_step(self, session: Any, job: str) -> Done:
        """Trains on the worker's share; after each step all workers agree whether to continue."""
        session.run(self._iterator.initializer)
        steps, reads, has_value = 0, 0.0, True
        while self._epoch_in_step.should_continue(has_value):
            fetched = [self._step, self._number, self._weight, self._has_value]
            _, number, weight, has_value = session.run(fetched)
            reads += _read(self._epoch_in_step, number, weight)
            steps += bool(has_value)
        self._epoch_in_step.finish().check()
        return Done(steps, reads)


def _read(epoch: tfdist.train.Epoch, number: Any, weight: Any) -> float:
    """Adds the examples to the ledger; returns the CPU seconds that this took."""
    start = time.thread_time()
    epoch.read(number[weight > 0])
    return time.thread_time() - start
