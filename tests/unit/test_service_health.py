"""A service is healthy or not as docker would say."""

import threading

import pytest

from tfdist.testing import poll_until
from tfdist.testing.compose import Healthcheck
from tfdist.testing.service_health import HealthRecord, HealthWatch

RULES = Healthcheck(("true",), interval_secs=0.001, retries=3, start_period_secs=10.0)


@pytest.mark.parametrize(
    ("checks", "state"),
    [
        ([], "starting"),
        ([(0, True)], "healthy"),
        # Failures at the start do not count.
        ([(0, False)] * 9, "starting"),
        ([(0, False)] * 9 + [(11, False)] * 2, "starting"),
        ([(0, False)] * 9 + [(11, False)] * 3, "unhealthy"),
        # Once it was healthy the start is over.
        ([(0, True)] + [(0, False)] * 2, "healthy"),
        ([(0, True)] + [(0, False)] * 3, "unhealthy"),
        # Only those in a row count, and one that succeeds is enough.
        ([(11, False), (11, False), (11, True), (11, False), (11, False)], "healthy"),
        ([(11, False)] * 3 + [(11, True)], "healthy"),
    ],
)
def test_the_state_follows_from_the_checks(checks, state):
    now = 0.0
    record = HealthRecord(RULES, clock=lambda: now)
    for now, succeeded in checks:  # noqa: B007 (the clock reads it)
        record.note(succeeded)
    assert record.state == state


def test_a_watch_checks_until_it_is_stopped():
    answers = iter([False, True])
    watch = HealthWatch(RULES, lambda timeout: next(answers, True), "one")
    poll_until(lambda: watch.state == "healthy", "it is healthy")
    watch.stop()
    assert "one health" not in {thread.name for thread in threading.enumerate()}
