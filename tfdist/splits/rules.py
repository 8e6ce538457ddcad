"""The rules of dynamic sharding, without a network: which trainer reads which records.

Records are numbered from 0 and cut into splits, half-open ranges. A trainer claims a split, commits
after each batch, and claims the next one, so a fast trainer reads more. The table of splits is kept
on a ps, and `tfdist.splits.table` has its twin in graph ops. Everything that must be right under
every interleaving is here, and pure. Times are microseconds of the clock of the ps, passed in.

**Batches.** A trainer may read only its reserved records, from `offset`, up to which it has
committed, to `reserved`. They are one batch, and each commit reserves the next. The update runs
before its commit, in the same session run. If the trainer dies in between, the batch is read again;
no batch is ever left out.

**Attempts.** Each lease has an attempt, a number of its own, and every message about a lease
carries it. A trainer whose lease was lost is fenced: its messages change nothing, however late.

**Incarnations.** A message may arrive after its sender gave up on it or was replaced. So one
incarnation at a time may act for a trainer. After a call without an answer a trainer continues as a
new incarnation; this loses its lease, and its next claim returns the committed offset. Incarnations
also separate leases from those before a ps was restored, since a restore resets attempts.

**Losses.** A lease is lost when it has expired and another trainer wants a split, when its trainer
releases it or continues as a new incarnation, and when the ps is restored. Each loss is recorded
with the batch that may have been read. The split becomes free at its committed offset. A split that
is lost more than `max_retries` times without a commit in between is given up: the rest of it
becomes a dead letter, which is recorded too.

**Order.** Rows are in the order in which an epoch hands them out, and a claim takes the first free
one. A lost split therefore comes before all splits that no trainer has had.

**Stealing.** If no row is free, half of the largest unreserved rest becomes a row of its own. No
trainer may have read it, since it was not reserved. The holder learns its new `stop` from the
answer to its next commit, which it awaits before it reads on.

**Freezing.** A checkpoint contains the table and the model, and is saved while other trainers run.
The trainer that saves freezes the table, so nothing in it changes until it unfreezes it. The update
of a waiting commit may be in the checkpoint or not. This concerns at most one batch per trainer,
and the restored table records it, since a restore loses every lease.

A trainer has at most one lease, so all that changes with each batch is stored by rank, in short
vectors. A commit changes the long vectors, stored by row, in one place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from tfdist.data.ledger import Ledger, Range
from tfdist.errors import ConfigError, SplitLostError
from tfdist.splits.plan import Plan, epoch_order

TODO, LEASED, DONE, DEAD = range(4)  # SplitTable.states

NOTHING = -1  # no row, or no rank
NO_INCARNATION = 0
REVOKED = 0  # the attempt of a trainer whose lease was lost


class Lease(NamedTuple):
    """What a trainer knows of its split from the last answer.

    It may read the records `offset` to `reserved` - 1, and then commits them.
    """

    rank: int
    incarnation: int
    attempt: int
    offset: int
    reserved: int
    stop: int

    @property
    def finished(self) -> bool:
        """True if the whole split is committed; the trainer then has no lease."""
        return self.offset == self.stop


class Wait(NamedTuple):
    """Answer to a claim: no split is free; the first lease to expire does so at `until`."""

    until: int


class Frozen(NamedTuple):
    """Answer to a call that would change a frozen table: repeat it later."""

    by_rank: int


class Over(NamedTuple):
    """Answer to a claim: all splits of the epoch are done or given up."""

    epoch: int


class Loss(NamedTuple):
    """A lost lease.

    The records `offset` to `reserved` - 1 may have been read, and are read again. If `dead`, no
    trainer reads the split again, and the records `offset` to `stop` - 1 are the dead letter.
    """

    epoch: int
    rank: int
    offset: int
    reserved: int
    stop: int
    dead: int


@dataclass(frozen=True)
class SplitTable:
    """The state of an epoch and its splits; all numbers, except for the plan.

    Attributes:
        plan: what never changes.
        starts: by row, the first record. Rows are in the order of the epoch, stolen ones last.
        stops: by row, one after the last record.
        offsets: by row, the record up to which it is committed.
        states: by row, TODO, LEASED, DONE or DEAD.
        retries: by row, number of losses since the last commit.
        incarnations: by rank, the incarnation that may act for the trainer, or NO_INCARNATION.
        held: by rank, the leased row, or NOTHING.
        attempts: by rank, the number of the last lease, or REVOKED if it was lost.
        reserved: by rank, the record up to which the trainer may read its row.
        lease_ends: by rank, the time at which its lease expires.
        epoch: the present one, counted from 0.
        first_epoch: the epoch at which training began on this ps.
        leases: number of leases granted so far, in all epochs.
        frozen_by: rank of the trainer that has frozen the table, or NOTHING.
        lost: all lost leases, of all epochs.
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
    first_epoch: int = 0
    leases: int = 0
    frozen_by: int = NOTHING
    lost: tuple[Loss, ...] = ()

    @classmethod
    def start(cls, plan: Plan, parties: int, epoch: int = 0) -> SplitTable:
        """The table at the beginning of an epoch, without any trainer."""
        if parties < 1:
            raise ConfigError("parties", parties, "must be at least 1")
        splits = [plan.splits[i] for i in epoch_order(len(plan.splits), plan.seed, epoch)]
        starts = tuple(start for start, _ in splits)
        return cls(
            plan,
            starts=starts,
            stops=tuple(stop for _, stop in splits),
            offsets=starts,
            states=(TODO,) * len(splits),
            retries=(0,) * len(splits),
            incarnations=(NO_INCARNATION,) * parties,
            held=(NOTHING,) * parties,
            attempts=(REVOKED,) * parties,
            reserved=(0,) * parties,
            lease_ends=(0,) * parties,
            epoch=epoch,
        )

    @property
    def over(self) -> bool:
        """True if all splits of the epoch are done or given up, until the next epoch begins."""
        return TODO not in self.states and max(self.held) == NOTHING

    @property
    def dead_letters(self) -> tuple[Loss, ...]:
        """The losses by which a split was given up, of all epochs."""
        return tuple(loss for loss in self.lost if loss.dead)

    @property
    def committed(self) -> tuple[Range, ...]:
        """The committed records of the epoch, as the fewest ranges.

        Each was read once, and possibly once more for each loss of its batch.
        """
        rows = zip(self.starts, self.offsets, strict=True)
        return Ledger((start, offset) for start, offset in rows if start < offset).ranges()


def enter(
    table: SplitTable, rank: int, incarnation: int, previous: int | None = None
) -> SplitTable:
    """Lets a new incarnation act for a trainer; its predecessor loses its lease.

    Idempotent, so a trainer without an answer repeats the call. If another trainer has frozen the
    table, nothing changes; if this one has, the table is unfrozen.

    `incarnation` is a number that was never used before, or NO_INCARNATION to leave. If `previous`
    is given, nothing changes unless that incarnation acts for the trainer, so a process that was
    replaced does not remove its successor.
    """
    present = table.incarnations[rank]
    if present == incarnation or (previous is not None and present != previous):
        return table
    if table.frozen_by not in (NOTHING, rank):
        return table
    incarnations = _with(table.incarnations, rank, incarnation)
    table = replace(table, incarnations=incarnations, frozen_by=NOTHING)
    return table if table.held[rank] == NOTHING else _lose(table, rank)


def claim(
    table: SplitTable, rank: int, incarnation: int, *, epoch: int, now: int, batch_size: int
) -> tuple[SplitTable, Lease | Wait | Frozen | Over]:
    """Leases the first free split to a trainer, or a part of a split that another one holds.

    A trainer that has a lease gets the same lease, renewed. Another trainer may already have begun
    the epoch after `epoch`. `batch_size` is the number of records to reserve, and the least that is
    taken from another trainer.

    Raises:
        SplitLostError: another incarnation acts for the trainer.
        ConfigError: the epoch has not begun, or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError("batch_size", batch_size, "must be at least 1 record")
    if epoch > table.epoch:
        raise ConfigError(
            "epoch", epoch, f"must be at most {table.epoch}, the last epoch that has begun"
        )
    if table.incarnations[rank] != incarnation:
        raise SplitLostError(rank, _REPLACED)
    if epoch < table.epoch:
        return table, Over(epoch)
    if table.frozen_by != NOTHING:
        return table, Frozen(table.frozen_by)
    if table.held[rank] != NOTHING:
        table = _renewed(table, rank, now)
        return table, _lease(table, rank)
    for other, row in enumerate(table.held):
        if row != NOTHING and table.lease_ends[other] <= now:
            table = _lose(table, other)
    if TODO not in table.states:
        table = _divide(table, batch_size)
    if TODO in table.states:
        row = table.states.index(TODO)
        reserved = min(table.stops[row], table.offsets[row] + batch_size)
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
    table: SplitTable, lease: Lease, offset: int, *, now: int, batch_size: int
) -> tuple[SplitTable, Lease | Frozen]:
    """Records that all records before `offset` were read, renews the lease, reserves a batch.

    The answer has the present end of the split. At that offset the split is done, and the trainer
    has no lease. An offset that is already committed only renews the lease.

    Raises:
        SplitLostError: the lease was lost; the records since the last commit are read again.
        ConfigError: the offset is beyond the reserved records, or `batch_size` is below 1.
    """
    _check(table, lease)
    rank = lease.rank
    row = table.held[rank]
    if row == NOTHING:  # a repeated last commit
        return table, lease._replace(offset=offset, reserved=offset, stop=offset)
    if batch_size < 1:
        raise ConfigError("batch_size", batch_size, "must be at least 1 record")
    if offset > table.reserved[rank]:
        raise ConfigError(
            "offset", offset, f"must be at most {table.reserved[rank]}, the end of the batch"
        )
    if table.frozen_by != NOTHING:
        return table, Frozen(table.frozen_by)
    stop = table.stops[row]
    if offset > table.offsets[row]:
        table = replace(
            table,
            offsets=_with(table.offsets, row, offset),
            retries=_with(table.retries, row, 0),
            reserved=_with(table.reserved, rank, min(stop, offset + batch_size)),
        )
    if offset < stop:
        table = _renewed(table, rank, now)
        return table, _lease(table, rank)
    answer = _lease(table, rank)
    states, held = _with(table.states, row, DONE), _with(table.held, rank, NOTHING)
    return replace(table, states=states, held=held), answer


def release(table: SplitTable, lease: Lease) -> tuple[SplitTable, Lease | Frozen]:
    """Ends a lease whose split the trainer cannot read; it counts as lost. Idempotent.

    Raises:
        SplitLostError: another incarnation acts for the trainer.
    """
    if table.incarnations[lease.rank] != lease.incarnation:
        raise SplitLostError(lease.rank, _REPLACED)
    if table.frozen_by != NOTHING:
        return table, Frozen(table.frozen_by)
    if table.attempts[lease.rank] == lease.attempt and table.held[lease.rank] != NOTHING:
        table = _lose(table, lease.rank)
    return table, lease


def begin_epoch(table: SplitTable, epoch: int) -> SplitTable:
    """Makes all splits free again, in the order of `epoch`.

    Every trainer may call it: nothing changes unless the epoch before is over, `epoch` is the next
    one, and the table is not frozen.
    """
    if epoch != table.epoch + 1 or not table.over or table.frozen_by != NOTHING:
        return table
    return replace(
        SplitTable.start(table.plan, len(table.incarnations), epoch),
        incarnations=table.incarnations,
        attempts=table.attempts,
        first_epoch=table.first_epoch,
        leases=table.leases,
        lost=table.lost,
    )


def freeze(table: SplitTable, rank: int, incarnation: int) -> tuple[SplitTable, Frozen]:
    """Freezes the table until the trainer unfreezes it or continues as another incarnation.

    The answer has the rank that has frozen the table: this one, or an earlier one.

    Raises:
        SplitLostError: another incarnation acts for the trainer.
    """
    if table.incarnations[rank] != incarnation:
        raise SplitLostError(rank, _REPLACED)
    if table.frozen_by == NOTHING:
        table = replace(table, frozen_by=rank)
    return table, Frozen(table.frozen_by)


def unfreeze(table: SplitTable, rank: int, incarnation: int, *, now: int) -> SplitTable:
    """Unfreezes the table and renews all leases, since no trainer could renew its own.

    Raises:
        SplitLostError: the table was unfrozen before, so the checkpoint may be inconsistent.
    """
    if table.incarnations[rank] != incarnation or table.frozen_by != rank:
        raise SplitLostError(rank, UNFROZEN)
    table = replace(table, frozen_by=NOTHING)
    for other, row in enumerate(table.held):
        if row != NOTHING:
            table = _renewed(table, other, now)
    return table


def recover(table: SplitTable, parties: int) -> SplitTable:
    """The table after a restore: every lease is lost, which counts as no retry.

    Training continues in the saved epoch, or in the next one if the saved one is over. A table that
    was saved while frozen was saved during its epoch, which the trainers have yet to end.
    """
    begins_next = table.over and table.frozen_by == NOTHING
    for rank, row in enumerate(table.held):
        if row != NOTHING:
            table = _lose(table, rank, retries=0)
    fresh = SplitTable.start(table.plan, parties)
    return replace(
        table,
        incarnations=fresh.incarnations,
        held=fresh.held,
        attempts=fresh.attempts,
        reserved=fresh.reserved,
        lease_ends=fresh.lease_ends,
        first_epoch=table.epoch + begins_next,
        frozen_by=NOTHING,
    )


_REPLACED = (
    "another process acts for this trainer. Either two processes run as the same task, or the ps "
    "was restored from a checkpoint"
)
UNFROZEN = (
    "another process acts for this trainer and has unfrozen the splits. The checkpoint that was "
    "saved meanwhile may be inconsistent; do not restore it"
)


def _check(table: SplitTable, lease: Lease) -> None:
    if table.incarnations[lease.rank] != lease.incarnation:
        raise SplitLostError(lease.rank, _REPLACED)
    if table.attempts[lease.rank] != lease.attempt:
        raise SplitLostError(
            lease.rank,
            f"attempt {lease.attempt} at records [{lease.offset}, {lease.stop}) had no commit for "
            f"{table.plan.lease_us / 1e6:g} s, and another trainer wanted a split",
        )


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


def _divide(table: SplitTable, batch_size: int) -> SplitTable:
    """Makes half of the largest unreserved rest a row of its own, if it has a batch or more.

    The holder keeps whole batches, at most half of them.
    """
    rests = [
        0 if row == NOTHING else table.stops[row] - table.reserved[rank]
        for rank, row in enumerate(table.held)
    ]
    rest = max(rests)
    if rest < batch_size:
        return table
    victim = rests.index(rest)
    row = table.held[victim]
    middle = table.reserved[victim] + rest // batch_size // 2 * batch_size
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
