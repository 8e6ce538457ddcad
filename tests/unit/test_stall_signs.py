"""The signs of progress in the folder of a run, as the launcher and the tasks leave them."""

import io
import logging
import os

import pytest

from tfdist.diagnosis.barriers import Barriers
from tfdist.diagnosis.report import JobReport
from tfdist.diagnosis.stall import Signs, StallGuard, signs_of_run
from tfdist.errors import StallError
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


# --- a report that fails


@pytest.fixture
def guard(run, monkeypatch):
    """A guard of a run whose task is gone, which reports at its second look."""
    run.folder("worker:0", 1)
    run.started("worker:0", 1, 2**22 + 1)  # above every pid
    monkeypatch.setattr("tfdist.diagnosis.stall.ask_in_fork", lambda *_, **__: Barriers())
    guard = StallGuard(run, TRAINERS, 1e-9, is_kept=True)
    guard()
    return guard


def stalled(guard, capsys):
    """The error that the guard raises, and its lines on standard error about the report."""
    with pytest.raises(StallError) as raised:
        guard()
    lines = capsys.readouterr().err.splitlines()
    return raised.value, [line for line in lines if line.startswith("tfdist: the report ")]


def test_a_whole_report_is_kept(guard, run, capsys):
    error, lines = stalled(guard, capsys)
    assert (error.report, lines) == (str(run.path / "stall.txt"), [])
    names = {path.name for path in run.path.glob("stall.*")}
    assert names == {"stall.txt", "stall.html", "stall.json"}


def test_a_note_that_is_not_utf_8_is_in_the_report(guard, run, capsys):
    Progress(str(run.folder_of("worker:0", 1) / "progress.json")).update("caf\udce9.csv", 1, 10)
    guard()  # the note is progress
    error, lines = stalled(guard, capsys)
    assert lines == []
    assert r"worker:0: gone, caf\udce9.csv: 1 of 10" in str(error)
    for name in ("stall.txt", "stall.json"):
        assert r"caf\udce9.csv" in (run.path / name).read_text("utf-8").replace("\\\\", "\\")


def test_a_diagnosis_that_fails_ends_the_job_as_a_stall(guard, run, capsys, monkeypatch):
    def report_of(*_, **__):
        raise UnicodeError("caf\udce9")

    monkeypatch.setattr("tfdist.diagnosis.stall.report_of", report_of)
    error, _ = stalled(guard, capsys)
    assert error.verdict.because == (r"the report failed: UnicodeError: caf\udce9",)
    assert error.report is None


@pytest.mark.parametrize("name", ["stall.txt", "stall.html", "stall.json"])
def test_a_part_that_cannot_be_written_is_one_line_and_the_others_are_kept(
    guard, run, capsys, name
):
    (run.path / name).mkdir()  # a test as root may write everywhere
    error, lines = stalled(guard, capsys)
    assert len(lines) == 1
    assert lines[0].startswith(f"tfdist: the report is not in {name}: IsADirectoryError: ")
    assert (error.report is None) == (name == "stall.txt")
    assert len([path for path in run.path.glob("stall.*") if path.is_file()]) == 2


def test_without_the_folder_of_the_run_the_job_still_ends_as_a_stall(guard, run, capsys):
    run.path.rename(run.path.with_name("moved"))
    error, _ = stalled(guard, capsys)
    assert error.report is None


def test_a_part_that_is_not_whole_is_deleted(guard, run, capsys, monkeypatch):
    def page(*_):
        raise ValueError("no page")

    monkeypatch.setattr(JobReport, "page", page)
    for name in ("stall.html", "stall.txt"):
        os.mkfifo(run.path / name)  # has no reader: to open it would block
    _, lines = stalled(guard, capsys)
    assert len(lines) == 1
    assert "stall.txt, stall.html: " in lines[0]
    assert [path.name for path in run.path.glob("stall.*")] == ["stall.json"]


def test_after_the_report_the_job_goes_on_if_that_is_wanted(run, capsys, monkeypatch):
    def report_of(*_, **__):
        raise OSError(28, "No space left on device")

    started(run, "worker:0")
    monkeypatch.setattr("tfdist.diagnosis.stall.report_of", report_of)
    guard = StallGuard(run, TRAINERS, 1e-9, is_kept=True, ends=False)
    full = os.open("/dev/full", os.O_WRONLY)
    with open(full, "wb", buffering=0, closefd=False) as stream:
        monkeypatch.setattr("sys.stderr", io.TextIOWrapper(stream, write_through=True))
        for _ in range(3):
            guard()
        monkeypatch.undo()
    os.close(full)
