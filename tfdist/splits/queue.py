"""A queue of splits that all trainers share: who is faster reads more, and nothing is lost."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.data.ledger import Ledger, Range
from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, ConfigError, EpochError, SplitLostError
from tfdist.ps.session import PS_DEVICE
from tfdist.splits import table
from tfdist.splits.connection import Connection
from tfdist.splits.plan import Plan, epoch_order
from tfdist.splits.rules import DONE, LEASED, NOT_HELD, Loss
from tfdist.splits.table import Answer, TableOps
from tfdist.task import Task

_POLL_SECS, _LONGEST_POLL_SECS = 0.005, 0.2
_NAME = re.compile(r"[A-Za-z0-9_]+")
_REASONS = {
    table.REPLACED: "another process speaks for it, or the ps has come back from a checkpoint",
    table.LOST: "nothing was committed for longer than lease_secs, and another trainer has wanted "
    "a split. Was this process stopped, or does a batch take longer?",
    table.NOT_RESERVED: "more was committed than was reserved",
}


@dataclass(frozen=True)
class SplitReport:
    """How the splits of an epoch stand.

    Attributes:
        epoch: the first is 1.
        read: ranges of records that are committed.
        read_again: ranges that may have been read twice: the batch of each lost lease.
        given_up: ranges that nobody reads, since their leases were lost too often.
        over: whether all splits are done or given up.
    """

    epoch: int
    read: tuple[Range, ...]
    read_again: tuple[Range, ...]
    given_up: tuple[Range, ...]
    over: bool


class Split:
    """A range of records that is leased to this trainer; a SplitQueue yields it.

    The records `offset` to `reserved` - 1 are the batch to be read next; then it is committed.
    """

    def __init__(self, queue: SplitQueue, answer: Answer) -> None:
        self._queue, self._answer = queue, answer

    @property
    def offset(self) -> int:
        """Up to where it is committed."""
        return self._answer.offset

    @property
    def reserved(self) -> int:
        """Up to where the next batch goes."""
        return self._answer.reserved

    @property
    def stop(self) -> int:
        """Its end as of the last answer: of a split that is far from it others may take a part."""
        return self._answer.stop

    @property
    def finished(self) -> bool:
        """Whether all of it is committed."""
        return self.offset >= self.stop

    @property
    def feed(self) -> dict[Any, Any]:
        """For the run in which the next batch is read and `SplitQueue.commit_after` fetched."""
        return {self._queue.lease: (self._answer.attempt, self.reserved)}

    def committed(self, answer: Any) -> None:
        """Takes what `commit_after` has fetched; blocks as long as another trainer saves.

        Raises:
            SplitLostError: the lease was lost; what was read since the last commit is read again.
            EpochError: it was saved for longer than the `timeout` of the queue.
        """
        taken = Answer(*map(int, answer))
        if taken.code in (table.SAVING, table.REFUSED):
            self.commit()
        else:
            self._answer = self._queue.checked(taken)

    def commit(self) -> None:
        """Says in a run of its own that the batch was read; raises what `committed` does."""
        self._commit(self.reserved)

    def renew(self) -> None:
        """Makes the lease last from now, without a commit; raises what `committed` does."""
        self._commit(self.offset)

    def release(self) -> None:
        """It cannot be read here: another trainer tries, or this one when it claims again.

        After `max_retries` it is given up, and the report has its rest. The batch that was begun
        is in `read_again`.

        Raises:
            SplitLostError: another process speaks for this trainer.
        """
        ask = partial(self._queue.connection.release, self._answer.attempt)
        self._queue.checked(self._queue.after_saving(ask))

    def _commit(self, offset: int) -> None:
        ask = partial(self._queue.connection.commit, self._answer.attempt, offset)
        self._answer = self._queue.checked(self._queue.after_saving(ask))


class SplitQueue:
    """Splits of records that go to whoever is ready for one; the table of them is on ps 0.

    Make it on each trainer in the training graph, before the session: its variables are
    initialised, saved and restored with those of the model. Iterating over it claims one split
    after another until all of the epoch are done, and waits for those that others hold. The split
    of a trainer that dies goes to another one at its committed offset.

    A ps that is lost while it is asked is told as `tf.errors.UnavailableError` or `AbortedError`,
    from which a session recovers; one that is silent for 10 s as `DeadlineExceededError`.

    Args:
        task: a chief or a worker.
        name: the same on every trainer: letters, digits and ``_``.
        splits: half-open ranges of record numbers, the same on every trainer.
        batch_size: records that are read between two commits.
        seed: of the order of the splits, which is another one in each epoch.
        lease_secs: how long a trainer may take from one commit to the next before others may have
            its split.
        max_retries: a split whose lease is lost once more than that without a commit in between is
            given up, and reported.
        timeout: in seconds, of each wait for the splits of others; None waits without end.

    Attributes:
        name: as given.
        batch_size: as given.

    Raises:
        ConfigError: a parameter is wrong.
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
        if not task.is_trainer:
            raise ConfigError("task", task.name, "only a chief or a worker claims splits")
        if task.num_ps == 0:
            raise ConfigError("task.cluster.ps", [], "the splits are kept on a ps; start one")
        if not _NAME.fullmatch(name):
            raise ConfigError("name", name, "letters, digits and _")
        if batch_size < 1:
            raise ConfigError("batch_size", batch_size, "at least 1")
        if not 1e-6 <= lease_secs <= 1e9:
            raise ConfigError("lease_secs", lease_secs, "from 1e-6 to 1e9")
        self._task, self.name, self._timeout = task, name, timeout
        self.batch_size = batch_size
        ranges = tuple((int(start), int(stop)) for start, stop in splits)
        self._plan = Plan(ranges, seed, int(1e6 * lease_secs), max_retries)
        parties = len(task.trainers)
        self._ops = TableOps(name, self._plan, parties, task.rank)
        # Not of `random`: a script seeds that, and its next incarnation would speak for the last
        # one.
        self._incarnation = 1 + secrets.randbelow(2**62)
        # Not a `cached_property`: before Python 3.12 those of all queues have one lock.
        self._has_entered = False
        self._epoch = 0
        table.make_variables(name, self._plan, parties)
        # The attempt, and up to where the batch goes. One vector, since each value that one task
        # sends another takes a message.
        self.lease = tf.compat.v1.placeholder(tf.int64, [2], f"{name}_lease")

    @property
    def first_epoch(self) -> int:
        """With which this job begins: 1, or where it goes on after `recover`. Asks the ps."""
        return int(self.connection.snapshot()["counts"][1]) + 1

    def commit_after(self, operations: Sequence[Any]) -> Any:
        """A tensor of the training graph: commits a batch once `operations` are done.

        Fetch it in the run that applies the update, feed it `Split.feed`, and give what it fetched
        to `Split.committed`. A run that fails may have applied the update or not: after it give the
        split back, or end.
        """
        with tf.compat.v1.device(PS_DEVICE):
            attempt, offset = tf.unstack(self.lease)
        with tf.control_dependencies(operations):
            incarnation, size = np.int64(self._incarnation), np.int64(self.batch_size)
            return self._ops.commit(incarnation, attempt, offset, size)

    def __iter__(self) -> Iterator[Split]:
        """The splits of one epoch; the next iteration is the next one. See `of_epoch`."""
        self._enter()
        yield from self.of_epoch(self._epoch + 1)

    def of_epoch(self, number: int) -> Iterator[Split]:
        """Claims until epoch `number` is over, and begins it if the one before is.

        Raises:
            SplitLostError: another process speaks for this trainer.
            EpochError: others have not ended their splits within the `timeout`.
            ConfigError: the epoch before has not begun, or is not over; or there is no such epoch.
        """
        if number < 1:
            raise ConfigError("number", number, "at least 1")
        self._enter()
        self._epoch = number - 1
        order = epoch_order(len(self._plan.splits), self._plan.seed, self._epoch)
        splits = [self._plan.splits[index] for index in order]
        self.after_saving(partial(self.connection.begin_epoch, self._epoch, splits))
        while (answer := self._claimed()) is not None:
            yield Split(self, answer)
        self._epoch += 1

    def report(self) -> SplitReport:
        """How the splits of the present epoch stand; of the last one until another begins."""
        found = self.connection.snapshot()
        epoch = int(found["counts"][0])
        lost = [Loss(*loss) for loss in found["lost"].tolist() if loss[0] == epoch]
        rows = zip(found["starts"].tolist(), found["offsets"].tolist(), strict=True)
        return SplitReport(
            epoch=epoch + 1,
            read=Ledger((start, offset) for start, offset in rows if start < offset).ranges(),
            read_again=tuple((loss.offset, loss.reserved) for loss in lost if not loss.dead),
            given_up=tuple((loss.offset, loss.stop) for loss in lost if loss.dead),
            over=bool(np.all(found["states"] >= DONE)),
        )

    def recover(self) -> None:
        """On the chief, after a checkpoint was restored and before anybody claims.

        Whatever was leased when it was saved is free again, and its epoch goes on.
        """
        self.connection.recover()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Saves in the middle of an epoch: within it nobody claims or commits.

        ::

            with queue.frozen():
                saver.save(session, path)

        The others go on until their next commit, and wait there. A batch whose update is in the
        checkpoint, and whose commit is not, is in `read_again` after `recover`: one of each
        trainer at most. Not for a trainer in the middle of a batch of its own. Should it die, they
        wait until it is started again and claims, or for their `timeout`.

        Raises:
            SplitLostError: another process speaks for this trainer; at the end, it has released the
                splits meanwhile, so do not restore what was saved.
            EpochError: another trainer saves for longer than the `timeout`.
        """
        self._enter()
        self.checked(self.after_saving(self.connection.freeze))
        try:
            yield
        finally:
            released = self.connection.unfreeze()
        if released.code != table.GIVEN:
            raise SplitLostError(self._task.rank, NOT_HELD)

    def close(self) -> None:
        """Gives up what this trainer holds, and the connection to the ps.

        While another trainer saves, and where the ps does not answer, the lease ends by itself.
        """
        connection: Connection | None = self.__dict__.pop("connection", None)
        if connection is not None:
            with suppress(tf.errors.OpError, ClusterError):
                connection.leave()
            connection.close()

    @cached_property
    def connection(self) -> Connection:
        """To the ps, from the first use on: the variables have to have their values by then."""
        address = self._task.cluster_spec["ps"][0]
        return Connection(address, self._ops, self._incarnation, self.batch_size)

    def _enter(self) -> None:
        """Speaks for the trainer from the first call on; blocks as long as another one saves."""
        if self._has_entered:
            return
        self.after_saving(self.connection.enter)
        # A process that comes later goes on in the epoch of the others.
        self._epoch = int(self.connection.snapshot()["counts"][0])
        self._has_entered = True

    def _claimed(self) -> Answer | None:
        """The next split; None when the epoch is over."""
        deadline, pause = Deadline(self._timeout), _POLL_SECS
        while True:
            answer = self.connection.claim(self._epoch)
            if answer.code == table.OVER:
                return None
            if answer.code not in (table.WAIT, table.SAVING):
                return self.checked(answer)
            if deadline.expired:
                raise self._timeout_error(deadline)
            time.sleep(min(pause, deadline.remaining))
            pause = min(2 * pause, _LONGEST_POLL_SECS)

    def after_saving(self, ask: Callable[[], Answer]) -> Answer:
        """Asks until nobody saves."""
        deadline, pause = Deadline(self._timeout), _POLL_SECS
        while (answer := ask()).code == table.SAVING:
            if deadline.expired:
                raise self._timeout_error(deadline)
            time.sleep(min(pause, deadline.remaining))
            pause = min(2 * pause, _LONGEST_POLL_SECS)
        return answer

    def checked(self, answer: Answer) -> Answer:
        """The answer, if it is a lease."""
        if answer.code == table.NOT_BEGUN:
            raise ConfigError("number", self._epoch + 1, "the epoch before has to be over first")
        if answer.code != table.GIVEN:
            raise SplitLostError(self._task.rank, _REASONS[answer.code])
        return answer

    def _timeout_error(self, deadline: Deadline) -> EpochError:
        found = self.connection.snapshot()
        holders = {int(held): rank for rank, held in enumerate(found["ranks"][:, 1]) if held >= 0}
        rests = [
            (int(found["offsets"][row]), int(found["stops"][row]))
            for row in np.flatnonzero(found["states"] == LEASED)
        ]
        names = ", ".join(self._task.trainers[rank] for rank in sorted(holders.values()))
        saver = int(found["counts"][3])
        who = f"{names} still reads" if saver < 0 else f"{self._task.trainers[saver]} still saves"
        where = f"epoch {self._epoch + 1} of splits {self.name!r}"
        return EpochError(
            f"{where}: after {deadline.elapsed:.1f} s {who}",
            missing=rests,
            duplicates=(),
        )
