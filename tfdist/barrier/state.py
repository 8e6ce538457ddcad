"""The barrier's state on the ps, and how a trainer arrives, as graph operations.

The state is one vector of integers that is replaced as a whole under a lock, so a reader without
the lock still sees a consistent snapshot. `tfdist.barrier.operations` has the operations.

Release tokens go through two queues, one for each parity of the generation: with a single queue a
fast trainer would take the token of a slow one. A token carries its generation, which identifies a
stale token.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from tfdist.barrier import vector
from tfdist.barrier.vector import State
from tfdist.ps.section import FailingSection
from tfdist.ps.session import PS_DEVICE

# One section for all barriers: nothing in it blocks.
_SECTION = "tfdist/barrier"
VARIABLES = {"state": tf.int64, "reason": tf.string}

NAME_LENGTH = 64

# One lock for the process: TensorFlow reads freed memory if two threads build graphs at the same
# time (`PythonAPIDispatcher::Dispatch` in python/framework/python_api_dispatcher.cc stores the
# arguments of a call where the next call overwrites them).
_graph_lock = threading.RLock()


# A queue, a token, and how many copies of it to enqueue.
WakeUp = tuple[Any, Any, Any]


class Section:
    """What a change of the state does, in this order: it stores, leaves the section, wakes others.

    Enqueuing a wake-up can be cancelled, so it happens outside the section. A trainer that is
    woken reads the new state, which is stored by then.
    """

    def __init__(self, enqueue: Callable[[Any, Any, Any], Any]) -> None:
        self._enqueue = enqueue
        self.stored: list[Any] = []
        self.wake_ups: list[WakeUp] = []
        # Operations, once it is complete.
        self.left: Any = None
        self.done: Any = None

    def store(self, handle: Any, value: Any) -> None:
        """Stores after all earlier stores: a reader of a broken state also finds the reason."""
        with tf.control_dependencies(self.stored):
            self.stored.append(assign(handle, value))

    def wake(self, wake_ups: list[WakeUp]) -> list[Any]:
        """Operations that send the wake-ups after the section was left."""
        with tf.control_dependencies([self.left]):
            return [self._enqueue(*wake_up) for wake_up in wake_ups]


class Resources(NamedTuple):
    """What a barrier has on the ps: names or handles.

    In the `release` queues the trainers wait for the release, in the `full` ones a chief with an
    action waits for the other trainers.
    """

    state: Any
    reason: Any
    release_even: Any
    release_odd: Any
    full_even: Any
    full_odd: Any

    @property
    def release(self) -> tuple[Any, Any]:
        """The queues of the release by parity."""
        return self.release_even, self.release_odd

    @property
    def full(self) -> tuple[Any, Any]:
        """The queues of a chief with an action by parity."""
        return self.full_even, self.full_odd


def resource_names(barrier: str) -> Resources:
    """The names on the ps of what a barrier has there, each NAME_LENGTH long."""
    texts = [f"tfdist/barrier/{barrier}/{part}" for part in Resources._fields]
    return Resources(*(hashlib.sha256(text.encode()).hexdigest() for text in texts))


def handle_of(part: str, name: str) -> Any:
    """The handle of the resource of that name, which is that part of a barrier."""
    if part in VARIABLES:
        return tf.raw_ops.VarHandleOp(dtype=VARIABLES[part], shape=None, shared_name=name)
    return tf.raw_ops.FIFOQueueV2(
        component_types=[tf.int64], shapes=[[]], capacity=2**31 - 1, shared_name=name
    )


Graph = TypeVar("Graph", bound="StateOnPs")


def operation(build: Callable[[Graph], Any]) -> cached_property[Any]:
    """An operation that is added to the graph on first use; most barriers are never reset."""

    @wraps(build)
    def built(self: Graph) -> Any:
        with self.building():
            return build(self)

    return cached_property(built)


class StateOnPs(ABC):
    """A private graph, placed on ps 0 as a whole, in which one trainer uses the state.

    Args:
        parties: their number.
        rank: the trainer.
        has_action: whether that trainer is a chief with an action.
    """

    incarnation: Any  # a number or a tensor
    resources: Resources  # handles
    fed: Sequence[Any] = ()  # placeholders

    def __init__(self, parties: int, rank: int, *, has_action: bool) -> None:
        self._parties, self._rank, self._has_action = parties, rank, has_action
        self._me = np.arange(parties) == rank
        self.graph = tf.Graph()
        self.gate: list[Any] = []
        with self.building():
            self.use_resources()
            self.exclusive = FailingSection(_SECTION)

    @abstractmethod
    def use_resources(self) -> None:
        """Adds `incarnation` and `resources` to the graph."""

    @abstractmethod
    def enqueue(self, queue: Any, token: Any, count: Any) -> Any:
        """An operation that enqueues `count` copies of a token."""

    @contextmanager
    def building(self) -> Iterator[None]:
        """What is built in this context lies in this graph, on ps 0."""
        with _graph_lock, self.graph.as_default(), tf.compat.v1.device(PS_DEVICE):
            yield

    @contextmanager
    def section(self, *, makes_state: bool = False) -> Iterator[Section]:
        """Reads and stores as one atomic step, then sends the wake-ups.

        A run that finds another run inside fails with `IN_USE` and changes nothing.

        Args:
            makes_state: whether the section makes the state; else a run fails without entering it
                if the ps has no state, or that of another number of parties.
        """
        section = Section(self.enqueue)
        with tf.control_dependencies(self.fed):  # what a killed trainer feeds might never arrive
            lock = self.exclusive.lock()
        entry = [lock]
        if not makes_state:
            with tf.control_dependencies(entry):
                # A run that failed within the section would never leave it.
                entry = [tf.ensure_shape(self.load_vector(), [vector.size(self._parties)])]
        # Only reads wait for the lock. Everything else depends on a read, or is constant or fed,
        # and is then ready before the lock is taken.
        self.gate = [self.exclusive.take(entry)]
        try:
            yield section
        finally:  # Ctrl-C may end the building of an operation, which is built again later
            self.gate = []
        with tf.control_dependencies(section.stored):
            opened = self.exclusive.open()
        section.left = self.exclusive.unlock(lock, [*section.stored, opened])
        section.done = tf.group(section.left, *section.wake(section.wake_ups))

    def read(self, handle: Any, dtype: tf.DType) -> Any:
        """A variable's value; in a section, after it was entered."""
        with tf.control_dependencies(self.gate):
            return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)

    def load_vector(self) -> Any:
        """The state as a vector."""
        return self.read(self.resources.state, tf.int64)

    def load(self) -> State:
        """The state, taken apart."""
        return vector.take_apart(self.load_vector(), self._parties)

    def speaks(self, state: State) -> Any:
        """Whether this incarnation is the trainer's current one."""
        return tf.equal(state.incarnations[self._rank], self.incarnation)

    def arrival(self, parity: int, *, blocks: bool) -> tuple[Any, Any]:
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
        with self.section() as section:
            before = self.load_vector()
            key, present, missing, arrived = self.pick(
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
                _after([assign(self.resources.state, each)], accepted)
                for each in (others_miss, settled)
            ]
            section.stored.append(_either(stored))
        woken = section.wake(wake_ups)
        done = _either([_after([section.left], stored[0]), _after(woken, stored[1])])
        return _after([done], accepted), generation

    def _settle_last(
        self, all_there: Any, parity: int, now: Any, generation: Any
    ) -> tuple[Any, list[WakeUp]]:
        """Does what `_settle` does, by adding vectors to the whole."""
        one = {name: vector.one_at(name, 0, self._parties) for name in State._fields}
        waited = sum(vector.one_at("waited", rank, self._parties) for rank in range(self._parties))
        next_one = now * waited + (one["released"] + (1 - 2 * parity) * one["parity"])
        has_action, expected, blocked, chief = self.pick(
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
            (self.resources.release[parity], generation, release * blocked),
            (self.resources.full[parity], generation, has_action * chief),
        ]

    def pick(self, state: Any, *fields: str, rank: int | None = None) -> Any:
        """These fields of the state; of rows, the element of `rank` (by default the trainer)."""
        rank = self._rank if rank is None else rank
        places = [vector.place(field, rank, self._parties) for field in fields]
        return tf.unstack(tf.gather(state, places), num=len(fields))


def assign(handle: Any, value: Any) -> Any:
    """Stores a variable's value."""
    return tf.raw_ops.AssignVariableOp(resource=handle, value=value)


def _after(operations: list[Any], value: Any) -> Any:
    """The value, after these operations; dead if one of them is dead."""
    with tf.control_dependencies(operations):
        return tf.identity(value)


def _either(values: list[Any]) -> Any:
    """The value that is not dead."""
    return tf.raw_ops.Merge(inputs=values)[0]


def enqueue(queue: Any, token: Any, count: Any) -> Any:
    """Enqueues `count` copies of a token; with 0 it does nothing, but the queue has to exist."""
    tokens = tf.fill(tf.expand_dims(count, 0), tf.cast(token, tf.int64))
    return tf.raw_ops.QueueEnqueueManyV2(handle=queue, components=[tokens])
