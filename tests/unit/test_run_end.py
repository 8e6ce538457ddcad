"""How `tfdist run` ends: its table in a narrow terminal, its reason, and a machine that is full."""

import argparse
import functools
import os

import portpicker
import pytest

from tfdist.cli.output import PipeConsole, summary_table
from tfdist.cli.run import _end_of, _first
from tfdist.cluster.local import LocalCluster
from tfdist.cluster.ports import HeldPorts
from tfdist.cluster.processes import Surroundings
from tfdist.cluster.shape import Shape
from tfdist.diagnosis.status import print_table
from tfdist.errors import ClusterError, ConfigError, RunTimeout, TaskFailed
from tfdist.runs.folder import TaskRecord


def test_a_narrow_terminal_cuts_no_word_of_the_table(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    record = TaskRecord("worker:0", 1, 7, 0, 0.0, ended=12.0, exit_code=1, terminated=True)
    print_table(PipeConsole(), summary_table([record]))
    *_, title, _, row, _ = capsys.readouterr().out.splitlines()
    assert title.split() == ["task", "end", "seconds", "CPU", "s", "peak", "MB"]
    assert "terminated by tfdist, exit code 1" in row


def raised_in_the_grace(reason):
    """The error of a Ctrl-C during the grace after `reason`."""
    try:
        try:
            raise reason
        finally:
            raise KeyboardInterrupt
    except KeyboardInterrupt as interrupt:
        return interrupt


def test_ctrl_c_in_the_grace_keeps_the_reason():
    timeout, failure = RunTimeout(["worker:0"], 3.1), TaskFailed("worker:0", 7, "")
    assert _first(raised_in_the_grace(timeout)) is timeout
    assert _first(raised_in_the_grace(failure)) is failure
    assert isinstance(_first(raised_in_the_grace(KeyboardInterrupt())), KeyboardInterrupt)


class NeverEnds:
    """A server that neither ends by itself nor on SIGTERM; the grace is over with a Ctrl-C."""

    def __init__(self, task):
        self.task = task

    def send_signal(self, number):
        raise KeyboardInterrupt

    def kill(self):
        pass


def test_ctrl_c_while_the_servers_of_a_successful_run_are_terminated_is_no_timeout():
    cluster = LocalCluster(Shape(1, 1, coordinator=True), "processes", Surroundings())
    cluster._running = {"ps:0": NeverEnds(cluster.tasks[0])}
    with pytest.raises(KeyboardInterrupt) as caught:
        cluster._let_servers_leave(have_reported=True)  # a coordinator gives them no time
    cluster.close()
    assert _first(caught.value) is caught.value


def test_an_expired_timeout_names_its_option_and_the_tasks():
    code, line = _end_of(RunTimeout(["worker:0", "worker:1"], 3.1), argparse.Namespace(timeout=3))
    assert (code, line) == (
        70,
        "--timeout 3 expired; terminated the tasks that were still running: worker:0, worker:1",
    )


def test_a_machine_without_a_free_port_is_a_cluster_error(monkeypatch):
    def no_port():
        raise portpicker.NoFreePortFoundError

    monkeypatch.setattr(portpicker, "pick_unused_port", no_port)
    with pytest.raises(ClusterError, match="no free port"):
        HeldPorts(1)


def test_a_process_that_may_open_no_more_files_is_a_cluster_error(monkeypatch):
    def no_socket(*about):
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr("socket.socket", no_socket)
    monkeypatch.setattr(portpicker, "pick_unused_port", lambda: 1)
    with pytest.raises(ClusterError) as caught:
        LocalCluster(Shape(1, 1), "processes", Surroundings())
    assert str(caught.value) == (
        "cannot reserve 2 ports: Too many open files; raise the limit with ulimit -n"
    )


async def coroutine(task):
    pass


def generator(task):
    yield


async def asynchronous_generator(task):
    yield


class Callable:
    async def __call__(self, task):
        pass

    def generator(self, task):
        yield


@pytest.mark.parametrize("field", ["function", "watch"])
@pytest.mark.parametrize(
    "value",
    [
        *(5, "x", coroutine, generator, asynchronous_generator, Callable(), Callable().generator),
        functools.partial(coroutine, task=1),
        functools.partial(Callable(), task=1),
    ],
)
def test_what_is_no_function_is_refused_before_a_task_starts(field, value):
    cluster = LocalCluster(Shape(1, 1), "processes", Surroundings())
    with pytest.raises(ConfigError) as caught:
        cluster.run(**{"function": print, field: value})
    cluster.close()
    assert (caught.value.field, caught.value.value) == (field, value)
    assert not cluster._attempts


def test_a_missing_function_is_refused():
    cluster = LocalCluster(Shape(1, 1), "processes", Surroundings())
    with pytest.raises(ConfigError, match="function: got None; must be a function that takes"):
        cluster.run(None)
    cluster.close()


@pytest.mark.parametrize("method", ["kill", "restart", "pause", "resume"])
@pytest.mark.parametrize("name", [["worker:0"], None, 0])
def test_what_is_no_name_of_a_task_is_refused(method, name):
    cluster = LocalCluster(Shape(1, 1), "processes", Surroundings())
    with pytest.raises(ConfigError, match='must be the name of a task, such as "worker:1"'):
        getattr(cluster, method)(name)
    cluster.close()
