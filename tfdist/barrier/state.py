"""The barrier's state on the ps, and the transitions of `tfdist.arrivals` as graph operations.

The state is one vector of whole numbers that is replaced whole under a lock, so that whoever
reads it without the lock still sees a consistent snapshot. Each transition is one operation
without a fetch, to be run in one `session.run`.

Release tokens go through a queue for each parity of the generation: with a single queue a fast
trainer takes the token of a slow one. A token carries its generation; a stale one is told by it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.arrivals import RESIGNED, Arrivals

PS_DEVICE = "/job:ps/task:0/device:CPU:0"

# The state vector: arrived by rank, then these.
_RELEASED, _HELD, _BROKEN, _INCARNATION = range(4)
_NUM_FLAGS = 4
_WAKE_UP = -1  # a token of no generation: look at the state


def unpack(state: np.ndarray) -> tuple[Arrivals, int]:
    """A fetched state vector as `Arrivals`, and the number of the ps's incarnation."""
    arrived, flags = state[:-_NUM_FLAGS], state[-_NUM_FLAGS:]
    rules = Arrivals(
        arrived=tuple(int(generation) for generation in arrived),
        released=int(flags[_RELEASED]),
        held=bool(flags[_HELD]),
        broken=bool(flags[_BROKEN]),
    )
    return rules, int(flags[_INCARNATION])


def _operation(build: Callable[[StateOnPs], Any]) -> cached_property[Any]:
    """An operation that is put into the graph when it is first asked for.

    Building all of them takes a quarter of a second; most barriers are never aborted or reset.
    """

    @wraps(build)
    def operation(self: StateOnPs) -> Any:
        with self._building():
            return build(self)

    return cached_property(operation)


class StateOnPs:
    """The barrier's variables and transitions as a private graph, all of it on ps 0.

    Each operation is built when it is first asked for.
    """

    def __init__(self, name: str, parties: int, rank: int) -> None:
        self.parties, self.rank = parties, rank
        self.graph = tf.Graph()
        self._lock = threading.RLock()
        with self._building():
            self._mutex = tf.raw_ops.MutexV2(shared_name=f"{name}/lock")
            self._state = _variable(f"{name}/state", tf.int64)
            self._times = _variable(f"{name}/times", tf.float64)
            self._reason = _variable(f"{name}/reason", tf.string)
            self._queues = [_queue(f"{name}/release{parity}") for parity in (0, 1)]
            self._full_queues = [_queue(f"{name}/full{parity}") for parity in (0, 1)]
            self.reason_text = tf.compat.v1.placeholder(tf.string, [])
            self.held = tf.compat.v1.placeholder(tf.int64, [])

    @contextmanager
    def _building(self) -> Iterator[None]:
        # Another thread may call abort() while this one waits.
        with self._lock, self.graph.as_default(), tf.compat.v1.device(PS_DEVICE):
            yield

    @contextmanager
    def _locked(self) -> Iterator[list[Any]]:
        """What is put into the list is done before the lock is given back, and leaves with it."""
        lock = tf.raw_ops.MutexLock(mutex=self._mutex)
        effects: list[Any] = []
        with tf.control_dependencies([lock]):
            yield effects
        with tf.control_dependencies(effects):
            effects[:] = [tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)]

    @_operation
    def initialize(self) -> Any:
        """Makes the state, unless it is there: whoever comes first."""
        state = [0] * self.parties + [0, 0, 0, random.getrandbits(62)]

        def assign() -> Any:
            return tf.group(
                _assign(self._state, tf.constant(state, tf.int64)),
                _assign(self._times, tf.zeros([2 * self.parties], tf.float64)),
                _assign(self._reason, tf.constant("")),
            )

        with self._locked() as effects:
            fresh = tf.logical_not(tf.raw_ops.VarIsInitializedOp(resource=self._state))
            effects.append(tf.cond(fresh, assign, tf.no_op))
        return tf.group(*effects)

    @_operation
    def hold(self) -> Any:
        """Feeds `held`: whether the chief has an action."""
        with self._locked() as effects:
            state = _read(self._state, tf.int64)
            effects.append(_assign(self._state, self._with_flag(state, _HELD, self.held)))
        return tf.group(*effects)

    @_operation
    def arrive(self) -> list[Any]:
        """By parity: arrives, and releases if this trainer is the last."""
        return [self._arrive(parity) for parity in (0, 1)]

    @_operation
    def cross(self) -> list[Any]:
        """By parity: arrives, and blocks until it takes the token of its generation."""
        return [self._cross(self._queues, parity) for parity in (0, 1)]

    @_operation
    def gather(self) -> list[Any]:
        """By parity: the same for a chief that holds the others, until all are there."""
        return [self._cross(self._full_queues, parity) for parity in (0, 1)]

    @_operation
    def abort(self) -> Any:
        """Breaks the barrier; feeds `reason_text`."""
        return self._abort(only_if_waiting=False)

    @_operation
    def abort_if_waiting(self) -> Any:
        """The same, unless this trainer's generation has been released."""
        return self._abort(only_if_waiting=True)

    @_operation
    def snapshot(self) -> list[Any]:
        """Fetches state, times, reason, and the time by the clock of the ps."""
        state = _read(self._state, tf.int64)
        with tf.control_dependencies([state]):  # a broken state has its reason by then
            return [
                state,
                _read(self._times, tf.float64),
                _read(self._reason, tf.string),
                tf.timestamp(),
            ]

    def _arrive(self, parity: int) -> Any:
        with self._locked() as effects:
            state = _read(self._state, tf.int64)
            mine = state[self.rank]
            broken = self._flag(state, _BROKEN) > 0
            stays = broken | tf.equal(mine, RESIGNED)
            step = tf.bitwise.bitwise_xor(tf.bitwise.bitwise_and(mine, 1), parity)
            generation = tf.where(stays, mine, mine + step)
            times = _read(self._times, tf.float64)
            now = tf.where(generation > mine, tf.timestamp(), times[self.rank])
            times = tf.where(tf.one_hot(self.rank, 2 * self.parties) > 0, now, times)
            state = self._with(state, self.rank, generation)
            effects.extend(self._settle(state, times, held=self._flag(state, _HELD) > 0))
            # Whoever arrives at a broken barrier must not block.
            woken = tf.cast(broken, tf.int32)
            effects.append(_enqueue(self._queues[parity], _WAKE_UP, woken))
            effects.append(_enqueue(self._full_queues[parity], _WAKE_UP, woken))
        return tf.group(*effects)

    def _settle(self, state: Any, times: Any, held: Any) -> list[Any]:
        """Stores both; if everybody is there, releases, or wakes the chief that holds them."""
        arrived = state[: self.parties]
        active = arrived < RESIGNED
        released = self._flag(state, _RELEASED)
        generation = released + 1
        full = (
            (tf.reduce_min(arrived) >= generation)
            & tf.reduce_any(active)
            & tf.equal(self._flag(state, _BROKEN), 0)
        )
        release = full & ~held
        at = times[: self.parties]
        waits = tf.where(active & release, tf.reduce_max(at) - at, tf.zeros_like(at))
        state = self._with_flag(state, _RELEASED, released + tf.cast(release, tf.int64))
        num_active = tf.reduce_sum(tf.cast(active, tf.int32))
        stored = [
            _assign(self._state, state),
            _assign(self._times, times + tf.concat([tf.zeros_like(at), waits], 0)),
        ]
        # Whoever is woken looks at the state, so that has to be there first.
        with tf.control_dependencies(stored):
            return [
                *stored,
                *self._tokens(self._queues, generation, tf.where(release, num_active, 0)),
                *self._tokens(self._full_queues, generation, tf.cast(full & held, tf.int32)),
            ]

    def _tokens(self, queues: list[Any], generation: Any, count: Any) -> list[Any]:
        odd = tf.cast(generation % 2, tf.int32)
        return [
            _enqueue(queues[parity], generation, count * (odd if parity else 1 - odd))
            for parity in (0, 1)
        ]

    def _wake_everybody(self, after: Any) -> list[Any]:
        with tf.control_dependencies([after]):
            return [
                _enqueue(queue, _WAKE_UP, self.parties)
                for queue in self._queues + self._full_queues
            ]

    def _cross(self, queues: list[Any], parity: int) -> Any:
        """Arrives and takes one token; fails if it was not a token of this generation."""
        with tf.control_dependencies([self.arrive[parity]]):
            token = tf.raw_ops.QueueDequeueV2(handle=queues[parity], component_types=[tf.int64])[0]
            mine = _read(self._state, tf.int64)[self.rank]
            return tf.raw_ops.Assert(condition=token >= mine, data=[token, mine], summarize=1)

    @_operation
    def release(self) -> Any:
        """The chief has run its action."""
        with self._locked() as effects:
            state, times = _read(self._state, tf.int64), _read(self._times, tf.float64)
            effects.extend(self._settle(state, times, held=tf.constant(False)))
        return tf.group(*effects)

    @_operation
    def resign(self) -> Any:
        """Nobody waits for this trainer any more."""
        with self._locked() as effects:
            state = self._with(_read(self._state, tf.int64), self.rank, RESIGNED)
            times = _read(self._times, tf.float64)
            effects.extend(self._settle(state, times, held=self._flag(state, _HELD) > 0))
        return tf.group(*effects)

    def _abort(self, *, only_if_waiting: bool) -> Any:
        with self._locked() as effects:
            state = _read(self._state, tf.int64)
            broken = self._flag(state, _BROKEN)
            breaks = tf.equal(broken, 0)
            if only_if_waiting:
                breaks &= state[self.rank] > self._flag(state, _RELEASED)
            reason = tf.where(breaks, self.reason_text, _read(self._reason, tf.string))
            flag = tf.where(breaks, tf.ones_like(broken), broken)
            # In this order: whoever sees that it is broken sees why.
            with tf.control_dependencies([_assign(self._reason, reason)]):
                stored = _assign(self._state, self._with_flag(state, _BROKEN, flag))
            effects.extend(self._wake_everybody(after=stored))
        return tf.group(*effects)

    @_operation
    def reset(self) -> Any:
        """Empties and mends the barrier, and wakes those that wait."""
        with self._locked() as effects:
            state = _read(self._state, tf.int64)
            arrived, released = state[: self.parties], self._flag(state, _RELEASED) + 2
            arrived = tf.where(tf.equal(arrived, RESIGNED), arrived, released)
            state = tf.concat([arrived, state[self.parties :]], 0)
            state = self._with_flag(state, _RELEASED, released)
            state = self._with_flag(state, _BROKEN, 0)
            effects.extend(self._wake_everybody(after=_assign(self._state, state)))
        return tf.group(*effects)

    def _flag(self, state: Any, flag: int) -> Any:
        return state[self.parties + flag]

    def _with_flag(self, state: Any, flag: int, value: Any) -> Any:
        return self._with(state, self.parties + flag, value)

    def _with(self, state: Any, place: int, value: Any) -> Any:
        mask = np.arange(self.parties + _NUM_FLAGS) == place
        return tf.where(tf.constant(mask), tf.cast(value, tf.int64), state)


def _variable(shared_name: str, dtype: tf.DType) -> Any:
    return tf.raw_ops.VarHandleOp(dtype=dtype, shape=None, shared_name=shared_name)


def _queue(shared_name: str) -> Any:
    return tf.raw_ops.FIFOQueueV2(
        component_types=[tf.int64], shapes=[[]], capacity=2**31 - 1, shared_name=shared_name
    )


def _read(handle: Any, dtype: tf.DType) -> Any:
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)


def _assign(handle: Any, value: Any) -> Any:
    return tf.raw_ops.AssignVariableOp(resource=handle, value=value)


def _enqueue(queue: Any, token: Any, count: Any) -> Any:
    """Puts `count` equal tokens in; 0 is fine and returns at once, so no condition is needed."""
    tokens = tf.fill([count], tf.cast(token, tf.int64))
    return tf.raw_ops.QueueEnqueueManyV2(handle=queue, components=[tokens])
