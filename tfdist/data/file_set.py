"""The records of many files under one numbering, so that a ledger can account for each of them."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import tensorflow as tf

from tfdist.data import index_file, preflight, reading
from tfdist.data.entry import FileEntry, Format
from tfdist.errors import ConfigError, DataError


@dataclass(frozen=True)
class FileSet:
    """What a scan found in some files; their records are numbered from 0 through all files.

    The files are in the order of their paths, compared letter by letter as ``sorted`` does, so that
    every trainer has the same numbers. ``len`` is the number of records.

    Attributes:
        files: what was found in each.
        format: "tfrecord"; "lines", of which each is a record; or "csv" by RFC 4180.
        compression: None or "GZIP".
        header: whether the first record of each CSV file is left out.
    """

    files: tuple[FileEntry, ...]
    format: Format
    compression: str | None = None
    header: bool = False

    @classmethod
    def scan(
        cls,
        files: str | Iterable[str],
        format: Format = "tfrecord",
        *,
        compression: str | None = None,
        header: bool = False,
        strict: bool = True,
    ) -> FileSet:
        """Reads all files once, from one to the next. Blocks as long as reading them takes.

        Args:
            files: a path or a pattern such as ``"data/part-*"``, or several; each file counts once.
            strict: a damaged file is an error. Otherwise its records before the damage count, and
                `damaged` and `preflight` tell of it.

        Raises:
            ConfigError: no file matches, or an argument is wrong.
            DataError: a file is missing, damaged or cannot be read, and `strict` is set.
        """
        if format not in get_args(Format):
            raise ConfigError("format", format, f"one of {', '.join(get_args(Format))}")
        if compression not in (None, "GZIP"):
            raise ConfigError("compression", compression, "None or 'GZIP'")
        if header and format != "csv":
            raise ConfigError("header", header, "only CSV files have a header")
        paths = _matching([files] if isinstance(files, str) else list(files))
        found = cls(
            tuple(FileEntry.scan(path, format, compression, header) for path in paths),
            format,
            compression,
            header,
        )
        errors = [error for entry in found.files if (error := entry.error()) is not None]
        if strict and errors:
            first, more = errors[0], len(errors) - 1
            also = f" (and {more} more damaged files)" if more else ""
            raise DataError(first.path, first.offset, first.what + also)
        return found

    def save(self, path: str) -> None:
        """Writes the index to `path`, so that nobody needs to scan again."""
        settings = {name: getattr(self, name) for name in index_file.SETTINGS}
        index_file.write_index(path, self.files, settings)

    @classmethod
    def load(cls, path: str) -> FileSet:
        """The index that `save` wrote. Files that have grown are read as far as they were scanned.

        Raises:
            ConfigError: `path` is no such index.
            DataError: a file cannot be read, has shrunk or was written anew; both sizes are told.
        """
        files, settings = index_file.read_index(path)
        return cls(files, **settings)

    def __len__(self) -> int:
        return sum(entry.records for entry in self.files)

    @property
    def damaged(self) -> tuple[FileEntry, ...]:
        """The files with a problem. What they have lost has no numbers: no ledger misses it."""
        return tuple(entry for entry in self.files if entry.problem is not None)

    def splits(self, records_per_split: int) -> tuple[tuple[int, int], ...]:
        """All records as ranges ``(start, stop)`` of at most so many, each inside of one file."""
        _check_at_least_1("records_per_split", records_per_split)
        return tuple(
            (start, min(start + records_per_split, last))
            for first, last in pairwise(reading.first_records(self.files))
            for start in range(first, last, records_per_split)
        )

    def file_of(self, record: int) -> FileEntry:
        """The file that has the record of this number; so a ledger's missing ranges have names."""
        if not 0 <= record < len(self):
            raise ConfigError("record", record, f"at least 0 and less than {len(self)}")
        firsts = reading.first_records(self.files)
        return self.files[bisect.bisect_right(firsts, record) - 1]

    def read(self, start: Any = 0, stop: Any = None, *, remote: bool = False) -> tf.data.Dataset:
        """The records from `start` to before `stop`, each as ``(int64 number, string record)``.

        In order. `start` and `stop` are whole numbers, or scalar int64 tensors where a graph is to
        be told a range when it runs. Reading begins at the nearest mark of the index, so that less
        than 2 MB are read in vain; in a compressed file all that lies before is decompressed.

        A file that has changed since the scan, except that it has grown, is an error of the dataset
        when it comes to that file; so is a TFRecord whose data do not have their checksum when it
        comes to that record, or to another behind the same mark. Nothing ends early without an
        error. The files are looked at by the process that builds the dataset.

        Args:
            start: the first record.
            stop: the one behind the last; None reads all from `start` on.
            remote: the dataset is iterated by another process than this one, such as the worker of
                a ClusterCoordinator. It is of TensorFlow's operations alone then, so a file that
                was written anew is noticed only where a record is damaged or lacks.

        Raises:
            ConfigError: the range is known, and is none of this set; or text is to be read
                remotely, which Python splits into records.
        """
        start, stop = self._bounds(start, stop)
        return self._records(start, stop, remote=remote).enumerate(start)

    def read_batches(
        self, batch_size: int, start: Any = 0, stop: Any = None, *, remote: bool = False
    ) -> tf.data.Dataset:
        """As ``read(start, stop).batch(batch_size)``, at less than half of its cost.

        For a batch is numbered at once. Raises what `read` does.
        """
        _check_at_least_1("batch_size", batch_size)
        start, stop = self._bounds(start, stop)

        def numbered(batch: Any, record: Any) -> tuple[Any, Any]:
            first = start + batch * batch_size
            return tf.range(first, first + tf.size(record, tf.int64)), record

        records = self._records(start, stop, remote=remote)
        return records.batch(batch_size).enumerate().map(numbered)

    def _bounds(self, start: Any, stop: Any) -> tuple[Any, Any]:
        stop = len(self) if stop is None else stop
        start, stop = (tf.cast(number, tf.int64) for number in (start, stop))
        known = tf.get_static_value(start), tf.get_static_value(stop)
        if None not in known and not 0 <= known[0] <= known[1] <= len(self):
            given = tuple(map(int, known))
            raise ConfigError("start, stop", given, reading.range_rule(len(self)))
        return start, stop

    def _records(self, start: Any, stop: Any, *, remote: bool) -> Any:
        if self.format == "tfrecord":
            return reading.tfrecords(self.files, self.compression, start, stop, remote=remote)
        if remote:
            raise ConfigError("remote", remote, f"{self.format!r} is read by Python; use TFRecords")
        return reading.text_records(self.files, self.compression, self.format == "csv", start, stop)

    def preflight(self, num_trainers: int) -> tuple[preflight.FileIssue, ...]:
        """What may go wrong with these files and so many trainers. Looks at the files again."""
        _check_at_least_1("num_trainers", num_trainers)
        return preflight.file_warnings(
            self.files, num_trainers, [entry.change() for entry in self.files]
        )


def _matching(patterns: list[str]) -> list[str]:
    found = set[str]()
    for pattern in patterns:
        if not any(sign in pattern for sign in "*?["):
            found.add(pattern)  # also if there is no such file: then that is its problem
            continue
        files = [path for path in tf.io.gfile.glob(pattern) if not tf.io.gfile.isdir(path)]
        if not files:
            raise ConfigError("files", pattern, "no file matches; is it mounted on this machine?")
        found.update(files)
    if not found:
        raise ConfigError("files", patterns, "at least one path or pattern")
    return sorted(found)


def _check_at_least_1(field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(field, value, "a whole number, at least 1")
