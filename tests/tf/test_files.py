"""Every record of real files is read exactly once, from any start; no damage goes unnoticed."""

import gzip
import json
import os
import tempfile
from itertools import chain
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdist import ConfigError, DataError
from tfdist.data import FileSet, Ledger, contents, reading

KB = [
    letter.encode() * 1000 for letter in "abcdefghijklmnopqrst"
]  # 1016 bytes each in a TFRecord file
FRAME = 16  # bytes of a TFRecord around its data


def write(path: Path, format: str, records, compression=None) -> str:
    if format == "tfrecord":
        with tf.io.TFRecordWriter(str(path), compression or "") as writer:
            for record in records:
                writer.write(record)
    else:
        data = b"".join(record + b"\n" for record in records)
        path.write_bytes(gzip.compress(data) if compression else data)
    return str(path)


@pytest.fixture
def parts(tmp_path):
    """Three files of 20, 5 and 1 records, and a pattern for them."""
    for n, records in enumerate([KB, KB[:5], KB[:1]]):
        write(tmp_path / f"part-{n}", "tfrecord", records)
    return str(tmp_path / "part-*")


def pairs(dataset) -> list[tuple[int, bytes]]:
    return [(int(number), record) for number, record in dataset.as_numpy_iterator()]


def numbered(records, first=0) -> list[tuple[int, bytes]]:
    return list(enumerate(records, first))


def read_until_error(records) -> tuple[Ledger, str]:
    """The ledger of a trainer that reads until an error, and the message of the error."""
    ledger = Ledger()

    def read() -> None:
        for number, _ in records:
            ledger.add([number])

    with pytest.raises(tf.errors.OpError) as raised:
        read()
    return ledger, raised.value.message


text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)
RECORDS = {
    "tfrecord": st.binary(max_size=40),
    "lines": text.map(str.encode),
    # A field with quotes, commas and line ends, quoted by RFC 4180, and one without quotes.
    "csv": st.tuples(st.text('ab",\r\n', max_size=6), st.integers()).map(
        lambda row: b'"%s",%d' % (row[0].replace('"', '""').encode(), row[1])
    ),
}


def check_all_splits(format, compression, parts, data, read):
    """Writes files, reads all their splits in a random order by `read`, and compares."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "CHUNK", data.draw(st.integers(13, 90)))
        patch.setattr(contents, "MARK_SPACING", data.draw(st.integers(1, 60)))
        patch.setattr(reading, "_BLOCK", data.draw(st.integers(1, 60)))
        for n, records in enumerate(parts):
            write(Path(folder) / f"part-{n}", format, records, compression)
        files = FileSet.scan(f"{folder}/part-*", format, compression=compression)
        everything = numbered([record for records in parts for record in records])
        assert len(files) == len(everything)
        splits = data.draw(st.permutations(files.splits(data.draw(st.integers(1, 6)))))
        expected = [pair for start, stop in splits for pair in everything[start:stop]]
        assert read(files, splits) == expected
        ledger = Ledger()
        ledger.add(number for number, _ in expected)
        ledger.audit(expected=len(files)).check()


several_parts = {
    format: st.lists(st.lists(records, max_size=15), min_size=1, max_size=3).filter(any)
    for format, records in RECORDS.items()
}


# One dataset for all splits, since TensorFlow takes 0.2 s to build one.
@settings(max_examples=15, database=None)
@given(st.sampled_from(list(RECORDS)), st.sampled_from([None, "GZIP"]), st.data())
def test_all_splits_in_any_order_yield_every_record_exactly_once(format, compression, data):
    def read(files, splits):
        ranges = tf.data.Dataset.from_tensor_slices(tf.constant(splits, tf.int64, [len(splits), 2]))
        return pairs(ranges.flat_map(lambda split: files.read(split[0], split[1])))

    check_all_splits(format, compression, data.draw(several_parts[format]), data, read)


@settings(max_examples=15, database=None)
@given(st.sampled_from(list(RECORDS)), st.sampled_from([None, "GZIP"]), st.data())
def test_read_batches_yields_the_batches_of_read(format, compression, data):
    size = data.draw(st.integers(1, 5))

    def read(files, splits):
        ranges = tf.data.Dataset.from_tensor_slices(tf.constant(splits, tf.int64, [len(splits), 2]))
        batches = list(ranges.flat_map(lambda split: files.read_batches(size, *tf.unstack(split))))
        expected = [
            min(size, stop - at) for start, stop in splits for at in range(start, stop, size)
        ]
        assert [len(records) for _, records in batches] == expected
        return [
            pair
            for numbers, records in batches
            for pair in zip(numbers.numpy().tolist(), records.numpy().tolist(), strict=True)
        ]

    check_all_splits(format, compression, data.draw(several_parts[format]), data, read)


@settings(max_examples=60, database=None)
@given(st.sampled_from(["lines", "csv"]), st.sampled_from([None, "GZIP"]), st.data())
def test_text_has_the_same_records_from_any_start(format, compression, data):
    def read(files, splits):
        return [
            pair
            for start, stop in splits
            for pair in enumerate(
                chain(*reading._blocks(files.files, compression, format == "csv", start, stop)),
                start,
            )
        ]

    check_all_splits(format, compression, data.draw(several_parts[format]), data, read)


def test_records_equal_those_of_tensorflows_readers(parts, tmp_path):
    files = FileSet.scan(parts)
    paths = [entry.path for entry in files.files]
    assert paths == sorted(paths)
    assert pairs(files.read()) == numbered(tf.data.TFRecordDataset(paths).as_numpy_iterator())
    assert files.splits(12) == ((0, 12), (12, 20), (20, 25), (25, 26))
    assert files.file_of(24).path == paths[1]
    (tmp_path / "lines").write_bytes(b"a\r\n\n  b\nlast")
    lines = FileSet.scan(str(tmp_path / "lines"), "lines")
    mine = tf.data.TextLineDataset(str(tmp_path / "lines")).as_numpy_iterator()
    assert pairs(lines.read()) == numbered(mine) == numbered([b"a", b"", b"  b", b"last"])


def test_csv_records_can_be_decoded_and_leave_out_the_header(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'"n\nn",t\r\n1,"two\nlines, ""quoted"""\r\n2,\r\n')
    (tmp_path / "b.csv").write_bytes(b"n,t\n")  # only a header
    (tmp_path / "c.csv").write_bytes(b"n,t\n3,c")
    files = FileSet.scan(str(tmp_path / "*.csv"), "csv", header=True)
    rows = files.read().map(lambda number, row: (number, *tf.io.decode_csv(row, [0, ""])))
    assert list(rows.as_numpy_iterator()) == [
        (0, 1, b'two\nlines, "quoted"'),
        (1, 2, b""),
        (2, 3, b"c"),
    ]
    assert len(FileSet.scan(str(tmp_path / "*.csv"), "csv")) == 6


@pytest.mark.parametrize("format", ["tfrecord", "lines"])
def test_a_finalized_graph_can_be_fed_its_range(tmp_path, format):
    files = FileSet.scan(write(tmp_path / "a", format, [b"%d" % n for n in range(9)]), format)
    with tf.Graph().as_default() as graph:
        start, stop = (tf.compat.v1.placeholder(tf.int64, []) for _ in range(2))
        iterator = tf.compat.v1.data.make_initializable_iterator(files.read(start, stop).batch(9))
        numbers, records = iterator.get_next()
        graph.finalize()
        with tf.compat.v1.Session() as session:
            for split in [(3, 7), (0, 2), (8, 9)]:
                session.run(iterator.initializer, dict(zip((start, stop), split, strict=True)))
                read = session.run((numbers, records))
                assert read[0].tolist() == list(range(*split))
                assert read[1].tolist() == [b"%d" % n for n in range(*split)]
            session.run(iterator.initializer, {start: 8, stop: 10})
            with pytest.raises(tf.errors.OpError, match="0 <= start <= stop <= 9"):
                session.run(numbers)


@pytest.mark.parametrize("compression", [None, "GZIP"])
@pytest.mark.parametrize("format", RECORDS)
def test_reading_begins_at_a_mark(tmp_path, monkeypatch, format, compression):
    monkeypatch.setattr(contents, "CHUNK", 50)
    monkeypatch.setattr(contents, "MARK_SPACING", 90)
    records = [b"%d" % n * (n % 7 + 1) for n in range(60)]
    path = write(tmp_path / "a", format, records, compression)
    if format == "tfrecord" and not compression:
        with open(path, "r+b") as file:  # a scan does not verify the data of a TFRecord
            file.seek(12)
            file.write(b"X")
    files = FileSet.scan(path, format, compression=compression)
    marks = [record for record, _ in files.files[0].marks]
    assert len(marks) > 3
    ranges = [(n + d, n + d + 3) for n in marks[1:-1] for d in (-1, 0, 1) if n + d >= marks[1]]
    splits = tf.data.Dataset.from_tensor_slices(tf.constant(ranges, tf.int64))
    read = pairs(splits.flat_map(lambda split: files.read(split[0], split[1])))
    assert read == [pair for split in ranges for pair in numbered(records)[slice(*split)]]


@pytest.mark.parametrize("split", [(-1, 2), (3, 2), (0, 27)])
def test_a_range_outside_of_the_files_is_a_config_error(parts, split):
    with pytest.raises(ConfigError, match=r"start, stop: .* 0 <= start <= stop <= 26"):
        FileSet.scan(parts).read(*split)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda files: FileSet.scan(files, "xml"), "format"),
        (lambda files: FileSet.scan(files, compression="ZLIB"), "compression"),
        (lambda files: FileSet.scan(files, header=True), "header"),
        (lambda files: FileSet.scan("/no/such/folder/part-*"), "files"),
        (lambda files: FileSet.scan([]), "files"),
        (lambda files: FileSet.scan(files).splits(0), "records_per_split"),
        (lambda files: FileSet.scan(files).preflight(0), "num_trainers"),
        (lambda files: FileSet.scan(files).file_of(26), "record"),
        (lambda files: FileSet.load("/no/such/index"), "path"),
    ],
)
def test_a_config_error_names_the_argument(parts, call, field):
    with pytest.raises(ConfigError) as raised:
        call(parts)
    assert raised.value.field == field


# Damage that a scan finds.


def cut(path):
    os.truncate(path, 3 * 1016 + 500)


def unreadable(path):
    os.remove(path)
    os.mkdir(path)


@pytest.mark.parametrize(
    ("damage", "records", "offset", "what"),
    [
        (
            cut,
            3,
            3048,
            "truncated: a record of 1,016 bytes begins here; the last 500 bytes",
        ),
        (os.remove, 0, None, "the file is missing"),
        (unreadable, 0, None, "cannot be read"),
        (lambda path: Path(path).write_text("a,b,c\n" * 9), 0, 0, "no TFRecord begins here"),
        (lambda path: Path(path).write_bytes(b"abc"), 0, 0, "truncated: the last 3 bytes"),
    ],
)
def test_damage_is_an_error_or_with_strict_false_an_issue(parts, damage, records, offset, what):
    paths = [entry.path for entry in FileSet.scan(parts).files]
    damage(paths[0])
    with pytest.raises(DataError, match=what) as raised:
        FileSet.scan(paths)
    assert (raised.value.path, raised.value.offset) == (paths[0], offset)
    files = FileSet.scan(paths, strict=False)
    assert [entry.path for entry in files.damaged] == paths[:1]
    assert pairs(files.read()) == numbered([*KB[:records], *KB[:5], *KB[:1]])
    (issue,) = files.preflight(num_trainers=1)
    assert (issue.kind, issue.paths) == ("damaged", (paths[0],))
    assert what in str(issue)


def test_a_pipe_and_a_device_are_no_files_of_records(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), os.devnull):
        with pytest.raises(DataError, match=r"a pipe or a device") as caught:
            FileSet.scan(path, "lines")
        assert caught.value.path == path


@pytest.mark.parametrize("format", ["tfrecord", "lines"])
def test_a_truncated_gzip_file_has_its_readable_records(tmp_path, format):
    records = [b"%d" % (n * n * 7919) for n in range(20_000)]
    path = write(tmp_path / "a", format, records, "GZIP")
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(DataError, match="the compressed data are damaged"):
        FileSet.scan(path, format, compression="GZIP")
    files = FileSet.scan(path, format, compression="GZIP", strict=False)
    assert 0 < len(files) < 20_000
    assert pairs(files.read(len(files) - 9)) == numbered(records, 0)[len(files) - 9 : len(files)]


# Damage after the scan: the audit shows the unread records as missing.


@pytest.mark.parametrize("format", ["tfrecord", "lines"])
def test_a_file_truncated_after_the_scan_is_an_error_and_its_rest_is_missing(tmp_path, format):
    paths = [write(tmp_path / name, format, [b"r" * 99] * 20) for name in "ab"]
    files = FileSet.scan(paths, format)
    os.truncate(paths[1], 700)
    ledger, message = read_until_error(files.read().as_numpy_iterator())
    assert f"DataError: {paths[1]}: the file has shrunk" in message
    assert "700 now" in message
    assert ledger.audit(expected=len(files)).missing == ((20, 40),)


@pytest.mark.parametrize(
    ("format", "size", "what"),
    [
        ("tfrecord", 5_000_000, "DataError: {path}: the file has shrunk"),
        ("tfrecord", 5_000_500, "truncated record at 5000000"),  # TensorFlow names no file
        ("lines", 5_000_000, "DataError: {path}: at byte 5000000: the file ends before"),
        ("lines", 5_000_001, "DataError: {path}: at byte 5000001: the file ends before"),
    ],
)
def test_a_file_truncated_while_it_is_read_is_an_error(tmp_path, format, size, what):
    # The file is longer than the read-ahead of at most 1 MB.
    record = b"r" * (100_000 - (FRAME if format == "tfrecord" else len("\n")))
    path = write(tmp_path / "a", format, [record] * 70)
    files = FileSet.scan(path, format)
    reader = files.read().as_numpy_iterator()
    next(reader)
    os.truncate(path, size)
    ledger, message = read_until_error(reader)
    assert what.format(path=path) in message
    ((last, end),) = ledger.audit(expected=len(files)).missing[1:]
    assert (last in range(45, 51), end) == (True, 70)


def test_corrupt_data_are_an_error_at_their_record(tmp_path):
    path = write(tmp_path / "a", "tfrecord", KB)
    with open(path, "r+b") as file:
        file.seek(7 * 1016 + 500)
        file.write(b"wrong")
    files = FileSet.scan(path)
    ledger, message = read_until_error(files.read().as_numpy_iterator())
    assert f"corrupted record at {7 * 1016 + 12}" in message
    assert ledger.audit(expected=len(files)).missing == ((7, 20),)


@pytest.mark.parametrize("format", ["tfrecord", "lines"])
def test_a_removed_or_rewritten_file_is_an_error(tmp_path, format):
    path = write(tmp_path / "a", format, KB)
    files = FileSet.scan(path, format)
    write(tmp_path / "a", format, [*KB[:4], b"new", *KB])
    _, message = read_until_error(files.read().as_numpy_iterator())
    assert f"DataError: {path}: the file was rewritten" in message
    os.remove(path)
    _, message = read_until_error(files.read().as_numpy_iterator())
    assert f"DataError: {path}: the file is missing" in message


@pytest.mark.parametrize("format", ["tfrecord", "lines"])
def test_a_file_that_grows_is_read_up_to_its_scanned_size(tmp_path, format):
    path = write(tmp_path / "a", format, KB)
    files = FileSet.scan(path, format)
    files.save(str(tmp_path / "index"))
    more = Path(write(tmp_path / "b", format, KB)).read_bytes()
    with open(path, "ab") as file:
        file.write(more[:1500])  # the last record is incomplete
    (issue,) = files.preflight(num_trainers=1)
    assert (issue.kind, issue.paths) == ("grown", (path,))
    assert pairs(FileSet.load(str(tmp_path / "index")).read()) == numbered(KB)


# The index.


@pytest.mark.parametrize(
    ("format", "settings"),
    [("tfrecord", {}), ("csv", {"header": True, "compression": "GZIP"})],
)
def test_a_loaded_index_equals_the_saved_one(tmp_path, format, settings):
    write(tmp_path / "a", format, KB, settings.get("compression"))
    files = FileSet.scan(str(tmp_path / "a"), format, **settings)
    for _ in range(2):  # the second save replaces the first
        files.save(str(tmp_path / "index.json"))
    assert FileSet.load(str(tmp_path / "index.json")) == files
    assert sorted(os.listdir(tmp_path)) == ["a", "index.json"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (cut, "the file has shrunk: 20,320 bytes at the scan, 3,548 now"),
        (os.remove, "the file is missing"),
        (lambda path: os.utime(path, (1, 1)), "rewritten: 20,320 bytes .* 20,320 now"),
        (
            lambda path: Path(path).write_bytes(b"a" * 30_000),
            "rewritten: .* 30,000 now",
        ),
    ],
)
def test_an_index_with_changed_files_is_a_data_error(parts, tmp_path, change, what):
    files = FileSet.scan(parts)
    files.save(str(tmp_path / "index"))
    change(files.files[0].path)
    with pytest.raises(DataError, match=what) as raised:
        FileSet.load(str(tmp_path / "index"))
    assert raised.value.path == files.files[0].path
    (issue,) = files.preflight(num_trainers=1)
    assert issue.text.startswith(str(raised.value).removesuffix("; scan again"))


@pytest.mark.parametrize("field", [None, "tfdist_files", "format", "files"])
def test_a_file_that_is_not_an_index_is_a_config_error(parts, tmp_path, field):
    path = tmp_path / "index"
    FileSet.scan(parts).save(str(path))
    index = json.loads(path.read_text())
    index.pop(field, None)
    path.write_text(json.dumps(index) if field else "{")
    with pytest.raises(ConfigError, match="is not an index that this version"):
        FileSet.load(str(path))


def test_preflight_finds_files_that_make_trainers_wait_for_each_other(parts, tmp_path):
    (tmp_path / "part-3").touch()
    write(tmp_path / "part-4", "tfrecord", KB[:1])
    files = FileSet.scan(parts)
    found = {issue.kind: issue for issue in files.preflight(num_trainers=6)}
    assert sorted(found) == ["empty", "too_few_files", "uneven"]
    assert str(found["too_few_files"]).startswith("5 files for 6 trainers")
    assert found["empty"].paths == (str(tmp_path / "part-3"),)
    assert found["uneven"].paths == (str(tmp_path / "part-0"),)
    even = FileSet.scan([write(tmp_path / name, "tfrecord", KB) for name in "ab"])
    assert even.preflight(num_trainers=2) == ()
