"""Threads that send messages at the same time, and the CPU time of both sides."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence

import tfdist
from benchmarks._input_clock import Clock
from benchmarks._scale_kinds import Sample
from tfdist.deadline import Deadline

_TIDY_SECS = 0.003  # the ps tidies up after the last answer
_IDLE_SECS = 1.0

Call = Callable[[], object]


class Crew:
    """Threads of this process, and the CPU clocks of ps and trainers.

    Args:
        size: number of threads.
        ps_clock: CPU time of ps 0, which is another process.
        deadline: of all calls.
    """

    def __init__(self, size: int, ps_clock: Clock, deadline: Deadline) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(size)
        self._ps_clock, self._deadline = ps_clock, deadline
        self._idle = 0.0, 0.0
        start = self._now()
        time.sleep(_IDLE_SECS)
        wall, *used = (after - before for before, after in zip(start, self._now(), strict=True))
        self._idle = used[0] / wall, used[1] / wall

    def measure(self, calls: Sequence[Call], times: int) -> Sample:
        """Runs each call `times` times in a thread of its own, all threads at the same time.

        Raises:
            TfdistError: they did not end in time.
        """
        start = self._now()
        running = [self._threads.submit(_repeat, call, times) for call in calls]
        done, _ = concurrent.futures.wait(
            running, self._deadline.remaining, return_when=concurrent.futures.FIRST_EXCEPTION
        )
        for each in done:
            each.result()
        if len(done) < len(running):
            late = len(running) - len(done)
            raise tfdist.TfdistError(f"{late} of {len(running)} threads did not end in time")
        walls = [each.result() for each in running]
        time.sleep(_TIDY_SECS)
        wall, ps, trainer = (
            after - before for before, after in zip(start, self._now(), strict=True)
        )
        messages = len(calls) * times
        return Sample(
            ps=(ps - self._idle[0] * wall) / messages,
            trainer=(trainer - self._idle[1] * wall) / messages,
            wall=sum(walls) / messages,
        )

    def _now(self) -> tuple[float, float, float]:
        return time.monotonic(), self._ps_clock(), time.process_time()


def _repeat(call: Call, times: int) -> float:
    start = time.monotonic()
    for _ in range(times):
        call()
    return time.monotonic() - start
