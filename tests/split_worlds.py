"""The rules of the splits under every interleaving of trainers and faults.

The search walks through all states of a small world. A world consists of

- the table under test, `tfdist.splits.rules`;
- trainers. A trainer knows only what a real one knows: its incarnation, its epoch, and its lease as
  of the last answer. It follows the protocol below;
- at most one ghost: a process that was stopped and replaced, or a message whose sender gave up. It
  may continue at any moment, or never;
- a referee, which counts how often each record was read and ignores rows, leases and incarnations.

A trainer claims, reads its reserved records, and commits. These are three steps, and anything may
happen between them. A trainer whose call gets no answer continues as a new incarnation. There is no
clock: a lease expires in a step, which is a fault if its trainer is alive.

The promises, checked in each reachable world:

- without a fault no lease is lost, and each record is read exactly once;
- each record is read at most once more for each recorded loss of its batch;
- a ghost never commits;
- when the epoch is over, each record was read or is in a dead letter;
- the living trainers can finish without the dead ones.

Trainer 0 saves the checkpoints. The saved table is the table at the freeze; the saved model is the
model at any moment until the table is unfrozen. While trainer 0 is dead, the others wait.

`normal` renumbers incarnations and attempts in each world, so the number of worlds is finite.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from tfdist.errors import SplitLostError
from tfdist.splits import rules as splits
from tfdist.splits.plan import Plan
from tfdist.splits.rules import LEASED, NOTHING, Frozen, Lease, Over, SplitTable, Wait

BATCH = 1  # record
INCARNATION, NEW, OLD = 1, 2, 3  # the present one, the one that enters, any older one
NOW, LASTS = 0, 1

# The next step of a trainer or a ghost.
CLAIMS = "claims"  # it has no lease
READS = "reads"  # it has a lease
COMMITS = "commits"  # it has read the reserved records
UNHEARD = "unheard"  # it got no answer, and continues as a new incarnation
ENDED = "ended"  # its epoch is over
DEAD = "dead"


class Trainer(NamedTuple):
    place: str = CLAIMS
    lease: Lease | None = None
    epoch: int = 0


class Ghost(NamedTuple):
    rank: int
    incarnation: int
    trainer: Trainer


class Saved(NamedTuple):
    table: SplitTable
    reads: tuple[int, ...]


class World(NamedTuple):
    table: SplitTable
    trainers: tuple[Trainer, ...]
    reads: tuple[int, ...]  # of each record, in the present epoch
    ghost: Ghost | None = None
    saved: Saved | None = None
    at_freeze: SplitTable | None = None  # the table that is being saved

    def put(self, rank: int, **changes: object) -> World:
        trainer = self.trainers[rank]._replace(**changes)
        return self._replace(trainers=(*self.trainers[:rank], trainer, *self.trainers[rank + 1 :]))


class Kind(NamedTuple):
    """The first world of a search, and the bounds of the search."""

    sizes: tuple[int, ...]  # records of each split
    trainers: int = 2
    limit: int = 0  # faults
    retries: int = 2
    epochs: int = 1
    saves: bool = False


@cache
def enter(table: SplitTable, rank: int) -> SplitTable:
    return splits.enter(table, rank, NEW)


@cache
def claim(table: SplitTable, rank: int, incarnation: int, epoch: int):
    return answered(splits.claim, table, rank, incarnation, epoch=epoch, now=NOW, batch_size=BATCH)


@cache
def commit(table: SplitTable, lease: Lease):
    return answered(splits.commit, table, lease, lease.reserved, now=NOW, batch_size=BATCH)


def answered(call, table: SplitTable, *args, **kwargs):
    """The table and the answer, which is None if the caller was replaced or lost its lease."""
    try:
        return call(table, *args, **kwargs)
    except SplitLostError:
        return table, None


def start(kind: Kind) -> World:
    begin, parts = 0, []
    for size in kind.sizes:
        parts.append((begin, begin + size))
        begin += size
    plan = Plan(tuple(parts), seed=0, lease_us=LASTS, max_retries=kind.retries)
    table = SplitTable.start(plan, kind.trainers)
    for rank in range(kind.trainers):
        table = splits.enter(table, rank, INCARNATION)
    return World(table, (Trainer(),) * kind.trainers, (0,) * begin)


# The steps. A name begins with the rank of its trainer.


def steps(world: World, kind: Kind) -> Iterator[tuple[str, World]]:
    """The steps without a fault, including the expiry of the leases of dead trainers."""
    for rank, trainer in enumerate(world.trainers):
        place = trainer.place
        if saves(world, rank):
            continue
        if place in (CLAIMS, READS, COMMITS):
            after, next_trainer = goes(world, rank, INCARNATION, trainer)
            yield f"{rank} {place}", after.put(rank, **next_trainer._asdict())
        if place in (UNHEARD, DEAD) and world.table.frozen_by not in (NOTHING, rank):
            continue  # it waits
        if place == UNHEARD:
            after = world._replace(table=enter(world.table, rank))
            yield f"{rank} enters", after.put(rank, place=CLAIMS, epoch=world.table.epoch)
        if place == ENDED and trainer.epoch + 1 < kind.epochs:
            yield (
                f"{rank} begins an epoch",
                the_next_epoch(world, trainer.epoch + 1).put(
                    rank, place=CLAIMS, epoch=trainer.epoch + 1
                ),
            )
        if place == DEAD:
            after = world._replace(table=enter(world.table, rank), at_freeze=None)
            yield f"{rank} restarts", after.put(rank, place=CLAIMS, epoch=world.table.epoch)
            if holds(world.table, rank):
                yield f"the lease of {rank} expires", expired(world, rank)
    if world.ghost:
        rank, incarnation, trainer = world.ghost
        if trainer.place in (CLAIMS, READS, COMMITS):
            after, next_trainer = goes(world, rank, incarnation, trainer)
            if incarnation == OLD and trainer.place != READS:
                assert after.table == world.table, "a ghost has changed the table"
                assert next_trainer.lease is None, "a ghost was answered"
            # A stopped process continues; an abandoned message ends with its delivery.
            ghost = world.ghost._replace(trainer=next_trainer) if trainer.place == READS else None
            yield f"the ghost of {rank} {trainer.place}", after._replace(ghost=ghost)
    may_save = kind.saves and not world.saved and world.table.frozen_by == NOTHING
    if may_save and world.trainers[0].place not in (DEAD, UNHEARD):
        table, _ = splits.freeze(world.table, 0, INCARNATION)
        yield "0 freezes", world._replace(table=table, at_freeze=table)
    if saves(world, 0):
        saved = Saved(world.at_freeze, world.reads)
        table = splits.unfreeze(world.table, 0, INCARNATION, now=NOW)
        yield "0 saves and unfreezes", world._replace(table=table, saved=saved, at_freeze=None)


def faults(world: World) -> Iterator[tuple[str, World]]:
    for rank, trainer in enumerate(world.trainers):
        place, ghost = trainer.place, Ghost(rank, INCARNATION, trainer)
        if place != DEAD:
            yield f"{rank} crashes", world.put(rank, place=DEAD, lease=None)
        if saves(world, rank):
            continue
        if place in (CLAIMS, COMMITS) and not world.ghost:
            unheard = world.put(rank, place=UNHEARD, lease=None)
            yield f"{rank} {place}, unheard", unheard._replace(ghost=ghost)
        if place in (READS, COMMITS) and not world.ghost:
            replaced = world.put(rank, place=UNHEARD, lease=None)
            yield f"{rank} is stopped and replaced", replaced._replace(ghost=ghost)
        if place in (READS, COMMITS) and holds(world.table, rank):
            yield f"{rank} is slow, its lease expires", expired(world, rank)
    if world.saved:
        back = world._replace(
            table=splits.recover(world.saved.table, len(world.trainers)),
            reads=world.saved.reads,
            saved=None,
            at_freeze=None,
        )
        for rank, trainer in enumerate(world.trainers):
            if trainer.place != DEAD:
                back = back.put(rank, place=UNHEARD, lease=None)
        yield "the ps is lost", back._replace(ghost=None)
        # A process whose session broke cannot update the model, but its lease may match by chance.
        for rank, trainer in enumerate(world.trainers):
            if trainer.lease:
                ghost = Ghost(rank, INCARNATION, trainer._replace(place=COMMITS))
                yield f"the ps is lost, {rank} does not know", back._replace(ghost=ghost)


def goes(world: World, rank: int, incarnation: int, trainer: Trainer) -> tuple[World, Trainer]:
    """Takes the next step of a trainer or a ghost; returns the world and the trainer after it."""
    lease = trainer.lease
    if trainer.place == CLAIMS:
        table, answer = claim(world.table, rank, incarnation, trainer.epoch)
        after = world._replace(table=table)
        if answer is None or isinstance(answer, Wait | Frozen):
            return after, trainer
        if isinstance(answer, Over):
            return after, trainer._replace(place=ENDED)
        return after, trainer._replace(place=READS, lease=answer)
    assert lease is not None
    if trainer.place == READS:
        after = world
        if trainer.epoch == world.table.epoch:
            after = world._replace(
                reads=tuple(
                    number + (lease.offset <= record < lease.reserved)
                    for record, number in enumerate(world.reads)
                )
            )
        return after, trainer._replace(place=COMMITS)
    table, answer = commit(world.table, lease)
    after = world._replace(table=table)
    if isinstance(answer, Frozen):
        return after, trainer
    if answer is None or answer.finished:
        return after, trainer._replace(place=CLAIMS, lease=None)
    return after, trainer._replace(place=READS, lease=answer)


def saves(world: World, rank: int) -> bool:
    """True if the trainer has frozen the table and is alive."""
    return world.table.frozen_by == rank and world.trainers[rank].place != DEAD


def holds(table: SplitTable, rank: int) -> bool:
    """True if the trainer has a lease that has not expired."""
    return table.held[rank] != NOTHING and table.lease_ends[rank] > NOW


def expired(world: World, rank: int) -> World:
    ends = world.table.lease_ends
    ends = (*ends[:rank], NOW, *ends[rank + 1 :])
    return world._replace(table=replace(world.table, lease_ends=ends))


def the_next_epoch(world: World, epoch: int) -> World:
    table = splits.begin_epoch(world.table, epoch)
    if table.epoch == world.table.epoch:
        return world
    assert is_over(world)
    return world._replace(table=table, reads=(0,) * len(world.reads))


# The referee.


def committed(table: SplitTable) -> set[int]:
    return {record for start, stop in table.committed for record in range(start, stop)}


def check(world: World) -> None:
    table = world.table
    check_rows(table)
    done = committed(table)
    for record, number in enumerate(world.reads):
        noted = [
            loss
            for loss in table.lost
            if loss.epoch == table.epoch and loss.offset <= record < loss.reserved
        ]
        assert number <= 1 + len(noted), f"record {record} was read too often"
        assert number or record not in done, f"record {record} is committed, but was not read"
    assert not table.over or is_over(world)


def is_over(world: World) -> bool:
    """True if each record was read or is in a dead letter."""
    table = world.table
    dead = {
        record
        for loss in table.dead_letters
        if loss.epoch == table.epoch
        for record in range(loss.offset, loss.stop)
    }
    done = committed(table)
    assert not dead & done
    return dead | done == {*range(len(world.reads))}


@cache
def check_rows(table: SplitTable) -> None:
    rows = sorted(zip(table.starts, table.stops, table.offsets, strict=True))
    assert all(start <= offset <= stop for start, stop, offset in rows)
    records = [record for start, stop, _ in rows for record in range(start, stop)]
    assert records == [*range(sum(stop - start for start, stop in table.plan.splits))]
    leased = sorted(row for row, state in enumerate(table.states) if state == LEASED)
    assert leased == sorted(row for row in table.held if row != NOTHING)
    for rank, row in enumerate(table.held):
        if row != NOTHING:
            assert table.offsets[row] < table.reserved[rank] <= table.stops[row]
            assert table.reserved[rank] <= table.offsets[row] + BATCH, "more than one batch"


# The search.


def normal(world: World) -> World:
    """The same world with the lowest numbers, so there are finitely many worlds.

    The present incarnation of each trainer becomes INCARNATION, and the attempt of a lease becomes
    1 if it is the present one. A ghost of an OLD incarnation has the present attempt, which is
    possible after a restore.
    """
    table, trainers, ghost = world.table, world.trainers, world.ghost
    if ghost and ghost.incarnation != table.incarnations[ghost.rank]:
        ghost = ghost._replace(incarnation=OLD)
    attempts = []
    known = []
    for rank, before in enumerate(trainers):
        trainer, lease = before, before.lease
        present = table.attempts[rank]
        if lease:
            attempt = 1 if lease.attempt == present else 2
            trainer = trainer._replace(
                lease=lease._replace(incarnation=INCARNATION, attempt=attempt, stop=0)
            )
        if ghost and ghost.rank == rank and ghost.trainer.lease:
            lease = ghost.trainer.lease
            same = ghost.incarnation == OLD or lease.attempt == present
            lease = lease._replace(incarnation=ghost.incarnation, attempt=1 if same else 2, stop=0)
            ghost = ghost._replace(trainer=ghost.trainer._replace(lease=lease))
        attempts.append(min(present, 1))
        known.append(trainer)
    return world._replace(
        table=renumbered(table, tuple(attempts)), trainers=tuple(known), ghost=ghost
    )


@cache
def renumbered(table: SplitTable, attempts: tuple[int, ...]) -> SplitTable:
    free = [row == NOTHING for row in table.held]
    return replace(
        table,
        incarnations=tuple(min(incarnation, INCARNATION) for incarnation in table.incarnations),
        attempts=attempts,
        leases=2,
        reserved=tuple(0 if f else at for f, at in zip(free, table.reserved, strict=True)),
        lease_ends=tuple(0 if f else at for f, at in zip(free, table.lease_ends, strict=True)),
        lost=tuple(sorted(table.lost)),
    )


Graph = dict[World, list[tuple[str, World]]]


def explore(kind: Kind) -> Graph:
    """All worlds reachable with at most `kind.limit` faults, and the steps from each."""
    gc.disable()  # the garbage collector would take a third of the time
    try:
        return _explore(kind)
    finally:
        gc.enable()


def _explore(kind: Kind) -> Graph:
    first = normal(start(kind))
    fewest = {first: 0}
    came_from: dict[World, tuple[str, World] | None] = {first: None}
    graph: Graph = {}
    queue = deque([first])  # sorted by number of faults
    while queue:
        world = queue.popleft()
        if world in graph:
            continue
        number = fewest[world]
        try:
            check(world)
            assert number or not world.table.lost, "lost without a fault"
            graph[world] = [(name, normal(after)) for name, after in steps(world, kind)]
            for name, after in graph[world]:
                if fewest.get(after, kind.limit + 1) > number:
                    fewest[after], came_from[after] = number, (name, world)
                    queue.appendleft(after)
            if number == kind.limit:
                continue
            for name, after in faults(world):
                other = normal(after)
                if fewest.get(other, kind.limit + 1) > number + 1:
                    fewest[other], came_from[other] = number + 1, (name, world)
                    queue.append(other)
        except AssertionError as error:
            way = way_to(world, came_from)
            raise AssertionError(f"{error}\nafter {way}\n{world}") from error
    return graph


def way_to(world: World, came_from: dict[World, tuple[str, World] | None]) -> str:
    names = []
    while step := came_from[world]:
        name, world = step
        names.append(name)
    return ", ".join(reversed(names)) or "nothing"


def stuck(graph: Graph, epochs: int) -> set[World]:
    """The worlds with a living trainer from which the living trainers cannot finish."""
    before: dict[World, list[World]] = {}
    for world, edges in graph.items():
        for name, after in edges:
            if "restarts" not in name and "ghost" not in name:
                before.setdefault(after, []).append(world)
    safe = {world for world in graph if all_ended(world, epochs)}
    queue = deque(safe)
    while queue:
        for world in before.get(queue.popleft(), ()):
            if world not in safe:
                safe.add(world)
                queue.append(world)
    return {
        world
        for world in graph.keys() - safe
        if {t.place for t in world.trainers} != {DEAD}
        if world.table.frozen_by == NOTHING or world.trainers[0].place != DEAD
    }


def all_ended(world: World, epochs: int) -> bool:
    alive = [trainer for trainer in world.trainers if trainer.place != DEAD]
    last = world.table.epoch == epochs - 1
    return last and all((t.place, t.epoch) == (ENDED, epochs - 1) for t in alive)
