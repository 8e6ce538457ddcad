"""A trainer's use of a split queue, as calls that are measured one by one."""

from __future__ import annotations

from collections.abc import Iterator

import tfdist


class Reader:
    """Claims splits of one epoch and commits them batch by batch."""

    def __init__(self, queue: tfdist.splits.SplitQueue) -> None:
        self._splits: Iterator[tfdist.splits.Split] = iter(queue)

    def begin(self) -> None:
        """Makes the first claim, which also builds the graph, the session and the epoch.

        The variables must be initialized, and no other thread may build a graph meanwhile.
        """
        self.claim()
        self.finish()

    def claim(self) -> None:
        """Claims the next split; raises StopIteration if none is left."""
        self.split = next(self._splits)

    def commit(self) -> None:
        """Commits a batch in a run of its own."""
        self.split.commit()

    def renew(self) -> None:
        """Renews the lease in a run of its own."""
        self.split.renew()

    def finish(self) -> None:
        """Commits the rest of the split."""
        while not self.split.finished:
            self.split.commit()
