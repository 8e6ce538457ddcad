"""The table of splits on ps 0, and the rules of `tfdist.splits` as graph operations.

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

from tfdist.splits import DEAD, DONE, LEASED, NOBODY, NOTHING, REVOKED, TODO, Loss, Plan, SplitTable

PS_DEVICE = "/job:ps/task:0/device:CPU:0"

# What an operation answers, in the first place of an Answer.
GIVEN, WAIT, OVER, REPLACED, LOST, NOT_RESERVED, SAVING, NOT_BEGUN, REFUSED = range(9)

_PHILOX = 1  # of tf.random.Algorithm


class Answer(NamedTuple):
    """What an operation fetches, as one vector; of a code but GIVEN only that counts.

    With REFUSED it has done nothing, for somebody else was about to: it is asked once more.
    """

    code: int
    attempt: int
    offset: int
    reserved: int
    stop: int


class _Rank(NamedTuple):
    """The row of a trainer."""

    life: Any
    held: Any
    attempt: Any
    reserved: Any
    lease_end: Any


class _Counts(NamedTuple):
    """The single numbers. No row before `cursor` is free: it spares a claim to look for one."""

    epoch: Any
    first: Any
    leases: Any
    saver: Any
    cursor: Any

    @property
    def is_held(self) -> Any:
        return self.saver >= 0


class _Names(NamedTuple):
    """Of the variables: those by split, by rank, single numbers, and what was lost."""

    starts: str
    stops: str
    offsets: str
    states: str
    retries: str
    ranks: str
    counts: str
    lost: str


def make_variables(name: str, plan: Plan, parties: int) -> list[Any]:
    """Makes the variables in the present graph, with the first epoch as their initial values."""
    table = SplitTable.start(plan, parties)
    nobody = [list(_Rank(life, NOTHING, REVOKED, 0, 0)) for life in table.lives]
    values = [
        *(table.starts, table.stops, table.offsets, table.states, table.retries),
        nobody,
        list(_Counts(0, 0, 0, NOTHING, 0)),
        np.zeros([0, len(Loss._fields)]),
    ]
    with tf.compat.v1.device(PS_DEVICE):
        # The guard is no part of the state, and is made before anybody finds the variables.
        with tf.control_dependencies([_open(name)]):
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
            for variable, value in zip(_names(name), tensors, strict=True)
        ]


def _names(name: str) -> _Names:
    return _Names(*(f"tfdist_splits_{name}_{field}" for field in _Names._fields))


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

    def enter(self, life: Any) -> Any:
        """Makes `life` the one that speaks for the trainer; what an earlier one held is lost."""
        return self._enter(life, lambda present: tf.constant(True))

    def leave(self, life: Any) -> Any:
        """Nobody speaks for the trainer any more, if `life` did; what it held is lost."""
        return self._enter(np.int64(NOBODY), lambda present: tf.equal(present, life))

    def _enter(self, life: Any, may: Callable[[Any], Any]) -> Any:
        def change(section: _Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            waits = counts.is_held & tf.not_equal(counts.saver, self._rank)
            enters = tf.logical_not(waits) & may(ranks.life[self._rank])
            me = self._me & enters
            ranks, counts = section.lose(ranks, counts, me, retries=1)
            section.store("ranks", _put(ranks, me, life=life))
            saver = tf.where(enters, np.int64(NOTHING), counts.saver)
            section.store("counts", tf.stack(counts._replace(saver=saver)))
            return _code(tf.where(waits, np.int64(SAVING), np.int64(GIVEN)))

        return self._locked(change)

    def hold(self, life: Any) -> Any:
        """Nothing changes until it is released."""

        def change(section: _Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            speaks = tf.equal(ranks.life[self._rank], life)
            saver = tf.where(counts.is_held, counts.saver, np.int64(self._rank))
            after = counts._replace(saver=tf.where(speaks, saver, counts.saver))
            section.store("counts", tf.stack(after))
            code = tf.where(tf.equal(saver, self._rank), np.int64(GIVEN), np.int64(SAVING))
            return _code(tf.where(speaks, code, np.int64(REPLACED)))

        return self._locked(change)

    def release(self, life: Any) -> Any:
        """It goes on, and all leases last from now on."""

        def change(section: _Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            speaks = tf.equal(ranks.life[self._rank], life)
            releases = speaks & tf.equal(counts.saver, self._rank)
            saver = tf.where(releases, np.int64(NOTHING), counts.saver)
            section.store("counts", tf.stack(counts._replace(saver=saver)))
            lease_end = section.now + self._plan.lease_us
            section.store("ranks", _put(ranks, releases & (ranks.held >= 0), lease_end=lease_end))
            return _code(tf.where(releases, np.int64(GIVEN), np.int64(REPLACED)))

        return self._locked(change)

    def recover(self) -> Any:
        """After a restore: every lease is lost, and nobody has entered."""

        def change(section: _Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            everybody = tf.ones_like(ranks.held, tf.bool)
            ranks, counts = section.lose(ranks, counts, everybody, retries=0)
            nobody = _Rank(0, NOTHING, REVOKED, 0, 0)
            section.store("ranks", np.tile(np.array(nobody, np.int64), (self._parties, 1)))
            begins_next = section.is_over(ranks) & tf.logical_not(counts.is_held)
            first = counts.epoch + tf.cast(begins_next, tf.int64)
            after = counts._replace(first=first, saver=np.int64(NOTHING))
            section.store("counts", tf.stack(after))
            return _code(GIVEN)

        with tf.compat.v1.device(PS_DEVICE):
            opened = _open(self._name)
        with tf.control_dependencies([opened]):
            return self._locked(change)

    def claim(self, life: Any, epoch: Any, ahead: Any) -> Any:
        """The first free split, or a part of one that is leased; fetches an Answer."""

        def change(section: _Section) -> Answer:
            ranks, counts, now = section.ranks(), section.counts(), section.now
            speaks = tf.equal(ranks.life[self._rank], life)
            is_present = tf.equal(counts.epoch, epoch)
            holds = ranks.held[self._rank] >= 0
            may = section.is_alone & speaks & is_present & tf.logical_not(counts.is_held)
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
            nothing = tf.where(counts.is_held, np.int64(SAVING), nothing)
            other = tf.where(epoch > counts.epoch, np.int64(NOT_BEGUN), np.int64(OVER))
            code = tf.where(is_present, nothing, other)
            code = tf.where(gets, np.int64(GIVEN), code)
            code = tf.where(speaks, code, np.int64(REPLACED))
            answer = Answer(
                code,
                ranks.attempt[self._rank],
                offset,
                ranks.reserved[self._rank],
                stop,
            )
            return answer

        return self._locked(change)

    def commit(self, life: Any, attempt: Any, offset: Any, ahead: Any) -> Any:
        """All records before `offset` were visited; renews, and fetches an Answer.

        At the split's stop it is done: then `offset` is `stop` in the answer.
        """

        def change(section: _Section) -> Answer:
            ranks, now, is_held = section.ranks(), section.now, section.counts().is_held
            mine = _Rank(*(column[self._rank] for column in ranks))
            speaks, has = tf.equal(mine.life, life), tf.equal(mine.attempt, attempt)
            is_its_own = speaks & has
            holds = is_its_own & (mine.held >= 0)
            is_reserved = offset <= mine.reserved
            counts = holds & is_reserved & tf.logical_not(is_held)
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
                tf.stack(_Rank(mine.life, held, mine.attempt, reserved, lease_end)),
            )
            # The last commit that is repeated finds that nothing is held: it was done.
            code = tf.where(counts, np.int64(GIVEN), np.int64(NOT_RESERVED))
            code = tf.where(is_held & is_reserved, np.int64(SAVING), code)
            code = tf.where(is_its_own, code, np.int64(LOST))
            code = tf.where(speaks, code, np.int64(REPLACED))
            repeated = is_its_own & (mine.held < 0)
            code = tf.where(repeated, np.int64(GIVEN), code)
            answer = Answer(
                code,
                mine.attempt,
                tf.where(repeated, offset, after),
                tf.where(repeated, offset, reserved),
                tf.where(repeated, offset, stop),
            )
            return answer

        return self._locked(change)

    def give_back(self, life: Any, attempt: Any) -> Any:
        """The lease is lost, if it is there."""

        def change(section: _Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            speaks = tf.equal(ranks.life[self._rank], life)
            is_its_own = speaks & tf.equal(ranks.attempt[self._rank], attempt)
            gives = self._me & is_its_own & tf.logical_not(counts.is_held)
            ranks, counts = section.lose(ranks, counts, gives, retries=1)
            section.store("ranks", tf.stack(ranks, 1))
            section.store("counts", tf.stack(counts))
            code = tf.where(counts.is_held, np.int64(SAVING), np.int64(GIVEN))
            return _code(tf.where(speaks, code, np.int64(REPLACED)))

        return self._locked(change)

    def begin_epoch(self, epoch: Any, starts: Any, stops: Any) -> Any:
        """All splits once more, in the given order; nothing unless the epoch before is over."""

        def change(section: _Section) -> Answer:
            ranks, counts = section.ranks(), section.counts()
            is_held = counts.is_held
            is_next = tf.equal(epoch, counts.epoch + 1)
            is_free = section.is_alone & tf.logical_not(is_held)
            begins = section.is_over(ranks) & is_next & is_free

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
            return _code(tf.where(is_held, np.int64(SAVING), np.int64(GIVEN)))

        return self._locked(change)

    def snapshot(self) -> dict[str, Any]:
        """Fetches all variables by name; of no length if it was refused."""
        with tf.device(None), tf.compat.v1.device(PS_DEVICE):
            section = _Section(self._name, self._plan)
            found = {name: section.read(name) for name in _Names._fields}
            section.stored.extend(found.values())
            with tf.control_dependencies([section.leave()]):
                return {name: section.if_alone(value) for name, value in found.items()}

    def _locked(self, change: Callable[[_Section], Answer]) -> Any:
        """The answer as a vector, once all is stored."""
        with tf.device(None), tf.compat.v1.device(PS_DEVICE):
            section = _Section(self._name, self._plan)
            answer = change(section)
            code = tf.where(section.is_alone, tf.cast(answer.code, tf.int64), np.int64(REFUSED))
            with tf.control_dependencies([section.leave()]):
                told = answer._replace(code=code)
                return tf.stack([tf.cast(number, tf.int64) for number in told])


class _Section:
    """What is read and stored within it happens as one; nothing is stored if it is not alone.

    The lock alone does not keep others out, for TensorFlow lets go of it when another that waits
    for it is cancelled (`AcquireAsync` in core/kernels/mutex_ops.cc). So there is a guard too. To
    find it taken is no error, for that would fail the run of an update: then nothing is stored.

    No condition decides that. One may be cancelled when its trainer dies, and would leave the guard
    taken for ever; simple operations, once they have begun, all run.

    Attributes:
        is_alone: whether nobody else is within one.
        now: the time, in us.
        stored: what comes before whatever is read next.
    """

    def __init__(self, name: str, plan: Plan) -> None:
        self._plan, self._guard = plan, _guard(name)
        self._handles = {
            field: tf.raw_ops.VarHandleOp(dtype=tf.int64, shape=None, shared_name=variable)
            for field, variable in zip(_Names._fields, _names(name), strict=True)
        }
        mutex = tf.raw_ops.MutexV2(shared_name=f"tfdist/splits/{name}/lock")
        self._lock = tf.raw_ops.MutexLock(mutex=mutex)
        with tf.control_dependencies([self._lock]):
            self.is_alone = _take(name)
        self.stored: list[Any] = [self.is_alone]
        with tf.control_dependencies(self.stored):
            self.now = tf.cast(1e6 * tf.timestamp(), tf.int64)

    def leave(self) -> Any:
        """Gives the guard and the lock back when all is stored."""
        with tf.control_dependencies(self.stored):
            opened = tf.raw_ops.ResourceScatterUpdate(
                resource=self._guard,
                indices=self.if_alone(tf.range(3)),
                updates=self.if_alone(tf.zeros([3], tf.int64)),
            )
        with tf.control_dependencies([opened]):
            return tf.raw_ops.ConsumeMutexLock(mutex_lock=self._lock)

    def if_alone(self, values: Any) -> Any:
        """All rows of it, or none."""
        rows = tf.convert_to_tensor(values)
        return rows[: tf.shape(rows)[0] * tf.cast(self.is_alone, tf.int32)]

    def read(self, name: str) -> Any:
        """A whole variable, with what was stored before."""
        with tf.control_dependencies(self.stored):
            return tf.raw_ops.ReadVariableOp(resource=self._handles[name], dtype=tf.int64)

    def at(self, name: str, places: Any) -> Any:
        """A variable in one place, or in several."""
        with tf.control_dependencies(self.stored):
            return tf.raw_ops.ResourceGather(
                resource=self._handles[name], indices=places, dtype=tf.int64
            )

    def put(self, name: str, places: Any, values: Any) -> None:
        """Stores in one place."""
        rows = self.if_alone(tf.reshape(places, [-1]))
        with tf.control_dependencies(self.stored):
            self.stored.append(self._scatter(name, rows, self.if_alone(tf.expand_dims(values, 0))))

    def store(self, name: str, value: Any) -> None:
        """Stores a whole variable, whose size does not change."""
        rows = self.if_alone(tf.range(tf.shape(value)[0]))
        with tf.control_dependencies(self.stored):
            self.stored.append(self._scatter(name, rows, self.if_alone(value)))

    def assign(self, name: str, value: Any) -> Any:
        """The operation that does."""
        return tf.raw_ops.AssignVariableOp(resource=self._handles[name], value=value)

    def ranks(self) -> _Rank:
        """By column."""
        return _Rank(*tf.unstack(tf.ensure_shape(self.read("ranks"), [None, 5]), axis=1))

    def counts(self) -> _Counts:
        """The single numbers."""
        return _Counts(*tf.unstack(tf.ensure_shape(self.read("counts"), [5])))

    def is_over(self, ranks: _Rank) -> Any:
        """Whether nothing is free, and nobody holds anything."""
        is_free = tf.reduce_any(tf.equal(self.read("states"), TODO))
        return tf.reduce_all(ranks.held < 0) & tf.logical_not(is_free)

    def lose(
        self, ranks: _Rank, counts: _Counts, mask: Any, *, retries: int
    ) -> tuple[_Rank, _Counts]:
        """Those of the mask lose what they hold; what is returned is not stored."""
        loses = mask & (ranks.held >= 0)

        def note() -> Any:
            who = tf.reshape(tf.where(loses), [-1])
            rows = tf.gather(ranks.held, who)
            often = self.at("retries", rows) + retries
            dead = often > self._plan.max_retries
            lost = tf.stack(
                [
                    tf.fill(tf.shape(who), counts.epoch),
                    who,
                    self.at("offsets", rows),
                    tf.gather(ranks.reserved, who),
                    self.at("stops", rows),
                    tf.cast(dead, tf.int64),
                ],
                1,
            )
            states = tf.where(dead, np.int64(DEAD), np.int64(TODO))
            all_lost = tf.concat([tf.ensure_shape(self.read("lost"), [None, 6]), lost], 0)
            with tf.control_dependencies([all_lost, often, lost]):
                return tf.group(
                    self._scatter("states", rows, states),
                    self._scatter("retries", rows, often),
                    self.assign("lost", all_lost),
                )

        self.stored.append(tf.cond(self.is_alone & tf.reduce_any(loses), note, tf.no_op))
        first = tf.reduce_min(tf.where(loses, ranks.held, counts.cursor))
        after = ranks._replace(
            held=tf.where(loses, np.int64(NOTHING), ranks.held),
            attempt=tf.where(loses, np.int64(REVOKED), ranks.attempt),
        )
        return after, counts._replace(cursor=tf.minimum(first, counts.cursor))

    def free_row(self, ranks: _Rank, cursor: Any, ahead: Any) -> Any:
        """The first free row, or one that is half of the largest rest; NOTHING if there is none.

        And the cursor when it is taken.
        """
        handle = self._handles["states"]
        with tf.control_dependencies(self.stored):
            size = tf.raw_ops.VariableShape(input=handle, out_type=tf.int64)[0]
        is_at_cursor = tf.cond(
            cursor < size,
            lambda: tf.equal(self.at("states", cursor), TODO),
            lambda: tf.constant(False),
        )

        def look() -> Any:
            states = tf.ensure_shape(self.read("states"), [None])
            is_free = tf.equal(states, TODO)
            return tf.where(tf.reduce_any(is_free), tf.argmax(is_free), size)

        # Where a split was lost, the rows behind it are taken already.
        is_hidden = (cursor < size) & tf.logical_not(is_at_cursor)
        first = tf.cond(is_hidden, look, lambda: tf.identity(cursor))
        rows = tf.maximum(ranks.held, 0)
        stops = self.at("stops", rows)
        rests = tf.where(ranks.held >= 0, stops - ranks.reserved, tf.zeros_like(stops))
        rest, victim = tf.reduce_max(rests), tf.argmax(rests)

        def divide() -> Any:
            middle = ranks.reserved[victim] + rest // ahead // 2 * ahead
            new = {
                "starts": middle,
                "stops": stops[victim],
                "offsets": middle,
                "states": np.int64(TODO),
                "retries": np.int64(0),
            }
            longer = {
                name: tf.concat([tf.ensure_shape(self.read(name), [None]), [value]], 0)
                for name, value in new.items()
            }
            with tf.control_dependencies(list(longer.values())):
                grown = [self.assign(name, value) for name, value in longer.items()]
            with tf.control_dependencies(grown):
                cut = self._scatter("stops", rows[victim], middle)
            with tf.control_dependencies([cut]):
                return tf.identity(size), size + 1

        def nothing() -> Any:
            return tf.constant(NOTHING, tf.int64), tf.identity(size)

        return tf.cond(
            first < size,
            lambda: (tf.identity(first), first + 1),
            lambda: tf.cond(rest >= ahead, divide, nothing),
        )

    def _scatter(self, name: str, places: Any, values: Any) -> Any:
        return tf.raw_ops.ResourceScatterUpdate(
            resource=self._handles[name], indices=places, updates=values
        )


def _code(code: Any) -> Answer:
    return Answer(code, 0, 0, 0, 0)


def _guard(name: str) -> Any:
    shared_name = f"tfdist/splits/{name}/guard"
    return tf.raw_ops.VarHandleOp(dtype=tf.int64, shape=[3], shared_name=shared_name)


def _open(name: str) -> Any:
    """Nobody is within a section."""
    return tf.raw_ops.AssignVariableOp(resource=_guard(name), value=np.zeros(3, np.int64))


def _take(name: str) -> Any:
    """Takes the guard; whether it was free.

    TensorFlow's one operation that adds to a variable and tells what it was before, as one: the
    counter of a random number generator.
    """
    before = tf.raw_ops.RngReadAndSkip(
        resource=_guard(name), alg=np.int32(_PHILOX), delta=np.uint64(1)
    )
    return tf.equal(before[0], 0)


def _put(ranks: _Rank, mask: Any, **columns: Any) -> Any:
    """The rows with other values for those of the mask."""
    changed = {name: tf.where(mask, value, getattr(ranks, name)) for name, value in columns.items()}
    return tf.stack(ranks._replace(**changed), 1)
