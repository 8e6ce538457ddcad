"""The batches of all splits that a trainer claims, from one iterator that never ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfdist.data.file_set import FileSet
from tfdist.data.padding import filled
from tfdist.errors import ConfigError
from tfdist.splits.queue import Split, SplitQueue
from tfdist.task import Task


class SplitBatches:
    """Batches of the splits that this trainer claims, read ahead.

    ::

        batches = tfdist.splits.SplitBatches(task, queue, files, parse)   # in the training graph
        update = optimizer.apply_gradients(gradients(batches.batch, batches.weight))
        commit = queue.commit_after([update])
        with graph.session(task, target) as session:
            for split in batches.splits(session):
                while not split.finished:
                    split.committed(session.run(commit, split.feed))

    To start an iterator costs as much as some steps, so there is one for all splits. It is started
    anew only where it has read ahead in vain: when another trainer has taken the tail of a split,
    or after an error.

    Each run that fetches a batch needs `Split.feed`, and fails with InvalidArgumentError unless the
    batch is the one that is reserved.

    Args:
        task: of this trainer.
        queue: whose splits are read, in batches of its `batch_size`.
        files: whose records they are.
        transform: from ``(int64 [batch_size], string [batch_size])``, the numbers of the records
            and the records, to what `batch` is; of padding they are 0 and an empty string.
        prefetch: how many batches are read and transformed ahead, at least 1.

    Attributes:
        batch: what `transform` gives, or ``(number, record)``.
        weight: float32 ``[batch_size]``, 1 for a record and 0 for padding.

    Raises:
        ConfigError: `prefetch` is wrong.
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
        if prefetch < 1:
            raise ConfigError("prefetch", prefetch, "at least 1")
        size = queue.batch_size
        with tf.device(task.device):
            # What is read now. The iterator looks at it only while a batch is fetched, when it has
            # read the range before. It never waits for the next one, as it would for one from a
            # queue: TensorFlow 2.21 crashes when a session is closed in which one waits.
            handle = tf.raw_ops.VarHandleOp(
                dtype=tf.int64, shape=[2], shared_name=f"tfdist/batches/{queue.name}/{task.rank}"
            )

            def present() -> Any:
                value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.int64)
                return tuple(tf.unstack(tf.ensure_shape(value, [2])))

            def of_range(start: Any, stop: Any) -> Any:
                batches = filled(files.read_batches(size, start, stop), size)
                return batches.map(transformed).prefetch(prefetch)

            def transformed(pair: Any, weight: Any, has_value: Any) -> Any:
                number, record = pair
                end = number[0] + tf.cast(tf.reduce_sum(weight), tf.int64)
                return end, transform(number, record) if transform else pair, weight

            forever = tf.data.Dataset.from_tensors(0).repeat()
            data = forever.map(lambda _: present()).flat_map(of_range)
            options = tf.data.Options()
            options.autotune.enabled = False  # see `endless_batches`
            self._iterator = tf.compat.v1.data.make_initializable_iterator(
                data.with_options(options)
            )
            end, batch, weight = self._iterator.get_next()
            is_reserved = tf.raw_ops.Assert(
                condition=tf.equal(end, queue.lease[1]),
                data=["the batch is not the one that is reserved; it ends at", end],
            )
            with tf.control_dependencies([is_reserved]):
                self.batch = tf.nest.map_structure(tf.identity, batch)
                self.weight = tf.identity(weight)
            self._range = tf.compat.v1.placeholder(tf.int64, [2], f"{queue.name}_range")
            self._read = tf.raw_ops.AssignVariableOp(resource=handle, value=self._range)
        self._queue = queue
        self._session: tf.compat.v1.Session | None = None  # in which the iterator may go on

    def splits(self, session: tf.compat.v1.Session, epoch: int | None = None) -> Iterator[Split]:
        """The splits of one epoch, as they are claimed; their batches come one after the other.

        Args:
            session: in which the batches are fetched.
            epoch: its number; None takes the next one. See `SplitQueue.of_epoch`.

        Raises:
            SplitLostError, EpochError, ConfigError: as `SplitQueue.of_epoch`.
        """
        claimed = iter(self._queue) if epoch is None else self._queue.of_epoch(epoch)
        for split in claimed:
            stop = split.stop
            session.run(self._read, {self._range: (split.offset, stop)})
            if self._session is not session:
                session.run(self._iterator.initializer)
            self._session = None
            yield split
            if split.finished and split.stop == stop:  # all that was read ahead is used
                self._session = session
