"""A range of records as a `tf.data.Dataset`, with the range as tensors: a graph can be fed it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import tensorflow as tf

from tfdist.data.contents import GZIP_ERRORS, record_ends
from tfdist.data.entry import FileEntry
from tfdist.data.opened import opened
from tfdist.errors import ConfigError, DataError

_BLOCK = 1 << 18  # bytes of text that are split into records at once


def first_records(files: Sequence[FileEntry]) -> list[int]:
    """The number of each file's first record, and the number of all records behind them."""
    return [0, *accumulate(entry.records for entry in files)]


def range_rule(records: int) -> str:
    """What a range of so many records has to be."""
    return f"a range of records needs 0 <= start <= stop <= {records}"


def tfrecords(
    files: Sequence[FileEntry], compression: str | None, start: Any, stop: Any, *, remote: bool
) -> Any:
    """Records of TFRecord files. TensorFlow's own reader, which checks each record's checksum.

    For TensorFlow 2.21 a file that was cut off between two records is a shorter file, and its error
    for one that was cut off inside of a record names no file. Hence the two looks at the file, of
    which a process that has not built the dataset can take neither.
    """
    files = [entry for entry in files if entry.records]  # so that no two have the same first record
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
        raise DataError(path, None, f"it has fewer than the {records:,} records that it had")

    def of_python(look: Callable[[Any], str], file: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(look, [file], tf.string), [])

    def named(file: Any) -> Any:
        return tf.constant([entry.path for entry in files], tf.string)[file]

    def ended_there(file: Any) -> Any:
        records = tf.constant([entry.records for entry in files], tf.int64)[file]
        what = [named(file), "it has fewer records than it had:", records]
        with tf.control_dependencies([tf.debugging.Assert(False, what)]):
            return tf.constant("")

    begin = named if remote else partial(of_python, unchanged)
    fail = ended_there if remote else partial(of_python, ended)

    def of_range(start: Any, stop: Any) -> Any:
        first = tf.constant(firsts, tf.int64)
        held = (start >= 0) & (start <= stop) & (stop <= firsts[-1])
        with tf.control_dependencies(
            [tf.debugging.Assert(held, [range_rule(firsts[-1]), start, stop])]
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
        # TensorFlow 2.21 drops byte_offsets when it writes this dataset into a graph, which it does
        # with the outermost ones alone: it has to stay inside of a function, as it is here.
        found = tf.data.experimental.from_variant(
            tf.raw_ops.TFRecordDatasetV2(
                filenames=begin(file),
                compression_type=compression or "",
                buffer_size=_BLOCK,
                byte_offsets=offsets[mark],
            ),
            tf.TensorSpec([], tf.string),
        )
        # Not ignore_errors: for a file that cannot be opened it tries again for ever.
        end = tf.data.Dataset.from_tensors(file).map(fail)
        whole = found.concatenate(end)
        return whole.skip(start - records[mark]).take(stop - start)

    return tf.data.Dataset.from_tensors((start, stop)).flat_map(of_range)


def text_records(
    files: Sequence[FileEntry], compression: str | None, quoted: bool, start: Any, stop: Any
) -> Any:
    """Records of text files, read by Python in the process that builds the dataset."""
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
    with opened(entry.path, entry.size, compression) as stream:
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
    raise DataError(entry.path, None, f"it ends before record {stop - 1} of it, which it had")


def _text_blocks(stream: io.BufferedIOBase, quoted: bool) -> Iterator[list[bytes]]:
    pieces: list[bytes] = []  # of the record whose end is not yet there
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
