"""Sessions with a ps that is late, or gone."""

import pytest
import tensorflow as tf

import tfdist
from tfdist.cluster.server import start_server
from tfdist.ps.session import PS_DEVICE, DirectSession
from tfdist.testing import poll_until


def test_a_ps_that_was_silent_while_it_got_new_operations_can_be_used_again(make_cluster):
    cluster = make_cluster(1, 1, backend="processes")
    graph, place = tf.Graph(), tf.compat.v1.device(PS_DEVICE)

    def constant(value):
        with graph.as_default(), place:
            return tf.constant(value)

    with DirectSession(cluster.tasks[0].address, graph, timeout=1.0) as session:
        first = constant(0)
        poll_until(lambda: answers(session, first), "the ps answers", timeout=30)
        for value in range(1, 6):  # mostly the ps has the operations when it continues
            operation = constant(value)
            cluster.pause("ps:0")
            with pytest.raises(tf.errors.DeadlineExceededError):
                session.run(operation)
            cluster.resume("ps:0")
            poll_until(lambda: answers(session, first), "the ps answers", timeout=30)
            assert session.run(operation) == value
            session.call(operation)


def answers(session, operation):
    try:
        return session.run(operation) is not None
    except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError):
        return False


def test_a_session_with_a_ps_that_is_gone_is_an_error_in_time(make_cluster):
    cluster = make_cluster(1, 1, backend="processes")
    with pytest.raises(tfdist.TaskFailed) as caught:
        cluster.run(open_session, timeout=30)
    cause = caught.value.__cause__
    assert isinstance(cause, tfdist.StartTimeout)
    assert cause.missing == ("ps:1",)
    assert "A session needs every ps" in str(cause)


def open_session(task):
    cluster = {**task.cluster_spec, "ps": [*task.cluster_spec["ps"], "127.0.0.1:1"]}
    task = tfdist.Task(task.task_type, task.task_index, cluster)
    # `worker_server` returned while that ps still ran.
    target = start_server(task).target
    with tfdist.train.replica_graph(task), tfdist.train.session(task, target, timeout=0.5):
        pass
