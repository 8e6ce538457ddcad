"""What is known of one file: what a scan found, and what has happened to the file since."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import tensorflow as tf

from tfdist.data.contents import Contents, Mark, text_contents, tfrecord_contents
from tfdist.data.opened import opened
from tfdist.errors import DataError

Format = Literal["tfrecord", "lines", "csv"]
Change = Literal["unreadable", "shrunk", "rewritten", "grown"]

_MISSING = "the file is missing"
_TAIL = 4096  # bytes


@dataclass(frozen=True)
class FileEntry:
    """One file of a `FileSet`, as the scan found it.

    Attributes:
        path: as `tf.io.gfile` takes it.
        size: in bytes; what came later is not part of the set.
        mtime_ns: when it was last changed; TensorFlow tells whole seconds.
        tail: a checksum of its last bytes, to tell a file that grew from one written anew.
        records: how many whole records it has.
        marks: ``(record, byte offset)`` of some records, so that reading can begin there.
        problem: what is wrong with it, or None; the records before the damage count all the same.
        problem_at: the byte where the damage begins; None if it is about the whole file.
    """

    path: str
    size: int
    mtime_ns: int
    tail: int
    records: int
    marks: tuple[Mark, ...]
    problem: str | None
    problem_at: int | None

    @classmethod
    def scan(cls, path: str, format: Format, compression: str | None, header: bool) -> FileEntry:
        """Reads the whole file once. What is wrong with it is told in the entry, not raised."""
        try:
            size, mtime_ns = _stat(path)
            with opened(path, size, compression) as stream:
                if size == 0:  # a named pipe is empty too, and its reader would wait
                    found = Contents(0, ())
                elif format == "tfrecord":
                    found = tfrecord_contents(stream)
                else:
                    found = text_contents(stream, quoted=format == "csv", header=header)
            tail = _tail(path, size)
        except tf.errors.NotFoundError:
            return cls(path, 0, 0, 0, 0, (), _MISSING, None)
        except (tf.errors.OpError, OSError) as error:
            return cls(path, 0, 0, 0, 0, (), f"the file cannot be read: {error}", None)
        except DataError as error:  # it has shrunk meanwhile
            return cls(path, 0, 0, 0, 0, (), error.what, error.offset)
        problem = found.problem
        if problem is not None and compression is None and found.problem_at is not None:
            problem += f"; {size - found.problem_at:,} bytes from there on are not counted"
        return cls(
            path, size, mtime_ns, tail, found.records, found.marks, problem, found.problem_at
        )

    def error(self) -> DataError | None:
        """The problem as an error."""
        return None if self.problem is None else DataError(self.path, self.problem_at, self.problem)

    def check(self) -> None:
        """Raises DataError unless what was scanned of the file is still there."""
        change = self.change()
        if change is not None and change[0] != "grown":
            raise DataError(self.path, None, f"{change[1]}; scan again")

    def change(self) -> tuple[Change, str] | None:
        """What has happened to the file since the scan, and the same in words."""
        if self.problem is not None and self.records == 0:
            return None  # nothing of it counts, so there is nothing to lose
        try:
            size, mtime_ns = _stat(self.path)
            sizes = f"{self.size:,} bytes when it was scanned, {size:,} now"
            if size < self.size:
                return "shrunk", f"the file has shrunk: {sizes}"
            if size == self.size and mtime_ns == self.mtime_ns:
                return None
            if size > self.size and _tail(self.path, self.size) == self.tail:
                return "grown", f"the file has grown: {sizes}; only its first {self.size:,} count"
            return "rewritten", f"the file was written anew: {sizes}, of another time"
        except tf.errors.NotFoundError:
            return "unreadable", _MISSING
        except (tf.errors.OpError, OSError) as error:
            return "unreadable", f"the file cannot be read: {error}"


def _stat(path: str) -> tuple[int, int]:
    stat = tf.io.gfile.stat(path)
    return int(stat.length), int(stat.mtime_nsec)


def _tail(path: str, size: int) -> int:
    if size == 0:
        return 0
    with opened(path, size, None) as stream:
        stream.seek(max(size - _TAIL, 0))
        return zlib.crc32(stream.read())
