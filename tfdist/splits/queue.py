"""A queue of splits that all trainers share: fast trainers read more, and no record is lost."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.data.ledger import MOST, Ledger, Range
from tfdist.data.padding import LARGEST_BATCH
from tfdist.deadline import Deadline
from tfdist.errors import (
    ClusterError,
    ConfigError,
    EpochError,
    SplitLostError,
    checked_integer,
    checked_secs,
    checked_timeout,
)
from tfdist.ps.session import PS_DEVICE
from tfdist.splits import table
from tfdist.splits.connection import Connection
from tfdist.splits.plan import Plan, epoch_order
from tfdist.splits.rules import DONE, UNFROZEN, Loss
from tfdist.splits.section import Counts, Rank
from tfdist.splits.table import Answer, TableOps
from tfdist.task import Task, checked_task

_POLL_SECS, _LONGEST_POLL_SECS = 0.005, 0.2
_NAME = re.compile(r"[A-Za-z0-9_]+")
_REASONS = {
    table.REPLACED: "another process acts for this trainer, or the ps was restored from a "
    "checkpoint",
    table.LOST: "no commit for longer than lease_secs, and another trainer wanted a split. Was "
    "this process stopped, or does a batch take longer?",
    table.NOT_RESERVED: "more was committed than was reserved",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitReport:
    """Progress of an epoch of splits.

    Attributes:
        epoch: its number; the first is 1.
        committed: ranges of records that were read and committed.
        possible_duplicates: ranges of records that may have been read twice: one batch for each
            lost lease.
        dead_letters: ranges of records that are not read, since their leases were lost too often.
        done: True if every record is committed or a dead letter.
    """

    epoch: int
    committed: tuple[Range, ...]
    possible_duplicates: tuple[Range, ...]
    dead_letters: tuple[Range, ...]
    done: bool


class Split:
    """A range of records that is leased to this trainer; made by a SplitQueue.

    Read the records of `next_batch`, then commit them; `run` does both where SplitBatches reads.
    """

    def __init__(self, queue: SplitQueue, answer: Answer) -> None:
        self._queue, self._answer = queue, answer

    @property
    def next_batch(self) -> range:
        """The record numbers of the next batch, from `offset` to before `reserved`."""
        return range(self.offset, self.reserved)

    @property
    def offset(self) -> int:
        """The record up to which the split is committed."""
        return self._answer.offset

    @property
    def reserved(self) -> int:
        """The record up to which this trainer may read before it commits."""
        return self._answer.reserved

    @property
    def stop(self) -> int:
        """The end as of the last commit. It may move down, when an idle trainer takes a part."""
        return self._answer.stop

    @property
    def finished(self) -> bool:
        """True if the whole split is committed."""
        return self.offset >= self.stop

    def run(
        self,
        session: tf.compat.v1.Session,
        commit: Any,
        fetches: Any = (),
        feed_dict: Mapping[Any, Any] | None = None,
    ) -> Any:
        """Trains on the next batch and commits it, in one `session.run`; returns `fetches`.

        Blocks while another trainer has frozen the splits.

        Args:
            session: a session of the training graph.
            commit: from `SplitQueue.commit_after`.
            fetches: what to fetch besides, as for `session.run`.
            feed_dict: what to feed besides.

        Raises:
            SplitLostError: the lease was lost; the records since the last commit are read again.
            EpochError: the splits stayed frozen for the queue's `timeout`.
            tf.errors.OpError: the run failed. Its update may have been applied; release the split,
                or end.
        """
        answer, fetched = session.run((commit, fetches), {**(feed_dict or {}), **self.feed})
        self.committed(answer)
        return fetched

    @property
    def feed(self) -> dict[Any, Any]:
        """Feed of the run that fetches the next batch and `SplitQueue.commit_after`; see `run`."""
        return {self._queue.lease: (self._answer.attempt, self.reserved)}

    def committed(self, answer: Any) -> None:
        """Takes the fetched value of `SplitQueue.commit_after`; `run` does this itself."""
        taken = Answer(*map(int, answer))
        if taken.code in (table.FROZEN, table.BUSY):
            self.commit()
        else:
            self._answer = self._queue.checked(taken)

    def commit(self) -> None:
        """Commits the batch in a run of its own. Blocks and raises as `run`."""
        self._commit(self.reserved)

    def renew(self) -> None:
        """Renews the lease without a commit. Blocks and raises as `run`."""
        self._commit(self.offset)

    def release(self) -> None:
        """Gives up the lease, for example because the records cannot be read here.

        This trainer or another one claims the split again. After `max_retries` it becomes a dead
        letter. The batch that was begun is a possible duplicate.

        Raises:
            SplitLostError: another process acts for this trainer.
        """
        ask = partial(self._queue.connection.release, self._answer.attempt)
        self._queue.checked(self._queue.wait_while((table.FROZEN,), ask))

    def _commit(self, offset: int) -> None:
        ask = partial(self._queue.connection.commit, self._answer.attempt, offset)
        self._answer = self._queue.checked(self._queue.wait_while((table.FROZEN,), ask))


class SplitQueue:
    """Hands splits of records to trainers that are ready for one; its table is on ps 0.

    Make it on each trainer in the training graph, before the session: its variables are
    initialized, saved and restored with the model. Iterating over it claims one split after another
    until all splits of the epoch are done, and waits for those of other trainers. A trainer that
    dies loses its split, and another trainer continues it at the committed offset.

    A call to a lost ps raises `tf.errors.UnavailableError` or `AbortedError`, from which a session
    recovers; a ps that does not answer for 10 s, `DeadlineExceededError`.

    Args:
        task: a chief or a worker.
        name: the same on every trainer: letters, digits and ``_``.
        splits: half-open ranges of record numbers, the same on every trainer; see
            `FileSet.splits`.
        batch_size: records between two commits.
        seed: determines the order of the splits, which differs from epoch to epoch.
        lease_secs: longest time between two commits after which another trainer may take the split.
        max_retries: a split that is lost more often without a commit in between becomes a dead
            letter.
        timeout: seconds of each wait for other trainers; None waits without limit.

    Attributes:
        task: as given.
        name: as given.
        batch_size: as given.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        task: Task,
        name: str,
        splits: Sequence[Range],
        *,
        batch_size: int,
        seed: int = 0,
        lease_secs: float = 30.0,
        max_retries: int = 3,
        timeout: float | None = None,
    ) -> None:
        checked_task(task)
        if not task.is_trainer:
            raise ConfigError("task", task.name, "only a chief or a worker can claim splits")
        if task.num_ps == 0:
            raise ConfigError("task.cluster.ps", [], "the queue needs a ps")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError("name", name, "must consist of letters, digits and _")
        lease_us = int(1e6 * checked_secs("lease_secs", lease_secs, may_be_0=False, most=1e9))
        self.task, self.name, self._timeout = task, name, checked_timeout(timeout)
        self.batch_size = checked_integer("batch_size", batch_size, 1, LARGEST_BATCH)
        self._plan = Plan(
            splits,
            checked_integer("seed", seed),
            max(1, lease_us),
            checked_integer("max_retries", max_retries, 0),
        )
        self._starts = frozenset(start for start, _ in self._plan.splits)
        parties = len(task.trainers)
        self._ops = TableOps(name, self._plan, parties, task.rank)
        # Not from `random`: a script may seed it, and a restarted one would repeat the number.
        self._incarnation = 1 + secrets.randbelow(2**62)
        # Not a `cached_property`: before Python 3.12 all queues would share its lock.
        self._has_entered = False
        self._epoch = self._num_losses = 0
        table.make_variables(name, self._plan, parties)
        # The attempt, and the end of the batch. One vector, since each value that one task sends to
        # another is a message.
        self.lease = tf.compat.v1.placeholder(tf.int64, [2], f"{name}_lease")

    @property
    def first_epoch(self) -> int:
        """The epoch with which this job begins: 1, or a later one after `recover`. Asks the ps."""
        return int(_counts(self.connection.snapshot()).first_epoch) + 1

    def commit_after(self, operations: Sequence[Any]) -> Any:
        """A tensor of the training graph that commits a batch once `operations` are done.

        Pass it to `Split.run`, or fetch it in a run that applies the update and is fed
        `Split.feed`, and pass the result to `Split.committed`.
        """
        with tf.compat.v1.device(PS_DEVICE):
            attempt, offset = tf.unstack(self.lease)
        with tf.control_dependencies(operations):
            incarnation, size = np.int64(self._incarnation), np.int64(self.batch_size)
            return self._ops.commit(incarnation, attempt, offset, size)

    def __iter__(self) -> Iterator[Split]:
        """The splits of the next epoch. See `splits`."""
        return self.splits()

    def splits(self, epoch: int | None = None) -> Iterator[Split]:
        """Claims splits until the epoch is over; begins the epoch if the one before is over.

        Args:
            epoch: its number, such as `Epoch.number`; None is the next one of this process.

        Raises:
            SplitLostError: another process acts for this trainer.
            EpochError: other trainers have not finished their splits within `timeout`.
            ConfigError: the epoch before is not over, or there is no such epoch.
        """
        return self._claimed(None if epoch is None else checked_integer("epoch", epoch, 1, MOST))

    def _claimed(self, number: int | None) -> Iterator[Split]:
        self._enter()
        if number is not None:
            self._epoch = number - 1
        order = epoch_order(len(self._plan.splits), self._plan.seed, self._epoch)
        splits = [self._plan.splits[index] for index in order]
        begin = partial(self.connection.begin_epoch, self._epoch, splits)
        self.wait_while((table.FROZEN,), begin)
        claim = partial(self.connection.claim, self._epoch)
        while True:
            answer = self.wait_while((table.WAIT, table.FROZEN), claim)
            self._log_losses(answer.num_losses)
            if answer.code == table.OVER:
                break
            split = Split(self, self.checked(answer))
            self._log_claim(split)
            yield split
        self._epoch += 1

    def report(self) -> SplitReport:
        """Progress of the present epoch, or of the last one until the next begins."""
        found = self.connection.snapshot()
        epoch = _counts(found).epoch
        lost = [loss for loss in _losses(found) if loss.epoch == epoch]
        rows = zip(found["starts"].tolist(), found["offsets"].tolist(), strict=True)
        return SplitReport(
            epoch=epoch + 1,
            committed=Ledger((start, offset) for start, offset in rows if start < offset).ranges(),
            possible_duplicates=tuple(
                (loss.offset, loss.reserved) for loss in lost if not loss.dead
            ),
            dead_letters=tuple((loss.offset, loss.stop) for loss in lost if loss.dead),
            done=bool(np.all(found["states"] >= DONE)),
        )

    def recover(self) -> None:
        """Frees all leased splits after a restore; the saved epoch continues.

        Call it on the chief, before any trainer claims.
        """
        self.connection.recover()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freezes the splits, to save a checkpoint in the middle of an epoch.

        ::

            with queue.frozen():
                saver.save(session, path)

        Within the block no trainer claims or commits; the others run until their next commit and
        wait there. If the checkpoint has the update of a waiting commit, that batch is a possible
        duplicate after `recover`: one batch per trainer at most.

        Do not use it in the middle of a batch of this trainer. If this trainer dies in the block,
        the others wait until it is restarted and claims, or for their `timeout`.

        Raises:
            SplitLostError: another process acts for this trainer. If raised at the end, that
                process has unfrozen the splits, so do not restore the checkpoint.
            EpochError: another trainer has frozen the splits for longer than `timeout`.
        """
        self._enter()
        self.checked(self.wait_while((table.FROZEN,), self.connection.freeze))
        began = time.monotonic()
        _log.info("%s: frozen for a checkpoint", self._where)
        try:
            yield
        finally:
            released = self.connection.unfreeze()
            _log.info("%s: unfrozen after %.1f s", self._where, time.monotonic() - began)
        if released.code != table.GRANTED:
            raise SplitLostError(self.task.rank, UNFROZEN)

    def close(self) -> None:
        """Releases the lease of this trainer and closes the connection to the ps.

        The lease is not released but expires if another trainer has frozen the splits, or if the ps
        does not answer.
        """
        connection: Connection | None = self.__dict__.pop("connection", None)
        if connection is not None:
            with suppress(tf.errors.OpError, ClusterError):
                connection.leave()
            connection.close()

    @cached_property
    def connection(self) -> Connection:
        """The connection to the ps, made at first use, when the variables are initialized."""
        address = self.task.cluster_spec["ps"][0]
        return Connection(address, self._ops, self._incarnation, self.batch_size)

    def checked(self, answer: Answer) -> Answer:
        """Returns an answer that grants a lease, and raises any other."""
        if answer.code == table.NOT_BEGUN:
            raise ConfigError("epoch", self._epoch + 1, "the previous epoch has not ended")
        if answer.code != table.GRANTED:
            raise SplitLostError(self.task.rank, _REASONS[answer.code])
        return answer

    def wait_while(self, codes: tuple[int, ...], ask: Callable[[], Answer]) -> Answer:
        """Repeats a call while it answers one of `codes`; logs a wait of more than 30 s."""
        deadline, pause = Deadline(self._timeout), _POLL_SECS
        while (answer := ask()).code in codes:
            if deadline.expired or deadline.notice_due():
                cause, rests = self._cause_of_wait()
                waited = f"{self._where}: waited {deadline.elapsed:.1f} s for {cause}"
                if deadline.expired:
                    raise EpochError(waited, missing=rests, duplicates=())
                _log.warning("%s", waited)
            time.sleep(min(pause, deadline.remaining))
            pause = min(2 * pause, _LONGEST_POLL_SECS)
        return answer

    def _enter(self) -> None:
        """Lets this process act for the trainer; blocks while another trainer has frozen it."""
        if self._has_entered:
            return
        self.wait_while((table.FROZEN,), self.connection.enter)
        found = self.connection.snapshot()
        # A process that is started later continues in the epoch of the others.
        self._epoch, self._num_losses = _counts(found).epoch, len(found["lost"])
        self._has_entered = True

    def _log_losses(self, num_losses: int) -> None:
        if num_losses > self._num_losses:
            losses = _losses(self.connection.snapshot())
            for loss in losses[self._num_losses :]:
                self._log_loss(loss)
            self._num_losses = len(losses)

    def _log_claim(self, split: Split) -> None:
        records = f"records [{split.offset}, {split.stop})"
        if split.offset in self._starts:
            _log.debug("%s: claimed %s", self._where, records)
        else:
            _log.info("%s: claimed %s, the rest of a split begun before", self._where, records)

    def _log_loss(self, loss: Loss) -> None:
        names = self.task.trainers
        name = names[loss.rank] if loss.rank < len(names) else f"the trainer of rank {loss.rank}"
        where = f"epoch {loss.epoch + 1} of splits {self.name!r}"
        if loss.dead:
            _log.warning(
                "%s: records [%d, %d) are a dead letter and will not be read: their lease was "
                "lost %d times without a commit, the last time by %s",
                *(where, loss.offset, loss.stop, self._plan.max_retries + 1, name),
            )
        else:
            _log.info(
                "%s: %s lost its lease of records [%d, %d); it may have read up to %d",
                *(where, name, loss.offset, loss.stop, loss.reserved),
            )

    @property
    def _where(self) -> str:
        return f"epoch {self._epoch + 1} of splits {self.name!r}"

    def _cause_of_wait(self) -> tuple[str, list[Range]]:
        """The trainers for which this one waits, and the records that they hold."""
        found, names = self.connection.snapshot(), self.task.trainers
        held = {
            names[rank]: (int(found["offsets"][row]), int(found["stops"][row]))
            for rank, row in enumerate(Rank(*found["ranks"].T).held)
            if row >= 0
        }
        rests = list(held.values())
        if (frozen_by := _counts(found).frozen_by) >= 0:
            return (
                f"{names[frozen_by]}, which has frozen the splits to save a checkpoint. If it "
                "died meanwhile, restart it"
            ), rests
        holders = ", ".join(f"{name} (records [{a}, {b}))" for name, (a, b) in held.items())
        return (
            f"the splits of {holders or 'no trainer'}. A dead trainer loses its split after "
            f"lease_secs ({self._plan.lease_us / 1e6:g} s); one that holds it longer is slow"
        ), rests


def _counts(found: Mapping[str, Any]) -> Counts:
    return Counts(*found["counts"].tolist())


def _losses(found: Mapping[str, Any]) -> list[Loss]:
    return [Loss(*loss) for loss in found["lost"].tolist()]
