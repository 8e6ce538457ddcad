"""The evidence of a run: the tasks that have left, the barriers, and how the tasks ended."""

import json
import os
from dataclasses import asdict

import pytest

from tfdist.diagnosis import collect
from tfdist.diagnosis.barriers import Barriers
from tfdist.diagnosis.collect import JobView, TaskView, evidence_of, view_job
from tfdist.diagnosis.evidence import State
from tfdist.diagnosis.report import report_of
from tfdist.diagnosis.verdict import Name, Verdict
from tfdist.runs import events
from tfdist.runs.barrier_notes import BarrierReport, Place
from tfdist.runs.events import NOTES_FILE, NoteFile
from tfdist.runs.folder import RunFolder
from tfdist.runs.outcome import Outcome, oom_kills, out_of_memory
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
    launcher_is_gone(run)


def launcher_is_gone(run):
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


@pytest.fixture
def three(tmp_path):
    """A run of three workers, whose launcher is this process."""
    run = RunFolder(tmp_path)
    tasks = [Task("worker", n, {"worker": ["a:1", "a:2", "a:3"]}) for n in range(3)]
    run.create(tasks, tasks)
    for task in tasks:
        run.folder(task.name, 1)
        run.started(task.name, 1, 2**22 + 1)
    return run


@pytest.mark.parametrize("exit_code", [-15, 0, 1])
@pytest.mark.parametrize("is_over", [True, False])
def test_a_task_that_tfdist_ends_because_of_another_one_is_not_blamed(three, exit_code, is_over):
    names = three.about.tasks
    three.ended("worker:1", 1, Outcome(exit_code=-9, details="it printed nothing"))
    for name in ("worker:0", "worker:2"):
        three.ended(name, 1, Outcome(exit_code=exit_code, terminated=True))
    if is_over:
        launcher_is_gone(three)
    verdict = report_of(three, names, None).verdict
    assert verdict.heading == "PEER_DEAD, cause: worker:1 (certain)"
    assert verdict.because == ("worker:1 was killed: it printed nothing",)


def test_the_tasks_of_a_launcher_that_was_killed_are_not_blamed(three):
    launcher_is_gone(three)
    three.ended("worker:1", 1, Outcome(exit_code=0))
    verdict = report_of(three, three.about.tasks, None).verdict
    assert verdict.heading == "UNKNOWN, tasks: worker:0, worker:2 (a guess)"
    assert verdict.because[0].endswith("the launcher of the job was killed or has crashed")


def test_a_run_whose_trainers_all_ended_with_0_is_fine(run):
    run.ended("worker:0", 1, Outcome(exit_code=0))
    run.ended("worker:1", 1, Outcome(exit_code=-15, terminated=True))  # a server
    launcher_is_gone(run)
    assert report_of(run, ["worker:0"], None).verdict.name is Name.FINE


def test_a_restarted_task_that_ended_with_0_is_fine(run):
    run.ended("worker:0", 1, Outcome(exit_code=0))
    run.ended("worker:1", 1, Outcome(exit_code=-9))
    run.folder("worker:1", 2)
    run.started("worker:1", 2, 2**22 + 1)
    run.ended("worker:1", 2, Outcome(exit_code=0))
    launcher_is_gone(run)
    assert report_of(run, NAMES, None).verdict.name is Name.FINE


def test_what_a_task_printed_of_its_threads_is_evidence(run):
    run.output("worker:0", 1, 2, b"Exception in thread T:\nTraceback (most recent call last):\n")
    run.output("worker:0", 1, 2, b"OSError: [Errno 24] Too many open files\n")
    first, second = evidence(run).tasks
    assert first.losses == ("thread T has died: OSError: [Errno 24] Too many open files",)
    assert (len(first.shortages), second.losses, second.shortages) == (1, (), ())


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("0::/job\n", {"fs/job/memory.events": "oom 3\noom_kill 2\n"}, 2),
        ("0::/host/job\n", {"fs/memory.events": "low 0\noom_kill 4\n"}, 4),
        (
            "4:memory:/job\n0::/\n",
            {"fs/memory/job/memory.oom_control": "oom_kill_disable 0\noom_kill 5\n"},
            5,
        ),
        ("4:cpu,memory:/x\n", {"fs/memory/memory.oom_control": "under_oom 0\noom_kill 6\n"}, 6),
        # Version 1 before Linux 4.13, and the root of version 2, count nothing.
        (
            "4:memory:/\n0::/\n",
            {"fs/memory/memory.oom_control": "under_oom 0\n", "proc/vmstat": "x 1\noom_kill 7\n"},
            7,
        ),
        ("0::/\n", {"proc/vmstat": "nr_free_pages 1\n"}, None),
        (None, {"proc/vmstat": "oom_kill 8\n"}, 8),
    ],
)
def test_the_kernel_s_count_of_kills_for_lack_of_memory_is_read(tmp_path, groups, files, count):
    if groups is not None:
        files = {**files, "proc/7/cgroup": groups}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert oom_kills(7, tmp_path / "proc", tmp_path / "fs") == count


def test_this_machine_counts_kills_for_lack_of_memory():
    assert isinstance(oom_kills(os.getpid()), int)


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [(1, 2, "killed 1 process for"), (1, 3, "killed 2 processes for"), (1, 1, ""), (None, 3, "")],
)
def test_only_a_count_that_rose_means_a_lack_of_memory(before, now, text):
    found = out_of_memory(before, now)
    assert text in found
    assert bool(found) == bool(text)


def test_kills_for_lack_of_memory_during_the_run_are_evidence(run, monkeypatch):
    before = run.about.oom_kills
    assert evidence(run).oom_kills == 0
    monkeypatch.setattr(collect, "oom_kills", lambda pid: before + 2)
    assert evidence(run).oom_kills == 2
    assert evidence(run, runs=False).oom_kills == 0  # the kernel counts those after the run too
