"""A training step over two ps: CPU time of all three processes, and bytes between them.

The job has a network of its own (`_softmax_network.py`). Loopback then carries nothing but the job,
so its counter is the traffic of all connections, with the headers of TCP and gRPC. TensorFlow
passes tensors between the devices of one process without the network. One job measures both, since
to build its graph and to send it to the ps takes far longer than the steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tfdist
from benchmarks._barrier_peers import QUIET
from benchmarks._input_clock import cpu_clock, server_pid
from benchmarks._softmax_peers import FORWARD, INPUTS
from benchmarks._softmax_steps import Costs, Plan, blocks_of, run_rounds, steps_of
from tfdist.errors import ClusterError

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
    command = [sys.executable, "-m", "benchmarks._softmax_network", json.dumps(asdict(plan))]
    try:
        done = subprocess.run(
            [*command, str(limit_secs)],
            timeout=limit_secs,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"took longer than {limit_secs:g} s") from error
    if done.returncode:
        raise ClusterError((done.stderr.strip() or "no reason").splitlines()[-1])
    costs, moved, reason = json.loads(done.stdout)
    return Found(
        {(kind, classes): each for kind, classes, each in costs},
        {(kind, classes): each for kind, classes, each in moved},
        reason,
    )


def theory(batch: int, sampled: int, dim: int) -> int:
    """Bytes of the rows of the labels and the candidates, and of their gradients, in float32."""
    return 2 * (batch + sampled) * dim * 4


def run(plan: Plan, limit_secs: float, reason: str) -> None:
    """Runs the job in this network, and prints what it found.

    Args:
        plan: what to measure.
        limit_secs: for the job.
        reason: why others may use this network, so that no bytes are counted; "" if they may not.
    """
    with tfdist.local_cluster(_NUM_PS, 1, backend="processes", surroundings=QUIET) as cluster:
        found = cluster.run(partial(_work, plan, not reason), timeout=limit_secs)[0]
    parts = [[(*key, each) for key, each in part.items()] for part in found]
    print(json.dumps([*parts, reason]))


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
                    sent = _bytes_of(run, _BLOCK.get(peer.kind, _STEPS))
                    moved.setdefault((str(peer), classes), []).append(sent)
    return costs, moved


def _bytes_of(step: Callable[[], Any], count: int) -> float:
    before = _sent()
    for _ in range(count):
        step()
    time.sleep(0.05)  # the last gradients may still be acknowledged
    return (_sent() - before) / count


def _sent() -> int:
    """Bytes that this network's loopback has sent."""
    for line in Path("/proc/self/net/dev").read_text("ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise OSError("no loopback in /proc/self/net/dev")
