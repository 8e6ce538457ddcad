"""Trainers that are killed, stopped and woken while they read: no record is lost, and each that is
visited twice is in the report."""

import functools
import random
import threading
from contextlib import suppress

import pytest

from tests.chaos import split_jobs
from tests.chaos.runs import TIMES
from tfdist import ClusterError, local_cluster
from tfdist.testing import poll_until

pytestmark = pytest.mark.usefixtures("no_leaks")

LEASE_SECS = 1.0


@pytest.mark.parametrize("seed", range(4 * TIMES))
def test_every_record_is_visited_and_twice_only_as_the_report_says(tmp_path, seed):
    chance = random.Random(seed)
    job = functools.partial(split_jobs.visit_all, folder=str(tmp_path), lease_secs=LEASE_SECS)
    over, disturbed = threading.Event(), []

    def disturb(cluster):
        """Kills and restarts, or stops and wakes, one worker after another (not the chief)."""
        poll_until(lambda: len(list(tmp_path.iterdir())) == 3, "all read", timeout=60)
        with suppress(ClusterError):  # that one has just ended
            for _ in range(4):
                name = chance.choice(["worker:1", "worker:2"])
                if over.wait(chance.uniform(0, 0.3)):
                    return
                if chance.random() < 0.5:
                    cluster.kill(name)
                    over.wait(chance.uniform(0, 0.5))
                    cluster.restart(name)
                else:
                    cluster.pause(name)
                    over.wait(chance.choice([0.1, 2 * LEASE_SECS]))
                    cluster.resume(name)
                disturbed.append(name)

    with local_cluster(1, 3, backend="processes") as cluster:
        disturber = threading.Thread(target=disturb, args=(cluster,))
        disturber.start()
        try:
            results = cluster.run(job, timeout=100)
        finally:
            over.set()
            disturber.join()
    visits, report = results[0]
    again = [0] * split_jobs.RECORDS
    for start, stop in report.visited_again:
        for record in range(start, stop):
            again[record] += 1
    assert disturbed
    assert report.visited == ((0, split_jobs.RECORDS),)
    assert (report.over, report.given_up) == (True, ())
    wrong = [
        (record, number, more)
        for record, (number, more) in enumerate(zip(visits, again, strict=True))
        if not 1 <= number <= 1 + more
    ]
    assert wrong == []
