"""A discrete-event simulation of a job: the waits of its trainers, and the rate of their steps.

A ps has cores and a network in each direction, which serve messages in order of arrival. A message
in the table of splits or in the barrier holds its lock and a core. It gets the next core before
other messages, because a running thread continues. Every trainer sends equally much to every ps
other than ps 0 at the same time; these ps behave alike, and the simulation has one of them. On one
machine all tasks share the cores, so there the simulation has every ps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tfdist.planner.message_costs import MessageCosts
from tfdist.planner.queues import Clock, Lock, Meeting, Station, Then
from tfdist.planner.split_job import Machines, Message, SplitJob, messages

CPU_0, CPU_OTHERS = "CPU of ps 0", "CPU of another ps"
CPU_OF_ALL = "CPU of the machine"
INWARD, OUTWARD = "network into ps 0", "network out of ps 0"
TABLE_LOCK, BARRIER_LOCK = "lock of the splits", "lock of the barrier"
WORK, VARIABLES, SPLITS, BARRIER = "work", "variables", "splits", "barrier"


@dataclass(frozen=True)
class SplitRun:
    """The result of a simulation.

    Attributes:
        steps_per_sec: rate of all trainers together.
        shares: how a trainer's time divides into work, variables, splits and barrier.
        use: utilization of each resource, from 0 to 1; all cores together are one.
        steps: steps of all trainers.
        served: number of requests that each resource served.
    """

    steps_per_sec: float
    shares: dict[str, float]
    use: dict[str, float]
    steps: int
    served: dict[str, int]


def simulate_split_job(
    job: SplitJob, machines: Machines, costs: MessageCosts, *, intervals: int = 1, seed: int = 0
) -> SplitRun:
    """Starts all trainers together, as after a barrier, and ends at barrier number `intervals`.

    The same arguments give the same result. A simulated step takes some 20 us.
    """
    return _Simulation(job, machines, costs, intervals, seed).run()


class _Ps:
    def __init__(self, clock: Clock, machines: Machines, cpu: Station) -> None:
        self._machines, self.cpu = machines, cpu
        self.inward, self.outward = Station(clock), Station(clock)

    def serve(self, message: Message, then: Then, lock: Lock | None = None) -> None:
        """Calls `then` when the answer has arrived."""

        def answer() -> None:
            self._travel(self.outward, message.bytes_to_trainer, then)

        def enter() -> None:
            if lock is None:
                answer()
            else:
                lock.acquire(lambda: self.cpu.request(message.section_secs, leave, first=True))

        def leave() -> None:
            if lock is not None:
                lock.release()
            answer()

        self._travel(
            self.inward, message.bytes_to_ps, lambda: self.cpu.request(message.ps_secs, enter)
        )

    def _travel(self, network: Station, size: float, then: Then) -> None:
        if self._machines.is_one or not size:
            then()
        else:
            network.request(size / self._machines.bytes_per_sec, then)


class _Simulation:
    def __init__(
        self, job: SplitJob, machines: Machines, costs: MessageCosts, intervals: int, seed: int
    ) -> None:
        self.job, self.machines = job, machines
        self.asked, self.clock = messages(job, costs), Clock()
        self.random = random.Random(seed)
        self.cpu = Station(self.clock, machines.cores)
        if machines.is_one:
            self.ps = [_Ps(self.clock, machines, self.cpu) for _ in range(job.num_ps)]
        else:
            cpus = [self.cpu, Station(self.clock, machines.cores)]
            self.ps = [_Ps(self.clock, machines, cpu) for cpu in cpus[: job.num_ps]]
        self.table, self.barrier = Lock(self.clock), Lock(self.clock)
        self.meeting = Meeting(job.trainers, self._note)
        self._intervals, self.steps = intervals, 0
        self.spent = dict.fromkeys((WORK, VARIABLES, SPLITS, BARRIER), 0.0)
        self._meetings = 0

    def run(self) -> SplitRun:
        for _ in range(self.job.trainers):
            _Trainer(self).begin_step()
        self.clock.run()
        # All trainers have met, and no message is under way.
        secs = self.clock.now
        used = {
            name: station.busy_secs / station.servers for name, station in self._stations().items()
        }
        used |= {TABLE_LOCK: self.table.held_secs, BARRIER_LOCK: self.barrier.held_secs}
        return SplitRun(
            steps_per_sec=self.steps / secs,
            shares={name: spent / secs / self.job.trainers for name, spent in self.spent.items()},
            use={name: in_use / secs for name, in_use in used.items()},
            steps=self.steps,
            served={name: station.served for name, station in self._stations().items()},
        )

    @property
    def is_over(self) -> bool:
        return self._meetings == self._intervals

    def _note(self) -> None:
        self._meetings += 1

    def _stations(self) -> dict[str, Station]:
        first, *others = self.ps
        if self.machines.is_one:
            return {CPU_OF_ALL: self.cpu}
        stations = {CPU_0: first.cpu, INWARD: first.inward, OUTWARD: first.outward}
        if others:
            stations[CPU_OTHERS] = others[0].cpu
        return stations


class _Trainer:
    """A trainer; each method is called when the one before it has completed."""

    def __init__(self, simulation: _Simulation) -> None:
        self._all, self._job = simulation, simulation.job
        self._steps = self._unanswered = 0
        self._since = simulation.clock.now

    def begin_step(self) -> None:
        if self._steps % self._job.split_steps:
            self._pull()
        else:
            self._ask(self._all.asked.claim, self._all.table, self._claimed)

    def _claimed(self) -> None:
        self._count(SPLITS)
        self._pull()

    def _pull(self) -> None:
        self._exchange(self._all.asked.pull, self._work)

    def _work(self) -> None:
        self._count(VARIABLES)
        varied = 1 + self._job.jitter * (2 * self._all.random.random() - 1)
        self._all.clock.after(self._job.step_secs * varied, self._push)

    def _push(self) -> None:
        self._count(WORK)
        self._exchange(self._all.asked.push, self._pushed)

    def _pushed(self) -> None:
        self._count(VARIABLES)
        self._steps += 1
        if self._steps % self._job.commit_steps:
            self._stepped()
        else:
            self._ask(self._all.asked.commit, self._all.table, self._stepped)

    def _stepped(self) -> None:
        self._count(SPLITS)
        self._all.steps += 1
        if self._steps % self._job.barrier_steps:
            self.begin_step()
        else:
            self._ask(
                self._all.asked.arrival,
                self._all.barrier,
                lambda: self._all.meeting.arrive(self._met),
            )

    def _met(self) -> None:
        self._count(BARRIER)
        if not self._all.is_over:
            self.begin_step()

    def _ask(self, message: Message, lock: Lock, then: Then) -> None:
        self._send(message, lambda: self._all.ps[0].serve(message, then, lock))

    def _exchange(self, message: Message, then: Then) -> None:
        """Sends a message to every ps; calls `then` when all have answered."""

        def answered() -> None:
            self._unanswered -= 1
            if not self._unanswered:
                then()

        def sent() -> None:
            self._unanswered = len(self._all.ps)
            for ps in self._all.ps:
                ps.serve(message, answered)

        self._send(message, sent)

    def _send(self, message: Message, then: Callable[[], None]) -> None:
        clock = self._all.clock
        if self._all.machines.is_one:
            cpu = self._all.cpu
            cpu.request(message.trainer_secs, lambda: clock.after(message.delay_secs, then))
        else:
            clock.after(message.trainer_secs + message.delay_secs, then)

    def _count(self, where: str) -> None:
        now = self._all.clock.now
        self._all.spent[where] += now - self._since
        self._since = now
