"""A section of operations on a ps that one run executes at a time.

A lock alone does not exclude other runs: TensorFlow releases it when *another* run that waits for
it is cancelled (`AcquireAsync` in core/kernels/mutex_ops.cc). So a section also has a guard, which
a run takes after the lock and opens before it unlocks. A run that finds the guard taken does not
wait: it changes nothing, and its sender sends it again. Only the run that took the guard opens it,
and it always does, because nothing within a section may block or be cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

# What a run of a FailingSection raises when another run is within it.
IN_USE = tf.errors.OutOfRangeError

_PHILOX = 1  # tf.random.Algorithm.PHILOX

Fetches = TypeVar("Fetches")


class _Section:
    _open_guard: np.ndarray

    def __init__(self, name: str) -> None:
        self._mutex = tf.raw_ops.MutexV2(shared_name=f"{name}/lock")
        self._guard = tf.raw_ops.VarHandleOp(
            dtype=tf.int64, shape=self._open_guard.shape, shared_name=f"{name}/guard"
        )

    def open(self) -> Any:
        """Opens the guard: once before the first run, then at the end of each section."""
        return tf.raw_ops.AssignVariableOp(resource=self._guard, value=self._open_guard)

    def lock(self) -> Any:
        """Waits for the lock, and leaves the guard alone."""
        return tf.raw_ops.MutexLock(mutex=self._mutex)

    def unlock(self, lock: Any, after: Sequence[Any]) -> Any:
        """Releases the lock once `after` is done."""
        with tf.control_dependencies(after):
            return tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)


class FailingSection(_Section):
    """A run that finds the section in use fails with IN_USE: one operation, and no branch.

    Args:
        name: names the lock and the guard on the ps. All operations are built in the default
            graph, on the device in scope.
    """

    _open_guard = np.zeros((), np.int64)

    def prepare(self) -> Any:
        """Opens the guard, unless that was done before: for a section without a fixed first run."""
        lock = self.lock()
        with tf.control_dependencies([lock]):
            is_prepared = tf.raw_ops.VarIsInitializedOp(resource=self._guard)
            prepared = tf.cond(is_prepared, tf.no_op, lambda: tf.group(self.open()))
        return self.unlock(lock, [prepared])

    def take(self, after: Sequence[Any]) -> Any:
        """Takes the guard after the lock; operations that read the state have to depend on it."""
        with tf.control_dependencies(after):
            return tf.raw_ops.ResourceCountUpTo(resource=self._guard, limit=1, T=tf.int64)


class BranchingSection(_Section):
    """A run that finds the section in use takes another branch.

    This is for an operation within a training step, which must not fail. The argument is that of
    FailingSection.
    """

    _open_guard = np.zeros(3, np.int64)

    def run(self, inside: Callable[[], Fetches], in_use: Callable[[], Fetches]) -> Fetches:
        """Executes what `inside` builds within the section, or what `in_use` builds if it is taken.

        Both build tensors of the same structure.
        """
        lock = self.lock()
        with tf.control_dependencies([lock]):
            is_free = self.take()

        def enter() -> Any:
            found = inside()
            with (
                tf.control_dependencies(tf.nest.flatten(found)),
                tf.control_dependencies([self.open()]),
            ):
                return tf.nest.map_structure(tf.identity, found)

        found: Fetches = tf.cond(is_free, enter, in_use)
        with tf.control_dependencies([self.unlock(lock, tf.nest.flatten(found))]):
            done: Fetches = tf.nest.map_structure(tf.identity, found)
        return done

    def take(self) -> Any:
        """Takes the guard; true if it was free.

        The guard is the counter of a random number generator: no other operation of TensorFlow
        atomically adds to a variable and returns its earlier value.
        """
        before = tf.raw_ops.RngReadAndSkip(
            resource=self._guard, alg=np.int32(_PHILOX), delta=np.uint64(1)
        )
        return tf.equal(before[0], 0)
