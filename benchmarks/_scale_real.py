"""A real job with more and more trainers, threads of one process: how many steps it makes.

Each trainer has a server of its own, as in any job. It works by sleeping, for in a job of many
machines that takes nothing from the ps. All else is shared: the ps, and what the trainers do for
their messages, have the cores of this machine together.
"""

from __future__ import annotations

import concurrent.futures
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import tfdist
from benchmarks import _scale_load as load
from benchmarks._barrier_peers import QUIET
from benchmarks._scale_job import Job
from benchmarks._scale_splits import Reader
from tfdist.cluster.server import start_server
from tfdist.deadline import Deadline
from tfdist.mistaken import retry_if_mistaken

INTERVALS = 2  # of a barrier, that are measured after one that is not
_STALL_SECS = 60.0


@dataclass(frozen=True)
class Plan:
    """What is run, as plain data that travels to the process.

    Attributes:
        job: with one ps; its `trainers` do not count, and each barrier comes after whole splits.
        ladder: numbers of trainers that run, one after the other.
        rounds: how many, after one that is thrown away.
        seed: of the order, and of how long the trainers work.
        limit_secs: for all of it.
    """

    job: Job
    ladder: tuple[int, ...]
    rounds: int
    seed: int
    limit_secs: float

    @property
    def splits(self) -> int:
        """As many as are claimed, so that no epoch ends."""
        intervals = (self.rounds + 1) * sum(self.ladder) * (INTERVALS + 1)
        return max(self.ladder) + intervals * self.job.barrier_steps // self.job.split_steps


@dataclass(frozen=True)
class Rung:
    """Of one number of trainers, in one round.

    Attributes:
        steps_per_sec: of all together.
        cpu_secs: of the process, ps and trainers, for a step.
    """

    steps_per_sec: float
    cpu_secs: float


# By number of trainers, of each round.
Ladders = dict[int, list[Rung]]


def run(plan: Plan) -> Ladders:
    """Runs all rounds in a process of their own; blocks until they are over.

    Raises:
        TfdistError: a trainer failed, or `plan.limit_secs` were over.
    """
    with tfdist.local_cluster(0, 1, backend="processes", surroundings=QUIET) as shell:
        return shell.run(partial(_run_threads, plan), timeout=plan.limit_secs)[0]


def _run_threads(plan: Plan, _: tfdist.Task) -> Ladders:
    most, deadline = max(plan.ladder), Deadline(plan.limit_secs)
    with (
        tfdist.local_cluster(1, most, backend="threads") as cluster,
        ExitStack() as opened,
        concurrent.futures.ThreadPoolExecutor(most) as threads,
    ):
        # One after the other: side by side their graphs take no less time to build.
        trainers = [_Trainer(plan, task, opened) for task in cluster.trainers]
        order, found = random.Random(plan.seed), Ladders()
        for _ in range(plan.rounds + 1):
            for number in order.sample(plan.ladder, len(plan.ladder)):
                found.setdefault(number, []).append(_climb(trainers[:number], threads, deadline))
        return {number: rungs[1:] for number, rungs in found.items()}


def _climb(
    trainers: Sequence[_Trainer], threads: concurrent.futures.Executor, deadline: Deadline
) -> Rung:
    number = len(trainers)
    running = [threads.submit(trainer.run, number) for trainer in trainers]
    concurrent.futures.wait(
        running, deadline.remaining, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    spans = [each.result(timeout=1) for each in running]
    steps = sum(span.steps for span in spans)
    secs = statistics.fmean(span.secs for span in spans)
    return Rung(steps / secs, statistics.fmean(span.cpu_secs for span in spans) / steps)


@dataclass(frozen=True)
class _Span:
    """From one meeting of all trainers to another one.

    Attributes:
        steps: of this trainer.
        secs: that passed.
        cpu_secs: of the whole process.
    """

    steps: int
    secs: float
    cpu_secs: float


class _Trainer:
    """One who trains; the first one that is made gives the variables their values."""

    def __init__(self, plan: Plan, task: tfdist.Task, opened: ExitStack) -> None:
        import tensorflow as tf

        self._job = job = plan.job
        self._random = random.Random(plan.seed * 1000 + task.rank)
        with tf.Graph().as_default():
            sizes = [job.dense_bytes // job.variables] * job.variables
            variables = load.Variables(task.device, sizes)
            queue = load.split_queue(task, "real", plan.splits, job.split_steps)
            self._step = queue.commit_after(variables.step(job.rows))
            initialize = tf.compat.v1.global_variables_initializer()
            session = load.open_session(start_server(task).target, task.device)
            self._session = opened.enter_context(closing(session))
            if task.is_chief:
                self._session.run(initialize)
        self._reader = Reader(opened.enter_context(closing(queue)))
        self._reader.begin()
        self._barriers = {
            number: opened.enter_context(
                tfdist.Barrier(task, f"of{number}", parties=number, timeout=_STALL_SECS)
            )
            for number in plan.ladder
            if task.rank < number
        }

    def run(self, number: int) -> _Span:
        """Trains together with others, so many in all; blocks until all have done their steps."""
        barrier = self._barriers[number]
        barrier.wait()
        self._run_interval(barrier)
        start, cpu = time.monotonic(), time.process_time()
        for _ in range(INTERVALS):
            self._run_interval(barrier)
        return _Span(
            INTERVALS * self._job.barrier_steps,
            time.monotonic() - start,
            time.process_time() - cpu,
        )

    def _run_interval(self, barrier: Any) -> None:
        for number in range(self._job.barrier_steps):
            if number % self._job.split_steps == 0:
                self._reader.claim()
            varied = 1 + self._job.jitter * self._random.uniform(-1, 1)
            time.sleep(self._job.step_secs * varied)
            split = self._reader.split
            split.committed(retry_if_mistaken(self._session.run, self._step, split.feed))
        barrier.wait()
