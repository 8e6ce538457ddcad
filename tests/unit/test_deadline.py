"""A deadline counts down by its clock."""

import math

import pytest

from tfdist.deadline import Deadline


class Clock:
    """A clock that moves only when a test sets it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock(now=1000.0)  # a monotonic clock starts anywhere


def test_no_time_has_elapsed_at_the_start(clock):
    deadline = Deadline(5.0, clock)
    assert (deadline.elapsed, deadline.remaining, deadline.expired) == (0.0, 5.0, False)


def test_it_counts_down_while_time_passes(clock):
    deadline = Deadline(5.0, clock)
    clock.now += 2.0
    assert (deadline.elapsed, deadline.remaining, deadline.expired) == (2.0, 3.0, False)


def test_it_expires_exactly_at_the_timeout(clock):
    deadline = Deadline(5.0, clock)
    clock.now += 5.0
    assert (deadline.remaining, deadline.expired) == (0.0, True)


def test_the_remaining_time_is_never_negative_but_elapsed_grows(clock):
    deadline = Deadline(5.0, clock)
    clock.now += 60.0
    assert (deadline.elapsed, deadline.remaining, deadline.expired) == (60.0, 0.0, True)


def test_a_timeout_of_0_expires_immediately(clock):
    assert Deadline(0.0, clock).expired


def test_without_a_timeout_it_never_expires(clock):
    deadline = Deadline(None, clock)
    clock.now += 1e12
    assert deadline.elapsed == 1e12
    assert (deadline.remaining, deadline.expired) == (math.inf, False)


def test_each_deadline_starts_when_it_is_made(clock):
    early = Deadline(5.0, clock)
    clock.now += 4.0
    late = Deadline(5.0, clock)
    clock.now += 2.0
    assert (early.expired, late.expired) == (True, False)


def test_the_clock_of_the_machine_is_the_default():
    deadline = Deadline(3600.0)
    assert 0.0 <= deadline.elapsed < 3600.0
    assert 0.0 < deadline.remaining <= 3600.0


def test_notices_are_due_after_30_60_and_120_seconds_once_each(clock):
    deadline = Deadline(None, clock)
    due = []
    for _ in range(130):
        due.append(deadline.notice_due())
        clock.now += 1.0
    assert [second for second, is_due in enumerate(due) if is_due] == [30, 60, 120]


def test_a_late_check_gets_one_notice_for_all_that_it_missed(clock):
    deadline = Deadline(300.0, clock)
    clock.now += 130.0
    assert [deadline.notice_due() for _ in range(2)] == [True, False]
    clock.now += 110.0
    assert deadline.notice_due()
