"""The stall report of `tfdist run`: its content, when it is made, and the calls in a fork."""

import json
import os
import threading
from contextlib import contextmanager

import pytest

from tests.launches import NEVER_COMES, run
from tfdist.cluster.fork_server import start_fork_server
from tfdist.cluster.helper_process import call_in_fork
from tfdist.diagnosis import stall
from tfdist.diagnosis.barriers import Barriers, Question, ask_in_fork
from tfdist.diagnosis.stall import PATIENCE, StallGuard
from tfdist.diagnosis.verdict import Name
from tfdist.errors import ClusterError, StallError
from tfdist.runs.barrier_notes import BarrierNote
from tfdist.runs.folder import RunFolder
from tfdist.runs.progress import Progress
from tfdist.task import Task


def test_a_stalled_job_is_reported_and_ended(script, tmp_path):
    logs, job = tmp_path / "logs", script(NEVER_COMES)
    ended = run("--stall-timeout", 2, "--log-dir", logs, "--json", job)
    assert ended.returncode == 75, ended.stderr
    [folder] = logs.iterdir()

    # The state and the stacks of all tasks, as `tfdist status` and `tfdist stacks` print them.
    rows = [" ".join(line.split()) for line in ended.stderr.splitlines()]
    [meeting] = [row for row in rows if row.startswith("meeting ")]
    assert meeting.startswith("meeting 2 worker:1 ")
    assert " worker:0 " in meeting
    [call] = [row for row in rows if row.startswith("never_come ")]
    line = NEVER_COMES.splitlines().index("    threading.Event().wait()") + 1
    assert call.endswith(f"job.py:{line}")
    assert "tfdist/barrier/interface.py" in ended.stderr  # where worker 1 waits

    result = json.loads(ended.stdout)
    assert (result["exit_code"], len(result["tasks"])) == (75, 3)
    assert all(task["terminated"] for task in result["tasks"])
    assert result["failure"].startswith("no task has made progress for ")
    assert "worker:0: epoch 1: 3 of 10" in result["failure"]
    assert result["failure"].endswith(f"the report is in {folder}/stall.txt")
    assert f"tfdist: {result['failure']}" in ended.stderr

    text = (folder / "stall.txt").read_text()
    report = text.removeprefix(f"{result['failure']}\n\n")
    assert report in ended.stderr
    assert report.startswith(f"{folder}: running for ")
    kept = json.loads((folder / "stall.json").read_text())
    places = {place["trainer"]: place["state"] for place in kept["status"]["barriers"][0]["places"]}
    assert places == {"worker:0": "missing", "worker:1": "arrived"}
    assert {task["task"]: task["answer"] for task in kept["stacks"]["tasks"]} == dict.fromkeys(
        ["ps:0", "worker:0", "worker:1"], "answered"
    )
    assert kept["seconds"] >= 2
    page = (folder / "stall.html").read_text("utf-8")
    assert "s: noted progress" in page  # in the timeline
    assert kept["places"].keys() == {"worker:0", "worker:1"}


@pytest.fixture
def folder(tmp_path):
    """The folder of a run with a worker that is this process."""
    run_folder = RunFolder(tmp_path)
    task = Task("worker", 0, {"worker": ["localhost:1"]})
    run_folder.create([task], [task])
    run_folder.folder("worker:0", 1)
    run_folder.started("worker:0", 1, os.getpid())
    return run_folder


@contextmanager
def this_process_works():
    """Keeps a thread busy."""
    done = threading.Event()

    def work():
        while not done.is_set():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_progress_during_the_report_discards_it(folder, monkeypatch, capsys):
    progress = Progress(str(folder.folder_of("worker:0", 1) / "progress.json"))
    report_of = stall.report_of

    def make_progress_and_report(*about, **more):
        progress.update("epoch 1", 3, 10)
        return report_of(*about, **more)

    guard = StallGuard(folder, ["worker:0"], 1e-9, is_kept=False)
    with monkeypatch.context() as patch:
        patch.setattr(stall, "report_of", make_progress_and_report)
        guard()  # sees that it has started
        guard()
    assert capsys.readouterr().err == ""
    with this_process_works():  # it is the worker
        for _ in range(PATIENCE):
            guard()
        with pytest.raises(StallError) as caught:
            guard()
    assert caught.value.last == ("worker:0 noted progress",)
    assert caught.value.places.keys() == {"worker:0"}
    assert caught.value.report is None
    since = f"\nno task has made progress for {caught.value.seconds:.1f} s:\n"
    shown = capsys.readouterr().err
    assert since in shown
    # A job that is ended is not called slow: it names the call, and why tfdist waited.
    assert shown.count("; a job that seems slow gets ") == PATIENCE
    assert caught.value.verdict.name is Name.STUCK_IN_CALL
    assert "such a call may still return, so tfdist waited" in shown
    assert "what to do: put a timeout around the call; if it is meant to take so long" in shown


@pytest.fixture
def fork_server():
    start_fork_server()


@pytest.mark.usefixtures("fork_server")
class TestACallInAFork:
    def test_returns_the_result_and_tensorflow_is_imported_already(self):
        assert call_in_fork(has_tensorflow, "tensorflow", timeout=60) is True

    def test_raises_an_error_with_the_text_of_the_function_s_error(self):
        with pytest.raises(ClusterError, match=r"^ValueError: invalid literal for int"):
            call_in_fork(int, "seven", timeout=60)

    def test_reports_that_its_process_ended(self):
        with pytest.raises(ClusterError, match="without an error message"):
            call_in_fork(os._exit, 3, timeout=60)

    def test_has_a_deadline(self):
        with pytest.raises(ClusterError, match="did not answer"):
            call_in_fork(wait_for_ever, timeout=0.1)

    @pytest.mark.parametrize(
        ("pid", "timeout", "failure"),
        [
            (2**22 + 1, 60.0, None),  # more than the kernel's most
            (None, 0.0, "the helper process did not answer within 0 s"),
        ],
    )
    def test_reads_the_barriers_or_says_why_not(self, pid, timeout, failure):
        cluster = {"ps": ["localhost:1"], "worker": ["localhost:2"]}
        question = Question(pid or os.getpid(), cluster, (BarrierNote("end", 1),))
        answer = ask_in_fork(question, timeout)
        if failure is None:
            assert "cannot enter the network of process 4194305" in answer.failure
        else:
            assert answer == Barriers(failure=failure)


def has_tensorflow(name):
    import sys

    return name in sys.modules


def wait_for_ever():
    threading.Event().wait()
