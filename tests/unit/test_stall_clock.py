"""StallClock: what counts as a sign of progress, and the time since the last sign."""

from dataclasses import replace

import pytest

from tfdist.diagnosis.stall import Signs, Stall, StallClock

RUNS = Signs(attempt=1)


class Job:
    """A clock for a ps and two workers, at times that the test chooses."""

    def __init__(self):
        self.now = 100.0
        self.signs = dict.fromkeys(["ps:0", "worker:0", "worker:1"], RUNS)
        self._watch = StallClock(lambda: self.now)
        self.look()

    def look(self, seconds=0.0, **changes):
        """Looks after so many seconds, in which the signs of worker 1 have changed."""
        self.now += seconds
        self.signs["worker:1"] = replace(self.signs["worker:1"], **changes)
        return self._watch.look(self.signs)


@pytest.fixture
def job():
    return Job()


def test_without_a_sign_the_seconds_add_up(job):
    started = ("ps:0 started", "worker:0 started", "worker:1 started")
    assert job.look(3.0) == Stall(3.0, started)
    assert job.look(4.0) == Stall(7.0, started)


def test_a_job_without_tasks_makes_no_progress():
    now = [0.0]
    watch = StallClock(lambda: now[0])
    now[0] = 5.0
    assert watch.look({}) == Stall(5.0)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ended": True}, "ended"),
        ({"attempt": 2}, "started"),
        ({"attempt": 2, "ended": True}, "ended"),
        ({"progress": "12 of 100"}, "noted progress"),
        ({"passed_at": 7}, "passed a barrier"),
        ({"printed": 80}, "printed something"),
    ],
)
def test_a_sign_restarts_the_time_and_is_named(job, changes, what):
    job.look(9.0)
    assert job.look(1.0, **changes) == Stall(0.0, (f"worker:1 {what}",), {"worker:1": what})
    assert job.look(2.0) == Stall(2.0, (f"worker:1 {what}",))


def test_a_restart_is_a_sign_before_the_new_attempt_has_noted_anything(job):
    job.look(1.0, progress="12 of 100", passed_at=7, printed=80)
    restarted = job.look(5.0, attempt=2, progress=None, passed_at=None, printed=0)
    assert restarted == Stall(0.0, ("worker:1 started",), {"worker:1": "started"})
    assert job.look(5.0).seconds == 5.0


def test_all_signs_of_the_same_moment_are_named(job):
    job.signs["worker:0"] = replace(RUNS, passed_at=7)
    assert job.look(1.0, ended=True).last == ("worker:0 passed a barrier", "worker:1 ended")


def test_output_is_no_sign_once_a_trainer_has_noted_progress(job):
    assert job.look(1.0, progress="12 of 100", printed=80).last == ("worker:1 noted progress",)
    job.signs["worker:0"] = replace(RUNS, printed=80)
    assert job.look(3.0, printed=160).seconds == 3.0
    # Nor after a restart, before the new attempt has noted progress.
    assert job.look(1.0, attempt=2, progress=None).seconds == 0.0
    assert job.look(4.0, printed=240).seconds == 4.0
    assert job.look(1.0, progress="1 of 100").seconds == 0.0
