"""Four workers, one of them eight times slower, with a SplitQueue and with static shares.

The work of a step is a sleep and an addition on the ps, so that the load of the machine matters
little. Static shares take so much longer that they cover only a quarter of the records. They show
the speed of each worker, and from the speeds follows the ideal time: all records are read, and no
worker waits.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import tfdist
from benchmarks._barrier_peers import QUIET
from tfdist.train import graph

QUEUE, STATIC = "SplitQueue", "static shares"
PEERS = (QUEUE, STATIC)

WORKERS, SLOWNESS, SLEEP_SECS = 4, 8, 0.04
BATCH, SPLIT = 64, 20 * 64  # records
STATIC_PART = 4  # static shares cover one fourth of the records
_STALL_SECS = 60.0


@dataclass(frozen=True)
class Plan:
    """What to measure, as plain data for the workers.

    Attributes:
        rounds: number of rounds, after one for warming up.
        batches: batches of an epoch with the SplitQueue.
        seed: of the order of the peers.
    """

    rounds: int
    batches: int
    seed: int

    def orders(self) -> Iterator[list[str]]:
        """The peers in the order of each round; all workers get the same."""
        rng = random.Random(self.seed)
        for _ in range(self.rounds + 1):
            yield rng.sample(PEERS, len(PEERS))


@dataclass(frozen=True)
class Share:
    """One worker's part in an epoch.

    Attributes:
        start, stop: times by the clock of the machine when it entered and left its loop.
        records: number of records that it read.
    """

    start: float
    stop: float
    records: int


# The shares of all workers, by peer and round.
Measured = dict[str, list[list[Share]]]


def measure(rounds: int, batches: int, seed: int, limit_secs: float) -> Measured:
    """Runs all rounds and blocks until they end.

    Raises:
        TfdistError: a worker failed, or it took longer than `limit_secs`.
    """
    plan = Plan(rounds, batches, seed)
    with tfdist.local_cluster(1, WORKERS, backend="processes", surroundings=QUIET) as cluster:
        by_worker = cluster.run(partial(_work, plan), timeout=limit_secs)
    return {
        peer: [[worker[peer][number] for worker in by_worker] for number in range(1, rounds + 1)]
        for peer in PEERS
    }


def elapsed(shares: list[Share]) -> float:
    """Seconds from the first start to the last stop."""
    return max(share.stop for share in shares) - min(share.start for share in shares)


def spread_of_ends(shares: list[Share]) -> float:
    """Seconds from the first stop to the last."""
    stops = [share.stop for share in shares]
    return max(stops) - min(stops)


def ideal(records: int, static: list[Share]) -> float:
    """Seconds to read all records, if each worker keeps its speed with static shares."""
    return records / sum(share.records / (share.stop - share.start) for share in static)


# What a worker does.


def _work(plan: Plan, task: tfdist.Task) -> dict[str, list[Share]]:
    import tensorflow as tf

    with tfdist.worker_server(task) as target, tf.Graph().as_default():
        reader = _Reader(plan, task)
        with graph.session(task, target) as session:
            align = tfdist.Barrier(task, "align", timeout=_STALL_SECS)
            epoch = tfdist.train.Epoch(
                task, "straggler", expected=plan.batches * BATCH, timeout=_STALL_SECS
            )
            read: dict[str, Callable[[], int]] = {
                QUEUE: partial(reader.read_splits, session, epoch),
                STATIC: partial(reader.read_share, session),
            }
            results: dict[str, list[Share]] = {peer: [] for peer in PEERS}
            for order in plan.orders():
                for peer in order:
                    align.wait()
                    start = time.monotonic()
                    records = read[peer]()
                    results[peer].append(Share(start, time.monotonic(), records))
                    if peer == QUEUE:
                        epoch.finish().check()
            return results


class _Reader:
    def __init__(self, plan: Plan, task: tfdist.Task) -> None:
        import tensorflow as tf

        records = plan.batches * BATCH
        splits = [(start, min(start + SPLIT, records)) for start in range(0, records, SPLIT)]
        self._sleep_secs = SLEEP_SECS * (SLOWNESS if task.rank == WORKERS - 1 else 1)
        size = records // STATIC_PART // WORKERS // BATCH * BATCH
        self._mine = task.rank * size, (task.rank + 1) * size
        self._queue = tfdist.splits.SplitQueue(
            task, "straggler", splits, batch_size=BATCH, timeout=_STALL_SECS
        )
        self._start, self._stop = (tf.compat.v1.placeholder(tf.int64, []) for _ in range(2))
        with tf.compat.v1.device(graph.device_setter(task)):
            data = tfdist.data.endless_batches(
                tf.data.Dataset.range(self._start, self._stop), BATCH
            )
            self._iterator = tf.compat.v1.data.make_initializable_iterator(data)
            self._number, self._weight, _ = self._iterator.get_next()
            total = tf.compat.v1.get_variable("total", initializer=0.0, use_resource=True)
            values = self._weight * tf.cast(self._number, tf.float32)
            self._update = total.assign_add(tf.reduce_sum(values)).op
        self._commit = self._queue.commit_after([self._update])

    def read_splits(self, session: Any, epoch: tfdist.train.Epoch) -> int:
        """Reads splits until none is left; returns the number of records."""
        records = 0
        for split in self._queue:
            self._begin(session, split.offset, split.stop)
            while not split.finished:
                time.sleep(self._sleep_secs)
                fetched = [self._number, self._weight]
                number, weight = split.run(session, self._commit, fetched)
                read = number[weight > 0]
                epoch.read(read)
                records += len(read)
        return records

    def read_share(self, session: Any) -> int:
        """Reads the worker's static share; returns the number of records."""
        start, stop = self._mine
        self._begin(session, start, stop)
        for _ in range(start, stop, BATCH):
            time.sleep(self._sleep_secs)
            session.run([self._update, self._number, self._weight])
        return stop - start

    def _begin(self, session: Any, start: int, stop: int) -> None:
        session.run(self._iterator.initializer, {self._start: start, self._stop: stop})
