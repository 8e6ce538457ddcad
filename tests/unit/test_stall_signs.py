"""The signs of progress in the folder of a run, as the launcher and the tasks leave them."""

import logging
import os

import pytest

from tfdist.diagnosis.stall import Signs, signs_of_run
from tfdist.runs.barrier_notes import PassMark, passed_at
from tfdist.runs.folder import RunFolder
from tfdist.runs.log import LogMark, logged_at
from tfdist.runs.outcome import Outcome
from tfdist.runs.progress import Progress
from tfdist.task import PROGRESS_VARIABLE, Task

CLUSTER = {"ps": ["localhost:1"], "worker": ["localhost:2"]}
TRAINERS = ["worker:0"]


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path)
    worker = Task("worker", 0, CLUSTER)
    folder.create([Task("ps", 0, CLUSTER), worker], [worker])
    return folder


def started(run, name, attempt=1):
    """Starts an attempt of a task; returns the path of its notes of progress."""
    path = os.path.join(run.folder(name, attempt), "progress.json")
    run.started(name, attempt, os.getpid())
    return path


def test_a_run_without_started_tasks_has_no_signs(run):
    assert signs_of_run(run, TRAINERS) == {}


def test_each_kind_of_sign_is_read(run):
    started(run, "ps:0")
    path = started(run, "worker:0")
    assert signs_of_run(run, TRAINERS) == {"ps:0": Signs(1), "worker:0": Signs(1)}

    run.output("worker:0", 1, 1, b"out\n")
    run.output("worker:0", 1, 2, b"error\n")
    assert signs_of_run(run, TRAINERS)["worker:0"] == Signs(1, printed=10)

    Progress(path).update("epoch 1", 3, 10)
    noted = '{"state": "epoch 1", "done": 3, "total": 10}'
    assert signs_of_run(run, TRAINERS)["worker:0"] == Signs(1, progress=noted, printed=10)

    PassMark({PROGRESS_VARIABLE: path}).touch()
    at = passed_at(run.folder_of("worker:0", 1))
    assert signs_of_run(run, TRAINERS)["worker:0"] == Signs(1, False, noted, at, 10)

    run.ended("worker:0", 1, Outcome(exit_code=1))
    assert signs_of_run(run, TRAINERS)["worker:0"] == Signs(1, True, noted, at, 10)

    mark = LogMark(os.path.dirname(path))
    mark.handle(logging.makeLogRecord({"msg": "barrier 'end': 1 of 2 trainers after 30 s"}))
    at = logged_at(run.folder_of("worker:0", 1))
    assert at is not None
    assert signs_of_run(run, TRAINERS)["worker:0"].logged_at == at


def test_only_the_latest_attempt_counts(run):
    started(run, "worker:0")
    run.ended("worker:0", 1, Outcome(exit_code=1))
    started(run, "worker:0", attempt=2)
    assert signs_of_run(run, TRAINERS) == {"worker:0": Signs(2)}


def test_progress_counts_only_for_trainers(run):
    Progress(started(run, "ps:0")).update("served", 1, 2)
    assert signs_of_run(run, TRAINERS) == {"ps:0": Signs(1)}


def test_an_equal_note_is_an_equal_sign(run):
    path = started(run, "worker:0")
    Progress(path).update("epoch 1", 3, 10)
    before = signs_of_run(run, TRAINERS)
    Progress(path).update("epoch 1", 3, 10)
    assert signs_of_run(run, TRAINERS) == before
    Progress(path).update("epoch 1", 4, 10)
    assert signs_of_run(run, TRAINERS) != before
