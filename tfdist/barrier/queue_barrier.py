"""The barrier that blocks on the server."""

from __future__ import annotations

import tensorflow as tf

from tfdist.arrivals import Decision
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

    def _enter(self, deadline: Deadline) -> None:
        super()._enter(deadline)
        self._cross = [self._session.make_callable(each) for each in self._graph.cross]
        self._block = [self._session.make_callable(each) for each in self._graph.block]

    def _await(self, deadline: Deadline) -> Decision:
        arrived = False
        while deadline.remaining >= _SHORTEST_BLOCK_SECS:
            if self._wait_for_token(deadline, arrived) and self._action is None:
                return Decision.PASS
            decision = self._decide_soon(deadline)
            if decision is Decision.ARRIVE:
                self._enter(deadline)
                arrived = False
            elif decision is Decision.WAIT:
                arrived = True
            else:
                return decision
        return self._poll(deadline)

    def _wait_for_token(self, deadline: Deadline, arrived: bool) -> bool:
        """Whether it took a token of its generation; else it is time to look."""
        remaining = deadline.remaining
        try:
            if remaining > RECHECK_SECS:
                (self._block if arrived else self._cross)[self._parity]()
            else:
                # In two runs, so that only the one that changes nothing may be given up.
                if not arrived:
                    self._run(self._graph.arrive_to_block[self._parity], deadline=deadline)
                milliseconds = int((remaining - _SHORTEST_BLOCK_SECS / 2) * 1000)
                options = tf.compat.v1.RunOptions(timeout_in_ms=milliseconds)
                self._session.run(self._graph.block[self._parity], options=options)
        except tf.errors.InvalidArgumentError:
            return False  # the token was of another generation
        except tf.errors.DeadlineExceededError:
            self._check_ps()
            if deadline.expired:
                raise
            return False
        return True
