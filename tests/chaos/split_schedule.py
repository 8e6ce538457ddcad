"""Seeded schedules of faults for the trainers of a SplitQueue, and the check of the result.

They drive the pure rules (test_split_rules_schedules.py) and threads at a real ps
(test_split_thread_schedules.py).
"""

import random
from typing import NamedTuple

EPOCHS = 2
MOST_FAULTS = 6

# Faults that strike a trainer before it reads a batch. Those of AFTER_UPDATE may also strike after
# the update, before the commit.
DIES = "dies"
RESTARTS = "dies, another process takes its place"
STOPS = "stops for longer than a lease, and continues"
IS_REPLACED = "stops, another process takes its place, and it wakes"
IS_SLOW = "takes longer than a lease for some batches"
SAVES = "saves a checkpoint"
DIES_SAVING = "dies while it saves, another process takes its place"
PS_IS_LOST = "loses the ps, which is restored, with new processes of all trainers"
AFTER_UPDATE = (DIES, RESTARTS, STOPS, IS_REPLACED)
OF_THE_CHIEF = (SAVES, DIES_SAVING)


class Fault(NamedTuple):
    """Strikes trainer `rank` at its first batch after all trainers have begun `batches` batches."""

    batches: int
    what: str
    rank: int
    after_update: bool

    def __str__(self):
        where = ", between update and commit" if self.after_update else ""
        return f"after {self.batches} batches trainer {self.rank} {self.what}{where}"


class Schedule:
    """The faults drawn from a seed. Rank 0 is the chief.

    Args:
        seed: of the random choices.
        trainers: number of trainers.
        batches: number of batches in an epoch without faults.
    """

    def __init__(self, seed, trainers, batches):
        self.chance = random.Random(f"faults {seed}")
        self.seed, self.happened = seed, []
        drawn = [self._draw(trainers, batches) for _ in range(self.chance.randint(1, MOST_FAULTS))]
        # Without a save before it, a restore would mostly begin from the start.
        saves = [
            Fault(self.chance.randrange(fault.batches + 1), SAVES, 0, False)
            for fault in drawn
            if fault.what == PS_IS_LOST
        ]
        self._coming = sorted(drawn + saves)

    def _draw(self, trainers, batches):
        each = [*AFTER_UPDATE, *AFTER_UPDATE, IS_SLOW, SAVES, DIES_SAVING, PS_IS_LOST, PS_IS_LOST]
        what, rank = self.chance.choice(each), self.chance.randrange(trainers)
        if what in OF_THE_CHIEF:
            rank = 0
        if what == DIES and rank == 0:  # one trainer has to finish
            what = RESTARTS
        after_update = what in AFTER_UPDATE and self.chance.random() < 0.5
        return Fault(self.chance.randrange(EPOCHS * batches), what, rank, after_update)

    def take(self, rank, batches):
        """The fault that strikes the trainer that begins a batch, or None."""
        for fault in self._coming:
            if fault.batches <= batches and (fault.what == PS_IS_LOST or fault.rank == rank):
                self._coming.remove(fault)
                self.happened.append(str(fault))
                return fault
        return None

    def __str__(self):
        not_reached = [f"(not reached: {fault})" for fault in self._coming]
        return f"replay with -k [{self.seed}]: {'; '.join([*self.happened, *not_reached])}"


def check(reads, losses, schedule):
    """Checks that every record is read or a dead letter, and read again only after a loss.

    Args:
        reads: by epoch, how often the model has read each record.
        losses: all recorded losses.
        schedule: printed if the check fails.
    """
    wrong = []
    for epoch, counts in enumerate(reads):
        noted, dead = [0] * len(counts), [0] * len(counts)
        for loss in losses:
            if loss.epoch == epoch:
                for record in range(loss.offset, loss.reserved):
                    noted[record] += 1
                for record in range(loss.offset, loss.stop):
                    dead[record] |= loss.dead
        wrong += [
            f"record {record} of epoch {epoch}: reads: {number}, recorded losses: {noted[record]}"
            for record, number in enumerate(counts)
            if not 1 - dead[record] <= number <= 1 - dead[record] + noted[record]
        ]
    assert not wrong, f"{wrong[:5]}, {len(wrong)} in all; {schedule}"
