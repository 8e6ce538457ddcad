"""CPU time of a training step, of all processes together: in one process, and over two ps.

One process has the tables of all sizes, so that the sizes take turns too: each block of steps is of
one peer and one size, and each round has all blocks in a shuffled order. Ratios are taken within a
round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

import tfdist
from benchmarks import _softmax_torch as torch_peer
from benchmarks._barrier_peers import QUIET
from benchmarks._input_clock import cpu_clock, server_pid
from benchmarks._softmax_peers import PEERS, SIZES, Peer, Table
from tfdist.train import graph

NUM_PS = 2
# Rows, slots and the largest temporary tensor of all tables, and TensorFlow.
_BYTES_NEEDED = 10e9

# CPU time of a step in ms by round; by peer and number of classes.
Costs = dict[tuple[str, int], list[float]]


@dataclass(frozen=True)
class Plan:
    """What to measure, as plain data for the worker.

    Attributes:
        rounds: number of rounds, after one for warming up.
        scale: of the number of steps in a block.
        seed: of the order.
        sizes: the numbers of classes.
        torch: the Python interpreter that has PyTorch, or "".
    """

    rounds: int
    scale: int
    seed: int
    sizes: Sequence[int] = SIZES
    torch: str = ""


def sizes_that_fit() -> tuple[int, ...]:
    """The numbers of classes; the largest needs much memory."""
    fits = psutil.virtual_memory().available >= _BYTES_NEEDED
    return SIZES if fits else SIZES[:-1]


def measure_local(plan: Plan, limit_secs: float) -> Costs:
    """The costs in one process, in which PyTorch's take turns with them.

    Raises:
        TfdistError: the process failed, or it took longer than `limit_secs`.
    """
    with tfdist.local_cluster(0, 1, backend="processes", surroundings=QUIET) as shell:
        return shell.run(partial(_work_locally, plan), timeout=limit_secs)[0]


def measure_over_ps(plan: Plan, limit_secs: float) -> Costs:
    """The costs of a worker and the ps together.

    Raises:
        TfdistError: a task failed, or it took longer than `limit_secs`.
    """
    with tfdist.local_cluster(NUM_PS, 1, backend="processes", surroundings=QUIET) as cluster:
        return cluster.run(partial(_work_over_ps, plan), timeout=limit_secs)[0]


def _work_locally(plan: Plan, task: tfdist.Task) -> Costs:
    import tensorflow as tf

    with tf.Graph().as_default() as whole, _torch_peers(plan) as others:
        steps = _steps(plan, 1)
        initialize = tf.compat.v1.global_variables_initializer()
        whole.finalize()
        with tf.compat.v1.Session() as session:
            session.run(initialize)
            blocks = _blocks(plan, session, steps, time.process_time)
            return _run_rounds(plan, {**blocks, **others})


def _work_over_ps(plan: Plan, task: tfdist.Task) -> Costs:
    import tensorflow as tf

    with tfdist.worker_server(task) as target, graph.replica_graph(task):
        steps = _steps(plan, NUM_PS)
        clocks = [cpu_clock(server_pid(address)) for address in task.cluster_spec["ps"]]
        with graph.session(task, target, timeout=120.0) as session:
            tf.get_logger().setLevel("ERROR")

            def clock() -> float:
                return time.process_time() + sum(each() for each in clocks)

            return _run_rounds(plan, _blocks(plan, session, steps, clock))


# The CPU seconds of a step, from the number of steps.
_Block = Callable[[], float]


def _steps(plan: Plan, shards: int) -> dict[tuple[Peer, int], Any]:
    tables = {classes: Table(classes, shards) for classes in plan.sizes}
    return {
        (peer, classes): table.step(peer)
        for classes, table in tables.items()
        for peer in PEERS
        if peer.fits(classes)
    }


def _blocks(
    plan: Plan, session: Any, steps: dict[tuple[Peer, int], Any], clock: Callable[[], float]
) -> dict[tuple[str, int], _Block]:
    def block(step: Callable[[], Any], count: int) -> float:
        start = clock()
        for _ in range(count):
            step()
        return (clock() - start) / count

    return {
        (str(peer), classes): partial(
            block, session.make_callable(step), peer.steps(classes, plan.scale)
        )
        for (peer, classes), step in steps.items()
    }


@contextmanager
def _torch_peers(plan: Plan) -> Iterator[dict[tuple[str, int], _Block]]:
    """The blocks of PyTorch, none without an interpreter that has it."""
    if not plan.torch:
        yield {}
        return
    with torch_peer.Process(plan.torch) as process:
        yield {
            (kind, classes): partial(
                process.cpu_secs, kind, classes, max(1, plan.scale * 3_000 // classes)
            )
            for kind, classes in process.peers
        }


def _run_rounds(plan: Plan, blocks: dict[tuple[str, int], _Block]) -> Costs:
    rng = random.Random(plan.seed)
    costs: Costs = {key: [] for key in blocks}
    for number in range(plan.rounds + 1):
        for key in rng.sample(list(blocks), len(blocks)):
            secs = blocks[key]()
            if number:
                costs[key].append(1e3 * secs)
    return costs
