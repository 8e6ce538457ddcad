"""The barrier for programs that train in a `MonitoredTrainingSession`."""

from __future__ import annotations

from typing import Any, Protocol

import tensorflow as tf

from tfdist.errors import ConfigError, checked_integer


class _Barrier(Protocol):
    def wait(self) -> int: ...

    def resign(self) -> None: ...


def _checked_barrier(barrier: Any, *methods: str) -> Any:
    if not all(callable(getattr(barrier, method, None)) for method in methods):
        raise ConfigError("barrier", barrier, "must be a tfdist.Barrier")
    return barrier


class WaitAtEnd(tf.compat.v1.train.SessionRunHook):
    """Makes all trainers wait for one another at the end of their training.

    So no trainer leaves, and the chief does not save for the last time, while others still train.
    Put it before hooks that save, because hooks end in their order. It does not run if the training
    ended by an error other than the end of the data (OutOfRange, StopIteration).

    Args:
        barrier: its own timeout bounds the wait.
    """

    def __init__(self, barrier: _Barrier) -> None:
        self._barrier = _checked_barrier(barrier, "wait")

    def end(self, session: tf.compat.v1.Session) -> None:
        """Waits; raises what `wait` raises."""
        self._barrier.wait()


class WaitEverySteps(tf.compat.v1.train.SessionRunHook):
    """Makes all trainers wait for one another after every `steps` of their own runs.

    A trainer that ends resigns, and the others continue without it. The barrier must have no
    action, because a chief with an action cannot resign.

    Args:
        barrier: its own timeout bounds each wait.
        steps: runs of this session between two waits, at least 1.

    Raises:
        ConfigError: `steps` is too small, or `barrier` is no barrier.
    """

    def __init__(self, barrier: _Barrier, steps: int) -> None:
        self._steps, self._runs = checked_integer("steps", steps, 1), 0
        self._barrier = _checked_barrier(barrier, "wait", "resign")

    def after_run(
        self,
        run_context: tf.compat.v1.train.SessionRunContext,
        run_values: tf.compat.v1.train.SessionRunValues,
    ) -> None:
        """Counts the run, and waits if it is time."""
        self._runs += 1
        if self._runs % self._steps == 0:
            self._barrier.wait()

    def end(self, session: tf.compat.v1.Session) -> None:
        """Resigns."""
        self._barrier.resign()
