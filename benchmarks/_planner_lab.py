"""Runs many small ps jobs in one cluster, and measures steps, CPU time and bytes of each.

All jobs have their graphs and sessions open, and take turns: a round runs each of them for a moment
in a shuffled order. So a busy moment of the machine hits one round of some jobs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tfdist
from benchmarks._barrier_peers import QUIET
from benchmarks._input_clock import Clock, cpu_clock, server_pid
from benchmarks._planner_jobs import Shape, training_step
from benchmarks._private_network import bytes_of, run_alone
from tfdist.errors import ClusterError

_LOOK_SECS, _STALL_SECS = 0.05, 120.0
_FEWEST_STEPS = 5
_SHORTEST_SECS = 0.1  # of a window in which all workers train
_COUNTED_STEPS = 20


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        jobs: whose steps are timed.
        counted: jobs of one worker whose bytes and messages are counted.
        rounds: number of rounds, after one for warming up.
        block_secs: how long a job is measured in a round.
        seed: of the ids and of the order.
    """

    jobs: tuple[Shape, ...]
    counted: tuple[Shape, ...]
    rounds: int
    block_secs: float
    seed: int


class Figures(NamedTuple):
    """A job in a round, in figures for each step.

    Attributes:
        step_secs: mean time of a step.
        worker_secs: CPU time of its worker.
        ps_secs: CPU time of all ps.
        foreign: share of the machine's CPU time that other processes have used.
    """

    step_secs: float
    worker_secs: float
    ps_secs: float
    foreign: float


class Counted(NamedTuple):
    """A step of a counted job.

    Attributes:
        messages: tensors that travel between two tasks.
        bytes: that the loopback has sent, by round; none if the network is not private.
    """

    messages: int
    bytes: list[float]


class Found(NamedTuple):
    """What was measured.

    Attributes:
        steps: the figures by job, then by round. A round is left out if its workers hardly trained
            at the same time.
        counted: by counted job.
        reason: why there are no bytes, or "".
    """

    steps: list[list[Figures]]
    counted: list[Counted]
    reason: str


def measure(plan: Plan, limit_secs: float) -> Found:
    """Runs the cluster, in a network of its own.

    Raises:
        ClusterError: a task failed, or the limit has passed.
    """
    steps, counted, reason = run_alone(__name__, asdict(plan), limit_secs)
    return Found(
        [[Figures(*each) for each in rounds] for rounds in steps],
        [Counted(*each) for each in counted],
        reason,
    )


def run(plan: dict[str, Any], limit_secs: float, reason: str) -> list[Any]:
    """Runs the cluster in this network; `run_alone` describes the arguments."""
    jobs, counted = ([Shape(**each) for each in plan[name]] for name in ("jobs", "counted"))
    checked = Plan(**plan | {"jobs": tuple(jobs), "counted": tuple(counted)})
    workers, num_ps = max(job.workers for job in jobs), max(job.ps for job in jobs)
    with tfdist.local_cluster(num_ps, workers, backend="processes", surroundings=QUIET) as cluster:
        by_rank = cluster.run(partial(_work, checked, not reason), timeout=limit_secs)
    steps = []
    for number, job in enumerate(jobs):
        rounds = zip(*(each.blocks[number] for each in by_rank[: job.workers]), strict=True)
        steps.append([each for each in map(figures, rounds) if each is not None])
        if not steps[-1]:
            raise ClusterError(
                f"{job}: its workers hardly trained at the same time; the machine is busy"
            )
    return [steps, by_rank[0].counted, reason]


# Of a worker.


class _Stamp(NamedTuple):
    """Counters of a worker at the end of a step; those of the ps and the machine are the chief's.

    Attributes:
        time: by the clock of the machine, in seconds.
        steps: steps of this worker so far.
        cpu_secs: CPU time of this worker.
        ps_secs: CPU time of all ps.
        busy_secs: CPU time of all processes of the machine.
    """

    time: float
    steps: float
    cpu_secs: float
    ps_secs: float = 0.0
    busy_secs: float = 0.0


_Block = list[_Stamp]


class _Done(NamedTuple):
    blocks: dict[int, list[_Block]]  # by job, then by round
    counted: list[Counted]


def _work(plan: Plan, is_alone: bool, task: tfdist.Task) -> _Done:
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    with tfdist.worker_server(task) as target, ExitStack() as opened:
        barrier = opened.enter_context(tfdist.Barrier(task, "block", timeout=_STALL_SECS))
        steps = {
            number: _open(f"job{number}", job, task, target, plan.seed, opened)
            for number, job in enumerate(plan.jobs)
            if task.rank < job.workers
        }
        barrier.wait()  # the chief has initialized the variables
        for step in steps.values():
            step()  # the first one takes long
        blocks = _run_rounds(plan, task, steps, barrier)
        counted = _count(plan, is_alone, task, target, opened) if task.is_chief else []
        barrier.wait()
    return _Done(blocks, counted)


def _open(
    name: str, job: Shape, task: tfdist.Task, target: str, seed: int, opened: ExitStack
) -> Callable[..., Any]:
    """Builds the graph of a job and opens its session; returns what runs a step."""
    import tensorflow as tf

    v1 = tf.compat.v1
    # The job knows the first ps and workers of the cluster alone.
    members = {"ps": job.ps, "worker": job.workers}
    spec = {kind: task.cluster_spec[kind][:count] for kind, count in members.items()}
    task = tfdist.Task("worker", task.task_index, spec)
    with tfdist.train.replica_graph(task) as graph, v1.variable_scope(name):
        step = training_step(job, np.random.default_rng([seed, task.rank]))
        initialize = v1.global_variables_initializer()
        # `tfdist.train.session` would find the variables of the first job ready, and start.
        config = v1.ConfigProto(device_filters=task.device_filters)
        session = opened.enter_context(closing(v1.Session(target, graph=graph, config=config)))
    if task.is_chief:
        session.run(initialize)
    return partial(session.run, step)


def _run_rounds(
    plan: Plan, task: tfdist.Task, steps: dict[int, Callable[..., Any]], barrier: tfdist.Barrier
) -> dict[int, list[_Block]]:
    clocks = _ps_clocks(task) if task.is_chief else []
    order = random.Random(plan.seed)
    blocks: dict[int, list[_Block]] = {number: [] for number in steps}
    for turn in range(plan.rounds + 1):
        for number in order.sample(range(len(plan.jobs)), len(plan.jobs)):
            barrier.wait()
            if number in steps:
                block = _run_block(steps[number], plan.block_secs, clocks)
                blocks[number] += [block] if turn else []
    return blocks


def _ps_clocks(task: tfdist.Task) -> list[Clock]:
    return [cpu_clock(server_pid(address)) for address in task.cluster_spec["ps"]]


def _run_block(step: Callable[[], Any], secs: float, clocks: Sequence[Clock]) -> _Block:
    end = time.monotonic() + secs
    stamps: _Block = []
    looked, busy = 0.0, 0.0
    while len(stamps) < _FEWEST_STEPS or stamps[-1].time < end:
        step()
        now = time.monotonic()
        if clocks and now - looked > _LOOK_SECS:
            looked, busy = now, _busy_secs()
        ps = sum(clock() for clock in clocks)
        stamps.append(_Stamp(now, len(stamps) + 1, time.process_time(), ps, busy))
    return stamps


def _busy_secs() -> float:
    """CPU seconds of all processes and interrupts, and those that other machines have taken."""
    line = Path("/proc/stat").read_text("ascii").partition("\n")[0]
    user, nice, system, _, _, *interrupts = map(int, line.split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def figures(block: Sequence[_Block]) -> Figures | None:
    """The figures of a block of all workers; None if they hardly trained at the same time."""
    start = max(stamps[0].time for stamps in block)
    stop = min(stamps[-1].time for stamps in block)
    if stop - start < _SHORTEST_SECS:
        return None
    passed = [_passed(stamps, start, stop) for stamps in block]
    steps, cpu_secs = sum(each.steps for each in passed), sum(each.cpu_secs for each in passed)
    available = (stop - start) * len(os.sched_getaffinity(0))
    return Figures(
        step_secs=(stop - start) * len(block) / steps,
        worker_secs=cpu_secs / steps,
        ps_secs=passed[0].ps_secs / steps,
        foreign=(passed[0].busy_secs - cpu_secs - passed[0].ps_secs) / available,
    )


def _passed(stamps: _Block, start: float, stop: float) -> _Stamp:
    """What the counters grew by from one time to another; between two steps they grow evenly."""
    times, *_ = columns = np.array(stamps, float).T
    return _Stamp(*(np.diff(np.interp((start, stop), times, each)).item() for each in columns))


# Bytes and messages.


def _count(
    plan: Plan, is_alone: bool, task: tfdist.Task, target: str, opened: ExitStack
) -> list[Counted]:
    found = []
    for number, job in enumerate(plan.counted):
        step = _open(f"counted{number}", job, task, target, plan.seed, opened)
        messages = _messages_of(step)
        rounds = range(plan.rounds if is_alone else 0)
        found.append(Counted(messages, [bytes_of(step, _COUNTED_STEPS) for _ in rounds]))
    return found


def _messages_of(step: Callable[..., Any]) -> int:
    """Tensors of a step that travel from one task to another, by the graphs of its devices."""
    import tensorflow as tf

    v1 = tf.compat.v1
    metadata = v1.RunMetadata()
    step(options=v1.RunOptions(output_partition_graphs=True), run_metadata=metadata)

    def task_of(node: Any, end: str) -> Any:
        return node.attr[f"{end}_device"].s.partition(b"/device:")[0]

    return sum(
        task_of(node, "send") != task_of(node, "recv")
        for graph in metadata.partition_graphs
        for node in graph.node
        if node.op == "_Recv"
    )
