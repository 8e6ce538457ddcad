"""The barrier's rules under every interleaving of three trainers and their misfortunes.

The search walks through all states of a small world. In the world there are

- the barrier under test, `tfdist.arrivals`;
- three trainers, each of which knows no more than a real one: its parity, the resets, whether it
  has seen that it counts, and where it stands. They keep the protocol that is written below;
- one message that is on its way, and comes at any moment or never;
- a referee who sees everything and knows nothing of generations, parities or lives. It keeps one
  word for each trainer: `came` (it counts in the present round), `owed` (its round was released,
  so it passes as soon as it looks), `robbed` (a reset took its arrival) or `none`.

At any step anybody may arrive, look, time out, crash, restart, resign, abort or reset, and a
message may be late. At each look the referee says what the barrier has to decide. It is so simple
that it can be read: all that is to be proved is that the barrier, which stores numbers only,
always agrees with it.

The world is finite without any limit: worlds in which only the numbering differs are one (see
`normal`), and the barrier is a matter of parities, so after a few thousand of them the search has
seen every generation, reset, crash and life there can be.

The protocol of a trainer. It sends its arrival and looks.

- ARRIVE and BROKEN are final only if none of its messages may yet come. Otherwise it enters with
  a new life first, with its parity and the resets it knows as they are, and looks again.
- So does one that had no answer at all, or whose repeated message had none: that it counts
  proves nothing then, since it counted before.
- On ARRIVE it sends its arrival again, on ACT it begins, looks, and acts if that is still ACT.
- It takes note of the resets when it enters for the first time, and at each WAIT.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest

from tfdist import arrivals
from tfdist.arrivals import RESIGNED, Arrivals, Decision

TRAINERS = range(3)
LIFE, NEW, OLD = 1, 2, 3  # of each trainer: the present one, the one that enters, any other

# Where a trainer stands.
OUT = "out"  # of the barrier: it computes
PAUSED = "paused"  # the same, but it has timed out and goes on waiting later
INSIDE = "inside"  # it looks again and again, and none of its messages is on its way
SENT = "sent"  # the same, but its arrival may yet come
LOST = "lost"  # one of its messages may yet come, so it goes on with a new life
TURN = "turn"  # the chief was told to act
BEGUN = "begun"  # and has said that it begins
ACTS = "acts"
HAS_ACTED = "has acted"  # and has not told the barrier yet
DEAD = "dead"
GONE = "gone"  # it has resigned

# What the referee knows of it.
NONE, CAME, OWED, ROBBED = "none", "came", "owed", "robbed"


class Trainer(NamedTuple):
    place: str = DEAD
    parity: int = 0
    resets: int = 0
    word: str = NONE


class Message(NamedTuple):
    name: str
    rank: int
    parity: int


class World(NamedTuple):
    barrier: Arrivals
    trainers: tuple[Trainer, ...]
    late: Message | None = None  # what is on its way
    held: bool = False  # the chief has an action
    # The rest is known to the referee alone.
    broken: bool = False
    begun: bool = False  # the action was begun in the present round
    acted: bool = False  # and has run

    def put(self, rank: int, **changes: object) -> World:
        trainer = self.trainers[rank]._replace(**changes)
        return self._replace(trainers=(*self.trainers[:rank], trainer, *self.trainers[rank + 1 :]))


# The transitions under test; there are few different states, so each is computed once.
enter, arrive, begin_action, release, resign, abort, reset, decide, next_parity = (
    cache(getattr(arrivals, name))
    for name in (
        *("enter", "arrive", "begin_action", "release", "resign", "abort", "reset"),
        *("decide", "next_parity"),
    )
)


def start(held: bool) -> World:
    return World(Arrivals.start(len(TRAINERS)), (Trainer(),) * len(TRAINERS), held=held)


# The referee.


def all_came(world: World) -> bool:
    expected = [trainer for trainer in world.trainers if trainer.place != GONE]
    return bool(expected) and all(trainer.word == CAME for trainer in expected)


def round_is_over(world: World) -> World:
    """Those that came may pass from now on."""
    assert all_came(world)
    trainers = tuple(t._replace(word=OWED) if t.word == CAME else t for t in world.trainers)
    return world._replace(trainers=trainers, begun=False, acted=False)


def if_complete(world: World) -> World:
    """Without an action, the round is over when the last one has come or has resigned."""
    free = not world.held and not world.broken
    return round_is_over(world) if free and all_came(world) else world


def right_decision(world: World, rank: int) -> Decision:
    trainer = world.trainers[rank]
    if trainer.word == OWED:
        return Decision.PASS  # also if it was reset or broken since
    if trainer.word == ROBBED or world.broken:
        return Decision.BROKEN
    if trainer.word == NONE:  # its arrival was lost; it cannot tell that from a reset it missed
        return Decision.ARRIVE if trainer.resets == world.barrier.resets else Decision.BROKEN
    if world.held and rank == 0 and all_came(world):
        return Decision.ACT
    return Decision.WAIT


# What may happen.


def moves(world: World) -> Iterator[tuple[str, World]]:
    """Everything that may happen next, by name; names with a rank in front are that trainer's."""
    for rank, trainer in enumerate(world.trainers):
        for name, after in trainer_moves(world, rank, trainer):
            yield f"{rank} {name}", after
    if world.late:
        yield "late message comes", is_delivered(world._replace(late=None), world.late)
        yield "late message is lost", world._replace(late=None)
    if not world.broken:
        yield "abort", an_abort(world)
    yield "reset", a_reset(world)


def trainer_moves(world: World, rank: int, trainer: Trainer) -> Iterator[tuple[str, World]]:
    place = trainer.place
    if place in (OUT, PAUSED):
        yield from a_message(world, rank, "arrives", INSIDE, SENT if place == OUT else LOST)
    if place == TURN:
        yield from a_message(world, rank, "begins", BEGUN, LOST)
    if place == HAS_ACTED:
        yield from a_message(world, rank, "releases", INSIDE, LOST)
    if place in (INSIDE, SENT, BEGUN):
        yield "looks", a_look(world, rank)
    if place in (INSIDE, SENT):
        yield "times out", world.put(rank, place=PAUSED if place == INSIDE else LOST)
    if place == LOST:
        yield "enters", a_new_life(world, rank).put(rank, place=INSIDE)
    if place == ACTS:
        assert not world.acted, "the action runs a second time in one round"
        # It does not count if a reset has taken the round away meanwhile.
        yield "acts", world.put(rank, place=HAS_ACTED)._replace(acted=world.begun)
        yield "fails", an_abort(world.put(rank, place=OUT))
    if place == DEAD:
        yield "restarts", a_restart(world, rank)
        if rank == 0 and world.barrier.lives[0]:
            yield "restarts otherwise", a_restart(world._replace(held=not world.held), rank)
    elif place != GONE:
        yield "crashes", world.put(rank, place=DEAD, parity=0, resets=0)
    if place in (OUT, PAUSED, LOST, DEAD) and not (world.held and rank == 0):
        after = a_new_life(world, rank) if place == DEAD else world
        yield "is given up" if place == DEAD else "resigns", a_resignation(after, rank)


def a_message(
    world: World, rank: int, name: str, heard: str, unheard: str
) -> Iterator[tuple[str, World]]:
    """It is answered at once, or it comes later or never and its sender waits in vain."""
    message = Message(name, rank, world.trainers[rank].parity)
    yield name, is_delivered(world, message).put(rank, place=heard)
    if not world.late:
        yield f"{name}, unheard", world.put(rank, place=unheard)._replace(late=message)


def is_delivered(world: World, message: Message) -> World:
    name, rank, parity = message
    barrier = world.barrier
    if name == "arrives":
        after = world._replace(barrier=arrive(barrier, rank, LIFE, parity))
        if world.broken or world.trainers[rank].word == OWED or world.trainers[rank].place == GONE:
            return after  # it does not count; or it comes back for its pass
        return if_complete(after.put(rank, word=CAME))
    if name == "begins":
        after = world._replace(barrier=begin_action(barrier, LIFE))
        return after._replace(begun=True) if all_came(world) and not world.broken else after
    after = world._replace(barrier=release(barrier, LIFE))
    if world.broken or not world.begun:
        return after  # aborted or reset while the action ran: there is nothing to release
    assert world.acted, "released without the action"
    return round_is_over(after)


def a_look(world: World, rank: int) -> World:
    trainer = world.trainers[rank]
    decision = decide(world.barrier, rank, LIFE, trainer.parity, trainer.resets)
    assert decision is right_decision(world, rank), f"{rank} is told {decision}"
    if decision is Decision.PASS:
        return world.put(rank, place=OUT, parity=trainer.parity ^ 1, word=NONE)
    if decision is Decision.WAIT:
        return world.put(rank, place=INSIDE, resets=world.barrier.resets)
    if decision is Decision.ACT:
        return world.put(rank, place=ACTS if trainer.place == BEGUN else TURN)
    if trainer.place == SENT:
        return world.put(rank, place=LOST)
    return world.put(rank, place=OUT, word=NONE)  # raises, or sends it again


def a_new_life(world: World, rank: int) -> World:
    """Nothing that its earlier life has sent matters any more; see `check`."""
    late = None if world.late and world.late.rank == rank else world.late
    after = world._replace(barrier=enter(world.barrier, rank, NEW, held=world.held), late=late)
    if rank == 0 and world.begun:
        return after._replace(broken=True)  # nobody knows how far the action came
    return after


def a_restart(world: World, rank: int) -> World:
    """All it knows is what it reads. If it was owed a pass, it goes on as if it had passed."""
    after = a_new_life(world, rank)
    barrier = after.barrier
    return after.put(
        rank,
        place=PAUSED if rank in barrier.waiting else OUT,
        parity=next_parity(barrier),
        resets=barrier.resets,
        word=CAME if world.trainers[rank].word == CAME else NONE,
    )


def a_resignation(world: World, rank: int) -> World:
    life = world.barrier.lives[rank]
    after = world.put(rank, place=GONE, parity=0, resets=0, word=NONE)
    return if_complete(after._replace(barrier=resign(world.barrier, rank, life)))


def an_abort(world: World) -> World:
    return world._replace(barrier=abort(world.barrier), broken=True)


def a_reset(world: World) -> World:
    """Arrivals are taken, passes that are owed are not."""
    trainers = tuple(t._replace(word=ROBBED) if t.word == CAME else t for t in world.trainers)
    return world._replace(
        barrier=reset(world.barrier), trainers=trainers, broken=False, begun=False, acted=False
    )


# The search.


def normal(world: World) -> World:
    """The same world with the lowest numbers, so that there are finitely many.

    Rounds are counted from 0 or 1 on; the resets so far are 1, and those that a trainer knows are
    1 or, if it has missed some, 0; and each life that was entered is LIFE.
    """
    barrier = renumbered(world.barrier)
    if world.barrier.resets > barrier.resets:
        trainers = tuple(trainer._replace(resets=0) for trainer in world.trainers)
        return world._replace(barrier=barrier, trainers=trainers)
    return world._replace(barrier=barrier)


@cache
def renumbered(barrier: Arrivals) -> Arrivals:
    past = barrier.released & ~1
    return replace(
        barrier,
        arrived=tuple(g if g == RESIGNED else g - past for g in barrier.arrived),
        lives=tuple(min(life, LIFE) for life in barrier.lives),
        released=barrier.released - past,
        resets=1,
    )


def check(world: World) -> None:
    barrier = world.barrier
    assert (barrier.broken, barrier.acting) == (world.broken, world.begun)
    for rank, trainer in enumerate(world.trainers):
        arrived, gone = barrier.arrived[rank], trainer.place == GONE
        assert (arrived == RESIGNED) == gone
        assert gone or 0 <= arrived - barrier.released <= 1, "at most one ahead"
        assert world.broken or (rank in barrier.waiting) == (trainer.word == CAME)
    assert is_deaf_to_zombies(barrier)
    if world.late:
        assert world.trainers[world.late.rank].place in (SENT, LOST, DEAD, GONE)


@cache
def is_deaf_to_zombies(barrier: Arrivals) -> bool:
    """Whatever is said with another life changes nothing; nor has it a part in anything."""
    after = {begin_action(barrier, OLD), release(barrier, OLD)}
    decisions = set()
    for rank in TRAINERS:
        after.add(resign(barrier, rank, OLD))
        for parity in (0, 1):
            after.add(arrive(barrier, rank, OLD, parity))
            decisions.add(decide(barrier, rank, OLD, parity, barrier.resets))
    return after == {barrier} and decisions == {Decision.REPLACED}


@cache
def explore(held: bool) -> dict[World, list[tuple[str, World]]]:
    """All reachable worlds, with the moves from each. An assertion tells the shortest way to it."""
    first = normal(start(held))
    came_from: dict[World, tuple[str, World] | None] = {first: None}
    graph = {}
    queue = deque([first])
    while queue:
        world = queue.popleft()
        try:
            check(world)
            graph[world] = [(name, normal(after)) for name, after in moves(world)]
        except AssertionError as error:
            raise AssertionError(f"{error}\nafter {way_to(world, came_from)}\n{world}") from error
        for name, after in graph[world]:
            if after not in came_from:
                came_from[after] = (name, world)
                queue.append(after)
    return graph


def way_to(world: World, came_from: dict[World, tuple[str, World] | None]) -> str:
    steps = []
    while step := came_from[world]:
        name, world = step
        steps.append(name)
    return ", ".join(reversed(steps)) or "nothing"
