"""The rules of dynamic sharding, without a network: who reads which records, and how far it came.

The records, numbered from 0, are cut into splits: half-open ranges. A trainer claims a split,
commits as it goes, and claims the next one; so a fast trainer reads more of them. The table of
splits is kept on a ps, as vectors of numbers that are changed under a lock. What matters is decided
here, so that it can be tested under every interleaving. Times are whole microseconds by the clock
of the ps, which is handed in.

**Reads**: a record is read by the update that it is a part of. A trainer reads nothing but
what is reserved for it: the records from `offset`, up to which it has committed, to `reserved`.
That is one batch; each commit reserves the next one. An update comes before its commit, in the
same run: if the trainer dies in between, the batch is read again, and no batch is left out.

**Attempts**: each lease has a number of its own, and a trainer speaks of its lease by it. Who has
lost a lease can do nothing in its name, however long it was stopped.

**Lives**: a message that was given up on, or a process that was replaced, may yet be heard. So each
trainer has one incarnation that may speak for it. A trainer that had no answer to a call does not
know what has become of it, and goes on with a new incarnation. That takes the lease away, and the
claim that follows tells how far it was committed. Lives also keep apart what was leased before a ps
went back to a checkpoint, for the numbers of the attempts go back with it.

**Losses**: a lease is lost when it has ended and somebody else wants a split, when its trainer
gives it back or goes on with a new incarnation, and when the ps comes back from a checkpoint. Each
loss is noted, with the batch that may have been read. The split is free again at its offset. If it
is lost too often in one place, it is given up: its rest is a dead letter, noted as well.

**Order**: the rows stand in the order in which an epoch hands them out, and the first free one is
taken. So a split that was lost comes before all that nobody has had yet.

**Stealing**: if nothing is free, half of the largest rest that is not reserved becomes a row of its
own. It was not reserved, so nobody was to read it; its former holder learns where its split stops
now from the answer to its next commit, which it waits for before it goes on.

**Saving**: a checkpoint has the table and the model, and is written while the others train. So
whoever saves holds the table: until it is released nothing of it changes. An update whose commit is
kept waiting may be in the checkpoint or not. It is one batch of each trainer at most, and the
restored table knows it, for each lease is lost then.

A trainer has one lease at a time, so all that changes with each batch is kept by rank, in short
vectors; the long ones, by split, change in one place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from tfdist.data.ledger import Ledger, Range
from tfdist.errors import ConfigError, SplitLostError
from tfdist.splits.plan import Plan, epoch_order

# What may be in `SplitTable.states`.
TODO, LEASED, DONE, DEAD = range(4)

NOTHING = -1  # in the place of a row, or of a rank
NOBODY = 0  # in the place of a incarnation
REVOKED = 0  # in the place of an attempt: the lease was lost


class Lease(NamedTuple):
    """What a trainer knows of the split that it holds, from the last answer it has had.

    It may read the records `offset` to `reserved` - 1; then it commits.
    """

    rank: int
    incarnation: int
    attempt: int
    offset: int
    reserved: int
    stop: int

    @property
    def finished(self) -> bool:
        """Whether all of it is committed, and the trainer holds nothing any more."""
        return self.offset == self.stop


class Wait(NamedTuple):
    """The answer to a claim: there is nothing now. At `until` a lease ends if it is not renewed."""

    until: int


class Saving(NamedTuple):
    """The answer to a call that would change the table, which somebody holds: once more, later."""

    rank: int


class Over(NamedTuple):
    """The answer to a claim: all splits of the epoch are done or given up."""

    epoch: int


class Loss(NamedTuple):
    """A lease that its trainer has lost.

    The records `offset` to `reserved` - 1 may have been read, and are read again by whoever
    has the split next. If it is dead, nobody has: the records `offset` to `stop` - 1 are the
    dead letter.
    """

    epoch: int
    rank: int
    offset: int
    reserved: int
    stop: int
    dead: int


@dataclass(frozen=True)
class SplitTable:
    """Everything that is known of an epoch and its splits; all of it is numbers, but for the plan.

    Attributes:
        plan: what does not change.
        starts: by row, the first record; the rows stand in the order of the epoch, stolen ones at
            the end.
        stops: by row, the one after the last.
        offsets: by row, up to where it is committed.
        states: by row, TODO, LEASED, DONE or DEAD.
        retries: by row, how often it was lost since the last commit.
        incarnations: by rank, the incarnation that may speak for the trainer; NOBODY before the
            first.
        held: by rank, the row that it has leased, or NOTHING.
        attempts: by rank, the number of its last lease, or REVOKED if it has lost that.
        reserved: by rank, up to where it may read the row that it has leased.
        lease_ends: by rank, when its lease ends.
        epoch: counts from 0.
        first: the epoch with which the trainers have begun, since the ps is there.
        saver: the rank of who holds the table, or NOTHING.
        leases: how many there were so far, in all epochs.
        lost: those that were lost, in all epochs.
    """

    plan: Plan
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    offsets: tuple[int, ...]
    states: tuple[int, ...]
    retries: tuple[int, ...]
    incarnations: tuple[int, ...]
    held: tuple[int, ...]
    attempts: tuple[int, ...]
    reserved: tuple[int, ...]
    lease_ends: tuple[int, ...]
    epoch: int = 0
    first: int = 0
    leases: int = 0
    saver: int = NOTHING
    lost: tuple[Loss, ...] = ()

    @classmethod
    def start(cls, plan: Plan, parties: int, epoch: int = 0) -> SplitTable:
        """The table at the beginning of an epoch, before anybody came."""
        if parties < 1:
            raise ConfigError("parties", parties, "at least 1")
        splits = [plan.splits[i] for i in epoch_order(len(plan.splits), plan.seed, epoch)]
        starts = tuple(start for start, _ in splits)
        return cls(
            plan,
            starts=starts,
            stops=tuple(stop for _, stop in splits),
            offsets=starts,
            states=(TODO,) * len(splits),
            retries=(0,) * len(splits),
            incarnations=(NOBODY,) * parties,
            held=(NOTHING,) * parties,
            attempts=(REVOKED,) * parties,
            reserved=(0,) * parties,
            lease_ends=(0,) * parties,
            epoch=epoch,
        )

    @property
    def over(self) -> bool:
        """Whether all splits of the epoch are done or given up; that lasts until the next one."""
        return TODO not in self.states and max(self.held) == NOTHING

    @property
    def dead_letters(self) -> tuple[Loss, ...]:
        """What was given up, in all epochs."""
        return tuple(loss for loss in self.lost if loss.dead)

    @property
    def read(self) -> tuple[Range, ...]:
        """What is committed in this epoch, as few ranges.

        Each record of them was read once, and once more at most for each loss of its batch.
        """
        rows = zip(self.starts, self.offsets, strict=True)
        return Ledger((start, offset) for start, offset in rows if start < offset).ranges()


def enter(
    table: SplitTable, rank: int, incarnation: int, previous: int | None = None
) -> SplitTable:
    """A new incarnation speaks for trainer `rank`, and what an earlier one held is lost.

    Again, and nothing changes: whoever has no answer sends it again as it was. Nor does it as long
    as another trainer holds the table; that this one holds it itself is over.

    Args:
        table: as it is.
        rank: of the trainer.
        incarnation: a number that no other incarnation has had; NOBODY for a trainer that leaves.
        previous: the incarnation that the same process has had: if another process has taken its
            place
            since, nothing changes. None for a process that begins.
    """
    present = table.incarnations[rank]
    if present == incarnation or (previous is not None and present != previous):
        return table
    if table.saver not in (NOTHING, rank):
        return table
    table = replace(table, incarnations=_with(table.incarnations, rank, incarnation), saver=NOTHING)
    if table.held[rank] == NOTHING:
        return table
    return _lose(table, rank)


def claim(
    table: SplitTable, rank: int, incarnation: int, *, epoch: int, now: int, ahead: int
) -> tuple[SplitTable, Lease | Wait | Saving | Over]:
    """Gives trainer `rank` the first free split, or a part of one that is leased.

    Again, and it has the same lease, which is renewed.

    Args:
        table: as it is.
        rank: of the trainer.
        incarnation: of the trainer.
        epoch: for which it wants a split; another trainer may have begun the next one.
        now: by the clock of the ps.
        ahead: how many records it reads before it commits; no less is taken from another.

    Raises:
        SplitLostError: another incarnation speaks for the trainer.
        ConfigError: the epoch has not begun, or `ahead` is no number of records.
    """
    if ahead < 1:
        raise ConfigError("ahead", ahead, "at least 1 record")
    if epoch > table.epoch:
        raise ConfigError("epoch", epoch, f"epoch {table.epoch} is the last that has begun")
    if table.incarnations[rank] != incarnation:
        raise SplitLostError(rank, _REPLACED)
    if epoch < table.epoch:
        return table, Over(epoch)
    if table.saver != NOTHING:
        return table, Saving(table.saver)
    if table.held[rank] != NOTHING:
        table = _renewed(table, rank, now)
        return table, _lease(table, rank)
    for other, row in enumerate(table.held):
        if row != NOTHING and table.lease_ends[other] <= now:
            table = _lose(table, other)
    if TODO not in table.states:
        table = _divide(table, ahead)
    if TODO in table.states:
        row = table.states.index(TODO)
        reserved = min(table.stops[row], table.offsets[row] + ahead)
        table = replace(
            table,
            states=_with(table.states, row, LEASED),
            held=_with(table.held, rank, row),
            attempts=_with(table.attempts, rank, table.leases + 1),
            reserved=_with(table.reserved, rank, reserved),
            leases=table.leases + 1,
        )
        table = _renewed(table, rank, now)
        return table, _lease(table, rank)
    ends = [table.lease_ends[other] for other, row in enumerate(table.held) if row != NOTHING]
    return table, Wait(min(ends)) if ends else Over(epoch)


def commit(
    table: SplitTable, lease: Lease, offset: int, *, now: int, ahead: int
) -> tuple[SplitTable, Lease | Saving]:
    """All records before `offset` were read. Renews the lease and reserves the next records.

    What is answered tells where the split stops now. At that offset it is done, and the trainer
    holds nothing any more. An offset up to which it is committed already only renews.

    Args:
        table: as it is.
        lease: of the trainer.
        offset: up to where it has read.
        now: by the clock of the ps.
        ahead: how many records it reads before it commits again.

    Raises:
        SplitLostError: the lease was lost; what it has read since its last commit is read again.
        ConfigError: records were read that were not reserved; or `ahead` is no number of them.
    """
    _check(table, lease)
    rank = lease.rank
    row = table.held[rank]
    if row == NOTHING:  # it was the last commit that is repeated
        return table, lease._replace(offset=offset, reserved=offset, stop=offset)
    if ahead < 1:
        raise ConfigError("ahead", ahead, "at least 1 record")
    if offset > table.reserved[rank]:
        raise ConfigError("offset", offset, f"reserved are those before {table.reserved[rank]}")
    if table.saver != NOTHING:
        return table, Saving(table.saver)
    stop = table.stops[row]
    if offset > table.offsets[row]:
        table = replace(
            table,
            offsets=_with(table.offsets, row, offset),
            retries=_with(table.retries, row, 0),
            reserved=_with(table.reserved, rank, min(stop, offset + ahead)),
        )
    if offset < stop:
        table = _renewed(table, rank, now)
        return table, _lease(table, rank)
    answer = _lease(table, rank)
    states, held = _with(table.states, row, DONE), _with(table.held, rank, NOTHING)
    return replace(table, states=states, held=held), answer


def release(table: SplitTable, lease: Lease) -> tuple[SplitTable, Lease | Saving]:
    """The trainer cannot read it, and loses it: the next one tries, until it is given up.

    Again, and nothing changes.

    Raises:
        SplitLostError: another incarnation speaks for the trainer.
    """
    if table.incarnations[lease.rank] != lease.incarnation:
        raise SplitLostError(lease.rank, _REPLACED)
    if table.saver != NOTHING:
        return table, Saving(table.saver)
    if table.attempts[lease.rank] == lease.attempt and table.held[lease.rank] != NOTHING:
        table = _lose(table, lease.rank)
    return table, lease


def begin_epoch(table: SplitTable, epoch: int) -> SplitTable:
    """All splits are to be done once more, in another order.

    Unless the epoch before is over and `epoch` is the next one, nothing changes: so each trainer
    may begin it that was told that the one before is over. Nor does it while somebody saves.
    """
    if epoch != table.epoch + 1 or not table.over or table.saver != NOTHING:
        return table
    return replace(
        SplitTable.start(table.plan, len(table.incarnations), epoch),
        incarnations=table.incarnations,
        attempts=table.attempts,
        first=table.first,
        leases=table.leases,
        lost=table.lost,
    )


def freeze(table: SplitTable, rank: int, incarnation: int) -> tuple[SplitTable, Saving]:
    """Freezes the table until trainer `rank` unfreezes it or has another incarnation.

    If somebody else holds it, that one is in the answer.

    Raises:
        SplitLostError: another incarnation speaks for the trainer.
    """
    if table.incarnations[rank] != incarnation:
        raise SplitLostError(rank, _REPLACED)
    if table.saver == NOTHING:
        table = replace(table, saver=rank)
    return table, Saving(table.saver)


def unfreeze(table: SplitTable, rank: int, incarnation: int, *, now: int) -> SplitTable:
    """Goes on; all leases last from now on, since nobody could renew them.

    Raises:
        SplitLostError: it was not held any more, so what was saved may not fit together.
    """
    if table.incarnations[rank] != incarnation or table.saver != rank:
        raise SplitLostError(rank, NOT_HELD)
    table = replace(table, saver=NOTHING)
    for other, row in enumerate(table.held):
        if row != NOTHING:
            table = _renewed(table, other, now)
    return table


def restored(table: SplitTable, parties: int) -> SplitTable:
    """What comes back from a checkpoint: every lease is lost, by no fault of its split.

    If the epoch is over, the next one is the first. Where the table was held, it was saved in the
    epoch, and that is the first: the trainers have not been at its end yet.
    """
    begins_next = table.over and table.saver == NOTHING
    for rank, row in enumerate(table.held):
        if row != NOTHING:
            table = _lose(table, rank, retries=0)
    nobody = SplitTable.start(table.plan, parties)
    return replace(
        table,
        incarnations=nobody.incarnations,
        held=nobody.held,
        attempts=nobody.attempts,
        reserved=nobody.reserved,
        lease_ends=nobody.lease_ends,
        first=table.epoch + begins_next,
        saver=NOTHING,
    )


_REPLACED = (
    "another incarnation speaks for it. Two processes may run as one task, or the ps has come "
    "back from "
    "a checkpoint"
)
NOT_HELD = (
    "another incarnation speaks for it, and has released the splits. What was saved meanwhile may "
    "not fit "
    "together: do not restore it"
)


def _check(table: SplitTable, lease: Lease) -> None:
    if table.incarnations[lease.rank] != lease.incarnation:
        raise SplitLostError(lease.rank, f"{_describe(lease)}: {_REPLACED}")
    if table.attempts[lease.rank] != lease.attempt:
        seconds = table.plan.lease_us / 1e6
        raise SplitLostError(
            lease.rank,
            f"{_describe(lease)}: nothing was committed or renewed for {seconds:g} s, and another "
            "trainer has wanted a split. Was this process stopped, or does a batch take longer?",
        )


def _describe(lease: Lease) -> str:
    return f"records [{lease.offset}, {lease.stop}), attempt {lease.attempt}"


def _lease(table: SplitTable, rank: int) -> Lease:
    row = table.held[rank]
    return Lease(
        rank=rank,
        incarnation=table.incarnations[rank],
        attempt=table.attempts[rank],
        offset=table.offsets[row],
        reserved=table.reserved[rank],
        stop=table.stops[row],
    )


def _renewed(table: SplitTable, rank: int, now: int) -> SplitTable:
    return replace(table, lease_ends=_with(table.lease_ends, rank, now + table.plan.lease_us))


def _lose(table: SplitTable, rank: int, *, retries: int = 1) -> SplitTable:
    row = table.held[rank]
    retries += table.retries[row]
    dead = retries > table.plan.max_retries
    loss = Loss(
        epoch=table.epoch,
        rank=rank,
        offset=table.offsets[row],
        reserved=table.reserved[rank],
        stop=table.stops[row],
        dead=int(dead),
    )
    return replace(
        table,
        states=_with(table.states, row, DEAD if dead else TODO),
        retries=_with(table.retries, row, retries),
        held=_with(table.held, rank, NOTHING),
        attempts=_with(table.attempts, rank, REVOKED),
        lost=(*table.lost, loss),
    )


def _divide(table: SplitTable, ahead: int) -> SplitTable:
    """Makes a free row of half of the largest rest, if that has `ahead` records or more.

    The holder keeps whole batches, and no more of them than it gives.
    """
    rests = [
        0 if row == NOTHING else table.stops[row] - table.reserved[rank]
        for rank, row in enumerate(table.held)
    ]
    rest = max(rests)
    if rest < ahead:
        return table
    victim = rests.index(rest)
    row = table.held[victim]
    middle = table.reserved[victim] + rest // ahead // 2 * ahead
    return replace(
        table,
        starts=(*table.starts, middle),
        stops=(*_with(table.stops, row, middle), table.stops[row]),
        offsets=(*table.offsets, middle),
        states=(*table.states, TODO),
        retries=(*table.retries, 0),
    )


def _with(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*values[:place], value, *values[place + 1 :])
