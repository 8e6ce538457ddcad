"""The barrier that polls."""

from __future__ import annotations

from typing import Any

from tfdist.barrier.interface import SharedBarrier
from tfdist.barrier.rules import Decision
from tfdist.barrier.state import StateOnPs
from tfdist.deadline import Deadline


class CounterBarrier(SharedBarrier):
    """Arrives, then reads the state again and again, with pauses that grow to 50 ms.

    Nothing blocks on the server, so it also serves where a call that idles for long would be cut
    off, and to check the queue kind against.
    """

    def _hot_operations(self, graph: StateOnPs) -> list[Any]:
        return [graph.arrive]

    def _await(self, deadline: Deadline) -> Decision:
        return self._poll(deadline, self._first_decision(deadline))
