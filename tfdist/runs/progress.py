"""Progress of a trainer: a file that the launcher can read also while TensorFlow hangs."""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tfdist.errors import ConfigError, DataError, checked_path
from tfdist.runs.files import LARGEST, parse_json, parse_record, read_file
from tfdist.task import PROGRESS_VARIABLE

_log = logging.getLogger(__name__)

_READS = 100  # one in thousands meets a write, so that many in succession do not
_LONGEST_STATE = 1000


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
        try:
            return cls.parse(path)
        except (FileNotFoundError, DataError):
            return None

    @classmethod
    def parse(cls, path: Path) -> ProgressNote | None:
        """The latest note in the file; None if it is empty.

        Raises:
            FileNotFoundError: the file does not exist.
            DataError: it cannot be read, or holds no whole note, as after a write on a full disk.
        """
        for tries in range(_READS):
            # After the first line is what is left of an earlier, longer note.
            line, _, _ = read_file(path).partition(b"\n")
            if not line:
                return None
            try:
                note = parse_record(cls, path, parse_json(path, line))
            except DataError:
                if tries + 1 == _READS:
                    raise
                continue  # it was read during a write
            return replace(note, state=note.state.replace("\n", "\\n"))
        return None

    def write(self, file: int) -> None:
        """Replaces the latest note; `file` is a file descriptor."""
        os.pwrite(file, json.dumps(asdict(self)).encode("ascii") + b"\n", 0)


class Watched:
    """The file that a Watchdog of this process reads; None outside of the blocks of a Watchdog."""

    path: str | None = None


class Progress:
    """Notes the progress of this trainer for its launcher, or else for the Watchdog of its process.

    Without a launcher, and outside of the block of a Watchdog, it does nothing. Each note is
    written at once, which takes some microseconds: the trainer may hang in its next call, and its
    last note then says where.

    Args:
        path: the file that the launcher reads; None without a launcher.

    Raises:
        ConfigError: `path` is no path of a file.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        is_none = path is None or (isinstance(path, str) and not path)
        self._path = absolute(None if is_none else checked_path("path", path))
        self._lost: str | None = None  # the path where no note could be written
        self._file: int | None = None
        self._is_at: str | None = None
        self._is_of: _File | None = None
        self._closes: Callable[[], object] = lambda: None

    @classmethod
    def from_env(cls) -> Progress:
        """The Progress for the launcher that started this process, if one did."""
        path = os.environ.get(PROGRESS_VARIABLE)
        # The variable of a Watchdog is for child processes; its block may end before this object.
        return cls(None if path == Watched.path else path)

    def update(self, state: str, done: int, total: int | None) -> None:
        """Notes that `done` of `total` steps of `state`, such as "epoch 3 of 10", are done.

        If the total is not known, `total` is None; if it is an estimate, `done` may exceed it. Of a
        long `state` the first 1000 characters are noted. If the note cannot be written, for example
        because the disk is full, that is logged once, and the training continues.

        Raises:
            ConfigError: `state` is no text, or a number of steps is no integer of 0 to 2**64.
        """
        if not isinstance(state, str):
            raise ConfigError("state", state, "must be a str")
        steps = _integer("done", done)
        all_steps = None if total is None else _integer("total", total)
        note = ProgressNote(state[:_LONGEST_STATE], steps, all_steps)
        path = self._path or Watched.path
        if path is None:
            return
        try:
            note.write(self._opened(path))
        except OSError as error:
            if path != self._lost:
                _log.warning("the progress cannot be noted in %s: %s", path, error.strerror)
            self._lost = path

    def _opened(self, path: str) -> int:
        """The descriptor of the file; a script may have closed it and opened its own file there."""
        if self._file is None or path != self._is_at or _file_of(self._file) != self._is_of:
            self._closes()
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
            self._file = os.open(path, flags, 0o666)
            self._is_at, self._is_of = path, _file_of(self._file)
            self._closes = weakref.finalize(self, _close, self._file, self._is_of)
        return self._file


def absolute(path: str | None) -> str | None:
    """The path, for a script that may change its directory; None if there is none."""
    try:
        return os.path.abspath(path) if path else None
    except OSError as error:  # a relative path, and the directory is deleted
        _log.warning("nothing can be noted for the launcher in %s: %s", path, error.strerror)
        return None


class _File(NamedTuple):
    """The file that a descriptor leads to."""

    device: int
    number: int
    is_deleted: bool


def _file_of(descriptor: int) -> _File | None:
    """The file that a descriptor leads to; None if it is closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return _File(status.st_dev, status.st_ino, status.st_nlink == 0)


def _close(descriptor: int, is_of: _File | None) -> None:
    now = _file_of(descriptor)
    if now is not None and is_of is not None and now[:2] == is_of[:2]:
        os.close(descriptor)


def _integer(field: str, value: Any) -> int:
    """The value as an int: also numpy's, a whole float, and a scalar of TensorFlow; no bool."""
    number = value
    for convert in ("numpy", "item", "__index__"):  # of a tensor, of numpy's numbers, of others
        if not isinstance(number, (int, float)):
            with suppress(Exception):  # it has no such method, or no value yet
                number = number if getattr(number, "ndim", 0) else getattr(number, convert)()
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ConfigError(field, value, "must be an integer")
    if abs(number) > LARGEST:
        size = f"an integer of {number.bit_length()} bits"  # its digits may be too many to show
        rule = "must be at most 2**64" if number > 0 else "must be at least 0"
        raise ConfigError(field, size, rule)
    if number < 0:
        raise ConfigError(field, value, "must be at least 0")
    return number
