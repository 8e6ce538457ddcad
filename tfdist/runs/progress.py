"""How far a trainer is: a file that the launcher reads, also while TensorFlow hangs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tfdist.task import PROGRESS_VARIABLE


@dataclass(frozen=True)
class ProgressNote:
    """How far a trainer is, as its `progress.json` has it: `done` of `total` in `state`."""

    state: str
    done: int
    total: int

    @classmethod
    def read(cls, path: Path) -> ProgressNote | None:
        """The latest note; None if there is none."""
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return None

    def write(self, path: Path) -> None:
        """Replaces the latest note."""
        # Renamed into place, so that no reader sees half of it.
        draft = path.with_name(f"{path.name}.new")
        draft.write_text(json.dumps(asdict(self)), "utf-8")
        draft.replace(path)


class Progress:
    """Reports to the launcher how far this trainer is; without a launcher it does nothing.

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
        ProgressNote(state, done, total).write(Path(self._path))
