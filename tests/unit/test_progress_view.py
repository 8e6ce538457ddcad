"""The progress lines of `tfdist run` without a terminal."""

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tfdist import Progress
from tfdist.cli.progress import ProgressView, StartUp
from tfdist.runs.folder import PROGRESS_FILE
from tfdist.runs.outcome import Outcome
from tfdist.runs.progress import ProgressNote
from tfdist.task import Task
from tfdist.testing import poll_until


@pytest.fixture
def tasks():
    """A ps whose port has a listener, a worker whose port has none, and an evaluator."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        ps, worker = (f"127.0.0.1:{end.getsockname()[1]}" for end in (server, held))
        cluster = {"ps": [ps], "worker": [worker]}
        yield [Task(kind, 0, cluster) for kind in ("ps", "worker", "evaluator")]


@pytest.fixture
def run(folder, tasks):
    return folder("tfdist-a", *tasks)


@pytest.fixture
def view(run, tasks, monkeypatch, capfd):
    """A view that prints a line at each look; it ends before `capfd` closes its stream."""
    monkeypatch.setattr("tfdist.cli.progress._REFRESH_SECS", 0.01)
    monkeypatch.setattr("tfdist.cli.progress._PLAIN_LINE_SECS", 0.0)
    with ProgressView(run, tasks) as view:
        yield view


def begin(run, name, pid=None):
    folder = Path(run.folder(name, 1))
    run.started(name, 1, os.getpid() if pid is None else pid)
    return folder


def wait_for(line, capfd):
    """Waits until the view prints `line`."""
    poll_until(lambda: line in re.sub(r"tfdist: \d+ s: ", "", capfd.readouterr().err), line)


def test_the_plain_line_counts_running_and_ended_tasks(run, view, capfd):
    wait_for("0 of 3 tasks are running\n", capfd)
    begin(run, "ps:0")
    wait_for("1 of 3 tasks are running\n", capfd)
    begin(run, "worker:0")
    begin(run, "evaluator:0")
    wait_for("3 of 3 tasks are running, 1 without a server\n", capfd)
    run.ended("evaluator:0", 1, Outcome(exit_code=0))
    wait_for("2 of 3 tasks are running, 1 without a server, 1 has ended\n", capfd)
    run.ended("worker:0", 1, Outcome(exit_code=0))
    wait_for("1 task is running, 2 have ended\n", capfd)


def test_the_plain_line_shows_that_a_task_is_stopped(run, view, capfd):
    with subprocess.Popen(["sleep", "600"]) as sleeps:
        folder = begin(run, "worker:0", sleeps.pid)
        sleeps.send_signal(signal.SIGSTOP)
        wait_for("0 of 3 tasks are running, 1 is stopped\n", capfd)
        Progress(str(folder / PROGRESS_FILE)).update("epoch 1", 3, 12)
        wait_for("worker:0 epoch 1: 25 %, stopped\n", capfd)
        sleeps.kill()


def test_a_bar_shows_that_a_task_is_stopped(run, tasks):
    view = ProgressView(run, tasks)

    def shown(notes):
        view._draw(run.latest(), notes)
        [bar] = view._bars.tasks
        return bar.fields["state"]

    assert shown({}) == "starting"
    with subprocess.Popen(["sleep", "600"]) as sleeps:
        begin(run, "worker:0", sleeps.pid)
        assert shown({}) == "running"
        sleeps.send_signal(signal.SIGSTOP)
        poll_until(lambda: shown({}) == "stopped", "the bar shows it")
        assert shown({"worker:0": ProgressNote("epoch 1", 3, 12)}) == "epoch 1, stopped"
        assert shown({"worker:0": ProgressNote("epoch 1", 3, None)}) == "epoch 1: 3, stopped"
        sleeps.kill()
    run.ended("worker:0", 1, Outcome(exit_code=0))
    assert shown({}) == "has ended"


def test_the_plain_line_shows_the_progress_that_trainers_note(run, view, capfd):
    note = {"state": "epoch 1 of 3", "done": 3, "total": 12}
    folder = begin(run, "worker:0")
    (folder / "draft").write_text(json.dumps(note))
    (folder / "draft").rename(folder / PROGRESS_FILE)
    wait_for("worker:0 epoch 1 of 3: 25 %\n", capfd)


def test_the_plain_line_shows_no_percentage_of_an_unknown_total(run, view, capfd):
    Progress(str(begin(run, "worker:0") / PROGRESS_FILE)).update("epoch 1", 8, None)
    wait_for("worker:0 epoch 1: 8\n", capfd)


def test_once_all_tasks_are_ready_none_is_probed_again(run, tasks, view, capfd):
    for task in tasks:
        begin(run, task.name)
    run.ended("worker:0", 1, Outcome(exit_code=0))
    wait_for("2 tasks are running, 1 has ended\n", capfd)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StartUp, "look", lambda *_: pytest.fail("all tasks are ready"))
        for _ in range(3):  # the first look may have begun before the patch
            wait_for("2 tasks are running, 1 has ended\n", capfd)
        assert view._thread.is_alive()


def test_the_records_of_the_tasks_are_read_once_per_look(run, tasks, monkeypatch):
    reads, looks = [], []
    latest, look = run.latest, StartUp.look

    def counted_look(*arguments):
        looks.append(1)
        return look(*arguments)

    monkeypatch.setattr(run, "latest", lambda: reads.append(1) or latest())
    monkeypatch.setattr(StartUp, "look", counted_look)
    monkeypatch.setattr("tfdist.cli.progress._REFRESH_SECS", 0.01)
    with ProgressView(run, tasks):
        poll_until(lambda: len(looks) > 5, "the view has looked some times")
    assert len(reads) == len(looks)
