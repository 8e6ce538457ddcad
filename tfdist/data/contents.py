"""Where the records of one file lie: found in one pass that keeps a mark a megabyte.

A scan stops at the first damage. What lies before it is whole and counts; what lies behind it
cannot be numbered, so it is told and not counted.
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
MARK_SPACING = 1 << 20  # bytes between two marks, at least
MAX_RECORD = 1 << 30  # bytes; a larger "record" is a file of another format, or fills the memory

# What reading a damaged gzip stream raises.
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)

_GZIP_MAGIC = b"\x1f\x8b"
_HEAD = 12  # of a TFRecord: its length, and the checksum of its length
_FRAME = 16  # the head, and the checksum of the data behind them
_length_at = struct.Struct("<Q").unpack_from

Mark = tuple[int, int]


@dataclass(frozen=True)
class Contents:
    """The records of one file.

    Attributes:
        records: how many whole records there are, before the damage if there is some.
        marks: ``(record, offset)`` of some of them, in order; the first record has one. An offset
            is in bytes of the uncompressed contents.
        problem: the damage, if there is some.
        problem_at: the offset of the record that is damaged.
    """

    records: int
    marks: tuple[Mark, ...]
    problem: str | None = None
    problem_at: int | None = None


def tfrecord_contents(stream: io.BufferedIOBase) -> Contents:
    """The records of a TFRecord file; checks the checksums of their lengths, not of their data."""
    records, marks, next_mark = 0, list[Mark](), 0
    begin = last = 0  # where the next record begins; where the last one begins
    position, rest = 0, b""  # where the stream stands; what has been read from `begin` on
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
            problem = "no TFRecord begins here; is the file corrupt, of another format, compressed?"
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
        needs, begin, records = begin - last, last, records - 1
        problem = problem or f"truncated: a record of {needs:,} bytes begins here"
    elif rest and problem is None:
        problem = f"truncated: the last {len(rest)} bytes are less than the head of a record"
    whole = tuple(mark for mark in marks if mark[0] < records)
    return Contents(records, whole, problem, None if problem is None else begin)


def text_contents(stream: io.BufferedIOBase, quoted: bool, header: bool) -> Contents:
    """The records of a text file: one a line, or with `quoted` by the rules of RFC 4180.

    Args:
        quoted: a newline between two double quotes ends no record.
        header: the first record is none.
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
            problem = "this is compressed; scan it with compression='GZIP'"
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
        problem = "this record never ends: its quotes, or those before it, do not pair up"
    elif problem is None and begin < position:
        records += 1  # the last line has no newline
    records = max(records, 0)
    whole = tuple(mark for mark in marks if mark[0] < records)
    return Contents(records, whole, problem, None if problem is None else begin)


def record_ends(chunk: bytes, quoted: bool, inside: bool) -> tuple[NDArray[np.int64], bool]:
    """Where records end in `chunk`, and whether its end is inside of quotes, as its begin is."""
    octets = np.frombuffer(chunk, np.uint8)
    newlines = octets == ord("\n")
    if quoted and (inside or b'"' in chunk):
        # A quote in a field is doubled, so that the parity of the quotes so far tells.
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
    """The first of `heads` whose length does not have its checksum (a masked CRC-32C)."""
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
