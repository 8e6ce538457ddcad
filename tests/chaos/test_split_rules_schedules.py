"""Seeded schedules of faults for the rules of the splits: trainers die, stop, wake and save, and
the ps is restored. Every record is read, and again only after a recorded loss.

To replay a seed: `scripts/test chaos -k "rules_schedules and [17]"`.
"""

import random
from itertools import accumulate, pairwise

import pytest

from tests.chaos.split_schedule import (
    DIES,
    DIES_SAVING,
    EPOCHS,
    IS_REPLACED,
    IS_SLOW,
    PS_IS_LOST,
    RESTARTS,
    SAVES,
    STOPS,
    Schedule,
    check,
)
from tfdist.errors import SplitLostError
from tfdist.splits import rules as splits
from tfdist.splits.plan import Plan
from tfdist.splits.rules import NOTHING, Lease, Over, SplitTable

LEASE_US = 1000
STEP_US = 20  # a step takes less
POLL_US = 100


class Job:
    """The table, the model, the clock, and the processes of the trainers.

    A process is a generator that yields the time until its next step. Other processes take steps in
    between.
    """

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.trainers, self.batch = self.chance.randint(2, 4), self.chance.randint(1, 10)
        sizes = [self.chance.randint(1, 60) for _ in range(self.chance.randint(1, 12))]
        edges = [0, *accumulate(sizes)]
        batches = sum(-(-size // self.batch) for size in sizes)
        self.schedule = Schedule(seed, self.trainers, batches)
        retries = self.chance.choice([0, 1, 100])
        plan = Plan(tuple(pairwise(edges)), seed=seed, lease_us=LEASE_US, max_retries=retries)
        self.table, self.now = SplitTable.start(plan, self.trainers), 0
        self.reads = [[0] * edges[-1] for _ in range(EPOCHS)]
        self.saved = self.table, self.snapshot_reads()
        self.batches, self.incarnations, self.losses_of_ps = 0, 0, 0
        self.processes = {}  # by process, the time of its next step
        self.most_steps = 50 * EPOCHS * (edges[-1] + 100)
        for rank in range(self.trainers):
            self.begin(rank)

    def begin(self, rank, after=0):
        self.incarnations += 1
        self.processes[self.process(rank, self.incarnations)] = self.now + after

    def run(self):
        """Runs all processes until each has ended, within a bound of steps."""
        for _ in range(self.most_steps):
            if not self.processes:
                return
            self.now = max(self.now, min(self.processes.values()))
            ready = [process for process, time in self.processes.items() if time <= self.now]
            process = self.chance.choice(ready)
            self.now += self.chance.randrange(STEP_US)
            try:
                self.processes[process] = self.now + next(process)
            except StopIteration:
                del self.processes[process]
        pytest.fail(f"not over after {self.most_steps} steps: {self.schedule}")

    def process(self, rank, incarnation):
        try:
            yield from self.trains(rank, incarnation, self.losses_of_ps)
        except SplitLostError:
            return  # another process acts for the trainer

    def trains(self, rank, incarnation, ps):
        while self.table.incarnations[rank] != incarnation:
            yield POLL_US  # until the table is not frozen
            self.table = splits.enter(self.table, rank, incarnation)
        epoch, pause = self.table.epoch, 0
        while ps == self.losses_of_ps:  # else the session is broken
            answer = self.call(splits.claim, rank, incarnation, epoch=epoch, batch_size=self.batch)
            if isinstance(answer, Over):
                epoch += 1
                if epoch == EPOCHS:
                    return
                while self.table.epoch < epoch:
                    self.table = splits.begin_epoch(self.table, epoch)
                    yield POLL_US
            yield POLL_US
            while isinstance(answer, Lease) and not answer.finished:
                yield pause * self.chance.randint(0, 1)
                if ps != self.losses_of_ps:
                    return
                self.batches += 1
                fault = self.schedule.take(rank, self.batches)
                what, after_update = (fault.what, fault.after_update) if fault else (None, False)
                if what == IS_SLOW:
                    pause = LEASE_US * 5 // 4
                elif what == PS_IS_LOST:
                    self.lose_ps()
                    return
                elif what in (SAVES, DIES_SAVING):
                    at_freeze = yield from self.freeze(rank, incarnation)
                    yield LEASE_US * self.chance.random()  # the others run until their commits
                    if what == DIES_SAVING:
                        self.begin(rank, after=3 * LEASE_US)
                        return
                    if ps != self.losses_of_ps:
                        return
                    saved = at_freeze, self.snapshot_reads()
                    self.table = splits.unfreeze(self.table, rank, incarnation, now=self.now)
                    self.saved = saved  # only after unfreeze may it be restored
                if after_update:
                    self.read(epoch, answer)
                if what in (RESTARTS, IS_REPLACED):
                    self.begin(rank, after=self.chance.choice([0, LEASE_US // 2, 2 * LEASE_US]))
                if what in (DIES, RESTARTS):
                    return
                if what in (STOPS, IS_REPLACED):
                    yield LEASE_US * self.chance.randint(1, 3)
                    if ps != self.losses_of_ps and not after_update:
                        return
                if not after_update:
                    self.read(epoch, answer)
                yield 0
                if ps != self.losses_of_ps:  # its commit may reach the restored ps
                    yield LEASE_US * self.chance.random()
                answer = yield from self.commit(answer)

    def read(self, epoch, lease):
        for record in range(lease.offset, lease.reserved):
            self.reads[epoch][record] += 1

    def commit(self, lease):
        """Commits, waiting while the table is frozen; returns the lease, or None if it was lost."""
        while True:
            try:
                answer = self.call(splits.commit, lease, lease.reserved, batch_size=self.batch)
            except SplitLostError:
                return None
            if isinstance(answer, Lease):
                return answer
            yield POLL_US

    def freeze(self, rank, incarnation):
        """Waits until this trainer has frozen the table; returns the frozen table."""
        while self.table.frozen_by != rank:
            self.table, _ = splits.freeze(self.table, rank, incarnation)
            yield POLL_US
        return self.table

    def call(self, rule, *args, **options):
        self.table, answer = rule(self.table, *args, now=self.now, **options)
        return answer

    def lose_ps(self):
        """Restores the table and the model, and starts new processes of all trainers.

        The old ones read no more, but commits that they have sent may still arrive.
        """
        table, self.reads = self.saved
        self.saved = table, self.snapshot_reads()
        self.table = splits.recover(table, self.trainers)
        self.losses_of_ps += 1
        for rank in range(self.trainers):
            self.begin(rank)

    def snapshot_reads(self):
        return [list(counts) for counts in self.reads]


@pytest.mark.rotates(200)
@pytest.mark.parametrize("seed", range(1000))
def test_every_record_is_read_and_again_only_after_a_recorded_loss(seed):
    job = Job(seed)
    job.run()
    assert job.table.over
    assert (job.table.epoch, job.table.frozen_by) == (EPOCHS - 1, NOTHING)
    check(job.reads, job.table.lost, job.schedule)
