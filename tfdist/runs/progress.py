"""Progress of a trainer: a file that the launcher can read also while TensorFlow hangs."""

from __future__ import annotations

import json
import logging
import operator
import os
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfdist.errors import ConfigError
from tfdist.task import PROGRESS_VARIABLE

_log = logging.getLogger(__name__)

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
        """The latest note in the file; None if there is none, or none that is whole."""
        for _ in range(_READS):
            try:
                # After the first line is what is left of an earlier, longer note.
                line, _, _ = path.read_text("ascii").partition("\n")
                return cls.parse(json.loads(line)) if line else None
            except FileNotFoundError:
                return None
            except (OSError, ValueError, TypeError):
                continue  # it was read during a write
        return None  # the disk was full when it was written, or it is no note of tfdist

    @classmethod
    def parse(cls, values: dict[str, Any]) -> ProgressNote:
        """The note of these values; raises TypeError or ConfigError if they are none."""
        note = cls(**values)
        if not isinstance(note.state, str):
            raise TypeError("state must be a str")
        total = None if note.total is None else _integer("total", note.total)
        return cls(note.state, _integer("done", note.done), total)

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
        self._path = None if path is None else os.path.abspath(path)
        self._is_lost = False
        self._file: int | None = None

    @classmethod
    def from_env(cls) -> Progress:
        """The Progress for the launcher that started this process, if one did."""
        return cls(os.environ.get(PROGRESS_VARIABLE))

    def update(self, state: str, done: int, total: int | None) -> None:
        """Notes that `done` of `total` steps of `state`, such as "epoch 3 of 10", are done.

        If the total is not known, `total` is None. If the note cannot be written, for example
        because the disk is full, that is logged once, and the training continues.

        Raises:
            ConfigError: `state` is no text, or a number of steps is no integer.
        """
        if not isinstance(state, str):
            raise ConfigError("state", state, "must be a str")
        steps = _integer("done", done)
        note = ProgressNote(state, steps, None if total is None else _integer("total", total))
        if self._path is None:
            return
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
                weakref.finalize(self, os.close, self._file)
            note.write(self._file)
        except OSError as error:
            if not self._is_lost:
                _log.warning("the progress cannot be noted in %s: %s", self._path, error.strerror)
            self._is_lost = True


def _integer(field: str, value: Any) -> int:
    """The value as an int; numpy's integers and whole floats are integers, a bool is not."""
    if not isinstance(value, bool):
        with suppress(TypeError):
            return operator.index(value)  # numpy's bool has none
        is_whole = getattr(value, "is_integer", None)  # of a float, also of numpy
        if is_whole is not None and is_whole():
            return int(value)
    raise ConfigError(field, value, "must be an integer")
