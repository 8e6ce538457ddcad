"""Dynamic sharding: a queue of splits on ps 0, by the rules of `tfdist.splits`."""

from tfdist.split_queue.queue import Split, SplitQueue, SplitReport

__all__ = ["Split", "SplitQueue", "SplitReport"]
