"""Splits for a `ClusterCoordinator`: each scheduled function reads one split to its end.

A finite iterator passed to `schedule` ends with OutOfRange, which cancels all queued functions. So
a function gets a split instead, builds a dataset of its uncommitted rest, and reads it batch by
batch. After each update it commits its offset on ps 0. If its worker is lost, the coordinator runs
the function again, which continues at the committed offset.

A worker that the coordinator believes lost may still be running. So each run of a function becomes
the owner of its split, and a run ends after the batch in which it finds another owner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.data.ledger import MOST, Ledger, Range
from tfdist.data.padding import LARGEST_BATCH, endless_batches
from tfdist.deadline import Deadline
from tfdist.errors import ConfigError, EpochError, checked_action, checked_integer, checked_timeout
from tfdist.splits import SplitReport
from tfdist.splits.plan import checked_splits, epoch_order

_PS_DEVICE = "/job:ps/replica:0/task:0/device:CPU:0"
_AHEAD = 256  # scheduled functions; `schedule` blocks at this number per worker
_POLL_SECS, _LONGEST_POLL_SECS = 0.01, 0.5

_log = logging.getLogger(__name__)


class SplitScheduler(tf.Module):
    """Trains on splits of records through a coordinator; their offsets are kept on ps 0.

    Make it outside of ``strategy.scope()``. It can be part of a `tf.train.Checkpoint`. Save between
    two calls of `run_epoch`; the checkpoint then fits the model, and after a restore `run_epoch`
    continues the saved epoch.

    Args:
        coordinator: a `tf.distribute.coordinator.ClusterCoordinator`.
        splits: half-open ranges of record numbers.
        read: ``read(start, stop)`` returns a dataset of these records, in order. A worker iterates
            it, so it may not call Python; see `remote` of `FileSet.read`.
        step: ``step(batch, weight)`` trains on a batch, padded as by `endless_batches`. It runs on
            a worker, within ``strategy.run``.
        batch_size: records per batch; each batch is committed.
        seed: determines the order of the splits, which differs from epoch to epoch.
        max_retries: a split that is restarted more often without a commit in between becomes a dead
            letter. A restart after the error of another split does not count.

    Raises:
        ConfigError: an argument is wrong, or this is within ``strategy.scope()``.
    """

    def __init__(
        self,
        coordinator: Any,
        splits: Sequence[Range],
        read: Callable[[Any, Any], tf.data.Dataset],
        step: Callable[..., object],
        *,
        batch_size: int,
        seed: int = 0,
        max_retries: int = 3,
    ) -> None:
        super().__init__(name="splits")
        if tf.distribute.has_strategy():
            raise ConfigError("splits", "in a scope", "make it outside of strategy.scope()")
        ranges = checked_splits(splits)
        self._coordinator, self._make_dataset = coordinator, read
        self._seed = checked_integer("seed", seed)
        self._batch_size = checked_integer("batch_size", batch_size, 1, LARGEST_BATCH)
        self._max_retries = checked_integer("max_retries", max_retries, 0, MOST)
        checked_action("read", read, "of a start and a stop", may_be_none=False)
        checked_action("step", step, "of a batch and its weight", may_be_none=False)
        if not callable(getattr(coordinator, "schedule", None)):
            raise ConfigError("coordinator", coordinator, "must be a ClusterCoordinator")
        self._starts, self._stops = np.array(ranges, np.int64).reshape(-1, 2).T
        batches = -(-(self._stops - self._starts) // self._batch_size)
        self._first_batch = np.cumsum(batches) - batches  # by split
        # Larger than all record numbers, and added to all offsets for each epoch. A late commit
        # from an earlier epoch is therefore smaller than the present offset, and changes nothing.
        self._span = int(max(self._stops, default=0)) + 1
        with tf.device(_PS_DEVICE):
            self._epoch = tf.Variable(np.int64(0), name="epoch")
            self._committed = tf.Variable(self._starts, name="committed")
            self._owners = tf.Variable(tf.zeros_like(self._starts), name="owners")
            # By split, the starts since its last commit, plus 1 if it has a commit.
            self._tries = tf.Variable(tf.zeros_like(self._starts), name="tries")
            self._dead = tf.Variable(tf.zeros_like(self._starts), name="dead")
            # By batch of all splits, the functions that have started with it in this epoch.
            self._begins = tf.Variable(tf.zeros([batches.sum()], tf.int64), name="begins")
        self._look = tf.function(self._look_at_all)
        self._function = tf.function(self._read_split, [tf.TensorSpec([5], tf.int64)])

        @tf.function  # its call returns when all ops of the step are done
        def update(batch: Any, weight: Any) -> Any:
            coordinator.strategy.run(step, args=(batch, weight))
            return tf.constant(0)

        self._update = update

    def run_epoch(self, timeout: float | None = None) -> SplitReport:
        """Reads the rest of the present epoch, or the next epoch if the present one is done.

        Blocks until each split is committed or a dead letter.

        Args:
            timeout: seconds without any commit before EpochError; None waits without limit.

        Raises:
            EpochError: no worker committed within `timeout`; `missing` has the unread records. The
                scheduled functions keep running.
            tf.errors.OpError: from the input or the step; it has cancelled the other scheduled
                functions. The next call continues with the rest.
        """
        timeout = checked_timeout(timeout)
        if self.report().done:
            for variable in (self._tries, self._dead, self._begins):
                variable.assign(tf.zeros_like(variable))
            self._epoch.assign_add(1)
        scheduled: dict[int, Any] = {}
        try:
            self._run(int(self._epoch.numpy()), scheduled, timeout)
        except tf.errors.OpError:
            self._reset_cancelled(scheduled)
            raise
        report = self.report()
        for start, stop in report.dead_letters:
            _log.warning(
                "epoch %d: records [%d, %d) are a dead letter and were not read: their split was "
                "restarted more than %d times without a commit",
                *(report.epoch, start, stop, self._max_retries),
            )
        return report

    def report(self) -> SplitReport:
        """Progress of the present epoch."""
        offsets, is_open, _ = (tensor.numpy() for tensor in self._look())
        begins = self._begins.numpy()
        begins[self._first_batch] -= 1  # the first start of a split is no retry
        rows = zip(self._starts.tolist(), offsets.tolist(), strict=True)
        dead = np.flatnonzero(self._dead.numpy())
        return SplitReport(
            epoch=int(self._epoch.numpy()) + 1,
            committed=Ledger((start, offset) for start, offset in rows if start < offset).ranges(),
            possible_duplicates=tuple(
                self._batch(index)
                for index in np.flatnonzero(begins > 0).tolist()
                for _ in range(begins[index])
            ),
            dead_letters=self._rests(offsets, dead),
            done=not is_open.any(),
        )

    def _run(self, epoch: int, scheduled: dict[int, Any], timeout: float | None) -> None:
        """Schedules the open splits and waits until none is open; logs 30 s without a commit."""
        offsets, is_open, progress = self._look()
        order = epoch_order(len(self._starts), self._seed, epoch)
        waiting = [row for row in reversed(order) if is_open[row]]
        deadline, pause = Deadline(timeout), _POLL_SECS
        while tf.reduce_any(is_open):
            for row in [row for row in scheduled if not is_open[row]]:
                del scheduled[row]
            while waiting and len(scheduled) < _AHEAD:
                row = waiting.pop()
                columns = self._starts, self._stops, self._first_batch
                split = tf.constant([epoch, row, *(column[row] for column in columns)], tf.int64)
                scheduled[row] = self._coordinator.schedule(self._function, args=(split,))
            self._coordinator.done()  # raises the error of a function
            time.sleep(min(pause, deadline.remaining))
            pause = min(2 * pause, _LONGEST_POLL_SECS)
            before, (offsets, is_open, progress) = progress, self._look()
            if progress != before:
                deadline = Deadline(timeout)
            elif deadline.expired or deadline.notice_due():
                rests = self._rests(offsets.numpy(), is_open.numpy())
                stall = (
                    f"epoch {epoch + 1}: no commit for {deadline.elapsed:.1f} s; "
                    f"{sum(stop - start for start, stop in rests)} records are left. Is a worker "
                    "stopped, or does a batch take longer?"
                )
                if deadline.expired:
                    raise EpochError(stall, missing=rests, duplicates=())
                _log.warning("%s", stall)

    def _reset_cancelled(self, scheduled: dict[int, Any]) -> None:
        """Resets the retry count of splits that another split's error cancelled."""
        for row, result in scheduled.items():
            try:
                result.get()
            except tf.errors.CancelledError:
                _put(self._tries, row, np.int64(0))
            except tf.errors.OpError:
                pass  # the error of this split; the caller raises the first of these

    def _look_at_all(self) -> tuple[Any, Any, Any]:
        """Offset and openness by split, and a number that grows with any progress."""
        with tf.device(_PS_DEVICE):
            offsets = self._offset(self._committed, self._epoch, self._starts)
            is_open = (offsets < self._stops) & tf.equal(self._dead, 0)
            noted = [self._committed, self._begins, self._dead]
            return offsets, is_open, tf.add_n([tf.reduce_sum(each) for each in noted])

    def _offset(self, committed: Any, epoch: Any, start: Any) -> Any:
        return tf.maximum(committed - epoch * self._span, start)

    def _rests(self, offsets: Any, rows: Any) -> tuple[Range, ...]:
        rests = zip(offsets[rows].tolist(), self._stops[rows].tolist(), strict=True)
        return Ledger(rests).ranges()

    def _batch(self, index: int) -> Range:
        row = int(np.searchsorted(self._first_batch, index, side="right")) - 1
        start = int(self._starts[row]) + (index - int(self._first_batch[row])) * self._batch_size
        return start, min(start + self._batch_size, int(self._stops[row]))

    def _read_split(self, split: Any) -> None:
        """Reads the rest of a split, on a worker."""
        epoch, row, start, stop, first_batch = tf.unstack(split)
        mine = new_owner()
        with tf.control_dependencies([_put(self._owners, row, mine)]):
            tries = self._tries.sparse_read(row)
            offset = self._offset(self._committed.sparse_read(row), epoch, start)
            is_open = tf.equal(self._epoch, epoch) & (offset < stop)

        def begin() -> Any:
            batch = first_batch + (offset - start) // self._batch_size
            noted = [_add(self._begins, batch), _add(self._tries, row)]
            with tf.control_dependencies(noted):
                self._read_batches(split, offset, mine)
            return tf.no_op()

        def give_up() -> Any:
            return _put(self._dead, row, np.int64(1)).op

        # The split may be done: the coordinator also repeats a function whose answer was lost.
        tf.cond(
            is_open,
            lambda: tf.cond(tries <= self._max_retries, begin, give_up),
            tf.no_op,
        )

    def _read_batches(self, split: Any, offset: Any, mine: Any) -> None:
        epoch, row, _, stop, _ = tf.unstack(split)
        # TensorFlow 2.21 optimizes the graph of a dataset at each iteration: 30 ms per split.
        options = tf.data.Options()
        options.experimental_optimization.apply_default_optimizations = False
        dataset = endless_batches(self._make_dataset(offset, stop), self._batch_size)
        batches = iter(dataset.with_options(options))

        def is_mine(offset: Any, owner: Any) -> Any:
            return (offset < stop) & tf.equal(owner, mine)

        def read(offset: Any, owner: Any) -> Any:
            batch, weight, has_value = next(batches)
            lacks = tf.debugging.Assert(
                has_value, ["read() yields no record at", offset, "before", stop]
            )
            with tf.control_dependencies([lacks]):
                done = self._update(batch, weight)
            offset = tf.minimum(offset + self._batch_size, stop)
            with tf.control_dependencies([done.op]):
                # A former owner commits too, since it has read the batch. The larger of two offsets
                # is right.
                committed = tf.raw_ops.ResourceScatterMax(
                    resource=self._committed.handle,
                    indices=row,
                    updates=epoch * self._span + offset,
                )
                first = _put(self._tries, row, np.int64(1))
            with tf.control_dependencies([committed, first]):
                return offset, self._owners.sparse_read(row)

        tf.while_loop(is_mine, read, [offset, mine], parallel_iterations=1)


def _put(variable: tf.Variable, row: Any, value: Any) -> Any:
    return variable.scatter_update(tf.IndexedSlices(value, row))


def _add(variable: tf.Variable, row: Any) -> Any:
    return variable.scatter_add(tf.IndexedSlices(np.int64(1), row))


def new_owner() -> Any:
    """A number that no earlier owner had, even in a restarted process."""
    # The time in steps of 0.2 us. Random numbers would repeat if a script seeds them.
    return tf.bitcast(tf.timestamp(), tf.int64)
