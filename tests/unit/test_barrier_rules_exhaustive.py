"""The barrier's rules under every interleaving of the trainers and their misfortunes.

The search walks through all states of a small world. In the world there are

- the barrier under test, `tfdist.barrier.rules`;
- trainers, each of which knows no more than a real one: its parity, the resets, and where it
  stands. They keep the protocol below;
- at most one message that is on its way, and comes at any moment or never;
- a referee who sees everything and knows nothing of generations, parities or incarnations. It keeps
  one word for each trainer: `came` (it counts in the present round), `owed` (its round was
  released, so it passes as soon as it looks), `robbed` (a reset took its arrival) or `none`.

At any step anybody may go on, time out, crash, resign, abort or reset, or may get no answer. At
each look the referee says what the barrier has to decide. It is so simple that it can be read: all
that is to be proved is that the barrier, which stores numbers only, always agrees with it.

Generations, resets and incarnations are not limited, for worlds in which only the numbering differs
are one (see `normal`). The misfortunes are: 2 on the way to any world of three trainers, after
which all may get well again and go on for ever, and 3 with two trainers.

The protocol. A trainer sends its arrival and looks.

- If it had no answer, its message may come yet. When that is over is told by a look that finds it
  arrived, provided that it had not arrived before; or by a new incarnation. So ARRIVE and BROKEN
  are not
  final before it has entered with a new incarnation, keeping its parity and the resets that it
  knows,
  and has looked again.
- On ARRIVE it sends its arrival again; on WAIT it must not, for a reset may have come in between.
  On ACT it says that it begins, looks, and acts if it is told ACT once more.
- It takes note of the resets when its process starts, and at each WAIT.
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

INCARNATION, NEW, OLD = 1, 2, 3  # of each trainer: the present one, the one that enters, any other

# Where a trainer stands.
OUT = "out"  # of the barrier: it computes
PAUSED = "paused"  # the same, but its wait timed out; the next one goes on with it
INSIDE = "inside"  # it looks again and again, and none of its messages is on its way
SENT = "sent"  # the same, but its arrival may yet come
LOST = "lost"  # one of its messages may yet come, so it goes on with a new incarnation
RENEWED = "renewed"  # and has taken one
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


class World(NamedTuple):
    barrier: Arrivals
    trainers: tuple[Trainer, ...]
    late: tuple[str, int, int] | None = None  # a message on its way: its name, rank and parity
    has_action: bool = False  # the chief has an action
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


def start(has_action: bool, size: int) -> World:
    return World(Arrivals.start(size), (Trainer(),) * size, has_action=has_action)


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
    free = not world.has_action and not world.broken
    return round_is_over(world) if free and all_came(world) else world


def right_decision(world: World, rank: int) -> Decision:
    trainer = world.trainers[rank]
    if trainer.word == OWED:
        return Decision.PASS  # also if it was reset or broken since
    if trainer.word == ROBBED or world.broken:
        return Decision.BROKEN
    if trainer.word == NONE:  # its arrival was lost; it cannot tell that from a reset it missed
        return Decision.ARRIVE if trainer.resets == world.barrier.resets else Decision.BROKEN
    if world.has_action and rank == 0 and all_came(world):
        return Decision.ACT
    return Decision.WAIT


# What may happen. Names with a rank in front are that trainer's.


def steps(world: World) -> Iterator[tuple[str, World]]:
    """What those do that do as they should, and what a late message does."""
    for rank, trainer in enumerate(world.trainers):
        place = trainer.place
        if place in (OUT, PAUSED):
            yield f"{rank} arrives", is_delivered(world, "arrives", rank).put(rank, place=INSIDE)
        if place in (INSIDE, SENT, RENEWED, BEGUN):
            yield f"{rank} looks", a_look(world, rank)
        if place == LOST:
            yield f"{rank} enters", a_new_life(world, rank).put(rank, place=RENEWED)
        if place == TURN:
            yield f"{rank} begins", is_delivered(world, "begins", rank).put(rank, place=BEGUN)
        if place == ACTS:
            assert not world.acted, "the action runs a second time in one round"
            # It does not count if a reset has taken the round away meanwhile.
            yield f"{rank} acts", world.put(rank, place=HAS_ACTED)._replace(acted=world.begun)
        if place == HAS_ACTED:
            yield f"{rank} releases", is_delivered(world, "releases", rank).put(rank, place=INSIDE)
        if place == DEAD:
            yield f"{rank} restarts", a_restart(world, rank)
            if may_resign(world, rank):
                yield f"{rank} is given up", a_resignation(a_new_life(world, rank), rank)
    if world.late:
        yield "a message comes late", is_delivered(world._replace(late=None), *world.late)
        yield "a message is lost", world._replace(late=None)


def misfortunes(world: World) -> Iterator[tuple[str, World]]:
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
            word = NONE if trainer.word == ROBBED else trainer.word  # nobody is left to be told
            yield f"{rank} crashes", world.put(rank, place=DEAD, parity=0, resets=0, word=word)
        if place in (OUT, PAUSED, LOST) and may_resign(world, rank):
            yield f"{rank} resigns", a_resignation(world, rank)
        # Had it arrived, all could be there and nobody would release them until it arrives again.
        if place == DEAD and rank == 0 and len(world.trainers) == 2:
            other = a_restart(world._replace(has_action=not world.has_action), rank)
            yield "0 restarts with an action or without, unlike before", other
    if not world.broken:
        yield "abort", an_abort(world)
    yield "reset", a_reset(world)


# A message that is not answered, and where its sender stands then. One that was `PAUSED` arrived
# before, so for it no look can tell whether this message has come.
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
            assert after == world  # it does not count; or it comes back for its pass
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
    """Nothing that its earlier incarnation has sent matters any more; see `check`."""
    late = None if world.late and world.late[1] == rank else world.late
    after = world._replace(
        barrier=enter(world.barrier, rank, NEW, has_action=rank == 0 and world.has_action),
        late=late,
    )
    if rank == 0 and world.begun:
        after = after._replace(broken=True)  # nobody knows how far the action came
    # A chief that comes back without its action holds nobody any more.
    return if_complete(after) if rank == 0 else after


def a_restart(world: World, rank: int) -> World:
    """All it knows is what it reads. If it was owed a pass, it goes on as if it had passed."""
    after = a_new_life(world, rank)
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
    """Arrivals are taken, passes that are owed are not."""
    trainers = tuple(t._replace(word=ROBBED) if t.word == CAME else t for t in world.trainers)
    return world._replace(
        barrier=reset(world.barrier), trainers=trainers, broken=False, begun=False, acted=False
    )


# The search.


def normal(world: World) -> World:
    """The same world with the lowest numbers, so that there are finitely many.

    Rounds are counted from 0 or 1 on; the resets so far are 1, and those that a trainer knows are
    1 or, if it has missed some, 0; and each incarnation that was entered is INCARNATION. The
    workers are alike,
    so that it does not matter which of them is which.
    """
    barrier = renumbered(world.barrier)
    if world.barrier.resets > barrier.resets:
        trainers = tuple(trainer._replace(resets=0) for trainer in world.trainers)
        world = world._replace(trainers=trainers)
    if barrier is not world.barrier:
        world = world._replace(barrier=barrier)
    if len(world.trainers) == 3 and everything_of(world, 1) > everything_of(world, 2):
        return exchanged(world)
    return world


def everything_of(world: World, rank: int) -> tuple[object, ...]:
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
    assert is_deaf_to_zombies(barrier)
    if world.late:
        assert world.trainers[world.late[1]].place in (SENT, LOST, DEAD, GONE)


@cache
def is_deaf_to_zombies(barrier: Arrivals) -> bool:
    """Whatever is said with another incarnation changes nothing; nor has it a part in anything."""
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
    """All worlds that are reached by at most `limit` misfortunes, with the steps from each."""
    first = normal(start(has_action, size))
    fewest = {first: 0}
    came_from: dict[World, tuple[str, World] | None] = {first: None}
    graph: Graph = {}
    queue = deque([first])  # by the number of misfortunes
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
            for name, after in misfortunes(world):
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
MISFORTUNES = {2: 3, 3: 2}


@pytest.fixture(autouse=True)
def _no_garbage():
    """A third of the time would go into looking for it."""
    gc.disable()
    yield
    gc.enable()


@everywhere
@both
def test_nobody_passes_too_early_or_is_held_back_in_any_interleaving(has_action, size):
    explore(has_action, size, MISFORTUNES[size])


@everywhere
@both
@pytest.mark.parametrize("dead", ["restarts", "is given up"])
def test_from_everywhere_all_get_through_or_get_an_error_if_only_they_go_on(has_action, size, dead):
    graph = explore(has_action, size, MISFORTUNES[size])
    # A dead chief comes back: who else runs the action?
    other = {"restarts", "is given up"} - {dead}
    stuck = worlds_without_a_way_out(graph, {f"{rank} {name}" for rank in (1, 2) for name in other})
    assert not stuck, f"{len(stuck)} dead ends, such as {min(stuck, key=str)}"


@everywhere
@both
def test_the_search_has_met_every_situation(has_action, size):
    graph = explore(has_action, size, MISFORTUNES[size])
    steps = {name.lstrip("012 ") for edges in graph.values() for name, _ in edges}
    places = {trainer.place for world in graph for trainer in world.trainers}
    words = {trainer.word for world in graph for trainer in world.trainers}
    late = {world.late[0] for world in graph if world.late}
    action = {"begins", "acts", "releases"} if has_action or size == 2 else set()
    always = {"arrives", "looks", "enters", "restarts", "is given up"}
    assert steps == always | action | {"a message comes late", "a message is lost"}
    assert places == {OUT, PAUSED, INSIDE, SENT, LOST, RENEWED, DEAD, GONE} | (
        {TURN, BEGUN, ACTS, HAS_ACTED} if action else set()
    )
    assert words == {NONE, CAME, OWED, ROBBED}
    assert late == {"arrives"} | (action & {"begins", "releases"})


def worlds_without_a_way_out(graph: Graph, not_taken: set[str]) -> set[World]:
    """Worlds from which the steps do not lead to an end.

    If there is none, no order of the steps is a trap: wherever one leads, an end is still ahead.
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
    """Nobody is in a wait or owed a pass; and nobody's next wait hangs on a message or a
    incarnation."""
    words = {trainer.word for trainer in world.trainers}
    places = {trainer.place for trainer in world.trainers}
    return places <= {OUT, GONE} and OWED not in words and (world.broken or CAME not in words)
