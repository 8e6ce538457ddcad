"""The rate of a real job with more and more trainers, which are threads of one process.

A trainer works by sleeping: on many machines its work would not use the cores of the ps. The ps and
the trainers' messages share the cores of this machine. Several trainers share a server, because
each TensorFlow server has some 90 threads: with 64 servers in one process, the idle process used a
fifth of a core, and a step nearly twice the CPU time.
"""

from __future__ import annotations

import concurrent.futures
import random
import statistics
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import tfdist
from benchmarks import _scale_load as load
from benchmarks._input_clock import Clock
from benchmarks._scale_splits import Reader
from tfdist.cluster.server import start_server
from tfdist.deadline import Deadline
from tfdist.planner.split_job import SplitJob
from tfdist.ps.session import retry_duplicate_request
from tfdist.task import ClusterSpec

INTERVALS = 2  # measured intervals between barriers, after one for warming up
_STALL_SECS = 60.0


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        job: a job with one ps; its `trainers` is ignored, and barriers come after whole splits.
        numbers: numbers of trainers, which run one after another.
        climbs: how often each number runs.
        seed: of the trainers' step times.
    """

    job: SplitJob
    numbers: tuple[int, ...]
    climbs: int
    seed: int

    @property
    def splits(self) -> int:
        """The number of splits for which no epoch ends."""
        intervals = self.climbs * sum(self.numbers) * (INTERVALS + 1)
        return 2 * max(self.numbers) + intervals * self.job.barrier_steps // self.job.split_steps


@dataclass(frozen=True)
class Rung:
    """The figures for one number of trainers.

    Attributes:
        steps_per_sec: rate of all trainers together.
        ps_secs: CPU time of the ps for a step.
        trainer_secs: CPU time of the trainers' process for a step.
    """

    steps_per_sec: float
    ps_secs: float
    trainer_secs: float


class Ladder:
    """The trainers of a job; each run uses those with the lowest ranks.

    The constructor builds their graphs one after another, a second for each.

    Args:
        plan: what to run.
        cluster_spec: one worker for each server that the trainers share.
        ps_clock: CPU time of ps 0.
        opened: closes the sessions.
        deadline: of all runs.
    """

    def __init__(
        self,
        plan: Plan,
        cluster_spec: ClusterSpec,
        ps_clock: Clock,
        opened: ExitStack,
        deadline: Deadline,
    ) -> None:
        self._ps_clock, self._deadline, most = ps_clock, deadline, max(plan.numbers)
        self._threads = concurrent.futures.ThreadPoolExecutor(most)
        servers = [
            tfdist.Task("worker", index, cluster_spec)
            for index in range(len(cluster_spec["worker"]))
        ]
        self._trainers = [
            _Trainer(plan, task, servers[task.rank % len(servers)], opened)
            for task in load.named(cluster_spec, most, most)
        ]

    def run(self, number: int, step_secs: float) -> Rung:
        """Trains with `number` trainers that work `step_secs` in each step; blocks until they end.

        Raises:
            TfdistError: they have not ended by the deadline.
        """
        running = [
            self._threads.submit(trainer.run, number, step_secs, self._ps_clock)
            for trainer in self._trainers[:number]
        ]
        done, missing = concurrent.futures.wait(
            running, self._deadline.remaining, return_when=concurrent.futures.FIRST_EXCEPTION
        )
        spans = [each.result() for each in done]
        if missing:
            raise tfdist.TfdistError(f"{len(missing)} of {number} trainers have not ended")
        steps = sum(span.steps for span in spans)
        secs, ps_secs, trainer_secs = (
            statistics.fmean(getattr(span, name) for span in spans)
            for name in ("secs", "ps_secs", "trainer_secs")
        )
        return Rung(steps / secs, ps_secs / steps, trainer_secs / steps)


@dataclass(frozen=True)
class _Span:
    """The measured part of a run, from one barrier to another.

    Attributes:
        steps: steps of this trainer.
        secs: duration.
        ps_secs: CPU time of the ps.
        trainer_secs: CPU time of this process.
    """

    steps: int
    secs: float
    ps_secs: float
    trainer_secs: float


class _Trainer:
    """A trainer; the chief's instance initializes the variables."""

    def __init__(
        self, plan: Plan, task: tfdist.Task, server: tfdist.Task, opened: ExitStack
    ) -> None:
        import tensorflow as tf

        self._job = job = plan.job
        self._random = random.Random(plan.seed * 1000 + task.rank)
        with tf.Graph().as_default():
            sizes = [job.dense_bytes // job.variables] * job.variables
            variables = load.Variables("real", server.device, sizes)
            queue = load.split_queue(task, "real", plan.splits, job.split_steps)
            self._step = queue.commit_after(variables.step(job.rows))
            initialize = tf.compat.v1.global_variables_initializer()
            session = load.open_session(start_server(server).target, server.device)
            self._session = opened.enter_context(closing(session))
            if task.is_chief:
                self._session.run(initialize)
        self._reader = Reader(opened.enter_context(closing(queue)))
        self._reader.begin()
        self._barriers = {
            number: opened.enter_context(
                tfdist.Barrier(task, f"of{number}", parties=number, timeout=_STALL_SECS)
            )
            for number in plan.numbers
            if task.rank < number
        }
        self._warm_up()

    def run(self, number: int, step_secs: float, ps_clock: Clock) -> _Span:
        """Trains as one of `number` trainers; blocks until all have taken their steps."""
        barrier = self._barriers[number]
        barrier.wait()
        self._run_interval(barrier, step_secs)
        start = time.monotonic(), ps_clock(), time.process_time()
        for _ in range(INTERVALS):
            self._run_interval(barrier, step_secs)
        stop = time.monotonic(), ps_clock(), time.process_time()
        passed = (after - before for before, after in zip(start, stop, strict=True))
        return _Span(INTERVALS * self._job.barrier_steps, *passed)

    def _warm_up(self) -> None:
        # The first run of a graph takes long. Those of all trainers together would block the ps.
        self._reader.claim()
        self._run_step()
        self._reader.finish()

    def _run_interval(self, barrier: Any, step_secs: float) -> None:
        for number in range(self._job.barrier_steps):
            if number % self._job.split_steps == 0:
                self._reader.claim()
            varied = 1 + self._job.jitter * self._random.uniform(-1, 1)
            time.sleep(step_secs * varied)
            self._run_step()
        barrier.wait()

    def _run_step(self) -> None:
        split = self._reader.split
        split.committed(retry_duplicate_request(self._session.run, self._step, split.feed))
