"""The table of splits on ps 0, and the rules of `tfdist.splits.rules` as graph operations.

By split there are long vectors, which are changed in single places; what changes with each batch is
by rank, a row of numbers for each trainer. Everything is changed under one lock.

The variables are those of the training graph, so that they are saved and restored with the model.
Any graph may build the operations: they find the variables by their names on the ps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdist.ps.session import PS_DEVICE
from tfdist.splits.plan import Plan
from tfdist.splits.rules import DONE, LEASED, NOBODY, NOTHING, REVOKED, TODO, Loss, SplitTable
from tfdist.splits.section import (
    Counts,
    Names,
    Rank,
    Section,
    exclusive,
    variable_names,
)

# What an operation answers, in the first place of an Answer.
GIVEN, WAIT, OVER, REPLACED, LOST, NOT_RESERVED, SAVING, NOT_BEGUN, REFUSED = range(9)


class Answer(NamedTuple):
    """What an operation fetches, as one vector; of a code but GIVEN only that counts.

    With REFUSED it has done nothing, for somebody else was about to: it is asked once more.
    """

    code: int
    attempt: int
    offset: int
    reserved: int
    stop: int


def make_variables(name: str, plan: Plan, parties: int) -> list[Any]:
    """Makes the variables in the present graph, with the first epoch as their initial values."""
    table = SplitTable.start(plan, parties)
    nobody = [list(Rank(incarnation, NOTHING, REVOKED, 0, 0)) for incarnation in table.incarnations]
    values = [
        *(table.starts, table.stops, table.offsets, table.states, table.retries),
        nobody,
        list(Counts(0, 0, 0, NOTHING, 0)),
        np.zeros([0, len(Loss._fields)]),
    ]
    with tf.compat.v1.device(PS_DEVICE):
        # The guard is no part of the state, and is made before anybody finds the variables.
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
    """The operations for one trainer, in the graph that is the default when each is built.

    Args:
        name: of the queue.
        plan: what does not change.
        parties: how many trainers there are.
        rank: of this one.
    """

    def __init__(self, name: str, plan: Plan, parties: int, rank: int) -> None:
        self._name, self._plan, self._parties, self._rank = name, plan, parties, rank
        self._me = np.arange(parties) == rank

    def enter(self, incarnation: Any) -> Any:
        """Makes `incarnation` speak for the trainer; earlier ones lose their leases."""
        return self._enter(incarnation, lambda present: tf.constant(True))

    def leave(self, incarnation: Any) -> Any:
        """Nobody speaks for the trainer any more, if `incarnation` did; what it held is lost."""
        return self._enter(np.int64(NOBODY), lambda present: tf.equal(present, incarnation))

    def _enter(self, incarnation: Any, may: Callable[[Any], Any]) -> Any:
        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            waits = counts.is_frozen & tf.not_equal(counts.saver, self._rank)
            enters = tf.logical_not(waits) & may(ranks.incarnation[self._rank])
            me = self._me & enters
            ranks, counts = section.lose(ranks, counts, me, retries=1)
            section.store("ranks", _put(ranks, me, incarnation=incarnation))
            saver = tf.where(enters, np.int64(NOTHING), counts.saver)
            section.store("counts", tf.stack(counts._replace(saver=saver)))
            return _code(tf.where(waits, np.int64(SAVING), np.int64(GIVEN)))

        return self._locked(change)

    def freeze(self, incarnation: Any) -> Any:
        """Nothing changes until it is released."""

        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            speaks = tf.equal(ranks.incarnation[self._rank], incarnation)
            saver = tf.where(counts.is_frozen, counts.saver, np.int64(self._rank))
            after = counts._replace(saver=tf.where(speaks, saver, counts.saver))
            section.store("counts", tf.stack(after))
            code = tf.where(tf.equal(saver, self._rank), np.int64(GIVEN), np.int64(SAVING))
            return _code(tf.where(speaks, code, np.int64(REPLACED)))

        return self._locked(change)

    def unfreeze(self, incarnation: Any) -> Any:
        """It goes on, and all leases last from now on."""

        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            speaks = tf.equal(ranks.incarnation[self._rank], incarnation)
            releases = speaks & tf.equal(counts.saver, self._rank)
            saver = tf.where(releases, np.int64(NOTHING), counts.saver)
            section.store("counts", tf.stack(counts._replace(saver=saver)))
            lease_end = section.now + self._plan.lease_us
            section.store("ranks", _put(ranks, releases & (ranks.held >= 0), lease_end=lease_end))
            return _code(tf.where(releases, np.int64(GIVEN), np.int64(REPLACED)))

        return self._locked(change)

    def recover(self) -> Any:
        """After a restore: every lease is lost, and nobody has entered."""

        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            everybody = tf.ones_like(ranks.held, tf.bool)
            ranks, counts = section.lose(ranks, counts, everybody, retries=0)
            nobody = Rank(0, NOTHING, REVOKED, 0, 0)
            section.store("ranks", np.tile(np.array(nobody, np.int64), (self._parties, 1)))
            begins_next = section.is_over(ranks) & tf.logical_not(counts.is_frozen)
            first = counts.epoch + tf.cast(begins_next, tf.int64)
            after = counts._replace(first=first, saver=np.int64(NOTHING))
            section.store("counts", tf.stack(after))
            return _code(GIVEN)

        with tf.compat.v1.device(PS_DEVICE):
            opened = exclusive(self._name).open()
        with tf.control_dependencies([opened]):
            return self._locked(change)

    def claim(self, incarnation: Any, epoch: Any, ahead: Any) -> Any:
        """The first free split, or a part of one that is leased; fetches an Answer."""

        def change(section: Section) -> Answer:
            ranks, counts, now = section.ranks(), section.counts(), section.now
            speaks = tf.equal(ranks.incarnation[self._rank], incarnation)
            is_present = tf.equal(counts.epoch, epoch)
            holds = ranks.held[self._rank] >= 0
            may = speaks & is_present & tf.logical_not(counts.is_frozen)
            seeks = may & tf.logical_not(holds)
            expired = (ranks.lease_end <= now) & seeks
            ranks, counts = section.lose(ranks, counts, expired, retries=1)
            row, cursor = tf.cond(
                seeks,
                lambda: section.free_row(ranks, counts.cursor, ahead),
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
                reserved=tf.where(new, tf.minimum(stop, offset + ahead), ranks.reserved),
                lease_end=tf.where(mine, now + self._plan.lease_us, ranks.lease_end),
            )
            section.put("states", place, tf.where(is_new, np.int64(LEASED), state))
            section.store("ranks", tf.stack(ranks, 1))
            section.store("counts", tf.stack(counts._replace(leases=leases, cursor=cursor)))
            is_leased = ranks.held >= 0
            nothing = tf.where(tf.reduce_any(is_leased), np.int64(WAIT), np.int64(OVER))
            nothing = tf.where(counts.is_frozen, np.int64(SAVING), nothing)
            other = tf.where(epoch > counts.epoch, np.int64(NOT_BEGUN), np.int64(OVER))
            code = tf.where(is_present, nothing, other)
            code = tf.where(gets, np.int64(GIVEN), code)
            code = tf.where(speaks, code, np.int64(REPLACED))
            return Answer(code, ranks.attempt[self._rank], offset, ranks.reserved[self._rank], stop)

        return self._locked(change)

    def commit(self, incarnation: Any, attempt: Any, offset: Any, ahead: Any) -> Any:
        """All records before `offset` were read; renews, and fetches an Answer.

        At the split's stop it is done: then `offset` is `stop` in the answer.
        """

        def change(section: Section) -> Answer:
            ranks, now, is_frozen = section.ranks(), section.now, section.counts().is_frozen
            mine = Rank(*(column[self._rank] for column in ranks))
            speaks, has = tf.equal(mine.incarnation, incarnation), tf.equal(mine.attempt, attempt)
            is_its_own = speaks & has
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
            reserved = tf.where(advances, tf.minimum(stop, offset + ahead), mine.reserved)
            lease_end = tf.where(counts, now + self._plan.lease_us, mine.lease_end)
            held = tf.where(is_done, np.int64(NOTHING), mine.held)
            section.put(
                "ranks",
                np.int64(self._rank),
                tf.stack(Rank(mine.incarnation, held, mine.attempt, reserved, lease_end)),
            )
            # The last commit that is repeated finds that nothing is held: it was done.
            code = tf.where(counts, np.int64(GIVEN), np.int64(NOT_RESERVED))
            code = tf.where(is_frozen & is_reserved, np.int64(SAVING), code)
            code = tf.where(is_its_own, code, np.int64(LOST))
            code = tf.where(speaks, code, np.int64(REPLACED))
            repeated = is_its_own & (mine.held < 0)
            code = tf.where(repeated, np.int64(GIVEN), code)
            return Answer(
                code,
                mine.attempt,
                tf.where(repeated, offset, after),
                tf.where(repeated, offset, reserved),
                tf.where(repeated, offset, stop),
            )

        # What another process still sends comes first: it may die meanwhile, and would leave the
        # table taken for ever.
        with tf.control_dependencies([attempt, offset]):
            return self._locked(change)

    def release(self, incarnation: Any, attempt: Any) -> Any:
        """The lease is lost, if it is there."""

        def change(section: Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            speaks = tf.equal(ranks.incarnation[self._rank], incarnation)
            is_its_own = speaks & tf.equal(ranks.attempt[self._rank], attempt)
            gives = self._me & is_its_own & tf.logical_not(counts.is_frozen)
            ranks, counts = section.lose(ranks, counts, gives, retries=1)
            section.store("ranks", tf.stack(ranks, 1))
            section.store("counts", tf.stack(counts))
            code = tf.where(counts.is_frozen, np.int64(SAVING), np.int64(GIVEN))
            return _code(tf.where(speaks, code, np.int64(REPLACED)))

        return self._locked(change)

    def begin_epoch(self, epoch: Any, starts: Any, stops: Any) -> Any:
        """All splits once more, in the given order; nothing unless the epoch before is over."""

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
            return _code(tf.where(is_frozen, np.int64(SAVING), np.int64(GIVEN)))

        return self._locked(change)

    def snapshot(self) -> dict[str, Any]:
        """Fetches all variables by name; of no length if it was refused."""

        def read(section: Section) -> dict[str, Any]:
            return {name: section.read(name) for name in Names._fields}

        def nothing() -> dict[str, Any]:
            return {name: tf.zeros([0], tf.int64) for name in Names._fields}

        found: dict[str, Any] = self._alone(read, nothing)
        return found

    def _locked(self, change: Callable[[Section], Answer]) -> Any:
        """The answer as a vector, once all is stored."""

        def stacked(section: Section) -> Any:
            answer = change(section)
            with tf.control_dependencies(section.stored):
                return tf.stack([tf.cast(number, tf.int64) for number in answer])

        return self._alone(stacked, lambda: tf.constant(_code(REFUSED), tf.int64))

    def _alone(self, within: Callable[[Section], Any], refused: Callable[[], Any]) -> Any:
        """What is read and stored within it is one atomic step; `refused` if the table is in use.

        A busy table is not an error: that would fail the run of an update.
        """
        with tf.device(None), tf.compat.v1.device(PS_DEVICE):
            return exclusive(self._name).run(
                lambda: within(Section(self._name, self._plan)), refused
            )


def _code(code: Any) -> Answer:
    return Answer(code, 0, 0, 0, 0)


def _put(ranks: Rank, mask: Any, **columns: Any) -> Any:
    """The rows with other values for those of the mask."""
    changed = {name: tf.where(mask, value, getattr(ranks, name)) for name, value in columns.items()}
    return tf.stack(ranks._replace(**changed), 1)
