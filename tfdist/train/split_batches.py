"""The batches of all splits that a trainer claims, from one iterator that never ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.eos import filled
from tfdist.files.file_set import FileSet
from tfdist.split_queue.queue import Split, SplitQueue
from tfdist.task import Task

_UNCUT = np.int64(2**62)  # in the place of a stop
_RANGES = 4  # at most one and one mark are under way


class SplitBatches:
    """Batches of the splits that this trainer claims, read ahead.

    ::

        batches = tfdist.SplitBatches(task, queue, files, parse)   # in the training graph
        update = optimizer.apply_gradients(gradients(batches.batch, batches.weight))
        commit = queue.commit_after([update])
        with graph.session(task, target) as session:
            for split in batches.splits(session):
                while not split.finished:
                    split.committed(session.run(commit, split.feed))

    To start an iterator costs as much as some steps. So there is one for all splits: it is handed
    their ranges through a queue, and if another trainer takes the tail of a split, it leaves the
    split early.

    Each run that fetches a batch needs `Split.feed`, and fails with InvalidArgumentError unless the
    batch is the one that is reserved.

    Args:
        task: of this trainer.
        queue: whose splits are read, in batches of its `batch_size`.
        files: whose records they are.
        transform: from ``(int64 [batch_size], string [batch_size])``, the numbers of the records
            and the records, to what `batch` is; of padding they are 0 and an empty string.
        prefetch: how many batches are read and transformed ahead.

    Attributes:
        batch: what `transform` gives, or ``(number, record)``.
        weight: float32 ``[batch_size]``, 1 for a record and 0 for padding.
    """

    def __init__(
        self,
        task: Task,
        queue: SplitQueue,
        files: FileSet,
        transform: Callable[[Any, Any], Any] | None = None,
        *,
        prefetch: int = 2,
    ) -> None:
        size = queue.batch_size
        with tf.device(task.device):
            ranges = tf.queue.FIFOQueue(_RANGES, [tf.int64, tf.int64], [[], []])
            stop = tf.raw_ops.VarHandleOp(
                dtype=tf.int64, shape=[], shared_name=f"tfdist/batches/{queue.name}/{task.rank}"
            )
            self._range = tf.compat.v1.placeholder(tf.int64, [2], f"{queue.name}_range")
            self._put = ranges.enqueue(tf.unstack(self._range))
            self._forget = ranges.dequeue_many(ranges.size())
            self._stop = tf.compat.v1.placeholder(tf.int64, [], f"{queue.name}_stop")
            self._set_stop = tf.raw_ops.AssignVariableOp(resource=stop, value=self._stop)

            def is_wanted(number: Any, record: Any) -> Any:
                return number[0] < tf.raw_ops.ReadVariableOp(resource=stop, dtype=tf.int64)

            def of_range(start: Any, stop: Any) -> Any:
                found = files.read_batches(size, start, stop).take_while(is_wanted)
                spec = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string)
                nothing = tf.nest.map_structure(lambda one: tf.zeros([0], one.dtype), spec)
                mark = tf.data.Dataset.from_tensors(nothing).take(
                    tf.cast(tf.equal(start, stop), tf.int64)
                )
                return filled(found.concatenate(mark), size)

            def transformed(pair: Any, weight: Any, has_value: Any) -> Any:
                number, record = pair
                end = number[0] + tf.cast(tf.reduce_sum(weight), tf.int64)
                return end, transform(number, record) if transform else pair, weight, has_value

            forever = tf.data.Dataset.from_tensors(0).repeat()
            data = forever.map(lambda _: tuple(ranges.dequeue())).flat_map(of_range)
            options = tf.data.Options()
            options.autotune.enabled = False  # see `padded`
            data = data.map(transformed).prefetch(prefetch).with_options(options)
            self._iterator = tf.compat.v1.data.make_initializable_iterator(data)
            end, batch, weight, _ = self._iterator.get_next()
            self._is_left = self._iterator.get_next()[-1]
            reserved = tf.debugging.assert_equal(
                end, queue.offset, "the batch is not the one that is reserved"
            )
            with tf.control_dependencies([reserved]):
                self.batch = tf.nest.map_structure(tf.identity, batch)
                self.weight = tf.identity(weight)
        self._queue = queue
        # In which the iterator stands between two splits.
        self._session: tf.compat.v1.Session | None = None

    def splits(self, session: tf.compat.v1.Session, epoch: int | None = None) -> Iterator[Split]:
        """The splits of one epoch, as they are claimed; their batches come one after the other.

        Args:
            session: in which the batches are fetched.
            epoch: its number; None takes the next one. See `SplitQueue.of_epoch`.

        Raises:
            SplitLost, EpochError, ConfigError: as `SplitQueue.of_epoch`.
        """
        claimed = iter(self._queue) if epoch is None else self._queue.of_epoch(epoch)
        for split in claimed:
            if self._session is not session:
                self._start(session)
            self._session = None  # if it is left in the middle
            stop = split.stop
            session.run(self._put, {self._range: (split.offset, stop)})
            yield split
            if split.finished:
                self._session = session
                if split.stop < stop:
                    self._drop_tail(session)

    def _start(self, session: tf.compat.v1.Session) -> None:
        session.run(self._iterator.initializer)
        session.run(self._forget)
        session.run(self._set_stop, {self._stop: _UNCUT})

    def _drop_tail(self, session: tf.compat.v1.Session) -> None:
        """Another trainer reads it. What of it was read ahead ends with an empty batch."""
        session.run(self._set_stop, {self._stop: 0})
        session.run(self._put, {self._range: (0, 0)})
        while session.run(self._is_left):
            pass
        session.run(self._set_stop, {self._stop: _UNCUT})
