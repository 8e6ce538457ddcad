"""Measures costs and runs a real job, in turns, so that what else the machine does hits both.

Two ps, a process each, and all trainers as threads of one more.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import tfdist
from benchmarks._barrier_peers import QUIET
from benchmarks._input_clock import cpu_clock, server_pid
from benchmarks._scale_blocks import Block, blocks
from benchmarks._scale_check import MIX, paced
from benchmarks._scale_crew import Crew
from benchmarks._scale_job import Machines
from benchmarks._scale_kinds import Kind, Pair, Sizes, costs_of
from benchmarks._scale_ladder import Ladder, Plan, Rung
from tfdist.deadline import Deadline


@dataclass(frozen=True)
class Order:
    """What is measured, as plain data that travels to the trainers' process.

    Attributes:
        sizes: of the messages.
        here: this machine.
        numbers: of trainers in the real job; the model is full with a quarter of the most.
        rounds: how many, after one of the costs alone that is thrown away.
        seed: of all that is random.
        limit_secs: for all of it.
    """

    sizes: Sizes
    here: Machines
    numbers: tuple[int, ...]
    rounds: int
    seed: int
    limit_secs: float


@dataclass(frozen=True)
class Round:
    """What was found in one round.

    Attributes:
        pairs: of each kind of message.
        rungs: of the real job, by the number of its trainers.
    """

    pairs: dict[Kind, Pair]
    rungs: dict[int, Rung]


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        step_secs: that a trainer of the real job worked in each step.
        rounds: all of them.
    """

    step_secs: float
    rounds: list[Round]


def measure(order: Order) -> Found:
    """Blocks until it is over.

    Raises:
        TfdistError: a trainer failed, or `order.limit_secs` were over.
    """
    present = order.sizes.present
    with tfdist.local_cluster(2, present, backend="processes", surroundings=QUIET) as cluster:
        found = cluster.run(partial(_work, order), timeout=order.limit_secs)[0]
    assert found is not None
    return found


def _work(order: Order, task: tfdist.Task) -> Found | None:
    if not task.is_chief:
        return None  # the chief's process has the servers of all
    deadline, cluster_spec = Deadline(order.limit_secs), task.cluster_spec
    with tfdist.worker_server(task), ExitStack() as opened:
        ps_clock = cpu_clock(server_pid(cluster_spec["ps"][0]))
        of_costs = blocks(order.sizes, cluster_spec, opened)
        plan = Plan(MIX, order.numbers, order.rounds + 1, order.seed)
        ladder = Ladder(plan, cluster_spec, ps_clock, opened, deadline)
        crew = Crew(order.sizes.present, ps_clock, deadline)
        return _take_turns(order, of_costs, crew, ladder)


def _take_turns(order: Order, of_costs: list[Block], crew: Crew, ladder: Ladder) -> Found:
    chance, rounds, most = random.Random(order.seed), list[Round](), max(order.numbers)
    step_secs = 0.0

    def costs() -> dict[Kind, Pair]:
        shuffled = chance.sample(of_costs, len(of_costs))
        return {kind: pair for block in shuffled for kind, pair in block(crew).items()}

    costs()
    for number in range(order.rounds):
        pairs = costs()
        if number == 0:
            known = costs_of({kind: [pair] for kind, pair in pairs.items()}, order.sizes)
            step_secs = paced(order.here, known, most / 4).step_secs
            ladder.run(most, step_secs)
        shuffled = chance.sample(order.numbers, len(order.numbers))
        rounds.append(Round(pairs, {each: ladder.run(each, step_secs) for each in shuffled}))
    return Found(step_secs, rounds)
