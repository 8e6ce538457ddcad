"""The barrier that blocks on the server."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfdist.barrier.interface import SharedBarrier
from tfdist.barrier.rules import Decision
from tfdist.barrier.state import StateOnPs
from tfdist.deadline import Deadline
from tfdist.ps.section import IN_USE

# A run that is cancelled before the ps has begun it leaves its `dequeue` behind there, which
# later takes somebody's token. What is left of a timeout in the end is therefore polled.
_SHORTEST_BLOCK_SECS = 0.1


class QueueBarrier(SharedBarrier):
    """Waits in a queue on the ps; a release costs each trainer one `session.run`.

    That run has no feed and no fetch, for either nearly doubles its cost. Tokens are wake-ups
    only: TensorFlow may lose one (a `dequeue` that times out, or belongs to a killed process,
    can take one along), so whoever was woken in vain looks at the state.
    """

    def _hot_operations(self, graph: StateOnPs) -> list[Any]:
        return [graph.cross, graph.block, graph.arrive, graph.begin_to_block]

    def _await(self, deadline: Deadline) -> Decision:
        decision = self._first_decision(deadline)
        while (
            decision in (Decision.ARRIVE, Decision.WAIT)
            and deadline.remaining >= _SHORTEST_BLOCK_SECS
        ):
            if decision is Decision.WAIT and not self._blocks:
                # It has arrived as one that polls, for which there will be no token.
                self._connection.run(self._connection.graph.begin_to_block, deadline=deadline)
                self._blocks = True
            elif self._take_token(decision, deadline):
                return Decision.PASS
            decision = self._decide(deadline)
        return self._poll(deadline, decision)

    def _take_token(self, decision: Decision, deadline: Deadline) -> bool:
        """Blocks for a while, having arrived if need be; whether that was the release."""
        graph = self._connection.graph
        arrives = decision is Decision.ARRIVE
        operation = (graph.cross if arrives else graph.block)[self._parity]
        self._blocks = True
        try:
            self._connection.block(operation, deadline.remaining - _SHORTEST_BLOCK_SECS / 2)
        except (tf.errors.InvalidArgumentError, IN_USE):
            # Woken in vain, or nothing was done. So it is for a restarted trainer that had arrived
            # before: the ps does not know yet that this process blocks.
            self._blocks = not arrives
            return False
        except tf.errors.DeadlineExceededError:
            self._uncertain = self._uncertain or arrives
            return False
        return self._action is None  # else all are there, and nobody has been released
