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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdist.arrivals import RESIGNED, Arrivals

PS_DEVICE = "/job:ps/task:0/device:CPU:0"
_WAKE_UP = -1  # a token of no generation: look at the state
# TensorFlow takes a plain number in `tf.where` for an int32.
_ZERO, _ONE, _RESIGNED = np.int64(0), np.int64(1), np.int64(RESIGNED)


class _State(NamedTuple):
    """The state vector, taken apart: three rows with a place for each rank, then single numbers."""

    arrived: Any
    lives: Any
    blocks: Any  # whether it blocks in a queue, or polls and needs no token
    released: Any
    held: Any
    acting: Any
    broken: Any
    resets: Any
    incarnation: Any  # of the ps: another one has forgotten everything


_NUM_ROWS = 3
_NUM_SINGLES = len(_State._fields) - _NUM_ROWS


def num_parties(vector: np.ndarray) -> int:
    """For how many parties a fetched state vector was made."""
    return (len(vector) - _NUM_SINGLES) // _NUM_ROWS


def unpack(vector: np.ndarray) -> tuple[Arrivals, int]:
    """A fetched state vector as `Arrivals`, and the number of the ps's incarnation."""
    rows = vector[:-_NUM_SINGLES].reshape(_NUM_ROWS, -1).tolist()
    state = _State(*rows, *vector[-_NUM_SINGLES:].tolist())
    rules = Arrivals(
        arrived=tuple(state.arrived),
        lives=tuple(state.lives),
        released=state.released,
        held=bool(state.held),
        acting=bool(state.acting),
        broken=bool(state.broken),
        resets=state.resets,
    )
    return rules, state.incarnation


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

    Args:
        name: of the barrier, on the ps.
        names: of the parties by rank.
        rank: of the trainer that uses it.
        held: whether that is a chief with an action.
        previous_life: renews this one, if it still may speak; None for a trainer that enters.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        rank: int,
        *,
        held: bool,
        previous_life: int | None = None,
    ) -> None:
        self._previous_life = previous_life
        self._name, self._parties, self._rank, self._held = names[rank], len(names), rank, held
        self._me = np.arange(self._parties) == rank
        self.life = random.getrandbits(62)
        self.graph = tf.Graph()
        self._lock = threading.RLock()
        self._gate: list[Any] = []
        with self._building():
            self._mutex = tf.raw_ops.MutexV2(shared_name=f"{name}/lock")
            self._vector = _variable(f"{name}/state", tf.int64)
            # Seconds by rank: when the trainer last arrived, how long it has waited in all.
            self._arrived_at = _variable(f"{name}/arrived_at", tf.float64)
            self._waited = _variable(f"{name}/waited", tf.float64)
            self._reason = _variable(f"{name}/reason", tf.string)
            # Where the others wait for the release, and where a chief with an action waits for
            # the others.
            self._queues = [_queue(f"{name}/release{parity}") for parity in (0, 1)]
            self._full_queues = [_queue(f"{name}/full{parity}") for parity in (0, 1)]
            self.reason_text = tf.compat.v1.placeholder(tf.string, [])

    @_operation
    def exists(self) -> Any:
        """Fetches whether somebody has made the state."""
        return tf.raw_ops.VarIsInitializedOp(resource=self._vector)

    @_operation
    def make(self) -> Any:
        """Makes the state, unless somebody else was quicker."""
        size = _NUM_ROWS * self._parties + _NUM_SINGLES
        vector = [0] * (size - 1) + [random.getrandbits(62)]  # the last is the incarnation

        def make() -> Any:
            times = tf.zeros([self._parties], tf.float64)
            others = [
                _assign(self._arrived_at, times),
                _assign(self._waited, times),
                _assign(self._reason, tf.constant("")),
            ]
            with tf.control_dependencies(others):  # whoever sees the vector sees them too
                return tf.group(_assign(self._vector, tf.constant(vector, tf.int64)))

        with self._locked() as effects, tf.control_dependencies(self._gate):
            fresh = tf.logical_not(tf.raw_ops.VarIsInitializedOp(resource=self._vector))
            effects.append(tf.cond(fresh, make, tf.no_op))
        return tf.group(*effects)

    @_operation
    def enter(self) -> Any:
        """Makes this graph's life the one that may speak for the trainer."""
        with self._locked() as effects:
            state = self._load()
            may: Any = True
            if self._previous_life is not None:
                may = tf.equal(state.lives[self._rank], np.int64(self._previous_life))
            mine = self._me & may
            state = state._replace(
                lives=tf.where(mine, np.int64(self.life), state.lives),
                blocks=tf.where(mine, _ZERO, state.blocks),
            )
            if self._rank != 0 or self._previous_life is not None:
                effects.append(self._store(state))
            else:
                effects.extend(self._enter_as_chief(state))
        return tf.group(*effects)

    @_operation
    def arrive(self) -> list[Any]:
        """By parity: arrives, and releases if this trainer is the last; it will poll."""
        return [tf.group(self._arrive(parity, blocks=False)) for parity in (0, 1)]

    @_operation
    def cross(self) -> list[Any]:
        """By parity: arrives and does as `block`.

        Fails at once if there is nothing to wait for: it was refused, or its generation was
        released already.
        """
        crossings = []
        for parity in (0, 1):
            waits = self._arrive(parity, blocks=True)
            with tf.control_dependencies([_check(waits)]):
                crossings.append(self._block(parity))
        return crossings

    @_operation
    def block(self) -> list[Any]:
        """By parity: having arrived, blocks until it is woken.

        Fails unless that was the release of its generation; for a chief with an action, unless
        all are there.
        """
        return [self._block(parity) for parity in (0, 1)]

    @_operation
    def begin_to_block(self) -> Any:
        """For a trainer that has arrived as one that polls, and will `block` after all."""
        with self._locked() as effects:
            state = self._load()
            mine = self._me & self._speaks(state)
            effects.append(self._store(state._replace(blocks=tf.where(mine, _ONE, state.blocks))))
        return tf.group(*effects)

    @_operation
    def begin_action(self) -> Any:
        """The chief begins its action."""
        with self._locked() as effects:
            state = self._load()
            begins = self._is_full(state) & self._speaks(state)
            effects.append(self._store(state._replace(acting=tf.where(begins, _ONE, state.acting))))
        return tf.group(*effects)

    @_operation
    def release(self) -> Any:
        """The chief has run its action."""
        with self._locked() as effects:
            state = self._load()
            acted = (state.acting > 0) & self._speaks(state)
            effects.extend(self._settle(state, acted, acted=True))
        return tf.group(*effects)

    @_operation
    def resign(self) -> Any:
        """Nobody waits for this trainer any more."""
        with self._locked() as effects:
            state = self._load()
            speaks = self._speaks(state)
            resigns = self._me & speaks
            state = state._replace(
                arrived=tf.where(resigns, _RESIGNED, state.arrived),
                blocks=tf.where(resigns, _ZERO, state.blocks),
            )
            effects.extend(self._settle(state, speaks))
        return tf.group(*effects)

    @_operation
    def abort(self) -> Any:
        """Breaks the barrier; feeds `reason_text`."""
        with self._locked() as effects:
            effects.extend(self._break_if(True, self._load(), self.reason_text))
        return tf.group(*effects)

    @_operation
    def abort_if_waiting(self) -> Any:
        """The same, unless this trainer's generation has been released."""
        with self._locked() as effects:
            state = self._load()
            waits = state.arrived[self._rank] > state.released
            effects.extend(self._break_if(waits, state, self.reason_text))
        return tf.group(*effects)

    @_operation
    def reset(self) -> Any:
        """Empties and mends the barrier, and wakes those that wait."""
        with self._locked() as effects:
            state = self._load()
            released = state.released + 2
            empty = state._replace(
                arrived=tf.where(tf.equal(state.arrived, RESIGNED), _RESIGNED, released),
                released=released,
                acting=_ZERO,
                broken=_ZERO,
                resets=state.resets + 1,
            )
            with tf.control_dependencies([self._store(empty)]):
                effects.extend(self._wake(state, True))
        return tf.group(*effects)

    @_operation
    def snapshot(self) -> list[Any]:
        """Fetches the vector, times of arrival, times waited, reason, and the ps's clock."""
        vector = self._read(self._vector, tf.int64)
        with tf.control_dependencies([vector]):  # a broken state has its reason by then
            return [
                vector,
                self._read(self._arrived_at, tf.float64),
                self._read(self._waited, tf.float64),
                self._read(self._reason, tf.string),
                self._now(),
            ]

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
        # Only what reads waits for the lock. All else depends on that, or is constant, and what is
        # constant is then ready before the lock is taken.
        self._gate = [lock]
        yield effects
        self._gate = []
        with tf.control_dependencies(effects):
            effects[:] = [tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)]

    def _read(self, handle: Any, dtype: tf.DType) -> Any:
        with tf.control_dependencies(self._gate):
            return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)

    def _now(self) -> Any:
        with tf.control_dependencies(self._gate):
            return tf.timestamp()

    def _load(self) -> _State:
        sizes = [self._parties] * _NUM_ROWS + [_NUM_SINGLES]
        *rows, singles = tf.split(self._read(self._vector, tf.int64), sizes)
        return _State(*rows, *tf.unstack(singles, num=_NUM_SINGLES))

    def _store(self, state: _State) -> Any:
        rows, singles = state[:_NUM_ROWS], tf.stack(state[_NUM_ROWS:])
        return _assign(self._vector, tf.concat([*rows, singles], 0))

    def _enter_as_chief(self, state: _State) -> list[Any]:
        reason = f"{self._name} was restarted while its action ran"
        died = state.acting > 0
        state = state._replace(held=np.int64(self._held))
        broken = self._break_if(died, state, tf.constant(reason))
        with tf.control_dependencies(broken):
            return self._settle(self._load(), True)

    def _arrive(self, parity: int, *, blocks: bool) -> Any:
        """Arrives; a tensor that tells, after that, whether there is something to wait for.

        This is what each wait costs, under the lock, so it is written for few operations, each of
        which takes some 3 us: the vector is not taken apart, and conditions are factors of 0 or 1.
        """
        with self._locked() as effects:
            vector = self._read(self._vector, tf.int64)
            mine, life, blocked, chief_blocks, released, held, broken = self._pick(
                vector, *self._own_places, 2 * self._parties, *self._places_of_singles
            )
            accepted = tf.equal(life, self.life) & tf.equal(broken, 0) & (mine < RESIGNED)
            factor = tf.cast(accepted, tf.int64)
            if self._rank == 0:
                chief_blocks = np.int64(blocks)  # as of now, if it is the last
            step = factor * tf.bitwise.bitwise_xor(tf.bitwise.bitwise_and(mine, 1), parity)
            waits = accepted & (mine + step > released)
            vector += self._one_at(self._own_places[0]) * step
            vector += self._one_at(self._own_places[2]) * (factor * (int(blocks) - blocked))
            first = tf.reduce_min(vector[: self._parties], 0)
            complete = tf.cast((first > released) & (step > 0), tf.int64)
            release = complete * (1 - held)
            vector += self._one_at(self._places_of_singles[0]) * release
            stored = [_assign(self._vector, vector), self._note_time(release)]
            # Whoever is woken looks at all of it, so that has to be there first.
            with tf.control_dependencies(stored):
                num_blocked = tf.reduce_sum(vector[2 * self._parties : 3 * self._parties], 0)
                to_chief = (complete - release) * chief_blocks
                token = released + 1
                effects.append(_enqueue(self._queues[parity], token, num_blocked * release))
                effects.append(_enqueue(self._full_queues[parity], token, to_chief))
        with tf.control_dependencies(effects):
            return tf.identity(waits)

    def _note_time(self, release: Any) -> Any:
        arrived = tf.raw_ops.ResourceScatterUpdate(
            resource=self._arrived_at, indices=[self._rank], updates=[self._now()]
        )
        with tf.control_dependencies([arrived]):
            return self._add_waits(release)

    def _add_waits(self, release: Any) -> Any:
        times = self._read(self._arrived_at, tf.float64)
        waits = (tf.reduce_max(times, 0) - times) * tf.cast(release, tf.float64)
        return tf.raw_ops.AssignAddVariableOp(resource=self._waited, value=waits)

    def _block(self, parity: int) -> Any:
        token = tf.raw_ops.QueueDequeueV2(
            handle=self._own_queues[parity], component_types=[tf.int64]
        )[0]
        with tf.control_dependencies([token]):
            vector = self._read(self._vector, tf.int64)
        mine, life = self._pick(vector, *self._own_places[:2])
        return _check((token >= mine) & tf.equal(life, self.life))

    def _pick(self, vector: Any, *places: int) -> Any:
        return tf.unstack(tf.gather(vector, list(places)), num=len(places))

    def _one_at(self, place: int) -> Any:
        size = _NUM_ROWS * self._parties + _NUM_SINGLES
        return (np.arange(size) == place).astype(np.int64)

    @property
    def _own_places(self) -> list[int]:
        """Of `arrived`, `lives` and `blocks` of this trainer in the vector."""
        return [row * self._parties + self._rank for row in range(_NUM_ROWS)]

    @property
    def _places_of_singles(self) -> list[int]:
        """Of `released`, `held` and `broken` in the vector."""
        fields = [_State._fields.index(name) for name in ("released", "held", "broken")]
        return [_NUM_ROWS * (self._parties - 1) + field for field in fields]

    @property
    def _own_queues(self) -> list[Any]:
        return self._full_queues if self._held else self._queues

    def _settle(self, state: _State, changed: Any, *, acted: bool = False) -> list[Any]:
        """Stores the state; if it `changed` and all are there now, releases or wakes the chief.

        Args:
            state: the new one.
            changed: whether anything but a repetition or a refusal has happened.
            acted: whether the chief's action has run, so that it does not hold them any more.
        """
        complete = self._is_full(state) & changed
        release = complete if acted else complete & tf.equal(state.held, 0)
        after = state._replace(
            released=state.released + tf.cast(release, tf.int64),
            acting=tf.where(release, _ZERO, state.acting),
        )
        # Whoever is woken looks at the state, so that has to be there first.
        with tf.control_dependencies([self._store(after), self._add_waits(release)]):
            others, chief = self._blocked(state)
            token = state.released + 1
            return [
                *self._tokens(state, self._queues, token, others, release),
                *self._tokens(state, self._full_queues, token, chief, complete & ~release),
            ]

    def _break_if(self, condition: Any, state: _State, reason: Any) -> list[Any]:
        """Stores the state, broken if `condition` and if it was not before."""
        breaks = condition & tf.equal(state.broken, 0)
        reason = tf.where(breaks, reason, self._read(self._reason, tf.string))
        # In this order: whoever sees that it is broken sees why.
        with tf.control_dependencies([_assign(self._reason, reason)]):
            stored = self._store(state._replace(broken=tf.where(breaks, _ONE, state.broken)))
        with tf.control_dependencies([stored]):
            return self._wake(state, breaks)

    def _wake(self, state: _State, condition: Any) -> list[Any]:
        """Makes those look at the state that wait for the present generation."""
        others, chief = self._blocked(state)
        return [
            *self._tokens(state, self._queues, _WAKE_UP, others, condition),
            *self._tokens(state, self._full_queues, _WAKE_UP, chief, condition),
        ]

    def _blocked(self, state: _State) -> tuple[Any, Any]:
        """How many block in the queue for the release, and how many in the one for the chief."""
        waiting = (state.arrived > state.released) & (state.arrived < RESIGNED)
        blocked = tf.cast(waiting & (state.blocks > 0), tf.int32)
        chief = blocked[0] * tf.cast(state.held, tf.int32)
        return tf.reduce_sum(blocked, 0) - chief, chief

    def _tokens(
        self, state: _State, queues: list[Any], token: Any, count: Any, condition: Any
    ) -> list[Any]:
        """Puts `count` tokens into the queue of the present generation, if `condition`."""
        count = count * tf.cast(condition, tf.int32)
        odd = tf.cast((state.released + 1) % 2, tf.int32)
        return [
            _enqueue(queues[0], token, count * (1 - odd)),
            _enqueue(queues[1], token, count * odd),
        ]

    def _is_full(self, state: _State) -> Any:
        first = tf.reduce_min(state.arrived, 0)
        return (first > state.released) & (first < RESIGNED) & tf.equal(state.broken, 0)

    def _speaks(self, state: _State) -> Any:
        return tf.equal(state.lives[self._rank], self.life)


def _variable(shared_name: str, dtype: tf.DType) -> Any:
    return tf.raw_ops.VarHandleOp(dtype=dtype, shape=None, shared_name=shared_name)


def _queue(shared_name: str) -> Any:
    return tf.raw_ops.FIFOQueueV2(
        component_types=[tf.int64], shapes=[[]], capacity=2**31 - 1, shared_name=shared_name
    )


def _assign(handle: Any, value: Any) -> Any:
    return tf.raw_ops.AssignVariableOp(resource=handle, value=value)


def _check(condition: Any) -> Any:
    """Fails with InvalidArgumentError unless the condition holds: an answer without a fetch."""
    return tf.raw_ops.Assert(condition=condition, data=[condition], summarize=1)


def _enqueue(queue: Any, token: Any, count: Any) -> Any:
    """Puts `count` equal tokens in; 0 is fine and returns at once, so no condition is needed."""
    tokens = tf.fill([count], tf.cast(token, tf.int64))
    return tf.raw_ops.QueueEnqueueManyV2(handle=queue, components=[tokens])
