"""Jobs whose tasks are killed, stopped and woken while they read: no record is lost, and each that
is visited twice is in the report. A job whose ps is killed goes on from its last checkpoint."""

import functools
import json
import random
import threading
from contextlib import suppress

import pytest

from tests.chaos import split_jobs
from tests.chaos.runs import TIMES
from tfdist import BarrierBroken, ClusterError, TaskFailed, local_cluster
from tfdist.testing import poll_until

pytestmark = pytest.mark.usefixtures("no_leaks")

LEASE_SECS = 0.5
NAMES = ["worker:0", "worker:1", "worker:2"]


class Schedule:
    """What is done to a job, drawn from a seed; `log` has what was done."""

    def __init__(self, cluster, folder, seed):
        self._cluster, self._folder = cluster, folder
        self._chance = random.Random(seed)
        self.slow = self._chance.choice([None, *NAMES])
        self._steps = self._chance.randint(1, 4)
        self.loses_ps = self._chance.random() < 0.3
        self._over = threading.Event()
        self.log = [f"slow: {self.slow}"]

    def run(self, job):
        """Runs the job to its end, once more where it has to fail."""
        while True:
            self.log.append("the job begins")
            self._over.clear()
            disturber = threading.Thread(target=self._disturb)
            disturber.start()
            try:
                self._cluster.run(job, timeout=90)
                return
            except TaskFailed as error:
                if not self._expects(error):
                    raise
            finally:
                self._over.set()
                disturber.join()

    def _expects(self, error):
        """The ps is lost, or the chief was killed while it saved at the end of an epoch."""
        begun = len(self.log) - self.log[::-1].index("the job begins")
        killed = self.log[begun:]
        of_chief = isinstance(error.__cause__, BarrierBroken) and "worker:0 killed" in killed
        return of_chief or "ps:0 killed" in killed

    def _disturb(self):
        poll_until(lambda: self._over.is_set() or self._all_read(), "all read", timeout=60)
        for file in self._folder.glob("worker:*"):
            file.unlink()
        with suppress(ClusterError):  # that one has just ended
            while self._steps and not self._pause(0.4):
                self._steps -= 1
                self._do_something(self._chance.choice(NAMES))
            if self.loses_ps and not self._over.is_set():
                self.loses_ps = False
                self.log.append("ps:0 killed")
                self._cluster.kill("ps:0")
                for name in NAMES:  # whether they notice or wait for ever
                    with suppress(ClusterError):
                        self._cluster.kill(name)

    def _do_something(self, name):
        if self._chance.random() < 0.5:
            self._cluster.kill(name)
            self.log.append(f"{name} killed")
            self._pause(0.4)
            self._cluster.restart(name)
        else:
            self._cluster.pause(name)
            self.log.append(f"{name} stopped")
            self._over.wait(self._chance.choice([0.1, 2 * LEASE_SECS]))
            self._cluster.resume(name)

    def _pause(self, most):
        return self._over.wait(self._chance.uniform(0, most))

    def _all_read(self):
        return len(list(self._folder.glob("worker:*"))) == len(NAMES)


@pytest.mark.parametrize("seed", range(40 * TIMES))
def test_every_record_is_visited_and_twice_only_as_the_report_says(tmp_path, seed):
    with local_cluster(1, len(NAMES), backend="processes") as cluster:
        schedule = Schedule(cluster, tmp_path, seed)
        schedule.run(
            functools.partial(
                split_jobs.visit_all,
                folder=str(tmp_path),
                seed=seed,
                lease_secs=LEASE_SECS,
                slow=schedule.slow,
            )
        )
    for number in range(1, split_jobs.EPOCHS + 1):
        found = json.loads((tmp_path / f"epoch-{number}.json").read_text())
        assert wrong(found) == [], schedule.log
        whole = [[0, split_jobs.RECORDS]]
        told = (found["epoch"], found["visited"], found["given_up"], found["over"])
        assert told == (number, whole, [], True), schedule.log


def wrong(found):
    """The records whose visits the report does not tell."""
    again = [0] * split_jobs.RECORDS
    for start, stop in found["visited_again"]:
        for record in range(start, stop):
            again[record] += 1
    pairs = enumerate(zip(found["visits"], again, strict=True))
    return [(record, *pair) for record, pair in pairs if not 1 <= pair[0] <= 1 + pair[1]]
