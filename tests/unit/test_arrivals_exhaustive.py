"""The barrier's rules under every interleaving of three trainers and their misfortunes.

The search walks through all states of a small world. In the world there are

- the barrier under test, `tfdist.arrivals`;
- three trainers, each of which knows no more than a real one: its parity, and where it stands;
- a referee who sees everything and knows nothing of generations or parities. It keeps one word
  for each trainer: `came` (it has arrived in the present round), `owed` (its round was released,
  so it passes as soon as it looks) or `none`.

At any step anybody may arrive, look, time out, crash, restart, resign, abort or reset. At each
look the referee says what the barrier has to decide. It is so simple that it can be read: all
that is to be proved is that the barrier, which stores numbers only, always agrees with it.

The world is finite without a limit on timeouts, crashes, aborts and resignations; only the rounds
and the resets are counted, since only they make the numbers grow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest

from tfdist import arrivals
from tfdist.arrivals import RESIGNED, Arrivals, Decision

TRAINERS = range(3)
ROUNDS = 2  # nobody begins a third
RESETS = 2

# Where a trainer stands.
OUT = "out"  # of the barrier: it computes
INSIDE = "inside"  # it has arrived, and looks again and again
ACTS = "acts"  # the chief runs its action
HAS_ACTED = "has acted"  # and has not told the barrier yet
DEAD = "dead"
GONE = "gone"  # it has resigned

# What the referee knows of it.
NONE, CAME, OWED = "none", "came", "owed"


class Trainer(NamedTuple):
    place: str = OUT
    parity: int = 1
    word: str = NONE


class World(NamedTuple):
    barrier: Arrivals
    trainers: tuple[Trainer, ...]
    # The rest is known to the referee alone.
    broken: bool = False
    acted: bool = False  # the action ran in the present round
    rounds: int = 0
    resets: int = 0

    def put(self, rank: int, **changes: object) -> World:
        trainer = self.trainers[rank]._replace(**changes)
        return self._replace(trainers=(*self.trainers[:rank], trainer, *self.trainers[rank + 1 :]))


# The transitions under test; there are few different states, so each is computed once.
arrive, decide, next_parity, release, resign, abort, reset = (
    cache(getattr(arrivals, name))
    for name in ("arrive", "decide", "next_parity", "release", "resign", "abort", "reset")
)


def start(held: bool) -> World:
    barrier = Arrivals.start(len(TRAINERS), held=held)
    return World(barrier, tuple(Trainer(parity=next_parity(barrier, r)) for r in TRAINERS))


# The referee.


def all_came(world: World) -> bool:
    expected = [trainer for trainer in world.trainers if trainer.place != GONE]
    return bool(expected) and all(trainer.word == CAME for trainer in expected)


def round_is_over(world: World) -> World:
    """Those that came may pass from now on."""
    assert all_came(world)
    trainers = tuple(t._replace(word=OWED) if t.word == CAME else t for t in world.trainers)
    return world._replace(trainers=trainers, rounds=world.rounds + 1, acted=False)


def after_an_arrival(world: World) -> World:
    """Without an action, the round is over when the last one has come or has resigned."""
    free = not world.barrier.held and not world.broken
    return round_is_over(world) if free and all_came(world) else world


def right_decision(world: World, rank: int) -> Decision:
    word = world.trainers[rank].word
    if word == OWED:
        return Decision.PASS  # also if it was reset or broken since
    if word == NONE or world.broken:
        return Decision.BROKEN  # a reset took its arrival away, or it came when all was broken
    if world.barrier.held and rank == 0 and all_came(world):
        return Decision.ACT
    return Decision.WAIT


# What may happen.


def moves(world: World) -> Iterator[tuple[str, World]]:
    """Everything that may happen next, by name; names with a rank in front are that trainer's."""
    for rank, trainer in enumerate(world.trainers):
        for name, after in trainer_moves(world, rank, trainer):
            yield f"{rank} {name}", after
    if not world.broken:
        yield "abort", world._replace(barrier=abort(world.barrier), broken=True)
    if world.resets < RESETS:
        yield "reset", a_reset(world)


def trainer_moves(world: World, rank: int, trainer: Trainer) -> Iterator[tuple[str, World]]:
    place, parity, word = trainer
    chief_holds = world.barrier.held and rank == 0
    if place == OUT and (world.rounds < ROUNDS or word == OWED):
        yield "arrives", an_arrival(world, rank, parity)
    if place == INSIDE:
        yield "looks", a_look(world, rank, parity)
        yield "times out", world.put(rank, place=OUT)  # keeps its parity
    if place == ACTS:
        assert not world.acted, "the action runs a second time in one round"
        # It does not count if a reset has taken the round away meanwhile.
        yield "runs the action", world.put(rank, place=HAS_ACTED)._replace(acted=word == CAME)
    if place == HAS_ACTED:
        yield "releases", a_release(world, rank)
    if place == DEAD:
        # All it knows is what it reads. If it was owed a pass, it goes on as if it had passed.
        word = NONE if word == OWED else word
        parity = next_parity(world.barrier, rank)
        yield "restarts", world.put(rank, place=OUT, parity=parity, word=word)
    elif place != GONE:
        # An action cannot be taken back: a chief that dies before it tells repeats it.
        acted = world.acted and place != HAS_ACTED
        yield "crashes", world.put(rank, place=DEAD, parity=0)._replace(acted=acted)
    if place in (OUT, DEAD) and not chief_holds:  # who runs the action may not resign
        after = world.put(rank, place=GONE, parity=0, word=NONE)
        after = after_an_arrival(after._replace(barrier=resign(world.barrier, rank)))
        yield "is given up" if place == DEAD else "resigns", after


def an_arrival(world: World, rank: int, parity: int) -> World:
    after = world.put(rank, place=INSIDE)._replace(barrier=arrive(world.barrier, rank, parity))
    if world.broken or world.trainers[rank].word == OWED:
        return after  # at a broken barrier it does not count; or it comes back for its pass
    return after_an_arrival(after.put(rank, word=CAME))


def a_look(world: World, rank: int, parity: int) -> World:
    decision = decide(world.barrier, rank, parity)
    assert decision is right_decision(world, rank)
    if decision is Decision.PASS:
        return world.put(rank, place=OUT, parity=parity ^ 1, word=NONE)
    if decision is Decision.BROKEN:
        return world.put(rank, place=OUT)  # raises, and keeps its parity
    if decision is Decision.ACT:
        return world.put(rank, place=ACTS)
    return world


def a_release(world: World, rank: int) -> World:
    after = world.put(rank, place=INSIDE)._replace(barrier=release(world.barrier))
    if world.broken or not all_came(world):
        return after  # aborted or reset while the action ran: there is nothing to release
    assert world.acted
    return round_is_over(after)


def a_reset(world: World) -> World:
    """Arrivals are forgotten, passes that are owed are not."""
    trainers = tuple(t._replace(word=NONE) if t.word == CAME else t for t in world.trainers)
    return world._replace(
        barrier=reset(world.barrier),
        trainers=trainers,
        broken=False,
        acted=False,
        resets=world.resets + 1,
    )


# The search.


def check(world: World) -> None:
    barrier = world.barrier
    for rank, trainer in enumerate(world.trainers):
        assert (barrier.arrived[rank] == RESIGNED) == (trainer.place == GONE)
        assert (rank in barrier.waiting) == (trainer.word == CAME), "an arrival counts once"
        if trainer.place != GONE:
            assert 0 <= barrier.arrived[rank] - barrier.released <= 1, "at most one ahead"
    assert barrier.broken == world.broken


@cache
def explore(held: bool) -> dict[World, list[tuple[str, World]]]:
    """All reachable worlds, with the moves from each. An assertion tells the shortest way to it."""
    first = start(held)
    came_from: dict[World, tuple[str, World] | None] = {first: None}
    graph = {}
    queue = deque([first])
    while queue:
        world = queue.popleft()
        try:
            check(world)
            graph[world] = list(moves(world))
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


# The promises.

both = pytest.mark.parametrize("held", [False, True], ids=["no action", "action"])


@both
def test_nobody_passes_too_early_or_is_held_back_in_any_interleaving(held):
    explore(held)


@both
@pytest.mark.parametrize("dead", ["restarts", "is given up"])
def test_from_everywhere_all_get_through_or_get_an_error_if_only_they_go_on(held, dead):
    stuck = worlds_without_a_way_out(explore(held), {*GOING_ON, f"1 {dead}", f"2 {dead}"})
    assert not stuck, f"{len(stuck)} dead ends, such as {min(stuck, key=str)}"


@both
def test_the_search_has_met_every_situation(held):
    graph = explore(held)
    places = {trainer.place for world in graph for trainer in world.trainers}
    names = {name.lstrip("012 ") for edges in graph.values() for name, _ in edges}
    usual = {"arrives", "looks", "times out", "crashes", "restarts", "resigns", "is given up"}
    action = {"runs the action", "releases"} if held else set()
    assert names == usual | action | {"abort", "reset"}
    assert places == {OUT, INSIDE, DEAD, GONE} | ({ACTS, HAS_ACTED} if held else set())
    assert {(world.rounds, world.resets) for world in graph} == {
        (rounds, resets) for rounds in range(ROUNDS + 1) for resets in range(RESETS + 1)
    }


# What a trainer does that does as it should. A dead chief comes back: who else runs the action?
GOING_ON = {
    f"{rank} {move}"
    for rank in TRAINERS
    for move in ("arrives", "looks", "runs the action", "releases")
} | {"0 restarts"}


def worlds_without_a_way_out(
    graph: dict[World, list[tuple[str, World]]], going_on: set[str]
) -> set[World]:
    """Worlds from which these moves do not lead to an end.

    If there is none, no order of the moves is a trap: wherever one leads, an end is still ahead.
    """
    before: dict[World, list[World]] = {}
    for world, edges in graph.items():
        for name, after in edges:
            if name in going_on:
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
    """All have passed all rounds; or nobody is in a wait and all is broken, or all are gone."""
    places = {trainer.place for trainer in world.trainers}
    owed = any(trainer.word == OWED for trainer in world.trainers)
    ended = world.rounds == ROUNDS or world.broken or places == {GONE}
    return ended and not owed and places <= {OUT, GONE}
