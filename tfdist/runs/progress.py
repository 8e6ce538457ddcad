"""What a trainer tells the launcher of its work: a file, seen also when TensorFlow hangs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from tfdist.task import PROGRESS_VARIABLE


class Progress:
    """Tells the launcher how far this trainer is; without one it does nothing.

    Args:
        path: the file that the launcher reads; None for no launcher.
        every_secs: how often it is written at most, unless `state` changes.
        clock: gives seconds that never go back.
    """

    def __init__(
        self,
        path: str | None,
        *,
        every_secs: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._every_secs, self._clock = path, every_secs, clock
        self._next, self._state = clock(), ""

    @classmethod
    def from_env(cls) -> Progress:
        """For the launcher that started this process, if one did."""
        return cls(os.environ.get(PROGRESS_VARIABLE))

    def update(self, state: str, done: int, total: int) -> None:
        """Notes that the trainer is in `state` ("epoch 3 of 10") with `done` of `total` done."""
        if self._path is None or (state == self._state and self._clock() < self._next):
            return
        self._next, self._state = self._clock() + self._every_secs, state
        # Renamed into place, so that the launcher never reads half of it.
        draft = f"{self._path}.new"
        with open(draft, "w", encoding="utf-8") as file:
            json.dump({"state": state, "done": done, "total": total}, file)
        os.replace(draft, self._path)
