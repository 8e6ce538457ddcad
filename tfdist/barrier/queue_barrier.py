"""The barrier that blocks on the server."""

from __future__ import annotations

import tensorflow as tf

from tfdist.barrier.interface import RECHECK_SECS, SharedBarrier
from tfdist.deadline import Deadline

# A run that is cancelled before the ps has begun it leaves its `dequeue` behind there, which
# later takes somebody's token. What is left of a timeout in the end is therefore polled.
_SHORTEST_BLOCK_SECS = 0.1


class QueueBarrier(SharedBarrier):
    """Waits in a queue on the ps; a release costs each trainer one `session.run`.

    That run has no feed and no fetch, for either nearly doubles its cost. Tokens are wake-ups
    only: TensorFlow may lose one (a `dequeue` that times out, or belongs to a killed process,
    can take one along), so whoever was woken in vain looks at the state.
    """

    kind = "queue"

    def _connect(self) -> None:
        super()._connect()
        blocking = self._graph.cross if self._action is None else self._graph.gather
        self._blocking = [(each, self._session.make_callable(each)) for each in blocking]

    def _block(self, deadline: Deadline, pause: float) -> bool:
        operation, run_operation = self._blocking[self._parity]
        remaining = deadline.remaining
        if remaining < _SHORTEST_BLOCK_SECS:
            return self._poll(deadline, pause)
        try:
            if remaining > RECHECK_SECS:
                run_operation()
            else:
                milliseconds = int((remaining - _SHORTEST_BLOCK_SECS / 2) * 1000)
                options = tf.compat.v1.RunOptions(timeout_in_ms=milliseconds)
                self._session.run(operation, options=options)
        except (tf.errors.DeadlineExceededError, tf.errors.InvalidArgumentError):
            return False  # the time is over, or the token was of another generation
        return self._action is None  # else all are there, and nobody has been released
