"""Finds the records of one file in one pass, and keeps one mark per megabyte.

The pass stops at the first damage. The records before it are whole and count. The records after it
cannot be numbered, so the pass reports the damage and does not count them.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 20  # bytes
MARK_SPACING = 1 << 20  # least bytes between two marks
MAX_RECORD = 1 << 30  # bytes; a larger "record" means another format, or would exhaust memory

# The errors that reading a damaged gzip stream raises.
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)

_GZIP_MAGIC = b"\x1f\x8b"
_HEAD = 12  # bytes before the data of a TFRecord: its length, and the checksum of the length
_FRAME = 16  # the head, and the checksum after the data
_length_at = struct.Struct("<Q").unpack_from

Mark = tuple[int, int]


@dataclass(frozen=True)
class Contents:
    """The records of one file.

    Attributes:
        records: number of whole records before the damage, if any.
        marks: ``(record, offset)`` of some records, in order, beginning with the first. Offsets
            are in bytes of the uncompressed contents.
        problem: the damage, or None.
        problem_at: offset of the damaged record.
    """

    records: int
    marks: tuple[Mark, ...]
    problem: str | None = None
    problem_at: int | None = None


def tfrecord_contents(stream: io.BufferedIOBase) -> Contents:
    """Finds the records of a TFRecord file. Verifies the checksums of lengths, not of data."""
    records, marks, next_mark = 0, list[Mark](), 0
    begin = last = 0  # offsets of the next record and of the last one
    position, rest = 0, b""  # offset of the stream; the bytes from `begin` to there
    problem: str | None = None
    while problem is None:
        try:
            if begin > position:
                stream.seek(begin - 1)
                if not stream.read1(1):
                    break
                position = begin
            chunk = stream.read1(CHUNK)
        except GZIP_ERRORS as error:
            problem = f"the compressed data are damaged ({error})"
            break
        if not chunk:
            break
        position += len(chunk)
        data = rest + chunk
        heads, at = list[int](), 0
        while at <= len(data) - _HEAD:
            heads.append(at)
            at += _length_at(data, at)[0] + _FRAME
        if (wrong := _wrong_head(data, heads)) is not None:
            problem = "no TFRecord begins here; is the file corrupt, compressed, not TFRecords?"
        elif heads and at - heads[-1] - _FRAME > MAX_RECORD:
            wrong = len(heads) - 1
            problem = f"a record of {at - heads[-1] - _FRAME:,} bytes; at most {MAX_RECORD:,}"
        if wrong is not None:
            at = heads[wrong]
            del heads[wrong:]
        if heads:
            if begin >= next_mark:
                marks.append((records, begin))
                next_mark = begin + MARK_SPACING
            records += len(heads)
            last = begin + heads[-1]
        begin += at
        rest = data[at:]
    if begin > position:  # the last record is longer than the file
        size, begin, records = begin - last, last, records - 1
        problem = problem or f"truncated: a record of {size:,} bytes begins here"
    elif rest and problem is None:
        problem = f"truncated: the last {len(rest)} bytes are too few for the head of a record"
    whole = tuple(mark for mark in marks if mark[0] < records)
    return Contents(records, whole, problem, None if problem is None else begin)


def text_contents(stream: io.BufferedIOBase, quoted: bool, header: bool) -> Contents:
    """Finds the records of a text file: its lines, or with `quoted` its records by RFC 4180.

    Args:
        stream: the uncompressed contents.
        quoted: a newline within double quotes does not end a record.
        header: the first record is left out.
    """
    records = -1 if header else 0
    marks: list[Mark] = [] if header else [(0, 0)]
    next_mark = 0 if header else MARK_SPACING
    begin = position = 0
    inside = False
    problem: str | None = None
    while problem is None:
        try:
            chunk = stream.read1(CHUNK)
        except GZIP_ERRORS as error:
            problem = f"the compressed data are damaged ({error})"
            break
        if not chunk:
            break
        if position == 0 and chunk.startswith(_GZIP_MAGIC):
            problem = "the file is compressed; scan it with compression='GZIP'"
            break
        ends, inside = record_ends(chunk, quoted, inside)
        lengths = np.diff(ends, prepend=begin - position - 1) - 1
        if len(too_long := np.flatnonzero(lengths > MAX_RECORD)):
            ends = ends[: too_long[0]]
        if len(ends):
            first = position + int(ends[0]) + 1
            if first >= next_mark:
                marks.append((records + 1, first))
                next_mark = first + MARK_SPACING
            records += len(ends)
            begin = position + int(ends[-1]) + 1
        position += len(chunk)
        if len(too_long) or position - begin > MAX_RECORD:
            problem = f"a record of more than {MAX_RECORD:,} bytes"
    if problem is None and inside:
        problem = "this record never ends: its double quotes, or earlier ones, are unbalanced"
    elif problem is None and begin < position:
        records += 1  # the last line has no newline
    records = max(records, 0)
    whole = tuple(mark for mark in marks if mark[0] < records)
    return Contents(records, whole, problem, None if problem is None else begin)


def record_ends(chunk: bytes, quoted: bool, inside: bool) -> tuple[NDArray[np.int64], bool]:
    """Offsets of the newlines that end a record, and whether the end of `chunk` is quoted.

    `inside` says whether the beginning of `chunk` is within quotes.
    """
    octets = np.frombuffer(chunk, np.uint8)
    newlines = octets == ord("\n")
    if quoted and (inside or b'"' in chunk):
        # A quote in a field is doubled, so an odd number of quotes so far means: within a field.
        parity = np.logical_xor.accumulate(octets == ord('"')) ^ inside
        return np.flatnonzero(newlines & ~parity), bool(parity[-1])
    return np.flatnonzero(newlines), inside


def _crc_table() -> NDArray[np.uint32]:
    table: NDArray[Any] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table


_CRC32C = _crc_table()


def _wrong_head(data: bytes, heads: list[int]) -> int | None:
    """Index of the first head with a wrong checksum (a masked CRC-32C) of its length, or None."""
    octets = np.frombuffer(data, np.uint8)
    at = np.array(heads, np.int64)
    crc = np.full(len(heads), 0xFFFFFFFF, np.uint32)
    for byte in range(8):
        crc = _CRC32C[(crc ^ octets[at + byte]) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    there = sum(octets[at + 8 + byte].astype(np.uint32) << (8 * byte) for byte in range(4))
    wrong = np.flatnonzero(masked != there)
    return int(wrong[0]) if len(wrong) else None
