"""StallWatch: what is a sign of progress, and for how long there was none."""

from dataclasses import replace

import pytest

from tfdist.diagnosis.stall_clock import Signs, Stall, StallWatch

RUNS = Signs(attempt=1)


class Job:
    """A watch that looks at a ps and two workers, at times that the test chooses."""

    def __init__(self):
        self.now = 100.0
        self.signs = dict.fromkeys(["ps:0", "worker:0", "worker:1"], RUNS)
        self._watch = StallWatch(lambda: self.now)
        self.look()

    def look(self, seconds=0.0, **changes):
        """Looks after so many seconds, in which worker 1 has changed."""
        self.now += seconds
        self.signs["worker:1"] = replace(self.signs["worker:1"], **changes)
        return self._watch.look(self.signs)


@pytest.fixture
def job():
    return Job()


def test_without_a_sign_the_time_adds_up(job):
    started = ("ps:0 started", "worker:0 started", "worker:1 started")
    assert job.look(3.0) == Stall(3.0, started)
    assert job.look(4.0) == Stall(7.0, started)


def test_a_job_that_has_no_task_yet_stands_still():
    now = [0.0]
    watch = StallWatch(lambda: now[0])
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
def test_a_sign_begins_the_time_anew_and_is_named(job, changes, what):
    job.look(9.0)
    assert job.look(1.0, **changes) == Stall(0.0, (f"worker:1 {what}",), {"worker:1": what})
    assert job.look(2.0) == Stall(2.0, (f"worker:1 {what}",))


def test_a_restart_is_a_sign_though_the_new_life_has_noted_nothing(job):
    job.look(1.0, progress="12 of 100", passed_at=7, printed=80)
    restarted = job.look(5.0, attempt=2, progress=None, passed_at=None, printed=0)
    assert restarted == Stall(0.0, ("worker:1 started",), {"worker:1": "started"})
    assert job.look(5.0).seconds == 5.0


def test_all_that_got_on_at_the_same_time_are_named(job):
    job.signs["worker:0"] = replace(RUNS, passed_at=7)
    assert job.look(1.0, ended=True).last == ("worker:0 passed a barrier", "worker:1 ended")


def test_what_is_printed_counts_no_more_once_a_trainer_has_noted_progress(job):
    assert job.look(1.0, progress="12 of 100", printed=80).last == ("worker:1 noted progress",)
    job.signs["worker:0"] = replace(RUNS, printed=80)
    assert job.look(3.0, printed=160).seconds == 3.0
    # Nor after it was started again, and has noted nothing in its new record.
    assert job.look(1.0, attempt=2, progress=None).seconds == 0.0
    assert job.look(4.0, printed=240).seconds == 4.0
    assert job.look(1.0, progress="1 of 100").seconds == 0.0
