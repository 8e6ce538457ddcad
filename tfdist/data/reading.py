"""A range of records as a `tf.data.Dataset`. The range may be tensors, so a graph can be fed it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import tensorflow as tf

from tfdist.data.contents import GZIP_ERRORS, record_ends
from tfdist.data.entry import FileEntry, open_prefix
from tfdist.errors import ConfigError, DataError

_BLOCK = 1 << 18  # bytes that are split into records at a time


def first_records(files: Sequence[FileEntry]) -> list[int]:
    """The number of the first record of each file, followed by the number of all records."""
    return [0, *accumulate(entry.records for entry in files)]


def range_rule(records: int) -> str:
    """The rule that a range of these records has to follow, for error messages."""
    return f"must satisfy 0 <= start <= stop <= {records}"


def tfrecords(
    files: Sequence[FileEntry], compression: str | None, start: Any, stop: Any, *, remote: bool
) -> Any:
    """Records of TFRecord files, read by TensorFlow's own reader, which verifies checksums.

    TensorFlow 2.21 takes a file that was cut between two records for a shorter file, and its error
    for a file that was cut within a record does not name the file. Therefore the file is checked
    before and after it is read, by Python. With `remote`, another process iterates the dataset and
    cannot call this Python; ops then do what they can.
    """
    files = [entry for entry in files if entry.records]  # so all first records differ
    firsts = first_records(files)
    marks = [
        (first + record, offset)
        for first, entry in zip(firsts, files, strict=False)
        for record, offset in entry.marks
    ]

    def unchanged(file: Any) -> str:
        entry = files[int(file)]
        entry.check()
        return entry.path

    def ended(file: Any) -> str:
        path, records = unchanged(file), files[int(file)].records
        raise DataError(path, None, f"it has fewer than its {records:,} records at the scan")

    def in_python(check: Callable[[Any], str], file: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(check, [file], tf.string), [])

    def named(file: Any) -> Any:
        return tf.constant([entry.path for entry in files], tf.string)[file]

    def ended_in_graph(file: Any) -> Any:
        records = tf.constant([entry.records for entry in files], tf.int64)[file]
        what = [named(file), "has fewer records than at the scan:", records]
        with tf.control_dependencies([tf.debugging.Assert(False, what)]):
            return tf.constant("")

    begin = named if remote else partial(in_python, unchanged)
    fail = ended_in_graph if remote else partial(in_python, ended)

    def of_range(start: Any, stop: Any) -> Any:
        first = tf.constant(firsts, tf.int64)
        is_valid = (start >= 0) & (start <= stop) & (stop <= firsts[-1])
        with tf.control_dependencies(
            [tf.debugging.Assert(is_valid, [range_rule(firsts[-1]), start, stop])]
        ):
            begins = tf.searchsorted(first, [start], side="right")[0] - 1
            ends = tf.searchsorted(first, [stop], side="left")[0]
        spanned = tf.data.Dataset.range(tf.cast(begins, tf.int64), tf.cast(ends, tf.int64))
        return spanned.flat_map(lambda file: of_file(file, start, stop))

    def of_file(file: Any, start: Any, stop: Any) -> Any:
        first = tf.constant(firsts, tf.int64)
        records, offsets = tf.unstack(tf.constant(marks, tf.int64, [len(marks), 2]), axis=1)
        start, stop = tf.maximum(start, first[file]), tf.minimum(stop, first[file + 1])
        mark = tf.searchsorted(records, [start], side="right")[0] - 1
        # TensorFlow 2.21 drops byte_offsets when it serializes this dataset into a graph. It
        # serializes only the outermost datasets, so this one has to stay within a function.
        found = tf.data.experimental.from_variant(
            tf.raw_ops.TFRecordDatasetV2(
                filenames=begin(file),
                compression_type=compression or "",
                buffer_size=_BLOCK,
                byte_offsets=offsets[mark],
            ),
            tf.TensorSpec([], tf.string),
        )
        # Not ignore_errors, which retries for ever if a file cannot be opened.
        end = tf.data.Dataset.from_tensors(file).map(fail)
        whole = found.concatenate(end)
        return whole.skip(start - records[mark]).take(stop - start)

    return tf.data.Dataset.from_tensors((start, stop)).flat_map(of_range)


def text_records(
    files: Sequence[FileEntry], compression: str | None, quoted: bool, start: Any, stop: Any
) -> Any:
    """Records of text files, read by Python in the process that built the dataset."""
    blocks = partial(_blocks, files, compression, quoted)
    signature = tf.TensorSpec([None], tf.string)
    make: Callable[..., Any] = tf.data.Dataset.from_generator
    return make(blocks, args=(start, stop), output_signature=signature).unbatch()


def _blocks(
    files: Sequence[FileEntry], compression: str | None, quoted: bool, start: Any, stop: Any
) -> Iterator[list[bytes]]:
    firsts = first_records(files)
    if not 0 <= start <= stop <= firsts[-1]:
        raise ConfigError("start, stop", (int(start), int(stop)), range_rule(firsts[-1]))
    for entry, (first, last) in zip(files, pairwise(firsts), strict=True):
        at, end = max(int(start), first), min(int(stop), last)
        if at < end:
            yield from _file_blocks(entry, compression, quoted, at - first, end - first)


def _file_blocks(
    entry: FileEntry, compression: str | None, quoted: bool, start: int, stop: int
) -> Iterator[list[bytes]]:
    entry.check()
    record, offset = next(mark for mark in reversed(entry.marks) if mark[0] <= start)
    with open_prefix(entry.path, entry.size, compression) as stream:
        try:
            stream.seek(offset)
            for block in _text_blocks(stream, quoted):
                wanted = block[max(start - record, 0) : stop - record]
                record += len(block)
                if wanted:
                    yield wanted
                if record >= stop:
                    return
        except GZIP_ERRORS as error:
            what = f"the compressed data are damaged: {error}"
            raise DataError(entry.path, None, what) from error
    raise DataError(entry.path, None, f"it ends before record {stop - 1} of its scan")


def _text_blocks(stream: io.BufferedIOBase, quoted: bool) -> Iterator[list[bytes]]:
    pieces: list[bytes] = []  # the beginning of a record whose end has not been read
    inside = False
    while chunk := stream.read1(_BLOCK):
        ends, inside = record_ends(chunk, quoted, inside)
        if not len(ends):
            pieces.append(chunk)
            continue
        at = ends.tolist()
        block = [b"".join([*pieces, chunk[: at[0]]])]
        block += [chunk[begin + 1 : end] for begin, end in pairwise(at)]
        pieces = [chunk[at[-1] + 1 :]]
        yield [record.removesuffix(b"\r") for record in block]
    if last := b"".join(pieces):
        yield [last.removesuffix(b"\r")]
