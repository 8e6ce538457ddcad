"""A scan finds every whole record of a file up to the first damage."""

import csv
import gzip
import io
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdist.data import contents
from tfdist.data.contents import text_contents, tfrecord_contents

FRAME = 16  # bytes of a TFRecord around its data


def masked_crc(data: bytes) -> int:
    """The masked CRC-32C of a TFRecord, computed bit by bit from its definition."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(records) -> bytes:
    """A TFRecord file with wrong data checksums, which a scan does not verify."""
    heads = [struct.pack("<Q", len(record)) for record in records]
    return b"".join(
        head + struct.pack("<I", masked_crc(head)) + record + b"data"
        for head, record in zip(heads, records, strict=True)
    )


def begins(records) -> list[int]:
    """The offset of each record of a TFRecord file, and of its end."""
    found = [0]
    for record in records:
        found.append(found[-1] + len(record) + FRAME)
    return found


def stream(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data))


@pytest.fixture(params=[13, 37, 200])
def small(monkeypatch, request):
    """Chunks and mark spacing so small that a few records span several."""
    monkeypatch.setattr(contents, "CHUNK", request.param)
    monkeypatch.setattr(contents, "MARK_SPACING", 20)


RECORDS = [b"", b"a", b"x" * 50, b"", b"y" * 7, b"z" * 120]


@pytest.mark.usefixtures("small")
def test_a_tfrecord_file_cut_at_any_byte_has_its_whole_records():
    data, ends = framed(RECORDS), begins(RECORDS)
    for size in range(len(data) + 1):
        found = tfrecord_contents(stream(data[:size]))
        whole = sum(end <= size for end in ends[1:])
        at = None if size in ends else ends[whole]
        assert (found.records, found.problem_at) == (whole, at), size
        assert (found.problem is None) == (at is None)
        assert all(offset == ends[record] for record, offset in found.marks)
        assert [record for record, _ in found.marks][:1] == [0][:whole]


@pytest.mark.usefixtures("small")
def test_a_wrong_head_is_reported_at_its_record():
    data, ends = framed(RECORDS), begins(RECORDS)
    for record, begin in enumerate(ends[:-1]):
        for byte in range(begin, begin + 12):
            wrong = bytearray(data)
            wrong[byte] ^= 4
            found = tfrecord_contents(stream(bytes(wrong)))
            assert (found.records, found.problem_at) == (record, begin)
            assert "no TFRecord begins here" in found.problem


def test_marks_are_spaced_and_have_the_offsets_of_their_records(monkeypatch):
    records = [b"r" * 84] * 1000
    monkeypatch.setattr(contents, "CHUNK", 1000)
    monkeypatch.setattr(contents, "MARK_SPACING", 5000)
    found = tfrecord_contents(stream(framed(records)))
    assert len(found.marks) in range(15, 21)
    assert all(offset == 100 * record for record, offset in found.marks)


def test_a_record_that_would_exhaust_memory_is_a_problem(monkeypatch):
    monkeypatch.setattr(contents, "MAX_RECORD", 100)
    monkeypatch.setattr(contents, "CHUNK", 64)
    found = tfrecord_contents(stream(framed([b"a", b"b" * 101, b"c"])))
    assert (found.records, found.problem_at) == (1, 17)
    assert found.problem == "a record of 101 bytes; at most 100"
    for quoted in (False, True):
        found = text_contents(stream(b"a\n" + b"b" * 101 + b"\nc\n"), quoted, header=False)
        assert (found.records, found.problem_at) == (1, 2)
        assert found.problem == "a record of more than 100 bytes"


@given(st.text('ab",\r\n', max_size=40), st.integers(1, 20), st.booleans())
def test_a_line_ends_at_a_newline_or_at_the_end_of_the_file(text, chunk, header):
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "CHUNK", chunk)
        patch.setattr(contents, "MARK_SPACING", 3)
        found = text_contents(stream(data), quoted=False, header=header)
    lines = io.BytesIO(data).readlines()
    assert (found.records, found.problem) == (max(len(lines) - header, 0), None)
    for record, offset in found.marks:
        assert offset == sum(map(len, lines[: record + header]))
    assert bool(found.marks) == (found.records > 0)


@given(
    st.lists(st.lists(st.text('ab",\r\n', max_size=5), min_size=2), max_size=8),
    st.integers(1, 20),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_csv_file_has_the_records_that_the_csv_module_wrote(rows, chunk, line_end):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "CHUNK", chunk)
        found = text_contents(stream(text.getvalue().encode()), quoted=True, header=False)
    assert (found.records, found.problem) == (len(rows), None)


def test_unbalanced_quotes_are_reported_at_the_record_that_never_ends():
    found = text_contents(stream(b'a,b\nc,"d\ne,f\n'), quoted=True, header=False)
    assert (found.records, found.problem_at) == (1, 4)
    assert "this record never ends" in found.problem


@pytest.mark.parametrize("quoted", [False, True])
def test_compressed_text_scanned_as_plain_text_is_reported(quoted):
    found = text_contents(stream(gzip.compress(b"a\n")), quoted, header=False)
    assert (found.records, found.problem_at) == (0, 0)
    assert "compression='GZIP'" in found.problem


def test_truncated_compressed_data_are_reported_after_the_readable_records():
    lines = b"".join(b"%d\n" % (n * n * 7919) for n in range(100_000))
    packed = gzip.compress(lines)
    with gzip.GzipFile(fileobj=io.BytesIO(packed[: len(packed) // 2])) as cut:
        found = text_contents(cut, quoted=False, header=False)
    assert 0 < found.records < 100_000
    assert lines[: found.problem_at].count(b"\n") == found.records
    assert "the compressed data are damaged" in found.problem


class Repeated(io.RawIOBase):
    """A large file that is generated as it is read."""

    def __init__(self, piece: bytes, times: int) -> None:
        self.piece, self.left = piece, times

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.left:
            return 0
        self.left -= 1
        buffer[: len(self.piece)] = self.piece
        return len(self.piece)


@pytest.mark.parametrize(
    "scan",
    [
        lambda lines, records: tfrecord_contents(records),
        lambda lines, records: text_contents(lines, quoted=False, header=False),
        lambda lines, records: text_contents(lines, quoted=True, header=True),
    ],
)
def test_a_scan_takes_constant_memory(scan):
    chunk = 1 << 20
    line, record = b'"' + b"a" * 1021 + b'"\n', framed([b"r" * 1008])
    lines, records = (
        io.BufferedReader(Repeated(piece * (chunk // 1024), 40)) for piece in (line, record)
    )
    tracemalloc.start()
    try:
        found = scan(lines, records)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.records in (40 * 1024, 40 * 1024 - 1)
    assert peak < 20 * chunk
