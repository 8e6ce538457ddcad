"""The barrier's state as one vector of whole numbers, which is replaced whole on the ps."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdist.barrier.rules import RESIGNED, Arrivals

# In the place of a incarnation: the trainer never came.
_NOBODY = 1


class State(NamedTuple):
    """The vector, taken apart: rows with a place for each rank, then single numbers.

    Times are in us, by the clock of the ps. What is marked with * follows from the rest, see
    `pack`; it is there so that an arrival needs few operations.
    """

    arrived: Any
    incarnations: Any
    blocks: Any  # whether it blocks in a queue, or polls and needs no token
    arrived_at: Any  # when it last arrived; 0 for never
    waited: Any  # over all released generations; while it waits, less `arrived_at`
    keys: Any  # * its incarnation, plus the parity of the generation in which it arrives next; or 0
    released: Any
    has_action: Any
    acting: Any
    broken: Any
    resets: Any
    ps_incarnation: Any  # of the ps: another one has forgotten everything
    parity: Any  # * of the present generation
    expected: Any  # * how many have not resigned
    missing: Any  # * how many of them have not arrived
    blocked: Any  # * how many block in the queue for the release


_NUM_ROWS = State._fields.index("released")
_NUM_SINGLES = len(State._fields) - _NUM_ROWS


def new_incarnation() -> int:
    """A number for a incarnation: even with two parities added to it, another one differs."""
    # Not of `random`: a script seeds that, and its next incarnation would be taken for the last
    # one.
    return 4 * (1 + secrets.randbelow(2**60 - 1))


def arrival_key(incarnation: int, parity: int) -> int:
    """What `keys` and `parity` sum up to if that incarnation may arrive with that parity."""
    return incarnation + 2 * parity


def next_key(incarnation: int, parity: int) -> int:
    """What `keys` has for that incarnation once it has arrived with that parity."""
    return incarnation + 1 - parity


def start(parties: int) -> np.ndarray:
    """The vector before anybody came."""
    state = State(*[0] * len(State._fields))._replace(
        keys=_NOBODY + 1,
        ps_incarnation=secrets.randbits(62),
        parity=1,
        expected=parties,
        missing=parties,
    )
    return np.array([*np.repeat(state[:_NUM_ROWS], parties), *state[_NUM_ROWS:]], np.int64)


def pack(state: State) -> Any:
    """The vector of a state, as a tensor; what follows from the rest of it is made to."""
    expected = state.arrived < RESIGNED
    keys = tf.maximum(state.incarnations, _NOBODY) + (state.arrived + 1) % 2
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
    """For how many parties a fetched vector was made."""
    return (len(vector) - _NUM_SINGLES) // _NUM_ROWS


def unpack(vector: np.ndarray) -> State:
    """A fetched vector, taken apart into lists and numbers."""
    rows = vector[:-_NUM_SINGLES].reshape(_NUM_ROWS, -1).tolist()
    return State(*rows, *vector[-_NUM_SINGLES:].tolist())


def as_arrivals(state: State) -> Arrivals:
    """What the rules know of it."""
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
    """Where in the vector a number is: of that rank, if the field is a row."""
    index = State._fields.index(field)
    return index * parties + rank if index < _NUM_ROWS else _NUM_ROWS * (parties - 1) + index


def one_at(field: str, rank: int, parties: int) -> Any:
    """A vector of zeros, with a one in that place."""
    size = _NUM_ROWS * parties + _NUM_SINGLES
    return (np.arange(size) == place(field, rank, parties)).astype(np.int64)


def is_waiting(state: State) -> Any:
    """By rank, whether it has arrived in the present generation, as a tensor."""
    return (state.arrived > state.released) & (state.arrived < RESIGNED)


def is_full(state: State) -> Any:
    """Whether everybody who is still expected has arrived in the present generation."""
    first = tf.reduce_min(state.arrived, 0)
    return (first > state.released) & (first < RESIGNED) & tf.equal(state.broken, 0)


def blocked_others(state: State) -> Any:
    """How many block in the queue for the release."""
    return _count(is_waiting(state) & (state.blocks > 0)) - blocked_chief(state)


def blocked_chief(state: State) -> Any:
    """How many block in the queue for the chief: a chief that has an action, or nobody."""
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
