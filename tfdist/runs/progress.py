"""Progress of a trainer: a file that the launcher can read also while TensorFlow hangs."""

from __future__ import annotations

import json
import os
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path

from tfdist.task import PROGRESS_VARIABLE

_READS = 100  # one in thousands meets a write, so that many in succession do not


@dataclass(frozen=True)
class ProgressNote:
    """The content of `progress.json`: `done` of `total` in `state`; `total` None is not known."""

    state: str
    done: int
    total: int | None

    @property
    def count(self) -> str:
        """The number of steps that are done: "3 of 10", or "3" if the total is not known."""
        return str(self.done) if self.total is None else f"{self.done} of {self.total}"

    @classmethod
    def read(cls, path: Path) -> ProgressNote | None:
        """The latest note in the file; None if there is none."""
        for reads_left in reversed(range(_READS)):
            try:
                # After the first line is what is left of an earlier, longer note.
                line, _, _ = path.read_text("ascii").partition("\n")
                return cls(**json.loads(line)) if line else None
            except FileNotFoundError:
                return None
            except (ValueError, TypeError):  # read during a write
                if not reads_left:
                    raise
        raise AssertionError("unreachable")

    def write(self, file: int) -> None:
        """Replaces the latest note; `file` is a file descriptor."""
        os.pwrite(file, json.dumps(asdict(self)).encode("ascii") + b"\n", 0)


class Progress:
    """Notes the progress of this trainer for its launcher; does nothing without a launcher.

    Each note is written at once, which takes some microseconds: the trainer may hang in its next
    call, and its last note then says where.

    Args:
        path: the file that the launcher reads; None without a launcher.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._file: int | None = None

    @classmethod
    def from_env(cls) -> Progress:
        """The Progress for the launcher that started this process, if one did."""
        return cls(os.environ.get(PROGRESS_VARIABLE))

    def update(self, state: str, done: int, total: int | None) -> None:
        """Notes that `done` of `total` steps of `state`, such as "epoch 3 of 10", are done.

        If the total is not known, `total` is None.
        """
        if self._path is None:
            return
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, self._file)
        ProgressNote(state, done, total).write(self._file)
