"""Measures costs and runs a real job in turns, so that other load on the machine affects both.

There are two ps, each a process; all trainers are threads of a third process.
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
from benchmarks._scale_kinds import Kind, Pair, Sizes, costs_of
from benchmarks._scale_ladder import Ladder, Plan, Rung
from tfdist.deadline import Deadline
from tfdist.planner.split_job import Machines


@dataclass(frozen=True)
class Order:
    """What to measure, as plain data for the process of the trainers.

    Attributes:
        sizes: of the messages.
        here: this machine.
        numbers: numbers of trainers of the real job; the model is full at a quarter of the most.
        rounds: number of rounds, after one of the costs alone for warming up.
        seed: of everything random.
        limit_secs: limit of the whole measurement.
    """

    sizes: Sizes
    here: Machines
    numbers: tuple[int, ...]
    rounds: int
    seed: int
    limit_secs: float


@dataclass(frozen=True)
class Round:
    """The results of one round.

    Attributes:
        pairs: measurements of each kind of message.
        rungs: figures of the real job, by its number of trainers.
    """

    pairs: dict[Kind, Pair]
    rungs: dict[int, Rung]


@dataclass(frozen=True)
class Found:
    """The results of all rounds.

    Attributes:
        step_secs: work of a trainer of the real job in each step.
        rounds: all rounds.
    """

    step_secs: float
    rounds: list[Round]


def measure(order: Order) -> Found:
    """Measures everything, and blocks until that is done.

    Raises:
        TfdistError: a trainer failed, or it took longer than `order.limit_secs`.
    """
    present = order.sizes.present
    with tfdist.local_cluster(2, present, backend="processes", surroundings=QUIET) as cluster:
        found = cluster.run(partial(_work, order), timeout=order.limit_secs)[0]
    assert found is not None
    return found


def _work(order: Order, task: tfdist.Task) -> Found | None:
    if not task.is_chief:
        return None  # the chief's process has the servers of all trainers
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
