"""`tfdist run --stall-timeout`: which jobs it ends, and how soon it reports."""

import contextlib
import json
import os
import re
import signal
import subprocess
import textwrap
import threading
import time

import psutil
import pytest

from tests.launches import NEVER_COMES, command, run
from tfdist.runs.folder import RunFolder
from tfdist.testing import poll_until

STALL_SECS = 4.0
REPORT_SECS = 5.0  # docs/run.md: the report is printed at most so long after the timeout

# Makes progress for longer than STALL_SECS, each time after an eighth of it.
STEADY = """
import sys, threading, tfdist
task = tfdist.Task.from_env()
progress = tfdist.Progress.from_env()
if sys.argv[1] == "passes a barrier":
    barrier = tfdist.Barrier(task, "step", timeout=60)
for step in range(10):
    threading.Event().wait(0.5)
    if sys.argv[1] == "notes progress":
        progress.update("steps", step, 10)
    elif sys.argv[1] == "prints":
        print("step", step, flush=True)
    else:
        barrier.wait()
"""

# Steps without end, as long as all trainers run.
STEPS = """
import tfdist
task = tfdist.Task.from_env()
with tfdist.worker_server(task):
    barrier = tfdist.Barrier(task, "step")
    progress = tfdist.Progress.from_env()
    step = 0
    while True:
        barrier.wait()
        step += 1
        progress.update("steps", step, 10**9)
"""

# The chief computes for long between two barriers.
SLOW = """
import tfdist

task = tfdist.Task.from_env()
with tfdist.worker_server(task):
    meeting = tfdist.Barrier(task, "meeting", timeout=60)
    meeting.wait()
    deadline = tfdist.deadline.Deadline(8)
    while task.is_chief and not deadline.expired:
        sum(range(1000))
    meeting.wait()
print("done")
"""

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("sign", ["notes progress", "prints", "passes a barrier"])
def test_a_job_that_makes_slow_progress_is_left_alone(script, sign):
    ended = run("--workers", 1, "--stall-timeout", STALL_SECS, script(STEADY), sign)
    assert ended.returncode == 0, ended.stderr
    assert "no task has made progress" not in ended.stderr


def test_the_report_of_a_long_wait_is_no_progress(script):
    text = """
        import tfdist, tfdist.deadline
        tfdist.deadline.FIRST_NOTICE_SECS = 0.5
        task = tfdist.Task.from_env()
        with tfdist.worker_server(task):
            if task.is_chief:
                tfdist.Barrier(task, "end").wait()
    """
    ended = run("--stall-timeout", STALL_SECS, script(textwrap.dedent(text)))
    assert ended.returncode == 75, ended.stderr
    assert re.search(r"\[worker:0\] barrier 'end' .* missing worker:1", ended.stderr)
    assert "printed something" not in ended.stderr


@pytest.mark.parametrize("name", ["worker:1", "ps:0"])
def test_a_stopped_task_is_reported_in_time(script, tmp_path, name):
    options = ["--stall-timeout", STALL_SECS, "--log-dir", tmp_path / "logs"]
    launcher = subprocess.Popen(
        command("--workers", 3, *options, script(STEPS)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines, reported = [], threading.Event()

    def read():
        for line in launcher.stderr:
            lines.append(line)
            if line.startswith("no task has made progress for "):  # the report
                reported.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        poll_until(lambda: all_note(tmp_path / "logs"), "all workers take steps", timeout=60)
        records = {
            record.name: record for record in RunFolder.find(str(tmp_path / "logs")).latest()
        }
        os.kill(records[name].pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        assert reported.wait(60)
        assert time.monotonic() - stopped_at <= STALL_SECS + REPORT_SECS
        assert launcher.wait(30) == 75
    finally:
        launcher.terminate()
        launcher.wait(30)
        reader.join()
    text = "".join(lines)
    assert f"{name}  attempt 1  pid {records[name].pid}  is stopped, by SIGSTOP" in text
    if name == "ps:0":
        assert "barriers: ps:0, which keeps the barriers, is stopped" in text
    else:
        assert "worker:1: stopped, steps: " in text
        assert "step " in text
    assert not any(psutil.pid_exists(record.pid) for record in records.values())


def all_note(logs):
    with contextlib.suppress(OSError, ValueError):
        run_folder = RunFolder.find(str(logs))
        folders = [run_folder.folder_of(f"worker:{index}", 1) for index in range(3)]
        return all((folder / "progress.json").exists() for folder in folders)
    return False


def test_a_slow_job_goes_on(script):
    ended = run("--stall-timeout", 1.5, script(SLOW))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("done") == 2
    assert "SLOW, task: worker:0" in ended.stderr
    assert "what to do" not in ended.stderr


def test_with_on_stall_report_the_job_goes_on(script, tmp_path):
    logs, job = (
        tmp_path / "logs",
        script(NEVER_COMES.replace("wait()\n\n\ntask", "wait(6)\n\n\ntask")),
    )
    ended = run("--stall-timeout", 2, "--on-stall", "report", "--log-dir", logs, job)
    assert ended.returncode == 0, ended.stderr
    assert "tfdist: what to do: " in ended.stderr
    [folder] = logs.iterdir()
    assert "</html>" in (folder / "stall.html").read_text("utf-8")
    assert json.loads((folder / "stall.json").read_text())["verdict"]["name"]
