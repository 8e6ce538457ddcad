"""StallClock and StallMonitor: what counts as progress, and when a stall is diagnosed."""

from dataclasses import replace

import pytest

from tfdist.diagnosis.stall import Signs, Stall, StallClock, StallMonitor
from tfdist.diagnosis.verdict import Name, Verdict

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


def test_the_log_of_tfdist_is_no_sign(job):
    assert job.look(1.0, logged_at=7, printed=80).seconds == 1.0
    assert job.look(1.0, printed=160) == Stall(
        0.0, ("worker:1 printed something",), {"worker:1": "printed something"}
    )


def test_output_is_no_sign_once_a_trainer_has_noted_progress(job):
    assert job.look(1.0, progress="12 of 100", printed=80).last == ("worker:1 noted progress",)
    job.signs["worker:0"] = replace(RUNS, printed=80)
    assert job.look(3.0, printed=160).seconds == 3.0
    # Nor after a restart, before the new attempt has noted progress.
    assert job.look(1.0, attempt=2, progress=None).seconds == 0.0
    assert job.look(4.0, printed=240).seconds == 4.0
    assert job.look(1.0, progress="1 of 100").seconds == 0.0


class Monitored:
    """A job of one task, and its monitor: the timeout is 10 s, and a slow job gets time twice."""

    def __init__(self):
        self.now, self.signs, self.name = 0.0, RUNS, Name.SLOW
        self.during_diagnosis = lambda: None
        self.news = []
        self._monitor = StallMonitor(
            10.0,
            lambda: {"worker:0": self.signs},
            self._diagnose,
            patience=2,
            on_news=self.news.append,
            clock=lambda: self.now,
        )
        self.check(0.0)

    def _diagnose(self, seconds):
        self.during_diagnosis()
        return Verdict(self.name, (), ()), f"after {seconds:g} s"

    def check(self, at, **how):
        self.now = at
        return self._monitor.check(**how)


@pytest.fixture
def monitored():
    return Monitored()


def test_a_slow_job_is_diagnosed_again_after_twice_the_time(monitored):
    found = [monitored.check(float(at)) for at in range(50)]
    diagnoses = {at: one.gets_time for at, one in enumerate(found) if one is not None}
    assert diagnoses == {10: True, 20: True, 40: False}
    assert found[20].details == "after 20 s"


def test_a_job_that_hangs_gets_no_more_time(monitored):
    monitored.name = Name.DEADLOCK
    assert not monitored.check(10.0).gets_time


def test_without_patience_any_stall_is_diagnosed_and_final(monitored):
    assert monitored.check(10.0).gets_time
    assert monitored.check(9.0, patient=False) is None
    assert not monitored.check(11.0, patient=False).gets_time


def test_progress_during_the_diagnosis_discards_it(monitored):
    def make_progress():
        monitored.signs = replace(monitored.signs, progress="1 of 2")

    monitored.during_diagnosis = make_progress
    assert monitored.check(10.0) is None
    assert monitored.news[-1] == {"worker:0": "noted progress"}
    assert monitored.check(19.0) is None  # the time has begun anew
    assert monitored.check(20.0).stall.seconds == 10.0


def test_progress_resets_the_patience(monitored):
    assert monitored.check(10.0).gets_time
    monitored.signs = replace(monitored.signs, printed=1)
    assert monitored.check(15.0) is None
    assert monitored.check(25.0).gets_time
