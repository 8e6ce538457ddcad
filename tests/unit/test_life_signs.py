"""The signs of life in the folder of a run, as the launcher and its tasks leave them."""

import os

import pytest

from tfdist.barrier_notes import PassMark, passed_at
from tfdist.cluster.life_signs import life_signs
from tfdist.cluster.outcome import Outcome
from tfdist.cluster.run_folder import RunFolder
from tfdist.progress import Progress
from tfdist.stall import Signs
from tfdist.task import PROGRESS_VARIABLE, Task

CLUSTER = {"ps": ["localhost:1"], "worker": ["localhost:2"]}
TRAINERS = ["worker:0"]


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path)
    worker = Task("worker", 0, CLUSTER)
    folder.create([Task("ps", 0, CLUSTER), worker], [worker], {})
    return folder


def started(run, name, attempt=1):
    """Starts a life of a task; gives the path of its notes of progress."""
    path = os.path.join(run.folder(name, attempt), "progress.json")
    run.started(name, attempt, os.getpid())
    return path


def test_before_a_task_has_started_there_are_no_signs(run):
    assert life_signs(run, TRAINERS) == {}


def test_each_kind_of_sign_is_seen(run):
    started(run, "ps:0")
    path = started(run, "worker:0")
    assert life_signs(run, TRAINERS) == {"ps:0": Signs(1), "worker:0": Signs(1)}

    run.output("worker:0", 1, 1, b"out\n")
    run.output("worker:0", 1, 2, b"error\n")
    assert life_signs(run, TRAINERS)["worker:0"] == Signs(1, printed=10)

    Progress(path).update("epoch 1", 3, 10)
    noted = '{"state": "epoch 1", "done": 3, "total": 10}'
    assert life_signs(run, TRAINERS)["worker:0"] == Signs(1, progress=noted, printed=10)

    PassMark({PROGRESS_VARIABLE: path}).touch()
    at = passed_at(run.folder_of("worker:0", 1))
    assert life_signs(run, TRAINERS)["worker:0"] == Signs(1, False, noted, at, 10)

    run.ended("worker:0", 1, Outcome(exit_code=1))
    assert life_signs(run, TRAINERS)["worker:0"] == Signs(1, True, noted, at, 10)


def test_the_latest_life_counts(run):
    started(run, "worker:0")
    run.ended("worker:0", 1, Outcome(exit_code=1))
    started(run, "worker:0", attempt=2)
    assert life_signs(run, TRAINERS) == {"worker:0": Signs(2)}


def test_what_notes_progress_and_is_no_trainer_does_not_count(run):
    Progress(started(run, "ps:0")).update("served", 1, 2)
    assert life_signs(run, TRAINERS) == {"ps:0": Signs(1)}


def test_the_same_note_once_more_is_no_other_sign(run):
    path = started(run, "worker:0")
    Progress(path).update("epoch 1", 3, 10)
    before = life_signs(run, TRAINERS)
    Progress(path).update("epoch 1", 3, 10)
    assert life_signs(run, TRAINERS) == before
    Progress(path).update("epoch 1", 4, 10)
    assert life_signs(run, TRAINERS) != before
