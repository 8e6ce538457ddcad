"""The table of splits on ps 0, and the rules of `tfdist.splits.rules` as graph ops.

The long vectors, by split, are changed in single places. What changes with each batch is stored by
rank, one row of numbers for each trainer. Every op runs under one lock.

The variables belong to the training graph, so they are saved and restored with the model. Any graph
may build the ops, which find the variables by their names on the ps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdist.ps.session import PS_DEVICE
from tfdist.splits.plan import Plan
from tfdist.splits.rules import (
    DONE,
    LEASED,
    NO_INCARNATION,
    NOTHING,
    REVOKED,
    TODO,
    Loss,
    SplitTable,
)
from tfdist.splits.section import (
    Counts,
    Names,
    Rank,
    Section,
    exclusive,
    variable_names,
)

# The codes of an Answer.
GRANTED, WAIT, OVER, REPLACED, LOST, NOT_RESERVED, FROZEN, NOT_BEGUN, BUSY = range(9)


class Answer(NamedTuple):
    """The fetched vector of an op. Only a GRANTED one has a lease.

    BUSY means that the op did nothing, because another op was using the table; repeat it.
    """

    code: int
    attempt: int
    offset: int
    reserved: int
    stop: int
    num_losses: int = 0  # all lost leases so far; a claim reports them


def make_variables(name: str, plan: Plan, parties: int) -> list[Any]:
    """Makes the variables in the default graph; their initial value is the first epoch."""
    table = SplitTable.start(plan, parties)
    empty = [list(Rank(incarnation, NOTHING, REVOKED, 0, 0)) for incarnation in table.incarnations]
    values = [
        *(table.starts, table.stops, table.offsets, table.states, table.retries),
        empty,
        list(Counts(0, 0, 0, NOTHING, 0)),
        np.zeros([0, len(Loss._fields)]),
    ]
    with tf.compat.v1.device(PS_DEVICE):
        # The guard is not part of the state. It exists before any task can find the variables.
        with tf.control_dependencies([exclusive(name).open()]):
            tensors = [tf.identity(np.array(value, np.int64)) for value in values]
        return [
            tf.compat.v1.Variable(
                value,
                name=variable,
                trainable=False,
                validate_shape=False,
                shape=tf.TensorShape(None),
                use_resource=True,
            )
            for variable, value in zip(variable_names(name), tensors, strict=True)
        ]


class TableOps:
    """Builds the ops of one trainer, each in the default graph.

    Args:
        name: of the queue.
        plan: of the queue.
        parties: number of trainers.
        rank: of this trainer.
    """

    def __init__(self, name: str, plan: Plan, parties: int, rank: int) -> None:
        self._name, self._plan, self._parties, self._rank = name, plan, parties, rank
        self._me = np.arange(parties) == rank

    def enter(self, incarnation: Any) -> Any:
        """Lets `incarnation` act for the trainer; its predecessor loses its lease."""
        return self._enter(incarnation, lambda present: tf.constant(True))

    def leave(self, incarnation: Any) -> Any:
        """Removes `incarnation` if it acts for the trainer; its lease is lost."""
        return self._enter(np.int64(NO_INCARNATION), lambda present: tf.equal(present, incarnation))

    def _enter(self, incarnation: Any, may: Callable[[Any], Any]) -> Any:
        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            waits = counts.is_frozen & tf.not_equal(counts.frozen_by, self._rank)
            enters = tf.logical_not(waits) & may(ranks.incarnation[self._rank])
            me = self._me & enters
            ranks, counts = section.lose(ranks, counts, me, retries=1)
            section.store("ranks", _put(ranks, me, incarnation=incarnation))
            frozen_by = tf.where(enters, np.int64(NOTHING), counts.frozen_by)
            section.store("counts", tf.stack(counts._replace(frozen_by=frozen_by)))
            return _code(tf.where(waits, np.int64(FROZEN), np.int64(GRANTED)))

        return self._locked(change)

    def freeze(self, incarnation: Any) -> Any:
        """Freezes the table."""

        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            acts = tf.equal(ranks.incarnation[self._rank], incarnation)
            frozen_by = tf.where(counts.is_frozen, counts.frozen_by, np.int64(self._rank))
            after = counts._replace(frozen_by=tf.where(acts, frozen_by, counts.frozen_by))
            section.store("counts", tf.stack(after))
            code = tf.where(tf.equal(frozen_by, self._rank), np.int64(GRANTED), np.int64(FROZEN))
            return _code(tf.where(acts, code, np.int64(REPLACED)))

        return self._locked(change)

    def unfreeze(self, incarnation: Any) -> Any:
        """Unfreezes the table and renews all leases."""

        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            acts = tf.equal(ranks.incarnation[self._rank], incarnation)
            releases = acts & tf.equal(counts.frozen_by, self._rank)
            frozen_by = tf.where(releases, np.int64(NOTHING), counts.frozen_by)
            section.store("counts", tf.stack(counts._replace(frozen_by=frozen_by)))
            lease_end = section.now + self._plan.lease_us
            section.store("ranks", _put(ranks, releases & (ranks.held >= 0), lease_end=lease_end))
            return _code(tf.where(releases, np.int64(GRANTED), np.int64(REPLACED)))

        return self._locked(change)

    def recover(self) -> Any:
        """Ends every lease and removes all incarnations, after a restore."""

        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            every_rank = tf.ones_like(ranks.held, tf.bool)
            ranks, counts = section.lose(ranks, counts, every_rank, retries=0)
            empty = Rank(0, NOTHING, REVOKED, 0, 0)
            section.store("ranks", np.tile(np.array(empty, np.int64), (self._parties, 1)))
            begins_next = section.is_over(ranks) & tf.logical_not(counts.is_frozen)
            first = counts.epoch + tf.cast(begins_next, tf.int64)
            after = counts._replace(first_epoch=first, frozen_by=np.int64(NOTHING))
            section.store("counts", tf.stack(after))
            return _code(GRANTED)

        with tf.compat.v1.device(PS_DEVICE):
            opened = exclusive(self._name).open()
        with tf.control_dependencies([opened]):
            return self._locked(change)

    def claim(self, incarnation: Any, epoch: Any, batch_size: Any) -> Any:
        """Leases the first free split, or a part of a leased one."""

        def change(section: Section) -> Answer:
            ranks, counts, now = section.ranks(), section.counts(), section.now
            acts = tf.equal(ranks.incarnation[self._rank], incarnation)
            is_present = tf.equal(counts.epoch, epoch)
            holds = ranks.held[self._rank] >= 0
            may = acts & is_present & tf.logical_not(counts.is_frozen)
            seeks = may & tf.logical_not(holds)
            expired = (ranks.lease_end <= now) & seeks
            ranks, counts = section.lose(ranks, counts, expired, retries=1)
            row, cursor = tf.cond(
                seeks,
                lambda: section.free_row(ranks, counts.cursor, batch_size),
                lambda: (tf.identity(ranks.held[self._rank]), tf.identity(counts.cursor)),
            )
            gets = may & (row >= 0)
            is_new = gets & seeks
            place = tf.maximum(row, 0)
            with tf.control_dependencies([row]):
                offset, stop = section.at("offsets", place), section.at("stops", place)
                state = section.at("states", place)
            leases = counts.leases + tf.cast(is_new, tf.int64)
            mine = self._me & gets
            new = self._me & is_new
            ranks = ranks._replace(
                held=tf.where(new, row, ranks.held),
                attempt=tf.where(new, leases, ranks.attempt),
                reserved=tf.where(new, tf.minimum(stop, offset + batch_size), ranks.reserved),
                lease_end=tf.where(mine, now + self._plan.lease_us, ranks.lease_end),
            )
            section.put("states", place, tf.where(is_new, np.int64(LEASED), state))
            section.store("ranks", tf.stack(ranks, 1))
            section.store("counts", tf.stack(counts._replace(leases=leases, cursor=cursor)))
            is_leased = ranks.held >= 0
            nothing = tf.where(tf.reduce_any(is_leased), np.int64(WAIT), np.int64(OVER))
            nothing = tf.where(counts.is_frozen, np.int64(FROZEN), nothing)
            other = tf.where(epoch > counts.epoch, np.int64(NOT_BEGUN), np.int64(OVER))
            code = tf.where(is_present, nothing, other)
            code = tf.where(gets, np.int64(GRANTED), code)
            code = tf.where(acts, code, np.int64(REPLACED))
            mine_reserved = ranks.reserved[self._rank]
            num_losses = section.size("lost")
            return Answer(code, ranks.attempt[self._rank], offset, mine_reserved, stop, num_losses)

        return self._locked(change)

    def commit(self, incarnation: Any, attempt: Any, offset: Any, batch_size: Any) -> Any:
        """Commits all records before `offset`, renews the lease and reserves the next batch.

        If the split is done, `offset` equals `stop` in the answer.
        """

        def change(section: Section) -> Answer:
            ranks, now, is_frozen = section.ranks(), section.now, section.counts().is_frozen
            mine = Rank(*(column[self._rank] for column in ranks))
            acts, has = tf.equal(mine.incarnation, incarnation), tf.equal(mine.attempt, attempt)
            is_its_own = acts & has
            holds = is_its_own & (mine.held >= 0)
            is_reserved = offset <= mine.reserved
            counts = holds & is_reserved & tf.logical_not(is_frozen)
            place = tf.maximum(mine.held, 0)
            before, stop = section.at("offsets", place), section.at("stops", place)
            advances = counts & (offset > before)
            after = tf.where(advances, offset, before)
            is_done = counts & (after >= stop)
            state, retries = section.at("states", place), section.at("retries", place)
            section.put("offsets", place, after)
            section.put("retries", place, tf.where(advances, np.int64(0), retries))
            section.put("states", place, tf.where(is_done, np.int64(DONE), state))
            reserved = tf.where(advances, tf.minimum(stop, offset + batch_size), mine.reserved)
            lease_end = tf.where(counts, now + self._plan.lease_us, mine.lease_end)
            held = tf.where(is_done, np.int64(NOTHING), mine.held)
            section.put(
                "ranks",
                np.int64(self._rank),
                tf.stack(Rank(mine.incarnation, held, mine.attempt, reserved, lease_end)),
            )
            # A repeated last commit finds no lease, since the split is done.
            code = tf.where(counts, np.int64(GRANTED), np.int64(NOT_RESERVED))
            code = tf.where(is_frozen & is_reserved, np.int64(FROZEN), code)
            code = tf.where(is_its_own, code, np.int64(LOST))
            code = tf.where(acts, code, np.int64(REPLACED))
            repeated = is_its_own & (mine.held < 0)
            code = tf.where(repeated, np.int64(GRANTED), code)
            return Answer(
                code,
                mine.attempt,
                tf.where(repeated, offset, after),
                tf.where(repeated, offset, reserved),
                tf.where(repeated, offset, stop),
            )

        # Values that another process sends have to arrive before the lock is taken: the process may
        # die while it sends them, and the table would stay locked.
        with tf.control_dependencies([attempt, offset]):
            return self._locked(change)

    def release(self, incarnation: Any, attempt: Any) -> Any:
        """Ends the lease, if the trainer has it."""

        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            acts = tf.equal(ranks.incarnation[self._rank], incarnation)
            is_its_own = acts & tf.equal(ranks.attempt[self._rank], attempt)
            gives = self._me & is_its_own & tf.logical_not(counts.is_frozen)
            ranks, counts = section.lose(ranks, counts, gives, retries=1)
            section.store("ranks", tf.stack(ranks, 1))
            section.store("counts", tf.stack(counts))
            code = tf.where(counts.is_frozen, np.int64(FROZEN), np.int64(GRANTED))
            return _code(tf.where(acts, code, np.int64(REPLACED)))

        return self._locked(change)

    def begin_epoch(self, epoch: Any, starts: Any, stops: Any) -> Any:
        """Makes all splits free again, in the given order, if the epoch before is over."""

        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            is_frozen = counts.is_frozen
            is_next = tf.equal(epoch, counts.epoch + 1)
            begins = section.is_over(ranks) & is_next & tf.logical_not(is_frozen)

            def begin() -> Any:
                values = {
                    "starts": starts,
                    "stops": stops,
                    "offsets": starts,
                    "states": tf.fill(tf.shape(starts), np.int64(TODO)),
                    "retries": tf.zeros_like(starts),
                    "counts": tf.stack(counts._replace(epoch=epoch, cursor=np.int64(0))),
                }
                return tf.group(*(section.assign(name, value) for name, value in values.items()))

            section.stored.append(tf.cond(begins, begin, tf.no_op))
            return _code(tf.where(is_frozen, np.int64(FROZEN), np.int64(GRANTED)))

        return self._locked(change)

    def snapshot(self) -> dict[str, Any]:
        """All variables by name; vectors of length 0 if another op was using the table."""

        def read(section: Section) -> dict[str, Any]:
            return {name: section.read(name) for name in Names._fields}

        def nothing() -> dict[str, Any]:
            return {name: tf.zeros([0], tf.int64) for name in Names._fields}

        found: dict[str, Any] = self._alone(read, nothing)
        return found

    def _locked(self, change: Callable[[Section], Answer]) -> Any:
        """The answer of `change` as a vector, fetched after all its writes."""

        def stacked(section: Section) -> Any:
            answer = change(section)
            with tf.control_dependencies(section.stored):
                return tf.stack([tf.cast(number, tf.int64) for number in answer])

        return self._alone(stacked, lambda: tf.constant(_code(BUSY), tf.int64))

    def _alone(self, inside: Callable[[Section], Any], busy: Callable[[], Any]) -> Any:
        """Executes what `inside` builds atomically, or what `busy` builds if the table is in use.

        A busy table is not an error, since an error would fail the run of an update.
        """
        with tf.device(None), tf.compat.v1.device(PS_DEVICE):
            return exclusive(self._name).run(lambda: inside(Section(self._name, self._plan)), busy)


def _code(code: Any) -> Answer:
    return Answer(code, 0, 0, 0, 0)


def _put(ranks: Rank, mask: Any, **columns: Any) -> Any:
    """The rows of all ranks, with new values in the columns of the masked ranks."""
    changed = {name: tf.where(mask, value, getattr(ranks, name)) for name, value in columns.items()}
    return tf.stack(ranks._replace(**changed), 1)
