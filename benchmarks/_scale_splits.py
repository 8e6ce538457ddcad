"""A trainer at a table of splits, as calls that can be measured one by one."""

from __future__ import annotations

from collections.abc import Iterator

import tfdist


class Reader:
    """Claims splits of one epoch, and commits them batch by batch.

    Args:
        queue: of this trainer.
    """

    def __init__(self, queue: tfdist.splits.SplitQueue) -> None:
        self._splits: Iterator[tfdist.splits.Split] = iter(queue)

    def begin(self) -> None:
        """Makes all that the first claim makes: the graph, a session, the epoch.

        The variables have their values by then, and no other thread builds a graph.
        """
        self.claim()
        self.finish()

    def claim(self) -> None:
        """Takes the next split; raises StopIteration when none is left."""
        self.split = next(self._splits)

    def commit(self) -> None:
        """A batch, in a run of its own."""
        self.split.commit()

    def renew(self) -> None:
        """The lease, in a run of its own."""
        self.split.renew()

    def finish(self) -> None:
        """Commits the rest."""
        while not self.split.finished:
            self.split.commit()
