"""What `tfdist run` sees of a job, as evidence: who has left, and who waits for whom."""

import json

import pytest

from tfdist.diagnosis.barriers import Barriers
from tfdist.diagnosis.evidence import State
from tfdist.diagnosis.job_evidence import job_evidence
from tfdist.diagnosis.job_stacks import JobStacks, View
from tfdist.runs.folder import RunFolder
from tfdist.runs.outcome import Outcome
from tfdist.task import Task

TASK = Task("worker", 0, {"ps": ["a:1"], "worker": ["a:2", "a:3"]})
NAMES = ["worker:0", "worker:1"]


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path)
    tasks = [TASK, Task("worker", 1, TASK.cluster_spec)]
    run.create(tasks, tasks)
    for name in NAMES:
        run.folder(name, 1)
        run.started(name, 1, 2**22 + 1)  # above every pid
    return run


def evidence(run, *reports):
    views = [View(record.name, record) for record in run.latest()]
    return job_evidence(JobStacks(run, True, views), Barriers(list(reports)), NAMES, 30.0)


def barrier(name, **states):
    places = [
        {"trainer": f"worker:{rank}", "state": states[f"w{rank}"], "seconds": 1.0}
        for rank in range(2)
    ]
    return {"name": name, "places": places}


def test_who_has_resigned_has_left(run):
    step = barrier("step", w0="arrived", w1="resigned")
    found = evidence(run, step)
    assert [task.left for task in found.tasks] == [False, True]
    assert (found.barriers[0].arrived, found.barriers[0].missing) == (("worker:0",), ())


def test_who_has_resigned_there_and_waits_here_has_not_left(run):
    step = barrier("step", w0="missing", w1="resigned")
    end = barrier("end", w0="missing", w1="arrived")
    found = evidence(run, step, end)
    assert [task.left for task in found.tasks] == [False, False]
    assert found.barriers[1].missing == ("worker:0",)


def test_how_a_task_ended_and_how_far_it_was_are_told(run):
    (run.folder_of("worker:1", 1) / "progress.json").write_text(
        json.dumps({"state": "epoch 1", "done": 7, "total": 9})
    )
    run.ended("worker:0", 1, Outcome(exit_code=-9))
    run.ended("worker:1", 1, Outcome.of_error(ValueError("no data\nat all")))
    killed, failed = evidence(run).tasks
    assert (killed.state, killed.steps) == (State.DEAD, None)
    assert (failed.state, failed.error, failed.steps) == (State.FAILED, "no data", 7)
