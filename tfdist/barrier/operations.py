"""The transitions of `tfdist.barrier.rules` as graph operations, each run by one `session.run`.

`Transitions` is one graph for all barriers with equally many parties: which one is meant is fed, so
another barrier costs neither a graph nor a session. `Crossing` is one graph for each incarnation at
a barrier: its runs have no feed and no fetch, for either nearly doubles their cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.barrier import vector
from tfdist.barrier.rules import RESIGNED
from tfdist.barrier.state import (
    NAME_LENGTH,
    Resources,
    Section,
    StateOnPs,
    assign,
    enqueue,
    handle_of,
    operation,
)
from tfdist.barrier.vector import State

_WAKE_UP = -1  # a token of no generation: look at the state
# TensorFlow takes a plain number in `tf.where` for an int32.
_ZERO, _ONE, _RESIGNED = np.int64(0), np.int64(1), np.int64(RESIGNED)

_ANY_NAME = "-" * NAME_LENGTH


class Transitions(StateOnPs):
    """What a trainer does at any barrier with that many parties, without blocking.

    Every operation but `templates` needs the feed that `feed` makes.
    """

    def use_resources(self) -> None:  # noqa: D102
        self._handles = tf.compat.v1.placeholder(tf.string, [len(Resources._fields)])
        self._incarnations = tf.compat.v1.placeholder(tf.int64, [3])
        self._reason = tf.compat.v1.placeholder(tf.string, [])
        self.fed = [self._handles, self._incarnations, self._reason]
        self.incarnation, self._previous, self._new_ps = tf.unstack(self._incarnations)
        handles = tf.unstack(self._handles)
        self.resources = Resources(
            *(tf.raw_ops.ParseTensor(serialized=each, out_type=tf.resource) for each in handles)
        )

    def feed(
        self,
        templates: Sequence[bytes],
        names: Resources,
        reason: str,
        *,
        incarnation: int,
        previous: int,
    ) -> dict[Any, Any]:
        """What an operation needs.

        Args:
            templates: what the ps answered to `templates`.
            names: the barrier's resources.
            reason: why the barrier breaks, if the operation breaks it.
            incarnation: the one that asks.
            previous: the incarnation that it replaces; 0 for a trainer that enters.
        """
        handles = [
            template.replace(_ANY_NAME.encode(), name.encode())
            for template, name in zip(templates, names, strict=True)
        ]
        return {
            self._handles: handles,
            self._incarnations: [incarnation, previous, vector.new_ps_incarnation()],
            self._reason: reason,
        }

    def enqueue(self, queue: Any, token: Any, count: Any) -> Any:  # noqa: D102
        # There is no queue before a trainer may block in it.
        return tf.cond(count > 0, lambda: tf.group(enqueue(queue, token, count)), tf.no_op)

    @operation
    def templates(self) -> list[Any]:
        """Fetches a handle of each resource, serialized, with `_ANY_NAME` as its name."""
        return [
            tf.raw_ops.SerializeTensor(tensor=handle_of(part, _ANY_NAME))
            for part in Resources._fields
        ]

    @operation
    def exists(self) -> Any:
        """Fetches whether the state exists."""
        return tf.raw_ops.VarIsInitializedOp(resource=self.resources.state)

    @operation
    def prepare(self) -> Any:
        """Prepares the section of all barriers, unless another trainer has."""
        return self.exclusive.prepare()

    @operation
    def make(self) -> Any:
        """Creates the state, unless another trainer has; needs `prepare`."""
        with self.section(makes_state=True) as section, tf.control_dependencies(self.gate):
            fresh = tf.logical_not(tf.raw_ops.VarIsInitializedOp(resource=self.resources.state))
            section.stored.append(tf.cond(fresh, self._start, tf.no_op))
        return section.done

    @operation
    def enter(self) -> Any:
        """Makes the incarnation the trainer's current one.

        It breaks the barrier if the trainer is a chief that ended during its action.
        """
        with self.section() as section:
            state = self._entered(self.load(), True)
            if self._rank == 0:
                died = state.acting > 0
                state = state._replace(has_action=np.int64(self._has_action))
                self._settle(section, self._broken_if(section, died, state), True)
            else:
                section.store(self.resources.state, vector.pack(state))
        return section.done

    @operation
    def renew(self) -> Any:
        """Makes the incarnation the current one, if the previous one is."""
        with self.section() as section:
            state = self.load()
            is_current = tf.equal(state.incarnations[self._rank], self._previous)
            section.store(self.resources.state, vector.pack(self._entered(state, is_current)))
        return section.done

    @operation
    def arrive(self) -> list[Any]:
        """By parity: arrives as a trainer that polls, and releases all if it is the last."""
        return [tf.group(*self.arrival(parity, blocks=False)) for parity in (0, 1)]

    @operation
    def begin_to_block(self) -> Any:
        """Lets a trainer that has arrived as one that polls `block` after all."""
        with self.section() as section:
            state = self.load()
            mine = self._me & self.speaks(state)
            state = state._replace(blocks=tf.where(mine, _ONE, state.blocks))
            section.store(self.resources.state, vector.pack(state))
        return section.done

    @operation
    def begin_action(self) -> Any:
        """The chief begins its action."""
        with self.section() as section:
            state = self.load()
            begins = vector.is_full(state) & self.speaks(state)
            state = state._replace(acting=tf.where(begins, _ONE, state.acting))
            section.store(self.resources.state, vector.pack(state))
        return section.done

    @operation
    def release(self) -> Any:
        """Releases all after the chief's action."""
        with self.section() as section:
            state = self.load()
            acted = (state.acting > 0) & self.speaks(state)
            self._settle(section, state, acted, acted=True)
        return section.done

    @operation
    def resign(self) -> Any:
        """Leaves for good; the others no longer wait for this trainer."""
        with self.section() as section:
            state = self.load()
            speaks = self.speaks(state)
            resigns = self._me & speaks
            state = state._replace(
                arrived=tf.where(resigns, _RESIGNED, state.arrived),
                blocks=tf.where(resigns, _ZERO, state.blocks),
            )
            self._settle(section, state, speaks)
        return section.done

    @operation
    def abort(self) -> Any:
        """Breaks the barrier, for the reason that is fed."""
        with self.section() as section:
            state = self._broken_if(section, True, self.load())
            section.store(self.resources.state, vector.pack(state))
        return section.done

    @operation
    def abort_if_waiting(self) -> Any:
        """Breaks the barrier, unless this trainer's generation has been released."""
        with self.section() as section:
            state = self.load()
            waits = state.arrived[self._rank] > state.released
            state = self._broken_if(section, waits, state)
            section.store(self.resources.state, vector.pack(state))
        return section.done

    @operation
    def reset(self) -> Any:
        """Empties and mends the barrier, and wakes the trainers that wait."""
        with self.section() as section:
            state = self.load()
            section.store(self.resources.state, vector.pack(vector.emptied(state)))
            self._wake(section, state, _WAKE_UP, release=True, to_chief=True)
        return section.done

    @operation
    def snapshot(self) -> list[Any]:
        """Fetches the vector, the reason, and the ps's clock in seconds."""
        state = self.load_vector()
        with tf.control_dependencies([state]):  # a broken state has its reason by then
            return [state, self.read(self.resources.reason, tf.string), tf.timestamp()]

    def _start(self) -> Any:
        reason = assign(self.resources.reason, tf.constant(""))
        with tf.control_dependencies([reason]):  # a reader of the state needs it
            incarnation = vector.one_at("ps_incarnation", 0, self._parties) * self._new_ps
            start = vector.start(self._parties) + incarnation
            return tf.group(assign(self.resources.state, start))

    def _entered(self, state: State, condition: Any) -> State:
        mine = self._me & condition
        return state._replace(
            incarnations=tf.where(mine, self.incarnation, state.incarnations),
            blocks=tf.where(mine, _ZERO, state.blocks),
        )

    def _settle(self, section: Section, state: State, changed: Any, *, acted: bool = False) -> None:
        """Stores the state; if it `changed` and all have arrived, releases them or wakes the chief.

        Args:
            section: the current section.
            state: the new state.
            changed: false if the request was refused or repeats an earlier one.
            acted: whether the chief's action has run, so that the release no longer waits for it.
        """
        complete = vector.is_full(state) & changed
        release = complete if acted else complete & tf.equal(state.has_action, 0)
        section.store(self.resources.state, vector.pack(vector.released(state, release)))
        token = state.released + 1
        self._wake(section, state, token, release=release, to_chief=complete & ~release)

    def _broken_if(self, section: Section, condition: Any, state: State) -> State:
        """The state, broken for the reason that is fed, if `condition`.

        Wakes the waiting trainers if it was not broken before.
        """
        breaks = condition & tf.equal(state.broken, 0)
        present = self.read(self.resources.reason, tf.string)
        section.store(self.resources.reason, tf.where(breaks, self._reason, present))
        self._wake(section, state, _WAKE_UP, release=breaks, to_chief=breaks)
        return state._replace(broken=tf.where(breaks, _ONE, state.broken))

    def _wake(
        self, section: Section, state: State, token: Any, *, release: Any, to_chief: Any
    ) -> None:
        """Enqueues a token for each blocked trainer of the present generation."""
        odd = (state.released + 1) % 2
        others = vector.blocked_others(state) * tf.cast(release, tf.int64)
        chief = vector.blocked_chief(state) * tf.cast(to_chief, tf.int64)
        section.wake_ups += [
            (queues[parity], token, count * (odd if parity else 1 - odd))
            for queues, count in ((self.resources.release, others), (self.resources.full, chief))
            for parity in (0, 1)
        ]


class Crossing(StateOnPs):
    """How one incarnation of a trainer waits at one barrier, blocking on the ps.

    Args:
        parties, rank, has_action: as for StateOnPs.
        names: the barrier's resources.
        incarnation: the incarnation.
    """

    def __init__(
        self, parties: int, rank: int, *, has_action: bool, names: Resources, incarnation: int
    ) -> None:
        self._names, self.incarnation = names, incarnation
        super().__init__(parties, rank, has_action=has_action)
        self._own_queues = self.resources.full if has_action else self.resources.release

    def use_resources(self) -> None:  # noqa: D102
        handles = [handle_of(*each) for each in zip(Resources._fields, self._names, strict=True)]
        self.resources = Resources(*handles)

    def enqueue(self, queue: Any, token: Any, count: Any) -> Any:  # noqa: D102
        return enqueue(queue, token, count)

    @operation
    def make_queues(self) -> Any:
        """Makes the queues, unless another trainer has: before the trainer may block in them."""
        return tf.group(*self.resources.release, *self.resources.full)

    @operation
    def cross(self) -> list[Any]:
        """By parity: arrives, and blocks until it is woken.

        Fails immediately if the arrival was refused. Fails on waking unless its generation was
        released, or, for a chief with an action, unless all have arrived.
        """
        crossings = []
        for parity in (0, 1):
            accepted, generation = self.arrival(parity, blocks=True)
            with tf.control_dependencies([_check(accepted)]):
                token = _dequeue(self._own_queues[parity])
            with tf.control_dependencies([token]):
                [key] = self.pick(self.load_vector(), "keys")
            # False if another process has taken its place while it blocked.
            is_mine = tf.equal(key, vector.next_key(self.incarnation, parity))
            crossings.append(_check(tf.equal(token, generation) & is_mine))
        return crossings

    @operation
    def block(self) -> list[Any]:
        """By parity: having arrived, blocks until it is woken; fails as `cross` does."""
        blocked = []
        for parity in (0, 1):
            token = _dequeue(self._own_queues[parity])
            with tf.control_dependencies([token]):
                state = self.load()
            is_release = token >= state.arrived[self._rank]
            blocked.append(_check(is_release & self.speaks(state)))
        return blocked


def _dequeue(queue: Any) -> Any:
    return tf.raw_ops.QueueDequeueV2(handle=queue, component_types=[tf.int64])[0]


def _check(condition: Any) -> Any:
    """Fails with InvalidArgumentError unless the condition holds: a result without a fetch."""
    return tf.raw_ops.Assert(condition=condition, data=[condition], summarize=1)
