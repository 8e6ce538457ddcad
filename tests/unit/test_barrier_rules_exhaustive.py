"""The barrier's rules under every interleaving of trainers and faults.

The search reaches all states of a small world. A world has

- the barrier under test, `tfdist.barrier.rules`;
- trainers, which know only what a real one knows: the parity, the number of resets, and their own
  place in the protocol below;
- at most one message on its way, which arrives at any moment or never;
- a referee that sees everything, but no generations, parities or incarnations. It keeps one word
  for each trainer: `came` (it counts in the present round), `owed` (its round was released, so it
  passes at its next look), `robbed` (a reset took its arrival) or `none`.

At any step any trainer may proceed, time out, crash, resign, abort, reset, or get no answer. At
each look the referee computes the right decision. Its rules are simple enough to check by reading;
the search proves that the barrier, which stores numbers only, always agrees with them.

Generations, resets and incarnations are not limited, because worlds that differ only in their
numbering are the same (see `normal`). Faults are limited: 2 on the way to any world of three
trainers, 3 with two trainers. After them all trainers may proceed without faults for ever.

The protocol: a trainer sends its arrival and looks.

- If it got no answer, its message may still arrive. That possibility ends with a look that finds
  it arrived, provided that it had not arrived before; or with a new incarnation. So after ARRIVE or
  BROKEN it enters with a new incarnation, keeps its parity and the resets that it knows, and looks
  again.
- On ARRIVE it sends its arrival again. On WAIT it must not, for there may have been a reset in
  between. On ACT it sends that it begins, looks, and acts if the decision is ACT again.
- It records the number of resets when its process starts, and at each WAIT.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest

from tfdist.barrier import rules as arrivals
from tfdist.barrier.rules import RESIGNED, Arrivals, Decision

INCARNATION, NEW, OLD = 1, 2, 3  # of each trainer: the present, the entering, any other one

# The places of a trainer in the protocol.
OUT = "out"  # outside the barrier: it computes
PAUSED = "paused"  # the same, but its wait timed out; the next one continues it
INSIDE = "inside"  # it looks repeatedly, and none of its messages is on its way
SENT = "sent"  # the same, but its arrival may be on its way
LOST = "lost"  # one of its messages may be on its way, so it takes a new incarnation
RENEWED = "renewed"  # it has taken one
TURN = "turn"  # the chief has got the decision ACT
BEGUN = "begun"  # it has sent that it begins
ACTS = "acts"
HAS_ACTED = "has acted"  # but has not released the others yet
DEAD = "dead"
GONE = "gone"  # it has resigned

# The words of the referee.
NONE, CAME, OWED, ROBBED = "none", "came", "owed", "robbed"


class Trainer(NamedTuple):
    place: str = DEAD
    parity: int = 0
    resets: int = 0
    word: str = NONE


class World(NamedTuple):
    barrier: Arrivals
    trainers: tuple[Trainer, ...]
    late: tuple[str, int, int] | None = None  # a message on its way: its name, rank and parity
    has_action: bool = False  # the chief has an action
    # The rest is known only to the referee.
    broken: bool = False
    begun: bool = False  # the action was begun in the present round
    acted: bool = False  # the action has run

    def put(self, rank: int, **changes: object) -> World:
        trainer = self.trainers[rank]._replace(**changes)
        return self._replace(trainers=(*self.trainers[:rank], trainer, *self.trainers[rank + 1 :]))


# The transitions under test. There are few different states, so each is computed once.
enter, arrive, begin_action, release, resign, abort, reset, decide, next_parity = (
    cache(getattr(arrivals, name))
    for name in (
        *("enter", "arrive", "begin_action", "release", "resign", "abort", "reset"),
        *("decide", "next_parity"),
    )
)


def start(has_action: bool, size: int) -> World:
    return World(Arrivals.start(size), (Trainer(),) * size, has_action=has_action)


# The referee.


def all_came(world: World) -> bool:
    expected = [trainer for trainer in world.trainers if trainer.place != GONE]
    return bool(expected) and all(trainer.word == CAME for trainer in expected)


def round_is_over(world: World) -> World:
    """Trainers that came may pass from now on."""
    assert all_came(world)
    trainers = tuple(t._replace(word=OWED) if t.word == CAME else t for t in world.trainers)
    return world._replace(trainers=trainers, begun=False, acted=False)


def if_complete(world: World) -> World:
    """Without an action, the round is over when the last trainer has come or resigned."""
    free = not world.has_action and not world.broken
    return round_is_over(world) if free and all_came(world) else world


def right_decision(world: World, rank: int) -> Decision:
    trainer = world.trainers[rank]
    if trainer.word == OWED:
        return Decision.PASS  # also if the barrier was reset or broken since
    if trainer.word == ROBBED or world.broken:
        return Decision.BROKEN
    if trainer.word == NONE:  # its arrival was lost; a reset that it missed looks the same
        return Decision.ARRIVE if trainer.resets == world.barrier.resets else Decision.BROKEN
    if world.has_action and rank == 0 and all_came(world):
        return Decision.ACT
    return Decision.WAIT


# What may happen. A name that begins with a rank is that trainer's step.


def steps(world: World) -> Iterator[tuple[str, World]]:
    """The steps without faults, and what a late message does."""
    for rank, trainer in enumerate(world.trainers):
        place = trainer.place
        if place in (OUT, PAUSED):
            yield f"{rank} arrives", is_delivered(world, "arrives", rank).put(rank, place=INSIDE)
        if place in (INSIDE, SENT, RENEWED, BEGUN):
            yield f"{rank} looks", a_look(world, rank)
        if place == LOST:
            yield f"{rank} enters", a_new_incarnation(world, rank).put(rank, place=RENEWED)
        if place == TURN:
            yield f"{rank} begins", is_delivered(world, "begins", rank).put(rank, place=BEGUN)
        if place == ACTS:
            assert not world.acted, "the action runs a second time in one round"
            # It does not count if a reset has ended the round meanwhile.
            yield f"{rank} acts", world.put(rank, place=HAS_ACTED)._replace(acted=world.begun)
        if place == HAS_ACTED:
            yield f"{rank} releases", is_delivered(world, "releases", rank).put(rank, place=INSIDE)
        if place == DEAD:
            yield f"{rank} restarts", a_restart(world, rank)
            if may_resign(world, rank):
                yield f"{rank} is given up", a_resignation(a_new_incarnation(world, rank), rank)
    if world.late:
        yield "a message arrives late", is_delivered(world._replace(late=None), *world.late)
        yield "a message is lost", world._replace(late=None)


def faults(world: World) -> Iterator[tuple[str, World]]:
    for rank, trainer in enumerate(world.trainers):
        place = trainer.place
        if place in UNHEARD and not world.late:
            name, then = UNHEARD[place]
            after = world.put(rank, place=then)
            yield f"{rank} {name}, unheard", after._replace(late=(name, rank, trainer.parity))
        if place in (INSIDE, SENT):
            yield f"{rank} times out", world.put(rank, place=PAUSED if place == INSIDE else LOST)
        if place == ACTS:
            yield f"{rank} fails", an_abort(world.put(rank, place=OUT))
        if place not in (DEAD, GONE):
            word = NONE if trainer.word == ROBBED else trainer.word  # no process left to notice
            yield f"{rank} crashes", world.put(rank, place=DEAD, parity=0, resets=0, word=word)
        if place in (OUT, PAUSED, LOST) and may_resign(world, rank):
            yield f"{rank} resigns", a_resignation(world, rank)
        # If it had arrived, all may have arrived, and they wait until it arrives again.
        if place == DEAD and rank == 0 and len(world.trainers) == 2:
            other = a_restart(world._replace(has_action=not world.has_action), rank)
            yield "0 restarts with an action or without, unlike before", other
    if not world.broken:
        yield "abort", an_abort(world)
    yield "reset", a_reset(world)


# By place: a message that gets no answer, and the sender's place afterwards. A trainer that was
# `PAUSED` had arrived before, so no look shows whether this message has arrived.
UNHEARD = {
    OUT: ("arrives", SENT),
    PAUSED: ("arrives", LOST),
    TURN: ("begins", LOST),
    HAS_ACTED: ("releases", LOST),
}


def may_resign(world: World, rank: int) -> bool:
    return rank != 0 or not world.has_action


def is_delivered(world: World, name: str, rank: int, parity: int | None = None) -> World:
    trainer, barrier = world.trainers[rank], world.barrier
    if name == "arrives":
        parity = trainer.parity if parity is None else parity
        after = world._replace(barrier=arrive(barrier, rank, INCARNATION, parity))
        if world.broken or trainer.word == OWED or trainer.place == GONE:
            assert after == world  # it does not count, or repeats an arrival that was released
            return world
        return if_complete(after.put(rank, word=CAME))
    if name == "begins":
        after = world._replace(barrier=begin_action(barrier, INCARNATION))
        return after._replace(begun=True) if all_came(world) and not world.broken else after
    after = world._replace(barrier=release(barrier, INCARNATION))
    if world.broken or not world.begun:
        return after  # aborted or reset while the action ran: there is nothing to release
    assert world.acted, "released without the action"
    return round_is_over(after)


def a_look(world: World, rank: int) -> World:
    trainer = world.trainers[rank]
    decision = decide(world.barrier, rank, INCARNATION, trainer.parity, trainer.resets)
    assert decision is right_decision(world, rank), f"{rank} gets {decision}"
    if decision is Decision.PASS:
        return world.put(rank, place=OUT, parity=trainer.parity ^ 1, word=NONE)
    if decision is Decision.WAIT:
        return world.put(rank, place=INSIDE, resets=world.barrier.resets)
    if decision is Decision.ACT:
        return world.put(rank, place=ACTS if trainer.place == BEGUN else TURN)
    if trainer.place == SENT:
        return world.put(rank, place=LOST)
    return world.put(rank, place=OUT, word=NONE)  # raises, or sends its arrival again


def a_new_incarnation(world: World, rank: int) -> World:
    """No message of its earlier incarnation has an effect any more; see `check`."""
    late = None if world.late and world.late[1] == rank else world.late
    after = world._replace(
        barrier=enter(world.barrier, rank, NEW, has_action=rank == 0 and world.has_action),
        late=late,
    )
    if rank == 0 and world.begun:
        after = after._replace(broken=True)  # it is unknown how much of the action was done
    # If a chief restarts without its action, the others no longer wait for that.
    return if_complete(after) if rank == 0 else after


def a_restart(world: World, rank: int) -> World:
    """It knows only what it reads. If it was owed a pass, it continues as if it had passed."""
    after = a_new_incarnation(world, rank)
    barrier = after.barrier
    return after.put(
        rank,
        place=PAUSED if rank in barrier.waiting else OUT,
        parity=next_parity(barrier),
        resets=barrier.resets,
        word=CAME if after.trainers[rank].word == CAME else NONE,
    )


def a_resignation(world: World, rank: int) -> World:
    incarnation = world.barrier.incarnations[rank]
    after = world.put(rank, place=GONE, parity=0, resets=0, word=NONE)
    return if_complete(after._replace(barrier=resign(world.barrier, rank, incarnation)))


def an_abort(world: World) -> World:
    return world._replace(barrier=abort(world.barrier), broken=True)


def a_reset(world: World) -> World:
    """It takes arrivals, but no passes that are owed."""
    trainers = tuple(t._replace(word=ROBBED) if t.word == CAME else t for t in world.trainers)
    return world._replace(
        barrier=reset(world.barrier), trainers=trainers, broken=False, begun=False, acted=False
    )


# The search.


def normal(world: World) -> World:
    """The same world with the lowest numbers, so that there are finitely many.

    Rounds count from 0 or 1. The number of resets is 1; a trainer knows 1, or 0 if it missed some.
    Each incarnation that has entered is INCARNATION. The workers are interchangeable.
    """
    barrier = renumbered(world.barrier)
    if world.barrier.resets > barrier.resets:
        trainers = tuple(trainer._replace(resets=0) for trainer in world.trainers)
        world = world._replace(trainers=trainers)
    if barrier is not world.barrier:
        world = world._replace(barrier=barrier)
    if len(world.trainers) == 3 and everything_about(world, 1) > everything_about(world, 2):
        return exchanged(world)
    return world


def everything_about(world: World, rank: int) -> tuple[object, ...]:
    barrier, late = world.barrier, world.late or ("", 0, 0)
    return world.trainers[rank], barrier.arrived[rank], barrier.incarnations[rank], late[1] == rank


def exchanged(world: World) -> World:
    def swap(values: tuple) -> tuple:
        return values[0], values[2], values[1]

    barrier, late = world.barrier, world.late
    return world._replace(
        barrier=replace(
            barrier, arrived=swap(barrier.arrived), incarnations=swap(barrier.incarnations)
        ),
        trainers=swap(world.trainers),
        late=late and (late[0], (0, 2, 1)[late[1]], late[2]),
    )


@cache
def renumbered(barrier: Arrivals) -> Arrivals:
    past = barrier.released & ~1
    if not past and barrier.resets == 1 and max(barrier.incarnations) <= INCARNATION:
        return barrier
    return replace(
        barrier,
        arrived=tuple(g if g == RESIGNED else g - past for g in barrier.arrived),
        incarnations=tuple(min(incarnation, INCARNATION) for incarnation in barrier.incarnations),
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
    assert ignores_other_incarnations(barrier)
    if world.late:
        assert world.trainers[world.late[1]].place in (SENT, LOST, DEAD, GONE)


@cache
def ignores_other_incarnations(barrier: Arrivals) -> bool:
    """Messages with another incarnation change nothing, and it only gets REPLACED."""
    after = {begin_action(barrier, OLD), release(barrier, OLD)}
    decisions = set()
    for rank in range(len(barrier.arrived)):
        after.add(resign(barrier, rank, OLD))
        for parity in (0, 1):
            after.add(arrive(barrier, rank, OLD, parity))
            decisions.add(decide(barrier, rank, OLD, parity, barrier.resets))
    return after == {barrier} and decisions == {Decision.REPLACED}


Graph = dict[World, list[tuple[str, World]]]


@cache
def explore(has_action: bool, size: int, limit: int) -> Graph:
    """All worlds that at most `limit` faults lead to, with the steps from each."""
    first = normal(start(has_action, size))
    fewest = {first: 0}
    came_from: dict[World, tuple[str, World] | None] = {first: None}
    graph: Graph = {}
    queue = deque([first])  # by the number of faults
    while queue:
        world = queue.popleft()
        if world in graph:
            continue
        number = fewest[world]
        try:
            check(world)
            graph[world] = [(name, normal(after)) for name, after in steps(world)]
            for name, after in graph[world]:
                if fewest.get(after, limit + 1) > number:
                    fewest[after], came_from[after] = number, (name, world)
                    queue.appendleft(after)
            if number == limit:
                continue
            for name, after in faults(world):
                other = normal(after)
                if fewest.get(other, limit + 1) > number + 1:
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


# The promises.

everywhere = pytest.mark.parametrize("size", [2, 3])
both = pytest.mark.parametrize("has_action", [False, True], ids=["no action", "action"])
MOST_FAULTS = {2: 3, 3: 2}


@pytest.fixture(autouse=True)
def _no_garbage():
    """Garbage collection would take a third of the time."""
    gc.disable()
    yield
    gc.enable()


@everywhere
@both
def test_in_every_interleaving_the_barrier_agrees_with_the_referee(has_action, size):
    explore(has_action, size, MOST_FAULTS[size])


@everywhere
@both
@pytest.mark.parametrize("dead", ["restarts", "is given up"])
def test_from_every_state_all_trainers_pass_or_get_an_error_if_they_proceed(has_action, size, dead):
    graph = explore(has_action, size, MOST_FAULTS[size])
    # A dead chief always restarts, since no other trainer runs the action.
    other = {"restarts", "is given up"} - {dead}
    stuck = worlds_without_a_way_out(graph, {f"{rank} {name}" for rank in (1, 2) for name in other})
    assert not stuck, f"{len(stuck)} dead ends, such as {min(stuck, key=str)}"


@everywhere
@both
def test_the_search_has_met_every_situation(has_action, size):
    graph = explore(has_action, size, MOST_FAULTS[size])
    steps = {name.lstrip("012 ") for edges in graph.values() for name, _ in edges}
    places = {trainer.place for world in graph for trainer in world.trainers}
    words = {trainer.word for world in graph for trainer in world.trainers}
    late = {world.late[0] for world in graph if world.late}
    action = {"begins", "acts", "releases"} if has_action or size == 2 else set()
    always = {"arrives", "looks", "enters", "restarts", "is given up"}
    assert steps == always | action | {"a message arrives late", "a message is lost"}
    assert places == {OUT, PAUSED, INSIDE, SENT, LOST, RENEWED, DEAD, GONE} | (
        {TURN, BEGUN, ACTS, HAS_ACTED} if action else set()
    )
    assert words == {NONE, CAME, OWED, ROBBED}
    assert late == {"arrives"} | (action & {"begins", "releases"})


def worlds_without_a_way_out(graph: Graph, not_taken: set[str]) -> set[World]:
    """Worlds from which no sequence of steps leads to an end.

    If there is none, no order of steps is a trap: an end can still be reached from every world.
    """
    before: dict[World, list[World]] = {}
    for world, edges in graph.items():
        for name, after in edges:
            if name not in not_taken:
                before.setdefault(after, []).append(world)
    safe = {world for world in graph if is_over(world)}
    queue = deque(safe)
    while queue:
        for world in before.get(queue.popleft(), ()):
            if world not in safe:
                safe.add(world)
                queue.append(world)
    return graph.keys() - safe


def is_over(world: World) -> bool:
    """No trainer waits, is owed a pass, or depends on a message or a new incarnation."""
    words = {trainer.word for trainer in world.trainers}
    places = {trainer.place for trainer in world.trainers}
    return places <= {OUT, GONE} and OWED not in words and (world.broken or CAME not in words)
