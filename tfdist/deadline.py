"""The time limit of a wait, and the moments at which the log reports that the wait still lasts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from tfdist.errors import checked_timeout

FIRST_NOTICE_SECS = 30.0


class Deadline:
    """Counts down from `timeout` seconds; None never expires.

    A loop that waits for another task logs what it waits for whenever `notice_due()` is true, so
    that no wait is both long and silent.

    Args:
        timeout: seconds from now, at least 0, or None.
        clock: returns seconds that never decrease. Tests pass their own.

    Raises:
        ConfigError: the timeout is neither.
    """

    def __init__(self, timeout: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        checked = checked_timeout(timeout)
        self._timeout = math.inf if checked is None else checked
        self._next_notice = FIRST_NOTICE_SECS

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0; infinity without a timeout."""
        return max(0.0, self._timeout - self.elapsed)

    @property
    def expired(self) -> bool:
        """True if no time is left."""
        return self.remaining <= 0.0

    def notice_due(self) -> bool:
        """True if the wait should be logged now: once after 30, 60, 120, ... seconds."""
        elapsed = self.elapsed
        if elapsed < self._next_notice:
            return False
        while self._next_notice <= elapsed:
            self._next_notice *= 2
        return True
