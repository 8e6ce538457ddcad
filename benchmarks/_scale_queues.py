"""A clock of simulated time, and what is waited for in it: servers in turn, a lock, a barrier.

Nothing here is random, so that the same calls give the same times. Of what happens at the same
time, what was asked for first comes first.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from functools import partial

Then = Callable[[], object]


class Clock:
    """Simulated seconds; they pass from one event to the next.

    Attributes:
        now: seconds since the begin.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Then]] = []
        self._numbers = itertools.count()

    def after(self, secs: float, then: Then) -> None:
        """Calls `then` when so many seconds have passed."""
        heapq.heappush(self._due, (self.now + secs, next(self._numbers), then))

    def run(self) -> None:
        """Lets time pass until nothing is due any more."""
        while self._due:
            self.now, _, then = heapq.heappop(self._due)
            then()


class Station:
    """Servers that take who comes first, one each, and keep him for as long as he asks.

    Args:
        clock: of the simulation.
        servers: how many, such as the cores of a machine.

    Attributes:
        reads: how many have been served to their end.
        busy_secs: seconds that the servers have worked, together.
        waited_secs: seconds that readers have waited for a server, together.
    """

    def __init__(self, clock: Clock, servers: int = 1) -> None:
        self._clock, self.servers = clock, servers
        self._free = servers
        self._waiting: deque[tuple[float, float, Then]] = deque()
        self.reads = 0
        self.busy_secs = self.waited_secs = 0.0

    def read(self, secs: float, then: Then, *, first: bool = False) -> None:
        """Calls `then` when it was served for so many seconds; at once if that are none.

        Args:
            secs: of service.
            then: called at its end.
            first: before all that wait; nobody who is being served is interrupted.
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
        self.reads += 1
        self.busy_secs += secs
        then()  # before the next one is taken, for it may want to come first
        while self._free and self._waiting:
            since, after, following = self._waiting.popleft()
            self.waited_secs += self._clock.now - since
            self._serve(after, following)


class Lock:
    """Held by one at a time, in the order in which they came.

    Attributes:
        held_secs: seconds that it was held.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._held, self._since = clock, False, 0.0
        self._waiting: deque[Then] = deque()
        self.held_secs = 0.0

    def acquire(self, then: Then) -> None:
        """Calls `then` with the lock held; whoever has it calls `release`."""
        if self._held:
            self._waiting.append(then)
            return
        self._held, self._since = True, self._clock.now
        then()

    def release(self) -> None:
        """Gives it to the next one."""
        self.held_secs += self._clock.now - self._since
        self._held = False
        if self._waiting:
            self.acquire(self._waiting.popleft())


class Meeting:
    """All go on when the last one has come, again and again.

    Args:
        parties: how many meet.
        complete: called when all have come, before anybody goes on.
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
