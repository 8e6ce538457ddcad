"""The evidence of a run: the tasks that have left, the barriers, and how the tasks ended."""

import json
from dataclasses import asdict

import pytest

from tfdist.diagnosis.barriers import Barriers
from tfdist.diagnosis.collect import JobView, TaskView, evidence_of, view_job
from tfdist.diagnosis.evidence import State
from tfdist.diagnosis.report import report_of
from tfdist.diagnosis.verdict import Name, Verdict
from tfdist.runs import events
from tfdist.runs.barrier_notes import BarrierReport, Place
from tfdist.runs.events import NOTES_FILE, NoteFile
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


def evidence(run, *reports, runs=True):
    views = [TaskView(record.name, record) for record in run.latest()]
    return evidence_of(JobView(run, runs, views), NAMES, Barriers(reports), 30.0)


def barrier(name, **states):
    places = [Place(f"worker:{rank}", states[f"w{rank}"], 1.0) for rank in range(2)]
    return BarrierReport(name, 1, tuple(places))


def test_a_trainer_that_has_resigned_has_left(run):
    step = barrier("step", w0="arrived", w1="resigned")
    found = evidence(run, step)
    assert [task.left for task in found.tasks] == [False, True]
    assert (found.barriers[0].arrived, found.barriers[0].missing) == (("worker:0",), ())


def test_a_trainer_that_resigned_from_one_barrier_and_waits_at_another_has_not_left(run):
    step = barrier("step", w0="missing", w1="resigned")
    end = barrier("end", w0="missing", w1="arrived")
    found = evidence(run, step, end)
    assert [task.left for task in found.tasks] == [False, False]
    assert found.barriers[1].missing == ("worker:0",)


def test_the_end_and_the_steps_of_a_task_are_read(run):
    (run.folder_of("worker:1", 1) / "progress.json").write_text(
        json.dumps({"state": "epoch 1", "done": 7, "total": 9})
    )
    run.ended("worker:0", 1, Outcome(exit_code=-9))
    run.ended("worker:1", 1, Outcome.of_error(ValueError("no data\nat all")))
    killed, failed = evidence(run).tasks
    assert (killed.state, killed.steps) == (State.DEAD, None)
    assert (failed.state, failed.error, failed.steps) == (State.FAILED, "no data", 7)


def test_a_server_that_tfdist_terminated_at_the_end_has_ended(run):
    for name in NAMES:
        run.ended(name, 1, Outcome(exit_code=-15, terminated=True))
    job = JobView(run, False, [TaskView(record.name, record) for record in run.latest()])
    assert [task.state for task in evidence_of(job, ["worker:0"]).tasks] == [
        State.DEAD,
        State.ENDED,
    ]


@pytest.mark.parametrize("exit_code", [-15, 0, 1])
def test_a_trainer_that_tfdist_terminated_at_the_end_is_not_lost(run, exit_code):
    end_by_tfdist(run, exit_code)
    tasks = report_of(run, NAMES, None).evidence.tasks
    assert [task.state for task in tasks] == [State.TERMINATED, State.TERMINATED]


def test_a_run_that_tfdist_ended_for_a_stall_keeps_its_verdict(run):
    end_by_tfdist(run, -15)
    stalled = Verdict(Name.INPUT_STALLED, ("worker:1",), ("it waits",))
    (run.path / "stall.json").write_text(json.dumps({"verdict": asdict(stalled)}))
    verdict = report_of(run, NAMES, None).verdict
    assert verdict.heading == stalled.heading
    assert verdict.because[0] == "it waits"
    assert verdict.because[1].startswith("tfdist terminated the job after this verdict")


def end_by_tfdist(run, exit_code):
    """Ends the run as Ctrl-C does; its launcher seems to be gone."""
    for name in NAMES:
        run.ended(name, 1, Outcome(exit_code=exit_code, terminated=True))
    about = json.loads((run.path / "run.json").read_text())
    about["launcher"]["ticks"] -= 1
    (run.path / "run.json").write_text(json.dumps(about))


def test_notes_of_a_task_of_the_lab_count_before_its_process_has_ended(run):
    notes = {name: NoteFile(run.folder_of(name, 1) / NOTES_FILE) for name in NAMES}
    for name in NAMES:
        notes[name].write(events.ABOUT, servers=3, global_step=9)
        notes[name].write(events.STEP, read=[1])
    notes["worker:0"].write(events.LEFT)
    notes["worker:1"].write(events.FAILED, error="ValueError: x")
    left, failed = evidence_of(view_job(run, NAMES, sampled=True), NAMES).tasks
    assert (left.left, left.steps, left.servers, left.state) == (True, 1, 3, State.DEAD)
    assert (failed.error, failed.steps, failed.state) == ("ValueError: x", 1, State.FAILED)
