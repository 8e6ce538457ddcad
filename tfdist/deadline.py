"""A point in time after which waiting is over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Deadline:
    """Counts down from `timeout` seconds; None never expires.

    Args:
        timeout: seconds from now, at least 0, or None.
        clock: gives seconds that never go back. Tests pass their own.
    """

    def __init__(self, timeout: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._timeout = math.inf if timeout is None else timeout

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0; infinity where there was no timeout."""
        return max(0.0, self._timeout - self.elapsed)

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.remaining <= 0.0
