"""Whether a service does what it is for, as its healthcheck tells; by docker's rules."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tfdist.testing.compose import Healthcheck

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"


class HealthRecord:
    """What follows from the checks so far.

    Args:
        healthcheck: its rules.
        clock: gives seconds that never go back.

    Attributes:
        state: STARTING until the first check that succeeds, or until too many have failed.
    """

    def __init__(
        self, healthcheck: Healthcheck, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rules, self._clock, self._start = healthcheck, clock, clock()
        self._failures = 0
        self.state = STARTING

    def note(self, succeeded: bool) -> None:
        """A check has ended."""
        if succeeded:
            self._failures, self.state = 0, HEALTHY
            return
        is_start = self.state == STARTING
        if is_start and self._clock() - self._start < self._rules.start_period_secs:
            return
        self._failures += 1
        if self._failures >= self._rules.retries:
            self.state = UNHEALTHY


class HealthWatch:
    """Checks a service in a thread, from now until `stop`.

    Args:
        healthcheck: how.
        check: runs the test with a timeout in seconds; whether it has succeeded.
        name: of the service.
    """

    def __init__(self, healthcheck: Healthcheck, check: Callable[[float], bool], name: str) -> None:
        self._healthcheck, self._check = healthcheck, check
        self._record = HealthRecord(healthcheck)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"{name} health", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """STARTING, HEALTHY or UNHEALTHY."""
        return self._record.state

    def stop(self) -> None:
        """Ends it; returns when it has, which takes as long as a check at most."""
        self._is_over.set()
        self._thread.join(self._healthcheck.timeout_secs + 1)

    def _watch(self) -> None:
        while not self._is_over.wait(self._healthcheck.interval_secs):
            self._record.note(self._check(self._healthcheck.timeout_secs))
