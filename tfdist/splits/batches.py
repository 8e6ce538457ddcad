"""Batches of the splits that a trainer claims, from one iterator that never ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfdist.data.file_set import FileSet
from tfdist.data.ledger import MOST
from tfdist.data.padding import filled
from tfdist.errors import ConfigError, checked_action, checked_integer
from tfdist.splits.queue import Split, SplitQueue


class SplitBatches:
    """Batches of the splits that this trainer claims, read ahead.

    ::

        batches = tfdist.splits.SplitBatches(queue, files, parse)  # in the training graph
        update = optimizer.apply_gradients(gradients(batches.batch, batches.weight))
        commit = queue.commit_after([update])
        with graph.session(task, target) as session:
            for split in batches.splits(session):
                while not split.finished:
                    split.run(session, commit)

    Starting an iterator costs as much as some steps, so all splits share one. It is restarted only
    when it has read ahead in vain: after another trainer has taken the tail of a split, or after an
    error.

    Each run that fetches a batch has to be fed `Split.feed`, as `Split.run` does. It fails with
    InvalidArgumentError unless the batch is the reserved one, so no batch is skipped or trained
    twice unnoticed.

    Args:
        queue: hands out the splits.
        files: has their records.
        transform: maps a batch of record numbers, int64 ``[batch_size]``, and records, string
            ``[batch_size]``, to `batch`. Padding is 0 and empty strings.
        prefetch: number of batches to read and transform ahead, at least 1.

    Attributes:
        batch: the result of `transform`, or ``(number, record)``.
        weight: float32 ``[batch_size]``, 1 for a record and 0 for padding.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        queue: SplitQueue,
        files: FileSet,
        transform: Callable[[Any, Any], Any] | None = None,
        *,
        prefetch: int = 2,
    ) -> None:
        if not isinstance(queue, SplitQueue):
            raise ConfigError("queue", queue, "must be a SplitQueue")
        if not isinstance(files, FileSet):
            raise ConfigError("files", files, "must be a FileSet")
        checked_action("transform", transform, "of record numbers and records")
        prefetch = checked_integer("prefetch", prefetch, 1, MOST)
        size = queue.batch_size
        with tf.device(queue.task.device):
            # The range to read. The iterator reads this variable when a batch is fetched and the
            # range before is used up. A queue of ranges would make the iterator wait for the next
            # range, and TensorFlow 2.21 crashes if a session is closed during such a wait.
            handle = tf.raw_ops.VarHandleOp(
                dtype=tf.int64,
                shape=[2],
                shared_name=f"tfdist/batches/{queue.name}/{queue.task.rank}",
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
                data=["the batch is not the reserved one; it ends at", end],
            )
            with tf.control_dependencies([is_reserved]):
                self.batch = tf.nest.map_structure(tf.identity, batch)
                self.weight = tf.identity(weight)
            self._range = tf.compat.v1.placeholder(tf.int64, [2], f"{queue.name}_range")
            self._read = tf.raw_ops.AssignVariableOp(resource=handle, value=self._range)
        self._queue = queue
        self._session: tf.compat.v1.Session | None = None  # if set, the iterator may continue in it

    def splits(self, session: tf.compat.v1.Session, epoch: int | None = None) -> Iterator[Split]:
        """Claims the splits of an epoch; `batch` has the batches of the last one that was claimed.

        Args:
            session: a session of the training graph.
            epoch: as of `SplitQueue.splits`, which also has the errors.
        """
        return self._read_each(session, self._queue.splits(epoch))

    def _read_each(self, session: tf.compat.v1.Session, splits: Iterator[Split]) -> Iterator[Split]:
        for split in splits:
            stop = split.stop
            session.run(self._read, {self._range: (split.offset, stop)})
            if self._session is not session:
                session.run(self._iterator.initializer)
            self._session = None
            yield split
            if split.finished and split.stop == stop:  # nothing was read ahead in vain
                self._session = session
