"""Records of many files under one numbering, so that a ledger can account for each of them."""

from __future__ import annotations

import bisect
import dataclasses
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal, get_args

import tensorflow as tf

from tfdist.data import reading
from tfdist.data.entry import Change, FileEntry, Format
from tfdist.data.ledger import check_no_folder
from tfdist.data.padding import LARGEST_BATCH
from tfdist.errors import (
    ConfigError,
    DataError,
    checked_choice,
    checked_flag,
    checked_integer,
    checked_path,
    checked_several,
)

IssueKind = Literal["damaged", "empty", "too_few_files", "uneven"] | Change

_INDEX_VERSION = 1
_UNEVEN = 4  # times the records of the median file


@dataclass(frozen=True)
class FileIssue:
    """A finding of `FileSet.preflight`; its string is its text.

    Attributes:
        kind: "damaged", "empty", "too_few_files", "uneven", or a change since the scan:
            "unreadable", "shrunk", "rewritten", "grown".
        text: the problem, its consequence and what to do.
        paths: the files concerned.
    """

    kind: IssueKind
    text: str
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class FileSet:
    """The scanned files of a data set; their records have the numbers 0 to ``len(files) - 1``.

    The files are sorted by path, character by character as ``sorted`` does, so every trainer has
    the same numbers.

    Attributes:
        files: one entry for each file.
        format: "tfrecord"; "lines", one record per line; or "csv" by RFC 4180.
        compression: None or "GZIP".
        header: True if the first record of each CSV file is left out.
    """

    files: tuple[FileEntry, ...]
    format: Format
    compression: str | None = None
    header: bool = False

    @classmethod
    def scan(
        cls,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        format: Format = "tfrecord",
        *,
        compression: str | None = None,
        header: bool = False,
        strict: bool = True,
    ) -> FileSet:
        """Reads all files once, one after the other; blocks until all are read.

        Args:
            files: a path, a pattern such as ``"data/part-*"``, or several; duplicates are dropped.
            format: of all files.
            compression: of all files.
            header: leaves out the first record of each CSV file.
            strict: raises on a damaged file. With False, the records before the damage count, and
                `damaged` and `preflight` report the file.

        Raises:
            ConfigError: no file matches, or an argument is wrong.
            DataError: a file is missing, damaged or unreadable, and `strict` is set.
        """
        checked_choice("format", format, get_args(Format))
        if compression is not None and (not isinstance(compression, str) or compression != "GZIP"):
            raise ConfigError("compression", compression, "must be None or 'GZIP'")
        header, strict = checked_flag("header", header), checked_flag("strict", strict)
        if header and format != "csv":
            raise ConfigError("header", header, "only CSV files have a header")
        paths = _matching(_patterns(files))
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
        """Writes the index as JSON, so that only one task has to scan.

        The index appears whole or not at all, as far as its file system can rename.

        Raises:
            ConfigError: `path` is a folder.
        """
        path = checked_path("path", path)
        check_no_folder(path)
        text = json.dumps({"tfdist_files": _INDEX_VERSION, **dataclasses.asdict(self)})
        unfinished = f"{path}.{uuid.uuid4().hex}"  # two trainers may save at the same time
        with tf.io.gfile.GFile(unfinished, "w") as file:
            file.write(text)
        tf.io.gfile.rename(unfinished, path, overwrite=True)

    @classmethod
    def load(cls, path: str) -> FileSet:
        """Reads an index that `save` wrote, and checks its files.

        A file that has grown is no error: the scanned bytes are still there.

        Raises:
            ConfigError: `path` is not such an index.
            DataError: a file is unreadable, has shrunk or was rewritten.
        """
        path = checked_path("path", path)
        try:
            with tf.io.gfile.GFile(path) as file:
                index = json.loads(file.read())
            if index["tfdist_files"] != _INDEX_VERSION:
                raise ValueError("another version")
            entries = tuple(
                FileEntry(**{**entry, "marks": tuple(map(tuple, entry["marks"]))})
                for entry in index["files"]
            )
            found = cls(entries, index["format"], index["compression"], index["header"])
        except tf.errors.NotFoundError as error:
            raise ConfigError("path", path, "no such index; scan the files and save it") from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            rule = (
                f"is not an index that this version of FileSet.save wrote ({error!r}); scan again"
            )
            raise ConfigError("path", path, rule) from error
        for entry in entries:
            entry.check()
        return found

    def __len__(self) -> int:
        return sum(entry.records for entry in self.files)

    @property
    def damaged(self) -> tuple[FileEntry, ...]:
        """The files with a problem. Their lost records have no numbers, so no audit misses them."""
        return tuple(entry for entry in self.files if entry.problem is not None)

    def splits(self, records_per_split: int) -> tuple[tuple[int, int], ...]:
        """Cuts all records into ranges ``(start, stop)``; no range spans two files."""
        records_per_split = checked_integer("records_per_split", records_per_split, 1)
        return tuple(
            (start, min(start + records_per_split, last))
            for first, last in pairwise(reading.first_records(self.files))
            for start in range(first, last, records_per_split)
        )

    def file_of(self, record: int) -> FileEntry:
        """The file that contains the record of this number."""
        record = checked_integer("record", record, 0, len(self) - 1)
        firsts = reading.first_records(self.files)
        return self.files[bisect.bisect_right(firsts, record) - 1]

    def read(self, start: Any = 0, stop: Any = None, *, remote: bool = False) -> tf.data.Dataset:
        """The records `start` to `stop` - 1 in order, each as ``(int64 number, string record)``.

        Reading begins at the nearest mark of the index, so at most 2 MB are read in vain; in a
        compressed file everything before the range is decompressed.

        The dataset fails when it comes to a file that has changed since the scan other than by
        growing, and when it comes to a TFRecord with a wrong checksum, or to a later record behind
        the same mark. It never ends early without an error. The process that built the dataset
        checks the files.

        Args:
            start: the first record: an integer, or a scalar int64 tensor such as a placeholder.
            stop: the record after the last one, likewise; None reads to the end.
            remote: another process iterates the dataset, such as a worker of a ClusterCoordinator.
                It then consists of TensorFlow ops alone, and a rewritten file is noticed only at a
                damaged or missing record.

        Raises:
            ConfigError: the range is known and not part of this set; or `remote` is set for text,
                which Python splits into records.
        """
        remote = checked_flag("remote", remote)
        start, stop = self._bounds(start, stop)
        return self._records(start, stop, remote=remote).enumerate(start)

    def read_batches(
        self, batch_size: int, start: Any = 0, stop: Any = None, *, remote: bool = False
    ) -> tf.data.Dataset:
        """Same as ``read(start, stop).batch(batch_size)``, at less than half the cost.

        One op numbers a whole batch. Raises the same errors as `read`.
        """
        batch_size = checked_integer("batch_size", batch_size, 1, LARGEST_BATCH)
        remote = checked_flag("remote", remote)
        start, stop = self._bounds(start, stop)

        def numbered(batch: Any, record: Any) -> tuple[Any, Any]:
            first = start + batch * batch_size
            return tf.range(first, first + tf.size(record, tf.int64)), record

        records = self._records(start, stop, remote=remote)
        return records.batch(batch_size).enumerate().map(numbered)

    def _bounds(self, start: Any, stop: Any) -> tuple[Any, Any]:
        stop = len(self) if stop is None else stop
        start, stop = _record_number("start", start), _record_number("stop", stop)
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

    def preflight(self, num_trainers: int) -> tuple[FileIssue, ...]:
        """Finds files that would fail or stall a job of `num_trainers`; checks the files again."""
        num_trainers = checked_integer("num_trainers", num_trainers, 1, 2**31)
        changes = [entry.change() for entry in self.files]
        return (*_file_issues(self.files, changes), *_share_issues(self.files, num_trainers))


def _file_issues(
    files: Sequence[FileEntry], changes: Sequence[tuple[Change, str] | None]
) -> list[FileIssue]:
    found = []
    for entry, change in zip(files, changes, strict=True):
        if error := entry.error():
            text = (
                f"{error}. The lost records have no numbers, so no audit misses them. Repair or "
                "replace the file."
            )
            found.append(FileIssue("damaged", text, (entry.path,)))
        if change is not None:
            kind, what = change
            advice = "" if kind == "grown" else " Reading it fails. Scan the files again."
            found.append(FileIssue(kind, f"{entry.path}: {what}.{advice}", (entry.path,)))
    return found


def _share_issues(files: Sequence[FileEntry], num_trainers: int) -> list[FileIssue]:
    """Files that leave some trainers without work where each trainer reads its share of files."""
    found = []
    empty = tuple(entry.path for entry in files if not entry.records and not entry.problem)
    if empty:
        text = (
            f"{len(empty)} of {len(files)} files are empty: {', '.join(empty)}. A trainer with "
            "only such files ends before the others. Check the job that wrote them."
        )
        found.append(FileIssue("empty", text, empty))
    if len(files) < num_trainers:
        text = (
            f"{len(files)} files for {num_trainers} trainers. If each trainer reads its share of "
            "the files, some have none and end immediately; in synchronous training the others "
            "then wait for them. Distribute splits(), or start fewer workers."
        )
        found.append(FileIssue("too_few_files", text))
    sizes = [entry.records for entry in files if entry.records]
    if sizes and max(sizes) > _UNEVEN * median(sizes):
        largest = max(files, key=lambda entry: entry.records)
        text = (
            f"the files are uneven: {largest.path} has {largest.records:,} records, the median "
            f"file {median(sizes):,.0f}. If each trainer reads its share of the files, all wait "
            "for the trainer of the largest. Distribute splits()."
        )
        found.append(FileIssue("uneven", text, (largest.path,)))
    return found


def _patterns(files: Any) -> list[str]:
    patterns = [files] if isinstance(files, (str, os.PathLike)) else files
    checked = []
    for each in checked_several("files", patterns, "must be a path, a pattern, or several"):
        try:
            checked.append(checked_path("files", each))
        except ConfigError:
            rule = "must be a path or a pattern that is not empty"
            raise ConfigError("files", each, rule) from None
    return checked


def _record_number(field: str, number: Any) -> Any:
    """The number as an int64 tensor, which it may be already."""
    if not tf.is_tensor(number):
        number = checked_integer(field, number)
        # One beyond int64 is beyond the records of any set.
        return tf.constant(max(-1, min(number, 2**62)), tf.int64)
    if not number.dtype.is_integer or number.shape.rank not in (None, 0):
        raise ConfigError(field, number, "must be a whole number, or a scalar tensor of integers")
    return tf.cast(number, tf.int64)


def _matching(patterns: list[str]) -> list[str]:
    found = set[str]()
    for pattern in patterns:
        if not any(sign in pattern for sign in "*?["):
            found.add(pattern)  # a missing file becomes an entry with a problem
            continue
        files = [path for path in tf.io.gfile.glob(pattern) if not tf.io.gfile.isdir(path)]
        if not files:
            raise ConfigError(
                "files", pattern, "no file matches; is its folder mounted on this machine?"
            )
        found.update(files)
    if not found:
        raise ConfigError("files", patterns, "must name at least one path or pattern")
    return sorted(found)
