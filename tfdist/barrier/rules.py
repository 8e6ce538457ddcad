"""The rules of the barrier, without a network: which trainers have arrived, and which may continue.

`tfdist.barrier.operations` runs the same transitions on a ps, under a lock, where the state is one
vector of integers. The decisions are made here, so that tests can explore every interleaving.

The state is the truth; messages are only wake-ups. A trainer that was woken without a release, or
not woken at all, reads the state and `decide`s again. A lost message costs time, never correctness.

**Generations** count up from 1; generation 0 counts as released from the start. A trainer sends
the parity of the generation in which it arrives, not its number, so nothing has to be fed (a feed
doubles the cost of the call). Parity is enough, because a trainer is at most one generation ahead
of the released one.

**Incarnations**: with parity alone, a late message of a killed process could count in a later
generation. So each message carries its sender's incarnation, and the state holds the current
incarnation of each trainer.

**Reset** skips two generations. Trainers that do not wait keep the right parity. A trainer that
waits finds an arrival of the other parity in place of its own, and so learns that its generation
will never be released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

# Greater than every generation, so that no trainer waits for one that has resigned.
RESIGNED = 2**62


class Decision(Enum):
    """What a waiting trainer does next."""

    WAIT = auto()
    PASS = auto()
    BROKEN = auto()
    ACT = auto()
    """All have arrived; the chief runs the action and releases them."""
    ARRIVE = auto()
    """The ps has no arrival of this trainer. If one may still be on its way, the trainer first
    takes a new incarnation, so that the old message has no effect, and decides again."""
    REPLACED = auto()
    """Another process has taken the trainer's place."""


@dataclass(frozen=True)
class Arrivals:
    """The state of a barrier.

    Attributes:
        arrived: by rank, the last generation in which the trainer arrived, or RESIGNED.
        incarnations: by rank, the trainer's current incarnation; 0 before the first.
        released: the last generation that was released.
        has_action: whether the chief has an action. If so, the chief releases the others, not the
            last trainer to arrive.
        acting: whether the chief has begun the action of the present generation.
        broken: whether the barrier is broken.
        resets: number of resets.
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
        """The state before any trainer has entered."""
        return cls(arrived=(0,) * parties, incarnations=(0,) * parties)

    @property
    def generation(self) -> int:
        """The present generation, for which trainers wait."""
        return self.released + 1

    @property
    def full(self) -> bool:
        """Whether all expected trainers have arrived in the present generation."""
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
        """Ranks that have neither arrived in the present generation nor resigned."""
        return tuple(
            rank for rank, generation in enumerate(self.arrived) if generation < self.generation
        )


def enter(state: Arrivals, rank: int, incarnation: int, *, has_action: bool = False) -> Arrivals:
    """A new incarnation of trainer `rank` takes over; messages of earlier ones have no effect.

    A chief states whether it has an action. If the earlier one died in its action, the barrier
    breaks, because it is unknown how much of the action was done.
    """
    state = replace(state, incarnations=_with(state.incarnations, rank, incarnation))
    if rank != 0:
        return state
    return _settled(replace(state, has_action=has_action, broken=state.broken or state.acting))


def renew(state: Arrivals, rank: int, incarnation: int, previous: int) -> Arrivals:
    """Trainer `rank` takes a new incarnation, unless another process has taken its place.

    A trainer does this if it does not know whether a message of its own will still arrive.
    """
    if state.incarnations[rank] != previous:
        return state
    return replace(state, incarnations=_with(state.incarnations, rank, incarnation))


def arrive(state: Arrivals, rank: int, incarnation: int, parity: int) -> Arrivals:
    """Trainer `rank` arrives in the present generation, if that has the given parity.

    A repeated arrival changes nothing. The last trainer releases all, unless the chief has an
    action to run first.
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
    """The chief begins its action, if all have arrived."""
    if state.broken or not state.full or state.incarnations[0] != incarnation:
        return state
    return replace(state, acting=True)


def release(state: Arrivals, incarnation: int) -> Arrivals:
    """The chief has run its action and releases the present generation."""
    if state.broken or not state.acting or state.incarnations[0] != incarnation:
        return state
    return replace(state, released=state.generation, acting=False)


def resign(state: Arrivals, rank: int, incarnation: int) -> Arrivals:
    """Trainer `rank` leaves for good; the others no longer wait for it."""
    if state.incarnations[rank] != incarnation:
        return state
    return _settled(replace(state, arrived=_with(state.arrived, rank, RESIGNED)))


def abort(state: Arrivals) -> Arrivals:
    """Every trainer that waits or arrives gets an error, until the barrier is reset."""
    return replace(state, broken=True)


def reset(state: Arrivals) -> Arrivals:
    """Empties the barrier: waiting trainers get an error, later ones wait for a new generation."""
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
    """What trainer `rank` does next, after it has sent its arrival.

    Args:
        state: the state that it has read.
        rank: the trainer.
        incarnation: the incarnation with which it sent its arrival.
        parity: the parity with which it sent its arrival.
        resets: the number of resets that it knew of before.
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
    """The parity with which a new incarnation arrives first: that of the present generation.

    If the trainer has arrived in it before, it arrives again and counts once.
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
        state: the state that was read.
        names: the trainers by rank.
        ages: seconds since each last arrived, by rank; None for a trainer that never has.
        seconds: how long the trainer that reports this has waited.
    """
    expected = sum(generation < RESIGNED for generation in state.arrived)
    missing = "; ".join(
        f"{names[rank]}, which has never arrived"
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
