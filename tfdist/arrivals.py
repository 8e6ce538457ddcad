"""The rules of the barrier, without a network: who arrived in which generation, who may go on.

`tfdist.barrier` keeps this state on a ps, as one vector of whole numbers, and runs the same
transitions there under a lock. What matters is decided here, so that it can be tested under
every interleaving.

The state is the truth, messages are only wake-ups: a trainer that was woken in vain, or not
woken at all, reads the state and `decide`s anew. That is why a lost message costs time but
never correctness, and why each transition may be repeated at will.

**Generations** count up from 1; generation 0 counts as released from the start. A trainer does
not send the number of the generation it arrives in but its parity, so that nothing has to be fed
(a feed costs as much again as the whole call). Parity is enough, since a trainer is at most one
generation ahead of the released one.

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
    ACT = auto()
    """All are there, and it is the chief's turn to run the action and to release them."""
    BROKEN = auto()


@dataclass(frozen=True)
class Arrivals:
    """Everything the barrier knows.

    Attributes:
        arrived: by rank, the last generation in which the trainer arrived, or RESIGNED.
        released: the last generation that was released.
        held: whether the chief has an action: then it releases, not the last to arrive.
        broken: whether the barrier is broken.
    """

    arrived: tuple[int, ...]
    released: int = 0
    held: bool = False
    broken: bool = False

    @classmethod
    def start(cls, parties: int, *, held: bool = False) -> Arrivals:
        """The state before anybody came."""
        return cls(arrived=(0,) * parties, held=held)

    @property
    def generation(self) -> int:
        """The generation that is being waited for."""
        return self.released + 1

    @property
    def full(self) -> bool:
        """Whether everybody who is still expected has arrived in the present generation."""
        return min(self.arrived) >= self.generation and not self.deserted

    @property
    def deserted(self) -> bool:
        """Whether everybody has resigned."""
        return all(generation == RESIGNED for generation in self.arrived)

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


def arrive(state: Arrivals, rank: int, parity: int) -> Arrivals:
    """Trainer `rank` arrives in its next generation of that parity; again, and nothing changes.

    The last one releases all, unless the chief holds them for its action.
    """
    if state.broken or state.arrived[rank] == RESIGNED:
        return state
    generation = state.arrived[rank]
    generation += (generation & 1) ^ parity
    return _settled(_put(state, rank, generation))


def release(state: Arrivals) -> Arrivals:
    """The chief has run its action and releases the present generation."""
    if state.broken or not state.full:
        return state
    return replace(state, released=state.generation)


def resign(state: Arrivals, rank: int) -> Arrivals:
    """Nobody waits for trainer `rank` any more."""
    return _settled(_put(state, rank, RESIGNED))


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
        broken=False,
    )


def decide(state: Arrivals, rank: int, parity: int) -> Decision:
    """What trainer `rank`, which arrived with that parity, does next."""
    generation = state.arrived[rank]
    if (generation & 1) != parity:
        return Decision.BROKEN  # a reset took its arrival away
    if generation <= state.released:
        return Decision.PASS
    if state.broken:
        return Decision.BROKEN
    if state.held and rank == 0 and state.full:
        return Decision.ACT
    return Decision.WAIT


def next_parity(state: Arrivals, rank: int) -> int:
    """The parity with which trainer `rank` goes on after a restart.

    It repeats the generation in which it has arrived and that was not released; the others count
    it once. Otherwise it arrives in the present one.
    """
    return max(state.arrived[rank], state.generation) & 1


def describe_missing(
    state: Arrivals, names: Sequence[str], seconds_since_arrival: Sequence[float]
) -> str:
    """Says, for an error message: missing worker:2, last seen in generation 6, 41 s ago."""
    parts = []
    for rank in state.missing:
        if state.arrived[rank] == 0:
            parts.append(f"{names[rank]}, never seen")
        else:
            parts.append(
                f"{names[rank]}, last seen in generation {state.arrived[rank]}, "
                f"{seconds_since_arrival[rank]:.0f} s ago"
            )
    if parts:
        return "missing " + "; ".join(parts)
    if state.held and not state.broken:
        return f"all have arrived; {names[0]} runs the action"
    return "all have arrived"


def _put(state: Arrivals, rank: int, generation: int) -> Arrivals:
    arrived = (*state.arrived[:rank], generation, *state.arrived[rank + 1 :])
    return replace(state, arrived=arrived)


def _settled(state: Arrivals) -> Arrivals:
    if state.held or state.broken or not state.full:
        return state
    return replace(state, released=state.generation)
