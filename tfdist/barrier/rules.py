"""The rules of the barrier, without a network: who arrived in which generation, who may go on.

`tfdist.barrier` keeps this state on a ps, as one vector of whole numbers, and runs the same
transitions there under a lock. What matters is decided here, so that it can be tested under
every interleaving.

The state is the truth, messages are only wake-ups: a trainer that was woken in vain, or not
woken at all, reads the state and `decide`s anew. So a lost message costs time, never correctness.

**Generations** count up from 1; generation 0 counts as released from the start. A trainer does
not send the number of the generation it arrives in but its parity, so that nothing has to be fed
(a feed costs as much again as the whole call). Parity is enough, since a trainer is at most one
generation ahead of the released one.

**Lives**: with parity alone, a message that was sent by a process since killed, or given up on
since, could count in a later generation. So each message carries the number of the sender's
incarnation, and the state knows the one incarnation of each trainer that may speak.

**Reset** jumps ahead by two generations: the parity of those that do not wait stays right, and a
waiting trainer finds its arrival replaced by one of the other parity, which is how it learns that
its generation will never be released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

# Ahead of every generation, so that nobody waits for a trainer that has resigned.
RESIGNED = 2**62


class Decision(Enum):
    """What a trainer that waits does next."""

    WAIT = auto()
    PASS = auto()
    BROKEN = auto()
    ACT = auto()
    """All are there, and it is the chief's turn to run the action and to release them."""
    ARRIVE = auto()
    """It has not arrived yet. If it had sent its arrival it renews its incarnation first, lest the
    old
    message come yet, and decides anew."""
    REPLACED = auto()
    """Another process has taken its place."""


@dataclass(frozen=True)
class Arrivals:
    """Everything the barrier knows.

    Attributes:
        arrived: by rank, the last generation in which the trainer arrived, or RESIGNED.
        incarnations: by rank, the incarnation that may speak for the trainer; 0 before the first.
        released: the last generation that was released.
        has_action: whether the chief has an action: then it releases, not the last to arrive.
        acting: whether the chief has begun the action of the present generation.
        broken: whether the barrier is broken.
        resets: how often it was reset.
    """

    arrived: tuple[int, ...]
    incarnations: tuple[int, ...]
    released: int = 0
    has_action: bool = False
    acting: bool = False
    broken: bool = False
    resets: int = 0

    @classmethod
    def start(cls, parties: int) -> Arrivals:
        """The state before anybody came."""
        return cls(arrived=(0,) * parties, incarnations=(0,) * parties)

    @property
    def generation(self) -> int:
        """The generation that is being waited for."""
        return self.released + 1

    @property
    def full(self) -> bool:
        """Whether everybody who is still expected has arrived in the present generation."""
        return self.generation <= min(self.arrived) < RESIGNED

    @property
    def waiting(self) -> tuple[int, ...]:
        """Ranks that have arrived in the present generation."""
        return tuple(
            rank
            for rank, generation in enumerate(self.arrived)
            if self.generation <= generation < RESIGNED
        )

    @property
    def missing(self) -> tuple[int, ...]:
        """Ranks that have not, and have not resigned."""
        return tuple(
            rank for rank, generation in enumerate(self.arrived) if generation < self.generation
        )


def enter(state: Arrivals, rank: int, incarnation: int, *, has_action: bool = False) -> Arrivals:
    """A new incarnation of trainer `rank` takes over; messages of earlier ones have no effect.

    A chief says whether it has an action. If it died within one, nobody can know how far that
    came, so the barrier breaks.
    """
    state = replace(state, incarnations=_with(state.incarnations, rank, incarnation))
    if rank != 0:
        return state
    return _settled(replace(state, has_action=has_action, broken=state.broken or state.acting))


def renew(state: Arrivals, rank: int, incarnation: int, previous: int) -> Arrivals:
    """The same trainer goes on with a new incarnation, unless another process has taken its place.

    For a trainer that does not know what has become of a message that it has sent.
    """
    if state.incarnations[rank] != previous:
        return state
    return replace(state, incarnations=_with(state.incarnations, rank, incarnation))


def arrive(state: Arrivals, rank: int, incarnation: int, parity: int) -> Arrivals:
    """Trainer `rank` arrives in the present generation, if it has that parity.

    Again, and nothing changes. The last one releases all, unless the chief holds them for its
    action.
    """
    is_expected = state.arrived[rank] < state.generation and not state.broken
    if (
        not is_expected
        or state.incarnations[rank] != incarnation
        or (state.generation & 1) != parity
    ):
        return state
    return _settled(replace(state, arrived=_with(state.arrived, rank, state.generation)))


def begin_action(state: Arrivals, incarnation: int) -> Arrivals:
    """The chief begins its action, if all are there."""
    if state.broken or not state.full or state.incarnations[0] != incarnation:
        return state
    return replace(state, acting=True)


def release(state: Arrivals, incarnation: int) -> Arrivals:
    """The chief has run its action and releases the present generation."""
    if state.broken or not state.acting or state.incarnations[0] != incarnation:
        return state
    return replace(state, released=state.generation, acting=False)


def resign(state: Arrivals, rank: int, incarnation: int) -> Arrivals:
    """Nobody waits for trainer `rank` any more."""
    if state.incarnations[rank] != incarnation:
        return state
    return _settled(replace(state, arrived=_with(state.arrived, rank, RESIGNED)))


def abort(state: Arrivals) -> Arrivals:
    """Everybody who waits, or comes, gets an error until the barrier is reset."""
    return replace(state, broken=True)


def reset(state: Arrivals) -> Arrivals:
    """Empties the barrier: those that wait get an error, later ones wait for a new generation."""
    released = state.released + 2
    return replace(
        state,
        arrived=tuple(
            generation if generation == RESIGNED else released for generation in state.arrived
        ),
        released=released,
        acting=False,
        broken=False,
        resets=state.resets + 1,
    )


def decide(state: Arrivals, rank: int, incarnation: int, parity: int, resets: int) -> Decision:
    """What trainer `rank` does next, having sent its arrival with that incarnation and parity.

    Args:
        state: what it has read.
        rank: of the trainer.
        incarnation: of the trainer.
        parity: of the generation that it waits for.
        resets: how many it knew of before it arrived.
    """
    if state.incarnations[rank] != incarnation:
        return Decision.REPLACED
    generation = state.arrived[rank]
    if (generation & 1) != parity:
        lost = not state.broken and state.resets == resets
        return Decision.ARRIVE if lost else Decision.BROKEN
    if generation <= state.released:
        return Decision.PASS
    if state.broken:
        return Decision.BROKEN
    if state.has_action and rank == 0 and state.full:
        return Decision.ACT
    return Decision.WAIT


def next_parity(state: Arrivals) -> int:
    """The parity with which a new incarnation goes on: that of the present generation.

    If the trainer has arrived in it already, it arrives again and counts once.
    """
    return state.generation & 1


def describe(
    state: Arrivals,
    names: Sequence[str],
    ages: Sequence[float | None],
    seconds: float,
) -> str:
    """For a message: 2 of 3 trainers after 30.0 s; missing worker:2, last seen in generation 6, ...

    Args:
        state: what was read.
        names: the trainers by rank.
        ages: seconds since each last arrived, by rank; None for a trainer that never has.
        seconds: how long the trainer that reports this has waited.
    """
    expected = sum(generation < RESIGNED for generation in state.arrived)
    missing = "; ".join(
        f"{names[rank]}, never seen"
        if ages[rank] is None
        else f"{names[rank]}, last seen in generation {state.arrived[rank]}, {ages[rank]:.0f} s ago"
        for rank in state.missing
    )
    if missing:
        what = f"missing {missing}"
    elif state.has_action and not state.broken:
        what = f"all have arrived; {names[0]} runs the action"
    else:
        what = "all have arrived"
    return f"{len(state.waiting)} of {expected} trainers after {seconds:.1f} s; {what}"


def _with(values: tuple[int, ...], rank: int, value: int) -> tuple[int, ...]:
    return (*values[:rank], value, *values[rank + 1 :])


def _settled(state: Arrivals) -> Arrivals:
    if state.has_action or state.broken or not state.full:
        return state
    return replace(state, released=state.generation)
