"""One iterator for all splits of a trainer: each batch is the reserved one."""

import contextlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

import tfdist
from tfdist import ConfigError
from tfdist.data import FileSet, Ledger

SIZES = [30, 1, 0, 44]
RECORDS, BATCH = sum(SIZES), 4
LENGTH = 12 + 16 + 4  # bytes of a TFRecord
TIMEOUT = 20.0

_names = itertools.count()


@pytest.fixture(scope="module")
def places():
    """The trainers of a cluster and their targets."""
    with contextlib.ExitStack() as stack:
        tasks = stack.enter_context(tfdist.local_cluster(1, 3, backend="threads")).trainers
        yield [(task, stack.enter_context(tfdist.worker_server(task))) for task in tasks]


def write(folder, sizes):
    first = 0
    for part, size in enumerate(sizes):
        with tf.io.TFRecordWriter(str(folder / f"part-{part}")) as writer:
            for number in range(first, first + size):
                writer.write(b"%16d" % number)
        first += size
    return FileSet.scan(str(folder / "part-*"))


@pytest.fixture
def files(tmp_path):
    return write(tmp_path, SIZES)


class Trainer:
    """A trainer with its graph and its session; `ledger` has the records that it committed."""

    def __init__(self, place, name, files, *, split=10, transform=None, prefetch=2, **options):
        self.task, self._target = place
        self.ledger, self.errors = Ledger(), []
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.queue = tfdist.splits.SplitQueue(
                self.task, name, files.splits(split), batch_size=BATCH, timeout=TIMEOUT, **options
            )
            self.batches = tfdist.splits.SplitBatches(
                self.queue, files, transform, prefetch=prefetch
            )
            with tf.device("/job:ps/task:0"):
                self.total = tf.compat.v1.get_variable(
                    f"total_{name}", [], tf.int64, tf.zeros_initializer(), use_resource=True
                )
            with tf.device(self.task.device):
                weight = tf.cast(self.batches.weight, tf.int64)
                number = tf.nest.flatten(self.batches.batch)[0]
                update = self.total.assign_add(tf.reduce_sum(weight * (number + 1)))
            self.commit = self.queue.commit_after([update])
            self.initialize = tf.compat.v1.global_variables_initializer()
        self.session = self.new_session()

    def new_session(self):
        config = tf.compat.v1.ConfigProto(device_filters=self.task.device_filters)
        return tf.compat.v1.Session(self._target, graph=self.graph, config=config)

    def train(self, split):
        """Trains on one batch and checks it."""
        fetches, expected = (self.batches.batch, self.batches.weight), split.next_batch
        batch, weight = split.run(self.session, self.commit, fetches)
        number, record = tf.nest.flatten(batch)[:2]
        real = np.arange(BATCH) < len(expected)
        assert weight.tolist() == real.tolist()
        assert number[real].tolist() == [*expected]
        assert [int(text) for text in record[real]] == [*expected]
        assert not number[~real].any()
        assert set(record[~real].tolist()) <= {b""}
        self.ledger.add(expected)

    def read(self, epoch=None):
        for split in self.batches.splits(self.session, epoch):
            try:
                while not split.finished:
                    self.train(split)
            except tf.errors.OpError as error:
                self.errors.append(str(error))
                split.release()


@pytest.fixture
def make(places):
    """Makes `count` trainers; the first one initializes the variables."""
    made = []

    def make_all(count, files, **options):
        name = f"batches{next(_names)}"
        trainers = [Trainer(place, name, files, **options) for place in places[:count]]
        made.extend(trainers)
        trainers[0].session.run(trainers[0].initialize)
        return trainers

    yield make_all
    for trainer in made:
        trainer.queue.close()
        trainer.session.close()


def read_all(trainers, epoch=None):
    with ThreadPoolExecutor(len(trainers)) as pool:
        for reading in [pool.submit(trainer.read, epoch) for trainer in trainers]:
            reading.result(3 * TIMEOUT)


def audit(trainers, expected=RECORDS):
    return tfdist.data.audit([trainer.ledger for trainer in trainers], expected)


@pytest.mark.rotates(1)
@pytest.mark.parametrize("prefetch", [1, 8])
def test_all_trainers_together_read_each_record_exactly_once_in_each_epoch(make, files, prefetch):
    trainers = make(3, files, prefetch=prefetch)
    for epoch in (1, 2, 3):
        for trainer in trainers:
            trainer.ledger = Ledger()
        read_all(trainers, epoch)
        assert audit(trainers).exactly_once
    total = trainers[0].session.run(trainers[0].total)
    assert total == 3 * sum(range(1, RECORDS + 1))


def test_the_batch_is_the_result_of_transform(make, files):
    def transform(number, record):
        length = tf.strings.length(record)
        return {"example": {"number": number, "record": record}, "length": length[:, None]}

    (trainer,) = make(1, files, transform=transform)
    assert trainer.batches.batch["length"].shape == [BATCH, 1]
    assert trainer.batches.weight.shape == [BATCH]
    trainer.read()
    assert audit([trainer]).exactly_once


def test_records_read_ahead_are_dropped_if_another_trainer_takes_them(make, tmp_path):
    files = write(tmp_path, [120])
    slow, fast, _ = trainers = make(3, files, split=120, prefetch=20)
    splits = slow.batches.splits(slow.session, 1)
    split, taken = next(splits), threading.Event()
    slow.train(split)

    def read():
        for other in fast.batches.splits(fast.session, 1):
            taken.set()
            while not other.finished:
                fast.train(other)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert taken.wait(TIMEOUT)
        while not split.finished:
            slow.train(split)
        assert split.stop < 120
        for split in splits:
            while not split.finished:
                slow.train(split)
        reading.result(TIMEOUT)
    assert audit(trainers, 120).exactly_once
    slow.read(2)
    assert [count for *_, count in slow.queue.report().committed] == [120]


def test_an_unreadable_record_that_another_trainer_has_taken_is_no_error(make, tmp_path):
    files = write(tmp_path, [120])
    corrupt(files.files[0].path, 65)
    slow, fast = make(2, files, split=120, prefetch=40)
    mine = slow.batches.splits(slow.session, 1)
    split = next(mine)
    slow.train(split)  # reads ahead
    for other in fast.batches.splits(fast.session, 1):
        assert other.offset == 64
        while not other.finished:
            other.commit()
        break
    while not split.finished:
        slow.train(split)
    assert split.stop == 64
    assert next(mine, None) is None
    slow.train(next(slow.batches.splits(slow.session, 2)))


def test_a_split_released_in_the_middle_continues_at_its_committed_offset(make, files):
    (trainer,) = make(1, files, seed=3)
    for split in trainer.batches.splits(trainer.session, 1):
        trainer.train(split)
        if not split.finished:
            split.release()
            break
    trainer.read(1)
    assert (audit([trainer]).exactly_once, trainer.errors) == (True, [])


def test_a_trainer_that_has_lost_its_lease_reads_another_split(make, files):
    zombie, other = make(2, files, lease_secs=0.05)
    splits = zombie.batches.splits(zombie.session, 1)
    split = next(splits)
    other.read(1)
    with pytest.raises(tfdist.SplitLostError):
        zombie.train(split)
    assert next(splits, None) is None
    zombie.read(2)
    assert tfdist.data.audit([zombie.ledger], RECORDS).exactly_once


def truncate(path):
    os.truncate(path, 25 * LENGTH - 7)
    return "the file has shrunk", 0


def corrupt(path, record=25):
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(record * LENGTH + 20)
        file.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"corrupted record at {record * LENGTH + 12}", record // BATCH * BATCH


def claim_to_be_overlong(path):
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(25 * LENGTH)
        file.write((2**40).to_bytes(8, "little"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"corrupted record at {25 * LENGTH}", 24


def remove(path):
    os.remove(path)
    return "the file is missing", 0


def make_unreadable(path):
    os.remove(path)
    os.mkdir(path)
    return "part-0: the file ", 0


@pytest.mark.rotates(1)
@pytest.mark.parametrize(
    "damage", [truncate, corrupt, claim_to_be_overlong, remove, make_unreadable]
)
def test_unreadable_records_are_dead_letters_and_all_others_are_read(make, files, damage):
    path = files.files[0].path
    what, first = damage(path)
    trainers = make(2, files, max_retries=1)
    read_all(trainers)
    report = trainers[0].queue.report()
    missing = {record for start, stop in audit(trainers).missing for record in range(start, stop)}
    dead = {record for start, stop in report.dead_letters for record in range(start, stop)}
    assert missing == dead == {*range(first, 30)}
    assert report.done
    errors = [error for trainer in trainers for error in trainer.errors]
    assert len(errors) == 2 * len(report.dead_letters)  # two attempts each
    assert all(what in error for error in errors), errors


def test_a_file_that_grows_is_read_up_to_its_scanned_size(make, files):
    with open(files.files[3].path, "ab") as file:
        file.write(b"and more")
    (trainer,) = make(1, files)
    trainer.read()
    assert (audit([trainer]).exactly_once, trainer.errors) == (True, [])


def test_a_run_without_the_feed_of_its_split_fails_before_the_update(make, files):
    (trainer,) = make(1, files)
    split = next(trainer.batches.splits(trainer.session, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must feed a value"):
        trainer.session.run([trainer.batches.batch, trainer.commit])
    split.release()
    assert trainer.session.run(trainer.total) == 0
    trainer.read(1)
    assert audit([trainer]).exactly_once


def test_a_run_with_the_feed_of_another_batch_fails_before_the_update(make, tmp_path):
    (trainer,) = make(1, write(tmp_path, [40]), split=40)
    lease = trainer.queue.lease
    split = next(trainer.batches.splits(trainer.session, 1))
    wrong = {lease: (split.feed[lease][0], split.reserved + 1)}
    with pytest.raises(tf.errors.InvalidArgumentError, match="not the reserved one"):
        trainer.session.run([trainer.batches.batch, trainer.commit], wrong)
    split.release()
    assert trainer.session.run(trainer.total) == 0
    trainer.read(1)
    assert audit([trainer], 40).exactly_once


def test_a_skipped_batch_is_an_error(make, tmp_path):
    (trainer,) = make(1, write(tmp_path, [40]), split=40)
    split = next(trainer.batches.splits(trainer.session))
    trainer.train(split)
    trainer.session.run(trainer.batches.weight, split.feed)
    with pytest.raises(tf.errors.InvalidArgumentError, match="it ends at\\] \\[12\\]"):
        trainer.train(split)


def test_a_new_session_continues_with_the_next_split(make, files):
    (trainer,) = make(1, files)
    for session in (trainer.session, trainer.new_session()):
        trainer.session = session
        for split in trainer.batches.splits(session, 1):
            while not split.finished:
                trainer.train(split)
            break
    trainer.read(1)
    assert audit([trainer]).exactly_once


@pytest.mark.parametrize("prefetch", [0, tf.data.AUTOTUNE])
def test_a_config_error_names_the_argument(places, files, prefetch):
    with pytest.raises(ConfigError) as caught:
        Trainer(places[0], "wrong", files, prefetch=prefetch)
    assert caught.value.field == "prefetch"


def test_a_session_can_be_closed_in_the_middle_of_a_split(make_cluster, tmp_path):
    write(tmp_path, SIZES)
    cluster = make_cluster(1, 1, backend="processes")
    assert cluster.run(partial(close_many_sessions, str(tmp_path / "part-*")), timeout=60) == [10]


def close_many_sessions(pattern, task):
    """Runs in its own process, which a crash of TensorFlow would end."""
    with tfdist.worker_server(task) as target:
        trainer = Trainer((task, target), "closed", FileSet.scan(pattern), prefetch=8)
        trainer.session.run(trainer.initialize)
        closed = 0
        for _ in range(10):
            trainer.session = trainer.new_session()
            for split in trainer.batches.splits(trainer.session, 1):
                trainer.train(split)
                if not split.finished:
                    split.release()
                break
            trainer.session.close()
            closed += 1
        return closed
