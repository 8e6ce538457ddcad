"""The barrier's state as one vector of integers, which is replaced as a whole on the ps."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdist.barrier.rules import RESIGNED, Arrivals

# Stands in for the incarnation of a trainer that never entered.
_NEVER_ENTERED = 1


class State(NamedTuple):
    """The parts of the vector: rows with one element per rank, then single numbers.

    Times are in us, by the clock of the ps. Fields marked * follow from the others (see `pack`);
    they are stored so that an arrival needs few operations.
    """

    arrived: Any
    incarnations: Any
    blocks: Any  # 1 if it blocks in a queue; 0 if it polls and needs no token
    arrived_at: Any  # time of its last arrival; 0 for never
    waited: Any  # sum over all released generations; while it waits, minus `arrived_at`
    keys: Any  # * incarnation + parity of the next generation in which it arrives; or 0
    released: Any
    has_action: Any
    acting: Any
    broken: Any
    resets: Any
    ps_incarnation: Any  # changes when the ps is restarted and has lost the state
    parity: Any  # * of the present generation
    expected: Any  # * number of trainers that have not resigned
    missing: Any  # * number of those that have not arrived
    blocked: Any  # * number of trainers that block in the queue for the release


_NUM_ROWS = State._fields.index("released")
_NUM_SINGLES = len(State._fields) - _NUM_ROWS


def new_incarnation() -> int:
    """A random multiple of 4, so that adding up to two parities gives no other incarnation's."""
    # `random` may be seeded by the script, and would then repeat the number after a restart.
    return 4 * (1 + secrets.randbelow(2**60 - 1))


def new_ps_incarnation() -> int:
    """A random number for a new state."""
    return secrets.randbits(62)


def arrival_key(incarnation: int, parity: int) -> int:
    """The sum of `keys` and `parity` if that incarnation may arrive with that parity."""
    return incarnation + 2 * parity


def next_key(incarnation: int, parity: int) -> int:
    """The value in `keys` after that incarnation has arrived with that parity."""
    return incarnation + 1 - parity


def start(parties: int) -> np.ndarray:
    """The vector before any trainer has entered; `ps_incarnation` has to be added."""
    state = State(*[0] * len(State._fields))._replace(
        keys=_NEVER_ENTERED + 1,
        parity=1,
        expected=parties,
        missing=parties,
    )
    return np.array([*np.repeat(state[:_NUM_ROWS], parties), *state[_NUM_ROWS:]], np.int64)


def pack(state: State) -> Any:
    """The vector of a state, as a tensor; computes the fields that follow from the others."""
    expected = state.arrived < RESIGNED
    keys = tf.maximum(state.incarnations, _NEVER_ENTERED) + (state.arrived + 1) % 2
    may_arrive = expected & tf.equal(state.broken, 0)
    state = state._replace(
        keys=tf.where(may_arrive, keys, tf.zeros_like(keys)),
        parity=(state.released + 1) % 2,
        expected=_count(expected),
        missing=_count(state.arrived <= state.released),
        blocked=blocked_others(state),
    )
    return tf.concat([*state[:_NUM_ROWS], tf.stack(state[_NUM_ROWS:])], 0)


def take_apart(vector: Any, parties: int) -> State:
    """The state of a vector, both as tensors."""
    *rows, singles = tf.split(vector, [parties] * _NUM_ROWS + [_NUM_SINGLES])
    return State(*rows, *tf.unstack(singles, num=_NUM_SINGLES))


def num_parties(vector: np.ndarray) -> int:
    """The number of parties of a fetched vector."""
    return (len(vector) - _NUM_SINGLES) // _NUM_ROWS


def unpack(vector: np.ndarray) -> State:
    """The state of a fetched vector, as lists and numbers."""
    rows = vector[:-_NUM_SINGLES].reshape(_NUM_ROWS, -1).tolist()
    return State(*rows, *vector[-_NUM_SINGLES:].tolist())


def as_arrivals(state: State) -> Arrivals:
    """The part of a fetched state that the rules use."""
    return Arrivals(
        arrived=tuple(state.arrived),
        incarnations=tuple(state.incarnations),
        released=state.released,
        has_action=bool(state.has_action),
        acting=bool(state.acting),
        broken=bool(state.broken),
        resets=state.resets,
    )


def place(field: str, rank: int, parties: int) -> int:
    """The index in the vector of a field; of that rank's element, if the field is a row."""
    index = State._fields.index(field)
    return index * parties + rank if index < _NUM_ROWS else _NUM_ROWS * (parties - 1) + index


def size(parties: int) -> int:
    """The length of the vector."""
    return _NUM_ROWS * parties + _NUM_SINGLES


def one_at(field: str, rank: int, parties: int) -> Any:
    """A vector of zeros with a one at `place(field, rank, parties)`."""
    return (np.arange(size(parties)) == place(field, rank, parties)).astype(np.int64)


def is_waiting(state: State) -> Any:
    """By rank, whether the trainer has arrived in the present generation, as a tensor."""
    return (state.arrived > state.released) & (state.arrived < RESIGNED)


def is_full(state: State) -> Any:
    """Whether all expected trainers have arrived in the present generation."""
    first = tf.reduce_min(state.arrived, 0)
    return (first > state.released) & (first < RESIGNED) & tf.equal(state.broken, 0)


def blocked_others(state: State) -> Any:
    """Number of trainers that block in the queue for the release."""
    return _count(is_waiting(state) & (state.blocks > 0)) - blocked_chief(state)


def blocked_chief(state: State) -> Any:
    """1 if a chief with an action blocks in its queue, else 0."""
    chief = state.blocks[0] * tf.cast(is_waiting(state)[0], tf.int64)
    return chief * tf.cast(state.has_action, tf.int64)


def released(state: State, condition: Any) -> State:
    """The state after the release of the present generation, if `condition`."""
    waiting = tf.cast(is_waiting(state), tf.int64)
    last = tf.reduce_max(waiting * state.arrived_at, 0)
    release = tf.cast(condition, tf.int64)
    return state._replace(
        released=state.released + release,
        acting=state.acting * (1 - release),
        waited=state.waited + release * waiting * last,
    )


def emptied(state: State) -> State:
    """The state after a reset."""
    waiting = tf.cast(is_waiting(state), tf.int64)
    after = state.released + 2
    return state._replace(
        arrived=tf.where(state.arrived < RESIGNED, after, state.arrived),
        waited=state.waited + waiting * state.arrived_at,
        released=after,
        acting=tf.zeros_like(after),
        broken=tf.zeros_like(after),
        resets=state.resets + 1,
    )


def _count(conditions: Any) -> Any:
    return tf.reduce_sum(tf.cast(conditions, tf.int64), 0)
