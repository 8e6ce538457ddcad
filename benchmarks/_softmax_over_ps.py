"""A training step over two ps: CPU time of all three processes, and bytes between them.

The job has a network of its own (`_private_network.py`), in which bytes are counted. One job
measures both, since to build its graph and to send it to the ps takes far longer than the steps.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import tfdist
from benchmarks._barrier_peers import QUIET
from benchmarks._input_clock import cpu_clock, server_pid
from benchmarks._private_network import bytes_of, run_alone
from benchmarks._softmax_peers import FORWARD, INPUTS
from benchmarks._softmax_steps import Costs, Plan, blocks_of, run_rounds, steps_of

SIZES = (10_000, 100_000)  # those whose bytes are counted
_NUM_PS = 2
_BLOCK = {"full, tf.matmul": 2, "full_softmax": 2}
_STEPS = 20


class Found(NamedTuple):
    """What was measured, each by peer and number of classes, then by round.

    Attributes:
        costs: CPU time of a step in ms.
        bytes: bytes that a step moves.
        reason: why there are no bytes, or "".
    """

    costs: Costs
    bytes: Costs
    reason: str


def measure(plan: Plan, limit_secs: float) -> Found:
    """Runs the job.

    Raises:
        ClusterError: the job failed, or it took longer than `limit_secs`.
    """
    costs, moved, reason = run_alone(__name__, asdict(plan), limit_secs)
    return Found(
        {(kind, classes): each for kind, classes, each in costs},
        {(kind, classes): each for kind, classes, each in moved},
        reason,
    )


def theory(batch: int, sampled: int, dim: int) -> int:
    """Bytes of the rows of the labels and the candidates, and of their gradients, in float32."""
    return 2 * (batch + sampled) * dim * 4


def run(plan: dict[str, Any], limit_secs: float, reason: str) -> list[Any]:
    """Runs the job in this network.

    Args:
        plan: what to measure.
        limit_secs: for the job.
        reason: why others may use this network, so that no bytes are counted; "" if they may not.
    """
    work = partial(_work, Plan(**plan), not reason)
    with tfdist.local_cluster(_NUM_PS, 1, backend="processes", surroundings=QUIET) as cluster:
        found = cluster.run(work, timeout=limit_secs)[0]
    parts = [[(*key, each) for key, each in part.items()] for part in found]
    return [*parts, reason]


def _work(plan: Plan, is_alone: bool, task: tfdist.Task) -> tuple[Costs, Costs]:
    import tensorflow as tf

    with tfdist.worker_server(task) as target, tfdist.train.replica_graph(task):
        steps = steps_of(plan, _NUM_PS)
        clocks = [cpu_clock(server_pid(address)) for address in task.cluster_spec["ps"]]
        with tfdist.train.session(task, target, timeout=120.0) as session:
            tf.get_logger().setLevel("ERROR")

            def clock() -> float:
                return time.process_time() + sum(each() for each in clocks)

            costs = run_rounds(plan, blocks_of(plan, session, steps, clock))
            moved: Costs = {}
            for _ in range(plan.rounds if is_alone else 0):
                for (peer, classes), step in steps.items():
                    if peer.kind in (INPUTS, FORWARD) or classes not in SIZES:
                        continue
                    run = session.make_callable(step)
                    sent = bytes_of(run, _BLOCK.get(peer.kind, _STEPS))
                    moved.setdefault((str(peer), classes), []).append(sent)
    return costs, moved
