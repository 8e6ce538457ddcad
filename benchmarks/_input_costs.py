"""CPU time of single operations: of the ps for claims and commits, of a worker for the ledger.

There are one worker and one ps. The CPU clock of the ps is read before each operation and 3 ms
after its answer, when the ps has tidied up; the CPU time of an idle ps is subtracted. Each
operation reaches an idle ps, which makes it as expensive as possible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import tfdist
from benchmarks._barrier_peers import QUIET
from benchmarks._input_clock import cpu_clock, server_pid
from tfdist.train import graph

SIZES = (100_000, 100)  # splits
NO_OP = "a run that does nothing"
CLAIM, COMMIT = "a claim", "a commit in a run of its own"
UPDATE, WITH_COMMIT = "a run of an addition", "the same with a commit"
CONTIGUOUS, SHUFFLED = "contiguous numbers", "shuffled numbers"

LEDGER_BATCH = 1024
_BATCHES_A_SPLIT, _BATCH = 2, 8  # each way to commit takes one batch
_TIDY_SECS = 0.003
# Steps of this worker in an epoch that two workers share: enough for three joins of the ledger.
_LEDGER_STEPS = 256
_STALL_SECS = 60.0

# CPU time in ms of each round, by operation and number of splits.
Costs = dict[tuple[str, int], list[float]]


def measure(rounds: int, claims: int, limit_secs: float) -> tuple[Costs, dict[str, list[float]]]:
    """The costs of the ps by operation, and those of the worker for `Epoch.read`.

    Args:
        rounds: number of rounds, after one for warming up.
        claims: claims in each round and table; less than the fewest splits.
        limit_secs: limit of the whole measurement.

    Raises:
        TfdistError: the worker failed, or it took longer than `limit_secs`.
    """
    with tfdist.local_cluster(1, 1, backend="processes", surroundings=QUIET) as cluster:
        function = partial(_work, rounds, claims)
        return cluster.run(function, timeout=limit_secs)[0]


def _work(rounds: int, claims: int, task: tfdist.Task) -> tuple[Costs, dict[str, list[float]]]:
    import tensorflow as tf

    with tfdist.worker_server(task) as target, tf.Graph().as_default():
        tables = {size: _Table(task, size) for size in SIZES}
        with tf.device("/job:ps/task:0"):
            no_op = tf.no_op()
        with graph.session(task, target) as session:
            clock = _PsClock(task)
            costs: Costs = {}
            for number in range(rounds + 1):
                for size, table in tables.items() if number % 2 else reversed(tables.items()):
                    found = table.costs(session, clock, claims)
                    found[NO_OP] = clock.ms_of([partial(session.run, no_op)] * claims)
                    for kind, ms in found.items():
                        costs.setdefault((kind, size), []).append(ms)
            for ms_of_rounds in costs.values():
                del ms_of_rounds[0]
            ledger = dict(_ledger_costs(task, rounds))
            for table in tables.values():
                table.queue.close()
            return costs, ledger


class _PsClock:
    """Measures operations of the ps, one at a time."""

    def __init__(self, task: tfdist.Task) -> None:
        self._clock = cpu_clock(server_pid(task.cluster_spec["ps"][0]))
        time.sleep(0.5)
        start, cpu = time.monotonic(), self._clock()
        time.sleep(1.0)
        self._idle = (self._clock() - cpu) / (time.monotonic() - start)

    def measure(self, operation: Callable[[], Any]) -> tuple[float, Any]:
        """The CPU seconds of the ps, and the result of the operation."""
        start, cpu = time.monotonic(), self._clock()
        answer = operation()
        time.sleep(_TIDY_SECS)
        return self._clock() - cpu - self._idle * (time.monotonic() - start), answer

    def ms_of(self, operations: list[Callable[[], Any]]) -> float:
        """The mean CPU time of the operations."""
        return 1e3 * sum(self.measure(each)[0] for each in operations) / len(operations)


class _Table:
    """A queue with `size` splits of two batches each, and an addition to commit with."""

    def __init__(self, task: tfdist.Task, size: int) -> None:
        import tensorflow as tf

        length = _BATCHES_A_SPLIT * _BATCH
        splits = [(start, start + length) for start in range(0, size * length, length)]
        self._size = self._left = size
        self.queue = tfdist.splits.SplitQueue(
            task, f"costs{size}", splits, batch_size=_BATCH, lease_secs=_STALL_SECS
        )
        with tf.compat.v1.device(graph.device_setter(task)):
            total = tf.compat.v1.get_variable(f"total{size}", initializer=0.0, use_resource=True)
            self._update = total.assign_add(1.0).op
        self._commit = self.queue.commit_after([self._update])

    def costs(self, session: Any, clock: _PsClock, claims: int) -> dict[str, float]:
        """Mean CPU time in ms by operation, over `claims` claims in one epoch."""
        spent = dict.fromkeys((CLAIM, COMMIT, UPDATE, WITH_COMMIT), 0.0)
        splits = iter(self.queue)
        if self._left < claims:
            for split in splits:
                while not split.finished:
                    split.commit()
            splits, self._left = iter(self.queue), self._size
        self._left -= claims
        for _ in range(claims):
            seconds, split = clock.measure(partial(next, splits))
            spent[CLAIM] += seconds
            spent[COMMIT] += clock.measure(split.commit)[0]
            spent[UPDATE] += clock.measure(partial(session.run, self._update))[0]
            spent[WITH_COMMIT] += clock.measure(partial(split.run, session, self._commit))[0]
        return {kind: 1e3 * seconds / claims for kind, seconds in spent.items()}


def _ledger_costs(task: tfdist.Task, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """For each kind, the mean CPU time in ms of the worker for `Epoch.read`, by round."""
    steps = np.arange(2 * _LEDGER_STEPS * LEDGER_BATCH).reshape(-1, LEDGER_BATCH)
    rng = np.random.default_rng(1)
    orders = {CONTIGUOUS: steps, SHUFFLED: rng.permutation(steps.ravel()).reshape(steps.shape)}
    with tfdist.train.Epoch(task, "ledger", timeout=_STALL_SECS) as epoch:
        for kind, numbers in orders.items():
            found = []
            for _ in range(rounds + 1):
                start = time.thread_time()
                for batch in numbers[:_LEDGER_STEPS]:
                    epoch.read(batch)
                found.append(1e3 * (time.thread_time() - start) / _LEDGER_STEPS)
                if epoch.finish().examples != _LEDGER_STEPS * LEDGER_BATCH:
                    raise tfdist.TfdistError("the ledger has lost examples")
            yield kind, found[1:]
