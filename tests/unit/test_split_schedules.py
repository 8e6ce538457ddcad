"""Larger jobs than can be explored, each drawn from a seed: trainers that are killed, replaced,
stopped and woken, too slow for their leases, and a ps that comes back from a checkpoint."""

import random
from itertools import pairwise

import pytest

from tfdist import splits
from tfdist.errors import SplitLost
from tfdist.splits import NOTHING, Lease, Over, Plan, SplitTable

EPOCHS, LEASE_US, AHEAD = 2, 1000, 10
MOST_STEPS = 50_000  # a job takes a few thousand


class Job:
    """A table, and a model that is trained: its visits are saved and restored with the table."""

    def __init__(self, seed):
        self._chance = random.Random(seed)
        parties = self._chance.randint(1, 4)
        sizes = [self._chance.randint(1, 60) for _ in range(self._chance.randint(1, 12))]
        edges = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
        retries = self._chance.choice([2, 10**6])
        plan = Plan(tuple(pairwise(edges)), seed=seed, lease_us=LEASE_US, max_retries=retries)
        self.table, self.now, self._life = SplitTable.start(plan, parties), 0, 0
        self.visits = {epoch: [0] * edges[-1] for epoch in range(EPOCHS)}
        self._trainers = [Trainer(rank) for rank in range(parties)]
        for trainer in self._trainers:
            self._enter(trainer)
        self._zombies = []
        self._held = self._saved = None

    def run(self):
        for _ in range(MOST_STEPS):
            if all(trainer.epoch == EPOCHS for trainer in self._trainers):
                return
            self.now += self._chance.randrange(LEASE_US // 2)
            trainer, what = self._chance.choice(self._trainers), self._chance.random()
            if what < 0.03:
                self._replace(trainer)
            elif what < 0.06:
                self._hold_or_release()
            elif what < 0.07 and self._saved:
                self._go_back()
            elif what < 0.1 and self._zombies:
                self._wake(self._zombies.pop(self._chance.randrange(len(self._zombies))))
            elif self.table.saver != trainer.rank:  # who saves does nothing else
                self._go_on(trainer)
        raise AssertionError(f"it hangs: {self.table}")

    def _go_on(self, trainer):
        if trainer.epoch == EPOCHS:
            return
        self.table = splits.begin_epoch(self.table, trainer.epoch)
        if self.table.epoch < trainer.epoch:
            assert self.table.saver != NOTHING  # it has to wait until that has saved
            return
        try:
            if trainer.visited:
                self.table, answer = splits.commit(
                    self.table, trainer.lease, trainer.lease.reserved, now=self.now, ahead=AHEAD
                )
                if isinstance(answer, Lease):
                    trainer.lease, trainer.visited = answer, False
                    trainer.lease = None if answer.finished else answer
            elif trainer.lease:
                self._visit(trainer)
            else:
                self.table, answer = splits.claim(
                    self.table,
                    trainer.rank,
                    trainer.life,
                    epoch=trainer.epoch,
                    now=self.now,
                    ahead=AHEAD,
                )
                if isinstance(answer, Lease):
                    trainer.lease = answer
                trainer.epoch += isinstance(answer, Over)
        except SplitLost:
            trainer.lease, trainer.visited = None, False

    def _visit(self, trainer):
        for record in range(trainer.lease.offset, trainer.lease.reserved):
            self.visits[trainer.epoch][record] += 1
        trainer.visited = True

    def _enter(self, trainer):
        """False if it has to wait for who saves."""
        self._life += 1
        self.table = splits.enter(self.table, trainer.rank, self._life)
        if self.table.lives[trainer.rank] != self._life:
            return False
        trainer.life, trainer.lease, trainer.visited = self._life, None, False
        if self.table.saver == NOTHING:
            self._held = None
        return True

    def _replace(self, trainer):
        """It is killed, or stopped and believed to be dead: its message may come late."""
        zombie = Trainer(trainer.rank, trainer.life, trainer.lease, trainer.visited, trainer.epoch)
        if self._enter(trainer):
            self._zombies.append(zombie)

    def _wake(self, zombie):
        """It commits, whether it has visited or not, and changes nothing."""
        before = self.table
        if zombie.lease:
            with pytest.raises(SplitLost):
                splits.commit(before, zombie.lease, zombie.lease.reserved, now=self.now, ahead=1)
        with pytest.raises(SplitLost):
            splits.claim(
                before, zombie.rank, zombie.life, epoch=before.epoch, now=self.now, ahead=1
            )

    def _hold_or_release(self):
        rank = self.table.saver
        if rank == NOTHING:
            saver = self._chance.choice(self._trainers)
            if not saver.lease:
                self.table, _ = splits.hold(self.table, saver.rank, saver.life)
                self._held = self.table
        else:
            visits = {epoch: list(counts) for epoch, counts in self.visits.items()}
            self._saved = self._held, visits
            life = self._trainers[rank].life
            self.table = splits.release(self.table, rank, life, now=self.now)

    def _go_back(self):
        """The ps is lost, and the whole job begins anew from the checkpoint."""
        table, visits = self._saved
        self.table = splits.restored(table, len(self._trainers))
        self.visits = {epoch: list(counts) for epoch, counts in visits.items()}
        self._zombies = []  # they speak to the ps that was lost
        for trainer in self._trainers:
            self._enter(trainer)
            trainer.epoch = self.table.first

    def wrong(self):
        """The visits that no note explains."""
        found = []
        for epoch, counts in self.visits.items():
            lost = [loss for loss in self.table.lost if loss.epoch == epoch]
            for record, number in enumerate(counts):
                again = sum(loss.offset <= record < loss.reserved for loss in lost)
                dead = any(loss.dead and loss.offset <= record < loss.stop for loss in lost)
                if not 1 - dead <= number <= 1 + again:
                    found.append((epoch, record, number, again, dead))
        return found


class Trainer:
    def __init__(self, rank, life=0, lease=None, visited=False, epoch=0):
        self.rank, self.life, self.lease = rank, life, lease
        self.visited, self.epoch = visited, epoch


@pytest.mark.parametrize("seed", range(200))
def test_every_record_is_visited_and_twice_only_where_a_loss_is_noted(seed):
    job = Job(seed)
    job.run()
    assert job.wrong() == []
    assert job.table.over
