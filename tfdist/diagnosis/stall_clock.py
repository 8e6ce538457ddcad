"""For how long nobody in a job has got on, told by signs that are seen from outside.

A job that hangs raises nothing: whoever waits in TensorFlow for somebody who does not come waits
for ever. What can be told from outside is that nothing happens any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Signs:
    """What is seen of a task at one moment.

    Attributes:
        attempt: which attempt of the task it is, from 1.
        ended: whether that is over.
        progress: what a trainer noted last, as it stands in its file; None if it has noted
            nothing, and of a task that is no trainer.
        passed_at: when it last passed a barrier, by any clock; None if it has not.
        printed: how many bytes it has printed.
    """

    attempt: int
    ended: bool = False
    progress: str | None = None
    passed_at: int | None = None
    printed: int = 0


@dataclass(frozen=True)
class Stall:
    """How long ago somebody got on.

    Attributes:
        seconds: since the last sign was seen.
        last: that sign, "worker:1 passed a barrier", or those that were seen at the same time.
        news: by task what each has done since the look before.
    """

    seconds: float
    last: tuple[str, ...] = ()
    news: Mapping[str, str] = field(default_factory=dict)


class StallWatch:
    """Tells for how long nobody has got on; it is shown the signs of all tasks now and then.

    A sign of progress is that a task starts or ends, that a trainer notes progress that differs
    from its last note, or that it passes a barrier. As long as no trainer has ever noted
    progress, what a task prints is one too: such a script has no other way to tell.

    Args:
        clock: gives seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._before: Mapping[str, Signs] = {}
        self._last: tuple[str, ...] = ()
        self._notes_are_made = False

    def look(self, signs: Mapping[str, Signs]) -> Stall:
        """How the job stands now that these are the signs of its tasks, by name."""
        now = self._clock()
        self._notes_are_made |= any(sign.progress is not None for sign in signs.values())
        seen = {name: self._news(self._before.get(name), sign) for name, sign in signs.items()}
        news = {name: what for name, what in seen.items() if what is not None}
        if news:
            self._since = now
            self._last = tuple(f"{name} {what}" for name, what in news.items())
        self._before = dict(signs)
        return Stall(now - self._since, self._last, news)

    def _news(self, before: Signs | None, now: Signs) -> str | None:
        """What a task has done between the two, in a few words."""
        if before is None or before.attempt != now.attempt:
            return "ended" if now.ended else "started"
        if before.ended != now.ended:
            return "ended"
        if before.progress != now.progress:
            return "noted progress"
        if before.passed_at != now.passed_at:
            return "passed a barrier"
        if before.printed != now.printed and not self._notes_are_made:
            return "printed something"
        return None
