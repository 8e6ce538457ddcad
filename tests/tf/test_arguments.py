"""One rule for the arguments of public functions: numpy's numbers count, bools and NaN do not."""

from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import tfdist
from tfdist import ConfigError
from tfdist.data import FileSet, Ledger, any_replica_has_value, audit, endless_batches
from tfdist.runs.progress import ProgressNote
from tfdist.splits import SplitBatches, SplitQueue, SplitScheduler
from tfdist.testing import (
    Bind,
    Incident,
    Network,
    cluster_on,
    host_names,
    poll_until,
    random_incident,
    read_compose,
)
from tfdist.testing.faults import Bandwidth, Unplug
from tfdist.train import (
    Epoch,
    WaitAtEnd,
    WaitEverySteps,
    apply_if,
    device_setter,
    minimize_if,
    replica_graph,
    session,
)

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


NO_NUMBERS = [True, "3", 1.5, float("nan"), np.bool_(True), [1], np.float64(1)]
NO_SECONDS = [True, "3", float("nan"), -1, np.float64("nan"), [1], 10**400, Fraction(10**400)]
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


class Flags(SimpleNamespace):
    """The flags of a script, of which some are changed."""

    ps_hosts, worker_hosts, job_name, task_index = "a:1", "b:1", "ps", 0


ONE = [(0, 1)]
BIG = 10**30
FILES = FileSet((), "lines")


def minimized(**changed):
    with tf.Graph().as_default():
        given = {
            "has_value": tf.constant(True),
            "optimizer": tf.compat.v1.train.GradientDescentOptimizer(0.1),
            "loss": tf.constant(1.0),
        } | changed
        return minimize_if(**given)


async def later(*_: object) -> None: ...


class Later:
    async def __call__(self, *_: object) -> None: ...


def bit_by_bit(*_: object):
    yield


FLAGS = {
    "chief": lambda value: tfdist.local_cluster(chief=value),
    "evaluator": lambda value: tfdist.local_cluster(evaluator=value),
    "coordinator": lambda value: tfdist.local_cluster(coordinator=value),
    "chief of a cluster on a network": lambda value: cluster_on(None, chief=value),
    "evaluator of a network": lambda value: host_names(evaluator=value),
    "strict": lambda value: FileSet.scan("none", strict=value),
    "header": lambda value: FileSet.scan("none", "csv", header=value),
    "remote": lambda value: FILES.read(remote=value),
    "remote of batches": lambda value: FILES.read_batches(2, remote=value),
    "read_only": lambda value: Bind("/", "/", read_only=value),
    "has_value": lambda value: apply_if(value, tf.no_op),
    "has_value of a step": lambda value: minimized(has_value=value),
    "has_value of a replica": any_replica_has_value,
}
ACTIONS = {
    "action": lambda value: Epoch(TASK, "train", action=value),
    "restore": lambda value: session(TASK, "x", restore=value),
    "apply": lambda value: apply_if(True, value),
    "serving": lambda value: tfdist.parameter_server(tfdist.Task("ps", 0, CLUSTER), serving=value),
    "train": tfdist.run_task,
    "condition": lambda value: poll_until(value, "it is true"),
    "read": lambda value: SplitScheduler(None, ONE, value, print, batch_size=1),
    "step": lambda value: SplitScheduler(None, ONE, print, value, batch_size=1),
    "transform": lambda value: SplitBatches(queue(), FILES, value),
}
NO_TASKS = {
    "parameter_server": tfdist.parameter_server,
    "worker_server": tfdist.worker_server,
    "device_setter": device_setter,
    "replica_graph": replica_graph,
    "session": lambda value: session(value, "x"),
    "SplitQueue": lambda value: SplitQueue(value, "all", ONE, batch_size=1),
    "Epoch": lambda value: Epoch(value, "train"),
    "Barrier": lambda value: tfdist.Barrier(value, "end"),
}


@pytest.mark.parametrize("place", FLAGS)
def test_what_is_neither_true_nor_false_is_refused(place):
    for value in ("False", "no", "", 0, 1, None, [0], [], np.array([True])):
        with pytest.raises(ConfigError) as caught:
            FLAGS[place](value)
        assert caught.value.field == place.partition(" ")[0]
        assert caught.value.value is value


def test_the_flags_of_numpy_are_flags():
    yes, no = np.bool_(True), np.bool_(False)
    with tfdist.local_cluster(1, 1, chief=yes, evaluator=no, coordinator=no) as cluster:
        assert [task.name for task in cluster.tasks] == ["ps:0", "chief:0", "worker:0"]


@pytest.mark.parametrize("place", ACTIONS)
def test_a_function_whose_call_runs_nothing_is_refused(place):
    for value in (later, partial(later, 1), Later(), partial(Later()), bit_by_bit, 5, "save"):
        with pytest.raises(ConfigError) as caught:
            ACTIONS[place](value)
        assert (caught.value.field, caught.value.value is value) == (place, True)


@pytest.mark.parametrize("place", NO_TASKS)
def test_what_is_no_task_is_refused_at_the_call(place):
    for value in (None, "worker:0", {"worker": 0}):
        with pytest.raises(ConfigError, match=r"must be a tfdist\.Task") as caught:
            NO_TASKS[place](value)
        assert (caught.value.field, caught.value.value is value) == ("task", True)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: WaitAtEnd(None), "barrier"),
        (lambda: WaitAtEnd(5), "barrier"),
        (lambda: WaitEverySteps(None, 3), "barrier"),
        (lambda: apply_if(True, None), "apply"),
        (lambda: apply_if(tf.constant([True]), tf.no_op), "has_value"),
        (lambda: minimized(optimizer=None), "optimizer"),
        (lambda: minimized(optimizer=tf.keras.optimizers.SGD()), "optimizer"),
        (lambda: minimized(loss=None), "loss"),
        (lambda: tfdist.worker_server(TASK, config="x"), "config"),
        (lambda: tfdist.worker_server(TASK, config={}), "config"),
        (lambda: tfdist.worker_server(TASK, timeout="1"), "timeout"),
        (lambda: tfdist.worker_server(TASK, timeout=10**400), "timeout"),
        (lambda: tfdist.parameter_server(tfdist.Task("ps", 0, CLUSTER), config="x"), "config"),
        (lambda: session(TASK, None), "target"),
        (lambda: session(TASK, "x", timeout=-1), "timeout"),
        (lambda: tfdist.local_cluster(backend=np.array(["threads", "x"])), "backend"),
        (lambda: tfdist.local_cluster(backend=None), "backend"),
        (lambda: tfdist.local_cluster(surroundings={}), "surroundings"),
        (lambda: tfdist.Watchdog(3, on_stall=np.array(["end", "x"])), "on_stall"),
        (lambda: FileSet.scan("x", np.array(["lines", "x"])), "format"),
        (lambda: FileSet.scan("x", "lines", compression=np.array(["GZIP", "x"])), "compression"),
        (lambda: tfdist.Task(np.array(["ps", "x"]), 0, CLUSTER), "task.type"),
        (lambda: SplitBatches(None, None), "queue"),
        (lambda: SplitBatches(queue(), None), "files"),
        (lambda: SplitScheduler(None, ONE, print, print, batch_size=1), "coordinator"),
        (lambda: Epoch(TASK, None), "name"),
        (lambda: Epoch(TASK, "\ud800"), "name"),
        (lambda: audit(None, 5), "ledgers"),
        (lambda: audit("ledger", 5), "ledgers"),
        (lambda: audit(5, 5), "ledgers"),
        (lambda: Ledger([b"ab"]), "ranges"),
        (lambda: Ledger([(0, True)]), "ranges"),
        (lambda: Ledger([(0, BIG)]), "ranges"),
        (lambda: Ledger([(0, tf.constant(1.0))]), "ranges"),
        (lambda: Ledger().add(b"ab"), "examples"),
        (lambda: Ledger().add([True]), "examples"),
        (lambda: Ledger().add([BIG]), "examples"),
        (lambda: Ledger().add([10**5000]), "examples"),
        (lambda: Ledger().add([tf.constant(1.0)]), "examples"),
        (lambda: Ledger().audit(BIG), "expected"),
        (lambda: audit([], BIG), "expected"),
        (lambda: Epoch(TASK, "train", expected=BIG), "expected"),
        (lambda: Epoch(TASK, "train", share=BIG), "share"),
        (lambda: Epoch(TASK, "train", first=BIG), "first"),
        (lambda: queue(splits=[(0, BIG)]), "splits"),
        (lambda: queue(batch_size=BIG), "batch_size"),
        (lambda: scheduler(batch_size=BIG), "batch_size"),
        (lambda: endless_batches(DATA, BIG), "batch_size"),
        (lambda: FILES.read_batches(BIG), "batch_size"),
        (lambda: FILES.read(0, BIG), "start, stop"),
        (lambda: FILES.read(tf.constant(0.5)), "start"),
        (lambda: tfdist.Barrier(TASK, "end", parties=10**5000), "parties"),
        (lambda: FILES.preflight(10**5000), "num_trainers"),
        (lambda: FILES.save(5), "path"),
        (lambda: FileSet.load(None), "path"),
        (lambda: FileSet.scan("a\0b"), "files"),
        (lambda: FileSet.scan(["\ud800"]), "files"),
        (lambda: Ledger().save(None), "path"),
        (lambda: Ledger().save("a\0b"), "path"),
        (lambda: Ledger().merge(None), "other"),
        (lambda: tfdist.Task(10**5000, 0, CLUSTER), "task.type"),
        (lambda: tfdist.Task("worker", 0, {10**5000: ["a:1"]}), "cluster"),
        (lambda: tfdist.Task.from_env("x"), "environ"),
        (lambda: tfdist.Task.from_env({"TF_CONFIG": {}}), "TF_CONFIG"),
        (lambda: tfdist.doctor.examine(None), "environ"),
        (lambda: tfdist.doctor.examine({}, script_path=5), "script_path"),
        (lambda: tfdist.doctor.examine({}, data_pattern="a\0b"), "data_pattern"),
        (lambda: tfdist.doctor.examine({}, timeout="1"), "timeout"),
        (lambda: Network("abc"), "hosts"),
        (lambda: Network(None), "hosts"),
        (lambda: Network(["a"], relayed=5), "relayed"),
        (lambda: Network(["a"], roots=5), "roots"),
        (lambda: Network(["a"], seed="x"), "seed"),
        (lambda: Network(["a"], shared_bytes=True), "shared_bytes"),
        (lambda: cluster_on(None), "network"),
        (lambda: random_incident(None, hosts=["a"]), "seed"),
        (lambda: random_incident(1, hosts=5), "hosts"),
        (lambda: random_incident(1, tasks="ps:0"), "tasks"),
        (lambda: random_incident(1, hosts=["a"], within_secs="x"), "within_secs"),
        (lambda: Incident(Unplug("a"), 1.0, 10**400), "for_secs"),
        (lambda: read_compose(5), "paths"),
        (lambda: queue().splits("1"), "epoch"),
        (lambda: queue().splits(BIG), "epoch"),
        (lambda: Incident(None, 1.0, 1.0), "fault"),
        (lambda: Bandwidth("a", "x").begin(Network(["a"])), "bytes_per_sec"),
        (lambda: audit(tf.constant("x"), 5), "ledgers"),
        (lambda: FileSet.scan(tf.constant("x")), "files"),
        (lambda: tfdist.Task.from_flags(Flags(ps_hosts=np.array(["a:1"] * 2))), "ps_hosts"),
        (lambda: tfdist.Task.from_flags(Flags(job_name=np.array(["ps"] * 2))), "job_name"),
        (lambda: read_compose([5]), "paths"),
    ],
)
def test_each_wrong_argument_is_found_at_the_call(call, field):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field


def test_a_given_none_is_shown():
    with pytest.raises(ConfigError, match=r"^task: got None; must be a tfdist\.Task$"):
        tfdist.worker_server(None)


def test_endless_batches_of_more_steps_than_any_dataset_has():
    assert endless_batches(DATA, 2, steps=BIG)


def test_a_scalar_tensor_of_a_float_is_a_number_of_steps(tmp_path):
    path = tmp_path / "progress.json"
    progress = tfdist.Progress(path)
    for number in (tf.constant(3.0), tf.constant(3), tf.Variable(3.0), np.array(3.0)):
        progress.update("epoch 1", number, number)
        assert ProgressNote.read(path) == ProgressNote("epoch 1", 3, 3)
        progress.update("epoch 1", 0, None)
    for number in (tf.constant(1.5), tf.constant(True), tf.constant([3]), tf.constant("3")):
        with pytest.raises(ConfigError) as caught:
            progress.update("epoch 1", number, 3)
        assert caught.value.value is number
    with tf.Graph().as_default(), pytest.raises(ConfigError):
        progress.update("epoch 1", tf.constant(3.0), 3)


@pytest.mark.parametrize("place", INTEGERS)
def test_a_float_tensor_is_no_whole_number(place, files):
    if place not in ("start", "stop"):
        with pytest.raises(ConfigError):
            INTEGERS[place](tf.constant(1.0), files)


def test_an_index_is_not_written_over_a_folder(files, tmp_path):
    for save in (files.save, Ledger().save):
        with pytest.raises(ConfigError, match="is a folder"):
            save(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
