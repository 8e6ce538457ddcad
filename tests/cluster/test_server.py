"""Servers of tasks: taken ports, missing ps, ids of clusters, reports of long waits."""

import socket
import sys
import threading

import pytest

import tfdist
from tfdist.cluster import mailbox, server
from tfdist.cluster.identity import check_identity
from tfdist.cluster.ports import HeldPorts, is_taken
from tfdist.deadline import Deadline
from tfdist.testing import poll_until


def test_a_taken_port_is_an_error_that_names_the_task():
    with socket.create_server(("127.0.0.1", 0)) as other:
        task = one_worker(worker_port=other.getsockname()[1])
        with pytest.raises(tfdist.ConfigError) as caught, tfdist.worker_server(task):
            pass
    assert caught.value.field == "cluster.worker[0]"
    assert caught.value.value == task.address


def test_a_reserved_port_can_be_shared_but_not_taken():
    with HeldPorts(1) as held:
        assert not is_taken(held.ports[0])
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", held.ports[0]))


def test_reserved_ports_are_distinct():
    with HeldPorts(20) as some, HeldPorts(20) as others:
        assert len({*some.ports, *others.ports}) == 40


def test_a_ps_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("TF_GRPC_REUSE_PORT", "1")  # the worker shares its reserved port
    with HeldPorts(2) as held:  # they have no listener
        task = one_worker(*held.ports)
        with pytest.raises(tfdist.StartTimeout) as caught, tfdist.worker_server(task, timeout=0.2):
            pass
    assert caught.value.missing == ("ps:0",)
    assert task.cluster_spec["ps"][0] in str(caught.value)


def test_a_ps_of_another_cluster_is_recognized_by_its_id(make_cluster, monkeypatch):
    [worker] = make_cluster(1, 1, backend="threads").trainers  # its ps shows no id
    monkeypatch.setenv("TFDIST_CLUSTER_ID", "run-2")
    with pytest.raises(tfdist.ClusterError, match=r"no cluster that tfdist knows.*'run-2'"):
        check_identity(ps_of(worker), Deadline(0))
    monkeypatch.setenv("TFDIST_CLUSTER_ID", "run-1")
    [worker] = make_cluster(1, 1, backend="threads").trainers
    check_identity(ps_of(worker), Deadline(10))
    monkeypatch.setenv("TFDIST_CLUSTER_ID", "run-2")
    with (
        pytest.raises(tfdist.ClusterError, match="belongs to cluster 'run-1', not to 'run-2'"),
        tfdist.worker_server(worker),
    ):
        pass


def test_a_ps_that_serves_as_another_task_is_recognized(make_cluster, monkeypatch):
    monkeypatch.setenv("TFDIST_CLUSTER_ID", "run-1")
    [worker] = make_cluster(1, 1, backend="threads").trainers
    spec = {**worker.cluster_spec, "ps": ["127.0.0.1:1", *worker.cluster_spec["ps"]]}
    with pytest.raises(tfdist.ClusterError, match=r"ps:1 at .* serves as another task"):
        check_identity(tfdist.Task("ps", 1, spec), Deadline(10))


def test_a_server_other_than_tensorflows_has_no_id(monkeypatch):
    monkeypatch.setenv("TFDIST_CLUSTER_ID", "run-1")
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(tfdist.ClusterError, match="no cluster that tfdist knows"),
    ):
        check_identity(ps_of(one_worker(ps_port=other.getsockname()[1])), Deadline(0))


def test_a_server_of_the_wrong_kind_of_task_is_an_error():
    task = one_worker(worker_port=1)
    with pytest.raises(tfdist.ConfigError, match="only a ps"):
        tfdist.parameter_server(task)
    ps = tfdist.Task("ps", 0, task.cluster_spec)
    with (
        pytest.raises(tfdist.ConfigError, match="only a chief or a worker"),
        tfdist.worker_server(ps),
    ):
        pass


def one_worker(ps_port=2, worker_port=1):
    spec = {"ps": [f"127.0.0.1:{ps_port}"], "worker": [f"127.0.0.1:{worker_port}"]}
    return tfdist.Task("worker", 0, spec)


def ps_of(worker):
    return tfdist.Task("ps", 0, worker.cluster_spec)


@pytest.mark.parametrize(("code", "done"), [(0, ["ps:0"]), (3, [])])
def test_a_trainer_that_exits_within_the_block_is_done_if_the_code_is_0(
    make_cluster, monkeypatch, code, done
):
    heard = []
    monkeypatch.setattr(server, "_say_done", lambda task, ps: heard.append(ps.name))
    [task] = make_cluster(1, 1).trainers
    with pytest.raises(SystemExit) as end, tfdist.worker_server(task):
        sys.exit(code)
    assert (end.value.code, heard) == (code, done)


def test_a_long_wait_for_a_ps_is_logged_with_its_name(monkeypatch, caplog):
    monkeypatch.setenv("TF_GRPC_REUSE_PORT", "1")
    monkeypatch.setattr("tfdist.deadline.FIRST_NOTICE_SECS", 0.1)
    with HeldPorts(2) as held:
        task = one_worker(*held.ports)
        with pytest.raises(tfdist.StartTimeout), tfdist.worker_server(task, timeout=0.3):
            pass
    line = f" s for ps:0: no process listens at {task.cluster_spec['ps'][0]}"
    assert line in caplog.text


def test_a_ps_logs_the_trainers_that_it_waits_for(monkeypatch, caplog, make_cluster):
    monkeypatch.setattr("tfdist.deadline.FIRST_NOTICE_SECS", 0.1)
    monkeypatch.setattr("tfdist.cluster.server._LOOK_SECS", 0.05)
    line = " s for worker:1 since the first trainer was done"

    def train(task):
        with tfdist.worker_server(task):
            if task.name == "worker:1":
                poll_until(lambda: line in caplog.text, "the ps has named worker:1")

    make_cluster(1, 2, backend="threads").run(train, timeout=60)


def test_a_server_ends_after_the_thread_that_receives_its_messages(monkeypatch, make_cluster):
    # A thread that comes back from TensorFlow while Python ends would abort the process.
    taken, may_end, receive = threading.Event(), threading.Event(), mailbox.receive

    def late(*arguments):
        receive(*arguments)
        taken.set()
        may_end.wait(20)

    monkeypatch.setattr(mailbox, "receive", late)
    cluster = make_cluster(1, 1, backend="threads")
    ps = ps_of(cluster.trainers[0])
    [serving] = (thread for thread in threading.enumerate() if thread.name == ps.name)
    server.dismiss(ps)
    assert taken.wait(20)
    serving.join(0.2)
    assert serving.is_alive()
    may_end.set()
    serving.join(20)
    assert not serving.is_alive()
