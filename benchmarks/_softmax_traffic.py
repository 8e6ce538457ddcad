"""Bytes that a training step moves between a worker and two ps.

This file also runs as a program: it enters a network of its own before it imports anything that
starts threads. Loopback then carries nothing but the job, so its counter is the traffic of all
connections, with the headers of TCP and gRPC. TensorFlow passes tensors between the devices of one
process without the network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdist.cluster.isolation import isolate

if TYPE_CHECKING:
    import tfdist

SIZES = (10_000, 100_000)
_NUM_PS = 2
_BLOCK = {"full, tf.matmul": 2, "full_softmax": 2}
_STEPS = 20

# Bytes of a step, and of as many seconds without a step, by round.
Figures = dict[str, list[float]]


class TrafficError(Exception):
    """The traffic cannot be measured; the text is the reason."""


def measure(rounds: int, limit_secs: float) -> list[tuple[str, int, Figures]]:
    """The bytes of a step by peer and number of classes.

    Raises:
        TrafficError: the kernel refused a private network, or the job failed.
    """
    command = [sys.executable, "-m", "benchmarks._softmax_traffic", str(rounds), str(limit_secs)]
    try:
        done = subprocess.run(
            command, timeout=limit_secs, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TrafficError(f"took longer than {limit_secs:g} s") from error
    if done.returncode:
        raise TrafficError((done.stderr.strip() or "no reason").splitlines()[-1])
    return [(kind, classes, figures) for kind, classes, figures in json.loads(done.stdout)]


def theory(batch: int, sampled: int, dim: int) -> int:
    """Bytes of the rows of the labels and the candidates, and of their gradients, in float32."""
    return 2 * (batch + sampled) * dim * 4


def _main() -> None:
    isolate()
    import tfdist
    from benchmarks import _softmax_peers  # noqa: F401  found missing before the cluster starts
    from benchmarks._barrier_peers import QUIET

    rounds, limit_secs = int(sys.argv[1]), float(sys.argv[2])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tfdist.local_cluster(_NUM_PS, 1, backend="processes", surroundings=QUIET) as cluster:
        found = cluster.run(partial(_work, rounds), timeout=limit_secs)[0]
    print(json.dumps(found))


def _work(rounds: int, task: tfdist.Task) -> list[tuple[str, int, Figures]]:
    import tfdist
    from benchmarks._softmax_peers import FORWARD, INPUTS, PEERS, Table
    from tfdist.train import graph

    with tfdist.worker_server(task) as target, graph.replica_graph(task):
        tables = {classes: Table(classes, _NUM_PS) for classes in SIZES}
        steps = {
            (str(peer), classes): table.step(peer)
            for classes, table in tables.items()
            for peer in PEERS
            if peer.kind not in (INPUTS, FORWARD)
        }
        with graph.session(task, target) as session:
            for step in steps.values():  # the first run sends the graph to the ps
                session.run(step)
            found: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
            for _ in range(rounds):
                for key, step in steps.items():
                    count = _BLOCK.get(key[0], _STEPS)
                    found[key].append(_bytes_of(session, step, count))
    return [(kind, classes, {"bytes": each}) for (kind, classes), each in found.items()]


def _bytes_of(session: Any, step: Any, count: int) -> float:
    before = _sent()
    for _ in range(count):
        session.run(step)
    time.sleep(0.05)  # the last gradients may still be acknowledged
    return (_sent() - before) / count


def _sent() -> int:
    """Bytes that this network's loopback has sent."""
    for line in Path("/proc/self/net/dev").read_text("ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise TrafficError("no loopback in /proc/self/net/dev")


if __name__ == "__main__":
    _main()
