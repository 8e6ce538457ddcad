"""The health of a service on network namespaces follows docker's rules."""

import threading

import pytest

from tfdist.testing import poll_until
from tfdist.testing.compose.netns import HealthRecord, HealthWatch
from tfdist.testing.compose.service import Healthcheck

RULES = Healthcheck(("true",), interval_secs=0.001, retries=3, start_period_secs=10.0)


@pytest.mark.parametrize(
    ("checks", "state"),
    [
        ([], "starting"),
        ([(0, True)], "healthy"),
        # Failures in the start period do not count.
        ([(0, False)] * 9, "starting"),
        ([(0, False)] * 9 + [(11, False)] * 2, "starting"),
        ([(0, False)] * 9 + [(11, False)] * 3, "unhealthy"),
        # The first success ends the start period.
        ([(0, True)] + [(0, False)] * 2, "healthy"),
        ([(0, True)] + [(0, False)] * 3, "unhealthy"),
        # Only consecutive failures count, and one success is enough.
        ([(11, False), (11, False), (11, True), (11, False), (11, False)], "healthy"),
        ([(11, False)] * 3 + [(11, True)], "healthy"),
    ],
)
def test_the_checks_determine_the_state(checks, state):
    now = 0.0
    record = HealthRecord(RULES, clock=lambda: now)
    for now, succeeded in checks:  # noqa: B007 (the clock reads it)
        record.note(succeeded)
    assert record.state == state


def test_a_watch_checks_until_stop():
    answers = iter([False, True])
    watch = HealthWatch(RULES, lambda timeout: next(answers, True), "one")
    poll_until(lambda: watch.state == "healthy", "the service is healthy")
    watch.stop()
    assert "one health" not in {thread.name for thread in threading.enumerate()}
