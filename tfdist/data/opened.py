"""Opens a file through `tf.io.gfile`, up to the size that it had when it was scanned.

So a file that grows is read to a fixed end, a named pipe (of size 0) is never waited for, and
one that has shrunk is an error instead of a shorter file.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfdist.errors import DataError


@contextmanager
def opened(path: str, size: int, compression: str | None) -> Iterator[io.BufferedIOBase]:
    """The uncompressed contents of the first `size` bytes of the file `path`."""
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

    def tell(self) -> int:
        return self._position

    def _shrunk(self) -> str:
        return f"the file ends before this byte, but had {self._size:,} bytes when it was scanned"
