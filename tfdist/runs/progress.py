"""Progress of a trainer: a file that the launcher can read also while TensorFlow hangs."""

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
    """The content of `progress.json`: `done` of `total` in `state`."""

    state: str
    done: int
    total: int

    @classmethod
    def read(cls, path: Path) -> ProgressNote | None:
        """The latest note in the file; None if the file does not exist."""
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return None

    def write(self, path: Path) -> None:
        """Replaces the latest note."""
        # Renamed into place, so that no reader sees a partial file.
        draft = path.with_name(f"{path.name}.new")
        draft.write_text(json.dumps(asdict(self)), "utf-8")
        draft.replace(path)


class Progress:
    """Notes the progress of this trainer for its launcher; does nothing without a launcher.

    Args:
        path: the file that the launcher reads; None without a launcher.
        every_secs: shortest time between two writes, unless `state` changes.
        clock: returns seconds that never decrease.
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
        """The Progress for the launcher that started this process, if one did."""
        return cls(os.environ.get(PROGRESS_VARIABLE))

    def update(self, state: str, done: int, total: int) -> None:
        """Notes that `done` of `total` steps of `state`, such as "epoch 3 of 10", are done."""
        if self._path is None or (state == self._state and self._clock() < self._next):
            return
        self._next, self._state = self._clock() + self._every_secs, state
        ProgressNote(state, done, total).write(Path(self._path))
