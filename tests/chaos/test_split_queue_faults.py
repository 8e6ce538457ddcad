"""Jobs whose tasks are killed, stopped and resumed while they read: every record is read, and each
record that is read twice is in the report. A job whose ps is killed continues from its last
checkpoint.

To replay a seed: `scripts/test chaos -k "queue_faults and [17]"`. The faults are the same; the
moments at which they strike vary.
"""

import functools
import json
import math
import random
import threading
import time
from contextlib import suppress

import pytest

from tests.chaos import split_jobs
from tfdist import BrokenBarrierError, ClusterError, RunTimeout, TaskFailed, local_cluster
from tfdist.testing import poll_until

pytestmark = pytest.mark.usefixtures("no_leaks")

LEASE_SECS = 0.5
NAMES = ["worker:0", "worker:1", "worker:2"]
MOST_SECS = 75.0  # of a job, shorter than the deadline of the test
NOTICE_SECS = 25.0  # in which a job without a ps has to fail


class Schedule:
    """The faults of a job, drawn from a seed; `log` has those that struck, with their times."""

    def __init__(self, seed):
        self._seed, chance = seed, random.Random(seed)
        self.slow = chance.choice([None, *NAMES])
        self.steps = [
            {
                "after": chance.uniform(0, 0.4),
                "name": chance.choice(NAMES),
                "killed": chance.random() < 0.5,
                "away": chance.choice([0.1, 2 * LEASE_SECS]),
            }
            for _ in range(chance.randint(1, 4))
        ]
        # Only the ps, which the trainers have to notice; or all tasks together.
        self.lost = chance.choice([[], [], ["ps:0"], ["ps:0", *NAMES]])
        self.lost_in_epoch = chance.choice([1, 2])
        self.log, self._begin = [], time.monotonic()

    def note(self, what):
        self.log.append(f"{time.monotonic() - self._begin:.1f} s: {what}")

    def __str__(self):
        replay = f'replay with scripts/test chaos -k "queue_faults and [{self._seed}]"'
        return f"{replay}: slow: {self.slow}; {'; '.join(self.log)}"


class Disturbed:
    """A job with the faults of a schedule, restarted after faults from which it has to fail."""

    def __init__(self, cluster, schedule, folder):
        self._cluster, self._schedule, self._folder = cluster, schedule, folder
        self._over = threading.Event()
        self._may_fail = self._chief_was_killed = False
        self._killed = self._lost_at = None
        self._restarted_at = -math.inf

    def run(self, job):
        try:
            while not self._ends_well(job):
                pass
        except (TaskFailed, RunTimeout) as error:
            raise AssertionError(f"{error}; {self._schedule}") from error

    def _ends_well(self, job):
        self._schedule.note("the job begins")
        self._over.clear()
        self._may_fail = self._chief_was_killed = False
        self._killed = None
        disturber = threading.Thread(target=self._disturb)
        disturber.start()
        try:
            self._cluster.run(job, timeout=MOST_SECS)
            return True
        except TaskFailed as error:
            # A chief that was killed in the barrier's action has broken the barrier. If all other
            # tasks have ended, the job ends before a killed one is restarted.
            breaks = self._chief_was_killed and isinstance(error.__cause__, BrokenBarrierError)
            is_last = error.task_name == self._killed
            if not (self._may_fail or breaks or is_last):
                raise
            self._schedule.note("the job fails, as expected")
            if self._may_fail:
                noticed = time.monotonic() - self._lost_at
                # The last trainer may have been restarted just before, and waits for the ps.
                starts = self._lost_at - self._restarted_at < split_jobs.START_SECS
                limit = NOTICE_SECS + (split_jobs.START_SECS if starts else 0)
                assert noticed < limit, f"{noticed:.1f} s without a ps; {self._schedule}"
            return False
        finally:
            self._over.set()
            disturber.join()

    def _disturb(self):
        self._wait_until(self._all_read)
        for file in self._folder.glob("worker:*"):
            file.unlink()
        steps, lost = self._schedule.steps, self._schedule.lost
        with suppress(ClusterError):  # the task has just ended
            while steps and not self._over.wait(steps[0]["after"]):
                self._take(**steps.pop(0))
        if lost and self._schedule.lost_in_epoch == 2:
            self._wait_until((self._folder / "epoch-1.json").exists)
        if lost and not self._over.is_set():
            self._schedule.lost = []
            self._lost_at, self._may_fail = time.monotonic(), True
            for name in lost:
                with suppress(ClusterError):
                    self._cluster.kill(name)
                    self._schedule.note(f"{name} killed for good")

    def _take(self, after, name, killed, away):
        self._schedule.note(f"{name} {'killed' if killed else 'stopped'} for {away} s")
        self._chief_was_killed |= killed and name == NAMES[0]
        self._killed = name if killed else None
        (self._cluster.kill if killed else self._cluster.pause)(name)
        self._over.wait(away)
        (self._cluster.restart if killed else self._cluster.resume)(name)
        self._restarted_at = time.monotonic() if killed else self._restarted_at
        self._killed = None

    def _wait_until(self, condition):
        poll_until(lambda: self._over.is_set() or condition(), "it holds", timeout=MOST_SECS)

    def _all_read(self):
        return len(list(self._folder.glob("worker:*"))) == len(NAMES)


@pytest.mark.rotates(6)
@pytest.mark.parametrize("seed", range(100))
def test_every_record_is_read_and_twice_only_as_reported(tmp_path, seed):
    schedule = Schedule(seed)
    job = functools.partial(
        split_jobs.read_all,
        folder=str(tmp_path),
        seed=seed,
        lease_secs=LEASE_SECS,
        slow=schedule.slow,
    )
    with local_cluster(1, len(NAMES), backend="processes") as cluster:
        Disturbed(cluster, schedule, tmp_path).run(job)
    for number in range(1, split_jobs.EPOCHS + 1):
        found = json.loads((tmp_path / f"epoch-{number}.json").read_text())
        whole = [[0, split_jobs.RECORDS]]
        reported = [found[key] for key in ("epoch", "committed", "dead_letters", "done")]
        assert reported == [number, whole, [], True], schedule
        assert not wrong(found), f"{wrong(found)[:5]}; {schedule}"


def wrong(found):
    """Records that were read more or less often than the report allows."""
    again = [0] * split_jobs.RECORDS
    for start, stop in found["possible_duplicates"]:
        for record in range(start, stop):
            again[record] += 1
    pairs = enumerate(zip(found["reads"], again, strict=True))
    return [(record, *pair) for record, pair in pairs if not 1 <= pair[0] <= 1 + pair[1]]
