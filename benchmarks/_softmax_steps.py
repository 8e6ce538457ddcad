"""CPU time of a training step in one process, and what the measurement over two ps shares with it.

One process has the tables of all sizes, so that the sizes take turns too: each block of steps is of
one peer and one size, and each round has all blocks in a shuffled order. Ratios are taken within a
round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psutil

import tfdist
from benchmarks import _softmax_torch as torch_peer
from benchmarks._barrier_peers import QUIET
from benchmarks._softmax_peers import PEERS, SIZES, Peer, Table

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


def _work_locally(plan: Plan, task: tfdist.Task) -> Costs:
    import tensorflow as tf

    blocks: dict[tuple[str, int], _Block] = {}
    with ExitStack() as stack:
        # A graph for each size: the first run of a step takes longer in a large graph.
        for classes in plan.sizes:
            with tf.Graph().as_default():
                steps = steps_of(replace(plan, sizes=[classes]), 1)
                initialize = tf.compat.v1.global_variables_initializer()
                session = stack.enter_context(tf.compat.v1.Session())
            session.run(initialize)
            blocks |= blocks_of(plan, session, steps, time.process_time)
        blocks |= stack.enter_context(_torch_peers(plan))
        return run_rounds(plan, blocks)


# The CPU seconds of a step, from the number of steps.
_Block = Callable[[], float]


def steps_of(plan: Plan, shards: int) -> dict[tuple[Peer, int], Any]:
    tables = {classes: Table(classes, shards) for classes in plan.sizes}
    return {
        (peer, classes): table.step(peer)
        for classes, table in tables.items()
        for peer in PEERS
        if peer.fits(classes)
    }


def blocks_of(
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


def run_rounds(plan: Plan, blocks: dict[tuple[str, int], _Block]) -> Costs:
    rng = random.Random(plan.seed)
    costs: Costs = {key: [] for key in blocks}
    for number in range(plan.rounds + 1):
        for key in rng.sample(list(blocks), len(blocks)):
            secs = blocks[key]()
            if number:
                costs[key].append(1e3 * secs)
    return costs
