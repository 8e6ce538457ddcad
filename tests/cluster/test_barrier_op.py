"""`Barrier.op`, the barrier as an operation of a training graph."""

import pytest
import tensorflow as tf

import tfdist
import tfdist.train.graph
from tfdist.runs.barrier_notes import passed_at
from tfdist.task import PROGRESS_VARIABLE

STEPS = 5


def train_in_step(task):
    """Adds one and reads the sum of all, STEPS times; a step is one `session.run`."""
    with tfdist.worker_server(task) as target, tf.Graph().as_default():
        barriers = [tfdist.Barrier(task, name, timeout=20) for name in ("added", "read")]
        with tf.compat.v1.device(tfdist.train.graph.device_setter(task)):
            counter = tf.compat.v1.get_variable(
                "counter", [], tf.int64, initializer=tf.compat.v1.zeros_initializer()
            )
        # In the scope of another machine, as parts of a model are.
        with tf.compat.v1.device("/job:ps/task:0"):
            with tf.control_dependencies([barriers[0].op(after=[counter.assign_add(1)])]):
                total = counter.read_value()
            step = barriers[1].op(after=[total])
        config = tf.compat.v1.ConfigProto(device_filters=task.device_filters)
        started = tfdist.Barrier(task, "started", timeout=20)
        with tf.compat.v1.Session(target, config=config) as session:
            if task.is_chief:
                session.run(counter.initializer)
            started.wait()
            return [int(session.run([total, step])[0]) for _ in range(STEPS)]


def test_no_trainer_reads_before_all_have_added(make_cluster):
    # As threads, each trainer needs an inter-op thread, and an earlier cluster may have set fewer.
    cluster = make_cluster(1, 3, backend="processes")
    results = cluster.run(train_in_step, timeout=60)
    assert results == [[3 * step for step in range(1, STEPS + 1)]] * 3


def run_late(task):
    """Rank 0 runs its operation before rank 1 arrives, and again after that."""
    with tfdist.Barrier(task, "late", timeout=20) as barrier:
        timed_out = tfdist.Barrier(task, "timed out", timeout=20)
        if task.rank == 1:
            timed_out.wait()
            return barrier.wait()
        with tfdist.worker_server(task) as target, tf.Graph().as_default():
            ran = tf.Variable(0)
            soon = barrier.op(after=[ran.assign_add(1)], timeout=0.3)
            barrier_op = barrier.op()
            config = tf.compat.v1.ConfigProto(device_filters=task.device_filters)
            with tf.compat.v1.Session(target, config=config) as session:
                session.run(ran.initializer)
                with pytest.raises(
                    tf.errors.UnknownError, match="missing worker:1, which has never"
                ):
                    session.run(soon)
                timed_out.wait()
                session.run(barrier_op)
                return int(session.run(ran)), barrier.generation


def test_a_run_raises_the_timeout_and_the_next_run_continues_the_wait(make_cluster):
    results = make_cluster(1, 2).run(run_late, timeout=60)
    assert results == [(1, 2), 1]


def pass_by_op(task):
    with tfdist.Barrier(task, "marked", timeout=20) as barrier:

        @tf.function
        def step():
            with tf.control_dependencies([barrier.op()]):
                return tf.constant(0)

        step()


def test_a_pass_is_marked_for_the_launcher(make_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "progress.json"))
    make_cluster(1, 1).run(pass_by_op, timeout=60)
    assert passed_at(tmp_path) is not None


def call_functions(task):
    with tfdist.Barrier(task, "functions", timeout=20) as barrier:
        passed = tf.Variable(0)

        @tf.function
        def step():
            with tf.control_dependencies([barrier.op()]):
                return passed.assign_add(1)

        with pytest.raises(tfdist.BarrierError, match="here call wait"):
            barrier.op()
        return [int(step()) for _ in range(3)], barrier.generation


def test_a_function_waits_each_time_it_is_called(make_cluster):
    results = make_cluster(1, 2, backend="processes").run(call_functions, timeout=60)
    assert results == [([1, 2, 3], 4)] * 2
