"""Queues: a simulated clock with stations, locks and barriers; and mean values without simulation.

Nothing here is random: the same calls give the same times. Events of the same time happen in the
order in which they were scheduled.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

Then = Callable[[], object]


class Clock:
    """Simulated time, which jumps from one event to the next.

    Attributes:
        now: seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Then]] = []
        self._numbers = itertools.count()

    def after(self, secs: float, then: Then) -> None:
        """Calls `then` after `secs` seconds."""
        heapq.heappush(self._due, (self.now + secs, next(self._numbers), then))

    def run(self) -> None:
        """Runs until no event is left."""
        while self._due:
            self.now, _, then = heapq.heappop(self._due)
            then()


class Station:
    """A queue with several servers, which serve requests in order of arrival.

    Args:
        clock: of the simulation.
        servers: number of servers, such as the cores of a machine.

    Attributes:
        served: number of completed requests.
        busy_secs: seconds of service, of all servers together.
        waited_secs: seconds that requests have waited for a server, all together.
    """

    def __init__(self, clock: Clock, servers: int = 1) -> None:
        self._clock, self.servers = clock, servers
        self._free = servers
        self._waiting: deque[tuple[float, float, Then]] = deque()
        self.served = 0
        self.busy_secs = self.waited_secs = 0.0

    def request(self, secs: float, then: Then, *, first: bool = False) -> None:
        """Calls `then` after `secs` seconds of service; immediately if that is 0.

        Args:
            secs: duration of the service.
            then: called at its end.
            first: True to go before all waiting requests; running ones are not interrupted.
        """
        if not secs:
            then()
        elif self._free and (first or not self._waiting):
            self._serve(secs, then)
        elif first:
            self._waiting.appendleft((self._clock.now, secs, then))
        else:
            self._waiting.append((self._clock.now, secs, then))

    def _serve(self, secs: float, then: Then) -> None:
        self._free -= 1
        self._clock.after(secs, partial(self._end, secs, then))

    def _end(self, secs: float, then: Then) -> None:
        self._free += 1
        self.served += 1
        self.busy_secs += secs
        then()  # before the next request starts, because this may add one that goes first
        while self._free and self._waiting:
            since, after, following = self._waiting.popleft()
            self.waited_secs += self._clock.now - since
            self._serve(after, following)


class Lock:
    """A lock that is granted in order of arrival.

    Attributes:
        held_secs: seconds for which it was held.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._held, self._since = clock, False, 0.0
        self._waiting: deque[Then] = deque()
        self.held_secs = 0.0

    def acquire(self, then: Then) -> None:
        """Calls `then` when the lock is granted; the holder must call `release`."""
        if self._held:
            self._waiting.append(then)
            return
        self._held, self._since = True, self._clock.now
        then()

    def release(self) -> None:
        """Grants the lock to the next waiter."""
        self.held_secs += self._clock.now - self._since
        self._held = False
        if self._waiting:
            self.acquire(self._waiting.popleft())


class Meeting:
    """A reusable barrier.

    Args:
        parties: number of parties.
        complete: called when all have arrived, before any is released.
    """

    def __init__(self, parties: int, complete: Then) -> None:
        self._parties, self._complete = parties, complete
        self._waiting: list[Then] = []

    def arrive(self, then: Then) -> None:
        """Calls `then` when all have arrived."""
        self._waiting.append(then)
        if len(self._waiting) == self._parties:
            waiting, self._waiting = self._waiting, []
            self._complete()
            for each in waiting:
                each()


def residence_secs(demands: Sequence[float], delay: float, customers: int) -> list[float]:
    """Mean seconds that a customer of a closed network spends at each station, waits included.

    A customer goes through all stations again and again. By the arrival theorem it finds a station
    as it would be without this customer, which gives a recursion over the number of customers:
    R = D (1 + Q). Exact for exponential services, or stations that share their time (Reiser and
    Lavenberg, Journal of the ACM 27, 1980).

    Args:
        demands: seconds of service at each station, in a cycle.
        delay: seconds of a cycle away from all stations.
        customers: their number, at least 1.
    """
    queues = [0.0] * len(demands)
    residences = list(demands)
    for number in range(1, customers + 1):
        residences = [demand * (1 + queue) for demand, queue in zip(demands, queues, strict=True)]
        cycle = delay + sum(residences)
        queues = [number * each / cycle if cycle else 0.0 for each in residences]
    return residences
