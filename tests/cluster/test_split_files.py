"""Splits of real files, read by two trainers: what happens to a file is told, and accounted for."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf

import tfdist
from tests.ps_session import ps_session
from tfdist import FileSet, Ledger

SIZES = [30, 1, 0, 44]
EDGES = [0, *itertools.accumulate(SIZES)]
RECORDS, BATCH = sum(SIZES), 4
LENGTH = 12 + 16 + 4  # bytes of a record with its head and its checksum

_names = itertools.count()


@pytest.fixture(scope="module")
def trainers():
    with tfdist.local_cluster(1, 2, backend="threads") as cluster:
        yield cluster.trainers


@pytest.fixture
def files(tmp_path):
    for part, (start, stop) in enumerate(itertools.pairwise(EDGES)):
        with tf.io.TFRecordWriter(str(tmp_path / f"part-{part}")) as writer:
            for number in range(start, stop):
                writer.write(b"%16d" % number)
    return FileSet.scan(str(tmp_path / "part-*"))


class Reader:
    """A trainer with its graph; it gives a split back whose file cannot be read."""

    def __init__(self, task, name, files):
        self._graph, self.errors, self.ledger = tf.Graph(), [], Ledger()
        with self._graph.as_default():
            self.queue = tfdist.SplitQueue(
                task, name, files.splits(10), batch_size=BATCH, max_retries=1, timeout=20
            )
            self._start, self._stop = (tf.compat.v1.placeholder(tf.int64, []) for _ in range(2))
            batches = tfdist.padded(files.read(self._start, self._stop), BATCH)
            self._iterator = tf.compat.v1.data.make_initializable_iterator(batches)
            (self._number, record), self._weight, _ = self._iterator.get_next()
            right = tf.strings.to_number(tf.strings.strip(record[0]), tf.int64)
            check = tf.debugging.assert_equal(right, self._number[0])
            self._commit = self.queue.commit_after([self._number, check])
            self.initialize = tf.compat.v1.global_variables_initializer()
        self.session = ps_session(task.cluster_spec["ps"][0], self._graph)

    def read(self):
        for split in self.queue:
            try:
                self._read(split)
            except tf.errors.OpError as error:
                self.errors.append(str(error))
                split.give_back()

    def _read(self, split):
        fed = {self._start: split.offset, self._stop: split.stop}
        self.session.run(self._iterator.initializer, fed)
        while not split.finished:
            fetches = [self._number, self._weight, self._commit]
            number, weight, answer = self.session.run(fetches, split.feed)
            self.ledger.add(number[weight > 0])
            split.committed(answer)


def read(trainers, files):
    """What both have visited, what the queue reports, and the errors of both."""
    name = f"files{next(_names)}"
    readers = [Reader(task, name, files) for task in trainers]
    readers[0].session.run(readers[0].initialize)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Reader.read, readers))
    report = readers[0].queue.report()
    for reader in readers:
        reader.queue.close()
        reader.session.close()
    ledgers = [reader.ledger for reader in readers]
    errors = list(itertools.chain(*(reader.errors for reader in readers)))
    return tfdist.audit(ledgers, len(files)), report, errors


def test_every_record_of_all_files_is_visited_once(trainers, files):
    audit, report, errors = read(trainers, files)
    assert (audit.complete, audit.expected, errors) == (True, RECORDS, [])
    assert (report.visited, report.over) == (((0, RECORDS),), True)


def truncate(path):
    os.truncate(path, 25 * LENGTH - 7)
    return "the file has shrunk"


def corrupt(path):
    with open(path, "r+b") as file:
        file.seek(25 * LENGTH + 20)
        file.write(b"x")
    os.utime(path, ns=(MTIME_NS, MTIME_NS))
    return f"corrupted record at {25 * LENGTH + 12}"  # its data, behind its head


def claim_to_be_overlong(path):
    with open(path, "r+b") as file:
        file.seek(25 * LENGTH)
        file.write((2**40).to_bytes(8, "little"))
    os.utime(path, ns=(MTIME_NS, MTIME_NS))
    return f"corrupted record at {25 * LENGTH}"


def remove(path):
    os.remove(path)
    return "the file is missing"


def make_unreadable(path):
    os.remove(path)
    os.mkdir(path)
    return "part-0: the file "


MTIME_NS = 1_700_000_000 * 10**9


@pytest.mark.parametrize(
    ("damage", "first"),
    [
        (truncate, 0),  # found when it is opened
        (corrupt, 24),  # in the middle of a batch
        (claim_to_be_overlong, 24),
        (remove, 0),
        (make_unreadable, 0),
    ],
)
def test_what_cannot_be_read_is_told_and_missing_and_nothing_hangs(trainers, files, damage, first):
    path = files.files[0].path
    os.utime(path, ns=(MTIME_NS, MTIME_NS))
    files = FileSet.scan([entry.path for entry in files.files])
    what = damage(path)
    audit, report, errors = read(trainers, files)
    missing = {record for start, stop in audit.missing for record in range(start, stop)}
    given_up = {record for start, stop in report.given_up for record in range(start, stop)}
    assert missing == given_up == {*range(first, 30)}
    assert report.over
    assert all(what in error for error in errors), errors
    assert len(errors) == 2 * len(report.given_up)  # once more each


def test_a_file_that_grows_meanwhile_is_read_as_far_as_it_was_scanned(trainers, files):
    with open(files.files[3].path, "ab") as file:
        file.write(b"and more")
    audit, report, errors = read(trainers, files)
    assert (audit.complete, errors, report.given_up) == (True, [], ())
