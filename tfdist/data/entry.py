"""One file of a file set: what its scan found, and whether the file has changed since."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from tfdist.data.contents import Contents, Mark, text_contents, tfrecord_contents
from tfdist.errors import DataError

Format = Literal["tfrecord", "lines", "csv"]
Change = Literal["unreadable", "shrunk", "rewritten", "grown"]

_MISSING = "the file is missing"
_TAIL = 4096  # bytes


@dataclass(frozen=True)
class FileEntry:
    """One file of a `FileSet`, as the scan found it.

    Attributes:
        path: a path that `tf.io.gfile` can open.
        size: bytes at the scan. Bytes that were appended later are not part of the set.
        mtime_ns: time of the last change; TensorFlow reports whole seconds.
        tail: checksum of the last bytes, which distinguishes a file that grew from a rewritten one.
        records: number of whole records.
        marks: ``(record, byte offset)`` of some records, at which reading can begin.
        problem: the damage, or None. The records before the damage are part of the set.
        problem_at: byte offset of the damage; None if the problem concerns the whole file.
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
        """Reads the whole file once. A problem is stored in the entry and never raised."""
        if os.path.exists(path) and not os.path.isfile(path):  # a read of a pipe would block
            what = "the file cannot be read: it is a folder, a pipe or a device"
            return cls(path, 0, 0, 0, 0, (), what, None)
        try:
            size, mtime_ns = _stat(path)
            with open_prefix(path, size, compression) as stream:
                if size == 0:
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
        except DataError as error:  # it shrank during the scan
            return cls(path, 0, 0, 0, 0, (), error.what, error.offset)
        problem = found.problem
        if problem is not None and compression is None and found.problem_at is not None:
            problem += f"; the last {size - found.problem_at:,} bytes are not counted"
        return cls(
            path, size, mtime_ns, tail, found.records, found.marks, problem, found.problem_at
        )

    def error(self) -> DataError | None:
        """The problem as an error."""
        return None if self.problem is None else DataError(self.path, self.problem_at, self.problem)

    def check(self) -> None:
        """Raises DataError unless the file still has the bytes that were scanned."""
        change = self.change()
        if change is not None and change[0] != "grown":
            raise DataError(self.path, None, f"{change[1]}; scan again")

    def change(self) -> tuple[Change, str] | None:
        """The change of the file since the scan, and its description; None if there is none."""
        if self.problem is not None and self.records == 0:
            return None  # the set has no record of this file
        try:
            size, mtime_ns = _stat(self.path)
            sizes = f"{self.size:,} bytes at the scan, {size:,} now"
            if size < self.size:
                return "shrunk", f"the file has shrunk: {sizes}"
            if size == self.size and mtime_ns == self.mtime_ns:
                return None
            if size > self.size and _tail(self.path, self.size) == self.tail:
                return "grown", f"the file has grown: {sizes}; only the scanned bytes are read"
            return "rewritten", f"the file was rewritten: {sizes}, with another time"
        except tf.errors.NotFoundError:
            return "unreadable", _MISSING
        except (tf.errors.OpError, OSError) as error:
            return "unreadable", f"the file cannot be read: {error}"


@contextmanager
def open_prefix(path: str, size: int, compression: str | None) -> Iterator[io.BufferedIOBase]:
    """Opens the first `size` bytes of a file through `tf.io.gfile`, and decompresses them.

    `size` is the size at the scan. A file that grows is therefore read to a fixed end, a named pipe
    (size 0) is never waited for, and a file that has shrunk is an error instead of a shorter file.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        prefix = io.BufferedReader(_Prefix(path, file, size))
        yield prefix if compression is None else gzip.GzipFile(fileobj=prefix, mode="rb")


class _Prefix(io.RawIOBase):
    def __init__(self, path: str, file: Any, size: int) -> None:
        self._path, self._file, self._size, self._position = path, file, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        data: bytes = self._file.read(wanted)
        if not data:
            raise DataError(self._path, self._position, self._shrunk())
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = min(base + offset, self._size)
        try:
            self._file.seek(self._position)
        except tf.errors.OutOfRangeError as error:
            raise DataError(self._path, self._position, self._shrunk()) from error
        return self._position

    def tell(self) -> int:  # io's own would seek, and thereby wait for a named pipe
        return self._position

    def _shrunk(self) -> str:
        return f"the file ends before this byte; it had {self._size:,} bytes at the scan"


def _stat(path: str) -> tuple[int, int]:
    stat = tf.io.gfile.stat(path)
    return int(stat.length), int(stat.mtime_nsec)


def _tail(path: str, size: int) -> int:
    if size == 0:
        return 0
    with open_prefix(path, size, None) as stream:
        stream.seek(max(size - _TAIL, 0))
        return zlib.crc32(stream.read())
