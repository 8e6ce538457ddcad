"""One rule for the arguments of public functions: numpy's numbers count, bools and NaN do not."""

import numpy as np
import pytest
import tensorflow as tf

import tfdist
from tfdist import ConfigError
from tfdist.data import FileSet, Ledger, audit, endless_batches
from tfdist.splits import SplitQueue, SplitScheduler
from tfdist.testing import poll_until
from tfdist.train import Epoch, WaitEverySteps

CLUSTER = {"ps": ["127.0.0.1:1"], "worker": ["127.0.0.1:2", "127.0.0.1:3"]}
TASK = tfdist.Task("worker", 0, CLUSTER)
DATA = tf.data.Dataset.range(4)


async def coroutine():
    pass


def queue(**changed):
    given = {"name": "all", "splits": [(0, 4)], "batch_size": 2} | changed
    with tf.Graph().as_default():
        return SplitQueue(TASK, **given)


def scheduler(**changed):
    given = {"splits": [(0, 4)], "batch_size": 2} | changed
    return SplitScheduler(None, read=None, step=None, **given)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "lines"
    path.write_text("a\nb\nc\n")
    return FileSet.scan(str(path), "lines")


NO_NUMBERS = [True, "3", 1.5, float("nan"), np.bool_(True), [1]]
NO_SECONDS = [True, "3", float("nan"), -1, np.float64("nan"), [1]]
INTEGERS = {
    "num_ps": lambda value, _: tfdist.local_cluster(value, 1),
    "num_workers": lambda value, _: tfdist.local_cluster(1, value),
    "task.index": lambda value, _: tfdist.Task("worker", value, CLUSTER),
    "parties": lambda value, _: tfdist.Barrier(TASK, "end", parties=value),
    "expected": lambda value, _: Epoch(TASK, "train", expected=value),
    "share": lambda value, _: Epoch(TASK, "train", share=value),
    "first": lambda value, _: Epoch(TASK, "train", first=value),
    "steps": lambda value, _: WaitEverySteps(barrier=None, steps=value),
    "batch_size": lambda value, _: queue(batch_size=value),
    "seed": lambda value, _: queue(seed=value),
    "max_retries": lambda value, _: queue(max_retries=value),
    "splits": lambda value, _: queue(splits=[(0, value)]),
    "batch_size of a scheduler": lambda value, _: scheduler(batch_size=value),
    "seed of a scheduler": lambda value, _: scheduler(seed=value),
    "max_retries of a scheduler": lambda value, _: scheduler(max_retries=value),
    "splits of a scheduler": lambda value, _: scheduler(splits=[(0, value)]),
    "batch_size of endless batches": lambda value, _: endless_batches(DATA, value),
    "steps of endless batches": lambda value, _: endless_batches(DATA, 2, steps=value),
    "expected of an audit": lambda value, _: audit([], value),
    "expected of a ledger": lambda value, _: Ledger().audit(value),
    "records_per_split": lambda value, files: files.splits(value),
    "record": lambda value, files: files.file_of(value),
    "start": lambda value, files: files.read(value),
    "stop": lambda value, files: files.read(0, value),
    "batch_size of read_batches": lambda value, files: files.read_batches(value),
    "num_trainers": lambda value, files: files.preflight(value),
}
SECONDS = {
    "timeout": lambda value: tfdist.Barrier(TASK, "end", timeout=value),
    "timeout of an epoch": lambda value: Epoch(TASK, "train", timeout=value),
    "timeout of a queue": lambda value: queue(timeout=value),
    "timeout of a watchdog": tfdist.Watchdog,
    "timeout of a poll": lambda value: poll_until(list, "it is true", timeout=value),
    "lease_secs": lambda value: queue(lease_secs=value),
    "grace": lambda value: tfdist.local_cluster(grace=value),
}


@pytest.mark.parametrize("place", INTEGERS)
def test_what_is_no_whole_number_is_refused(place, files):
    for value in NO_NUMBERS:
        with pytest.raises(ConfigError) as caught:
            INTEGERS[place](value, files)
        assert caught.value.field == place.partition(" ")[0]
        assert caught.value.value is value


@pytest.mark.parametrize("place", SECONDS)
def test_what_is_no_number_of_seconds_is_refused(place):
    for value in NO_SECONDS:
        with pytest.raises(ConfigError) as caught:
            SECONDS[place](value)
        assert caught.value.field == place.partition(" ")[0]
        assert caught.value.value is value


def test_the_numbers_of_numpy_and_tensorflow_are_numbers(files):
    two = np.int64(2)
    with tfdist.local_cluster(np.int32(1), two, grace=np.float32(1.5)) as cluster:
        assert cluster.run(lambda task: task.task_index) == [0, 1]
    assert tfdist.Task("worker", np.int64(1), CLUSTER).to_env()
    assert queue(batch_size=two, seed=two, splits=np.array([[0, 4]])).batch_size == 2
    assert len(files.splits(two)) == 2
    assert files.file_of(two) is files.files[0]
    assert [number.numpy() for number, _ in files.read(tf.constant(1), two)] == [1]
    assert audit([], np.int64(0)).expected == 0
    assert endless_batches(DATA, two, steps=two)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: tfdist.local_cluster(10**6, 1), "num_ps"),
        (lambda: tfdist.Barrier(TASK, None), "name"),
        (lambda: tfdist.Barrier("worker:0", "end"), "task"),
        (lambda: tfdist.Barrier(TASK, "end", action="save"), "action"),
        (lambda: tfdist.Barrier(TASK, "end", action=lambda: (yield)), "action"),
        (lambda: tfdist.Barrier(TASK, "end", action=coroutine), "action"),
        (lambda: tfdist.Barrier(TASK, "\udcff"), "name"),
        (lambda: queue(name=None), "name"),
        (lambda: queue(splits=None), "splits"),
        (lambda: queue(splits=[1, 2]), "splits"),
        (lambda: endless_batches([1, 2], 2), "dataset"),
        (lambda: FileSet.scan(""), "files"),
        (lambda: FileSet.scan(None), "files"),
        (lambda: FileSet.scan(b"x"), "files"),
        (lambda: FileSet.scan([None]), "files"),
        (lambda: Ledger().add([1.5]), "examples"),
        (lambda: Ledger().add(None), "examples"),
        (lambda: Ledger([(0, 1.5)]), "ranges"),
        (lambda: Ledger([3]), "ranges"),
        (lambda: audit([None], 1), "ledgers"),
    ],
)
def test_one_error_names_the_wrong_argument(call, field):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field


def test_an_index_is_not_written_over_a_folder(files, tmp_path):
    for save in (files.save, Ledger().save):
        with pytest.raises(ConfigError, match="is a folder"):
            save(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
