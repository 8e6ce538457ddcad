"""The barrier's state on the ps, and the transitions of `tfdist.barrier.rules` as graph operations.

The state is one vector of integers that is replaced as a whole under a lock, so a reader without
the lock still sees a consistent snapshot. Each transition is one operation without a fetch, which
one `session.run` executes.

Release tokens go through two queues, one for each parity of the generation: with a single queue a
fast trainer would take the token of a slow one. A token carries its generation, which identifies a
stale token.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.barrier import vector
from tfdist.barrier.rules import RESIGNED
from tfdist.barrier.vector import State
from tfdist.ps.section import FailingSection
from tfdist.ps.session import PS_DEVICE

_WAKE_UP = -1  # a token of no generation: look at the state
# TensorFlow takes a plain number in `tf.where` for an int32.
_ZERO, _ONE, _RESIGNED = np.int64(0), np.int64(1), np.int64(RESIGNED)

# One lock for the process: TensorFlow reads freed memory if two threads build graphs at the same
# time (`PythonAPIDispatcher::Dispatch` in python/framework/python_api_dispatcher.cc stores the
# arguments of a call where the next call overwrites them).
_graph_lock = threading.RLock()


# A queue, a token, and how many copies of it to enqueue.
_WakeUp = tuple[Any, Any, Any]


class _Section:
    """What a change of the state does, in this order: it stores, leaves the section, wakes others.

    Enqueuing a wake-up can be cancelled, so it happens outside the section. A trainer that is
    woken reads the new state, which is stored by then.
    """

    def __init__(self) -> None:
        self.stored: list[Any] = []
        self.wake_ups: list[_WakeUp] = []
        # Operations, once it is complete.
        self.left: Any = None
        self.done: Any = None

    def store(self, handle: Any, value: Any) -> None:
        """Stores after all earlier stores: a reader of a broken state also finds the reason."""
        with tf.control_dependencies(self.stored):
            self.stored.append(_assign(handle, value))

    def wake(self, wake_ups: list[_WakeUp]) -> list[Any]:
        """Operations that send the wake-ups after the section was left."""
        with tf.control_dependencies([self.left]):
            return [_enqueue(*wake_up) for wake_up in wake_ups]


def _operation(build: Callable[[StateOnPs], Any]) -> cached_property[Any]:
    """An operation that is added to the graph on first use.

    Building all of them takes a quarter of a second; most barriers are never aborted or reset.
    """

    @wraps(build)
    def operation(self: StateOnPs) -> Any:
        with self._building():
            return build(self)

    return cached_property(operation)


class StateOnPs:
    """The barrier's variables and transitions as a private graph, placed on ps 0 as a whole.

    Args:
        name: prefix of the barrier's resources on the ps.
        names: the parties by rank.
        rank: the trainer that uses this graph.
        has_action: whether that trainer is a chief with an action.
        previous_incarnation: the incarnation that this one replaces, if it is still the current
            one; None for a trainer that enters.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        rank: int,
        *,
        has_action: bool,
        previous_incarnation: int | None = None,
    ) -> None:
        self._previous_incarnation = previous_incarnation
        self._name, self._parties, self._rank, self._has_action = (
            names[rank],
            len(names),
            rank,
            has_action,
        )
        self._me = np.arange(self._parties) == rank
        self.incarnation = vector.new_incarnation()
        self.graph = tf.Graph()
        self._gate: list[Any] = []
        with self._building():
            self._exclusive = FailingSection(name)
            self._vector = _variable(f"{name}/state", tf.int64)
            self._reason = _variable(f"{name}/reason", tf.string)
            # In the first the trainers wait for the release, in the second a chief with an
            # action waits for the other trainers.
            self._queues = [_queue(f"{name}/release{parity}") for parity in (0, 1)]
            self._full_queues = [_queue(f"{name}/full{parity}") for parity in (0, 1)]
            self.reason_text = tf.compat.v1.placeholder(tf.string, [])

    @_operation
    def exists(self) -> Any:
        """Fetches whether the state exists."""
        return tf.raw_ops.VarIsInitializedOp(resource=self._vector)

    @_operation
    def make(self) -> Any:
        """Creates the state, unless another trainer has."""
        start = vector.start(self._parties)

        def make() -> Any:
            others = [_assign(self._reason, tf.constant("")), self._exclusive.open()]
            with tf.control_dependencies(others):  # a reader of the vector needs them
                return tf.group(_assign(self._vector, tf.constant(start)))

        lock = self._exclusive.lock()  # the guard is not open yet
        with tf.control_dependencies([lock]):
            fresh = tf.logical_not(tf.raw_ops.VarIsInitializedOp(resource=self._vector))
            made = tf.cond(fresh, make, tf.no_op)
        return self._exclusive.unlock(lock, [made])

    @_operation
    def enter(self) -> Any:
        """Makes this graph's incarnation the trainer's current one."""
        with self._section() as section:
            state = self._load()
            may: Any = True
            if self._previous_incarnation is not None:
                may = tf.equal(state.incarnations[self._rank], np.int64(self._previous_incarnation))
            mine = self._me & may
            state = state._replace(
                incarnations=tf.where(mine, np.int64(self.incarnation), state.incarnations),
                blocks=tf.where(mine, _ZERO, state.blocks),
            )
            if self._rank != 0 or self._previous_incarnation is not None:
                section.store(self._vector, vector.pack(state))
            else:
                self._enter_as_chief(section, state)
        return section.done

    @_operation
    def arrive(self) -> list[Any]:
        """By parity: arrives as a trainer that polls, and releases all if it is the last."""
        return [tf.group(*self._arrive(parity, blocks=False)) for parity in (0, 1)]

    @_operation
    def cross(self) -> list[Any]:
        """By parity: arrives, and blocks until it is woken.

        Fails immediately if the arrival was refused. Fails on waking unless its generation was
        released, or, for a chief with an action, unless all have arrived.
        """
        crossings = []
        for parity in (0, 1):
            accepted, generation = self._arrive(parity, blocks=True)
            with tf.control_dependencies([_check(accepted)]):
                token = _dequeue(self._own_queues[parity])
            with tf.control_dependencies([token]):
                [key] = self._pick(self._read(self._vector, tf.int64), "keys")
            # False if another process has taken its place while it blocked.
            is_mine = tf.equal(key, vector.next_key(self.incarnation, parity))
            crossings.append(_check(tf.equal(token, generation) & is_mine))
        return crossings

    @_operation
    def block(self) -> list[Any]:
        """By parity: having arrived, blocks until it is woken; fails as `cross` does."""
        blocked = []
        for parity in (0, 1):
            token = _dequeue(self._own_queues[parity])
            with tf.control_dependencies([token]):
                state = self._load()
            is_release = token >= state.arrived[self._rank]
            blocked.append(_check(is_release & self._speaks(state)))
        return blocked

    @_operation
    def begin_to_block(self) -> Any:
        """Lets a trainer that has arrived as one that polls `block` after all."""
        with self._section() as section:
            state = self._load()
            mine = self._me & self._speaks(state)
            state = state._replace(blocks=tf.where(mine, _ONE, state.blocks))
            section.store(self._vector, vector.pack(state))
        return section.done

    @_operation
    def begin_action(self) -> Any:
        """The chief begins its action."""
        with self._section() as section:
            state = self._load()
            begins = vector.is_full(state) & self._speaks(state)
            state = state._replace(acting=tf.where(begins, _ONE, state.acting))
            section.store(self._vector, vector.pack(state))
        return section.done

    @_operation
    def release(self) -> Any:
        """Releases all after the chief's action."""
        with self._section() as section:
            state = self._load()
            acted = (state.acting > 0) & self._speaks(state)
            self._settle(section, state, acted, acted=True)
        return section.done

    @_operation
    def resign(self) -> Any:
        """Leaves for good; the others no longer wait for this trainer."""
        with self._section() as section:
            state = self._load()
            speaks = self._speaks(state)
            resigns = self._me & speaks
            state = state._replace(
                arrived=tf.where(resigns, _RESIGNED, state.arrived),
                blocks=tf.where(resigns, _ZERO, state.blocks),
            )
            self._settle(section, state, speaks)
        return section.done

    @_operation
    def abort(self) -> Any:
        """Breaks the barrier; feeds `reason_text`."""
        with self._section() as section:
            state = self._broken_if(section, True, self._load(), self.reason_text)
            section.store(self._vector, vector.pack(state))
        return section.done

    @_operation
    def abort_if_waiting(self) -> Any:
        """Breaks the barrier, unless this trainer's generation has been released."""
        with self._section() as section:
            state = self._load()
            waits = state.arrived[self._rank] > state.released
            state = self._broken_if(section, waits, state, self.reason_text)
            section.store(self._vector, vector.pack(state))
        return section.done

    @_operation
    def reset(self) -> Any:
        """Empties and mends the barrier, and wakes the trainers that wait."""
        with self._section() as section:
            state = self._load()
            section.store(self._vector, vector.pack(vector.emptied(state)))
            self._wake(section, state, _WAKE_UP, release=True, to_chief=True)
        return section.done

    @_operation
    def snapshot(self) -> list[Any]:
        """Fetches the vector, the reason, and the ps's clock in seconds."""
        state = self._read(self._vector, tf.int64)
        with tf.control_dependencies([state]):  # a broken state has its reason by then
            return [state, self._read(self._reason, tf.string), tf.timestamp()]

    @contextmanager
    def _building(self) -> Iterator[None]:
        with _graph_lock, self.graph.as_default(), tf.compat.v1.device(PS_DEVICE):
            yield

    @contextmanager
    def _section(self) -> Iterator[_Section]:
        """Reads and stores as one atomic step, then sends the wake-ups.

        A run that finds another run inside fails with `IN_USE` and changes nothing.
        """
        section = _Section()
        lock = self._exclusive.lock()
        # Only reads wait for the lock. Everything else depends on a read or is constant, and the
        # constants are then ready before the lock is taken.
        self._gate = [self._exclusive.take(lock)]
        yield section
        self._gate = []
        with tf.control_dependencies(section.stored):
            opened = self._exclusive.open()
        section.left = self._exclusive.unlock(lock, [*section.stored, opened])
        section.done = tf.group(section.left, *section.wake(section.wake_ups))

    def _read(self, handle: Any, dtype: tf.DType) -> Any:
        with tf.control_dependencies(self._gate):
            return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)

    def _load(self) -> State:
        return vector.take_apart(self._read(self._vector, tf.int64), self._parties)

    def _enter_as_chief(self, section: _Section, state: State) -> None:
        reason = tf.constant(f"{self._name} was restarted while its action ran")
        died = state.acting > 0
        state = state._replace(has_action=np.int64(self._has_action))
        self._settle(section, self._broken_if(section, died, state, reason), True)

    def _arrive(self, parity: int, *, blocks: bool) -> tuple[Any, Any]:
        """Arrives; whether that was accepted, and in which generation.

        Every wait pays for this, so it uses few operations: it does not take the vector apart, but
        changes elements by adding other vectors to it.
        """
        one = {name: vector.one_at(name, self._rank, self._parties) for name in State._fields}
        other_parity = 1 - 2 * parity  # added to `parity`
        now = tf.cast(1e6 * tf.timestamp(), tf.int64)
        own = one["arrived"] - one["missing"] + other_parity * one["keys"]
        if blocks:
            own += one["blocks"] if self._has_action else one["blocks"] + one["blocked"]
        arrival = now * (one["arrived_at"] - one["waited"]) + own
        kept = 1 - one["arrived_at"] - one["blocks"]
        with self._section() as section:
            before = self._read(self._vector, tf.int64)
            key, present, missing, arrived = self._pick(
                before, "keys", "parity", "missing", "arrived"
            )
            accepted = tf.equal(key + present, vector.arrival_key(self.incarnation, parity))
            after = tf.raw_ops.Select(condition=accepted, x=before * kept + arrival, y=before)
            # tf.cond would make a function of each case. With Switch, operations on `all_there`
            # are dead unless this trainer is the last, and operations on `others_miss` if it is.
            is_last = accepted & tf.equal(missing, 1)
            others_miss, all_there = tf.raw_ops.Switch(data=after, pred=is_last)
            generation = arrived + 1
            settled, wake_ups = self._settle_last(all_there, parity, now, generation)
            stored = [
                _after([_assign(self._vector, each)], accepted) for each in (others_miss, settled)
            ]
            section.stored.append(_either(stored))
        woken = section.wake(wake_ups)
        done = _either([_after([section.left], stored[0]), _after(woken, stored[1])])
        return _after([done], accepted), generation

    def _settle_last(
        self, all_there: Any, parity: int, now: Any, generation: Any
    ) -> tuple[Any, list[_WakeUp]]:
        """Does what `_settle` does, by adding vectors to the whole."""
        one = {name: vector.one_at(name, 0, self._parties) for name in State._fields}
        waited = sum(vector.one_at("waited", rank, self._parties) for rank in range(self._parties))
        next_one = now * waited + (one["released"] + (1 - 2 * parity) * one["parity"])
        has_action, expected, blocked, chief = self._pick(
            all_there, "has_action", "expected", "blocked", "blocks", rank=0
        )
        release = 1 - has_action
        settled = (
            all_there
            + release * next_one
            + (release * expected) * one["missing"]
            - (release * blocked) * one["blocked"]
        )
        return settled, [
            (self._queues[parity], generation, release * blocked),
            (self._full_queues[parity], generation, has_action * chief),
        ]

    def _pick(self, state: Any, *fields: str, rank: int | None = None) -> Any:
        rank = self._rank if rank is None else rank
        places = [vector.place(field, rank, self._parties) for field in fields]
        return tf.unstack(tf.gather(state, places), num=len(fields))

    @property
    def _own_queues(self) -> list[Any]:
        return self._full_queues if self._has_action else self._queues

    def _settle(
        self, section: _Section, state: State, changed: Any, *, acted: bool = False
    ) -> None:
        """Stores the state; if it `changed` and all have arrived, releases them or wakes the chief.

        Args:
            section: the current section.
            state: the new state.
            changed: false if the request was refused or repeats an earlier one.
            acted: whether the chief's action has run, so that the release no longer waits for it.
        """
        complete = vector.is_full(state) & changed
        release = complete if acted else complete & tf.equal(state.has_action, 0)
        section.store(self._vector, vector.pack(vector.released(state, release)))
        token = state.released + 1
        self._wake(section, state, token, release=release, to_chief=complete & ~release)

    def _broken_if(self, section: _Section, condition: Any, state: State, reason: Any) -> State:
        """The state, broken if `condition`; wakes the waiting trainers if it was not before."""
        breaks = condition & tf.equal(state.broken, 0)
        section.store(self._reason, tf.where(breaks, reason, self._read(self._reason, tf.string)))
        self._wake(section, state, _WAKE_UP, release=breaks, to_chief=breaks)
        return state._replace(broken=tf.where(breaks, _ONE, state.broken))

    def _wake(
        self, section: _Section, state: State, token: Any, *, release: Any, to_chief: Any
    ) -> None:
        """Enqueues a token for each blocked trainer of the present generation."""
        odd = (state.released + 1) % 2
        others = vector.blocked_others(state) * tf.cast(release, tf.int64)
        chief = vector.blocked_chief(state) * tf.cast(to_chief, tf.int64)
        section.wake_ups += [
            (queues[parity], token, count * (odd if parity else 1 - odd))
            for queues, count in ((self._queues, others), (self._full_queues, chief))
            for parity in (0, 1)
        ]

    def _speaks(self, state: State) -> Any:
        return tf.equal(state.incarnations[self._rank], self.incarnation)


def _variable(shared_name: str, dtype: tf.DType) -> Any:
    return tf.raw_ops.VarHandleOp(dtype=dtype, shape=None, shared_name=shared_name)


def _queue(shared_name: str) -> Any:
    return tf.raw_ops.FIFOQueueV2(
        component_types=[tf.int64], shapes=[[]], capacity=2**31 - 1, shared_name=shared_name
    )


def _assign(handle: Any, value: Any) -> Any:
    return tf.raw_ops.AssignVariableOp(resource=handle, value=value)


def _after(operations: list[Any], value: Any) -> Any:
    """The value, after these operations; dead if one of them is dead."""
    with tf.control_dependencies(operations):
        return tf.identity(value)


def _either(values: list[Any]) -> Any:
    """The value that is not dead."""
    return tf.raw_ops.Merge(inputs=values)[0]


def _dequeue(queue: Any) -> Any:
    return tf.raw_ops.QueueDequeueV2(handle=queue, component_types=[tf.int64])[0]


def _check(condition: Any) -> Any:
    """Fails with InvalidArgumentError unless the condition holds: a result without a fetch."""
    return tf.raw_ops.Assert(condition=condition, data=[condition], summarize=1)


def _enqueue(queue: Any, token: Any, count: Any) -> Any:
    """Enqueues `count` copies of a token; with 0 it does nothing, so it needs no condition."""
    tokens = tf.fill(tf.expand_dims(count, 0), tf.cast(token, tf.int64))
    return tf.raw_ops.QueueEnqueueManyV2(handle=queue, components=[tokens])
