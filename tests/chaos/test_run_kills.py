"""`tfdist run` with a task that is killed at any moment."""

import os
import signal
import subprocess
import sys

import pytest

from tfdist.runs.folder import RunFolder
from tfdist.testing import poll_until

pytestmark = pytest.mark.usefixtures("no_leaks")

ENDS_SECS = 10.0  # docs promise this after a kill
JOB = """
import os, sys, tfdist
task = tfdist.Task.from_env()
with tfdist.worker_server(task), tfdist.Barrier(task, "step", timeout=60) as step:
    open(os.path.join(sys.argv[1], f"{task.name} {os.getpid()}"), "w").close()
    while step.generation <= int(sys.argv[2]):
        step.wait()
"""
FOR_EVER = 10**9


@pytest.fixture
def launch(tmp_path):
    """Starts a job of `steps` steps; returns the launcher and the run's folder."""
    job = tmp_path / "job.py"
    job.write_text(JOB)
    launchers = []

    def start(steps, *options):
        logs = tmp_path / "logs"
        command = [sys.executable, "-m", "tfdist", "run", "--ps", 2, "--log-dir", logs, *options]
        launcher = subprocess.Popen(
            [*map(str, command), job, tmp_path, str(steps)], stderr=subprocess.PIPE, text=True
        )
        launchers.append(launcher)
        poll_until(lambda: list(logs.glob("*/run.json")), "the run has a folder", timeout=60)
        return launcher, RunFolder.find(str(logs))

    yield start
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.terminate()
        launcher.communicate(timeout=ENDS_SECS)


def pid_of(run, name, attempt=1):
    def find():
        records = [
            record for record in run.records() if (record.name, record.attempt) == (name, attempt)
        ]
        return records[0].pid if records else None

    poll_until(find, f"{name} has started", timeout=60)
    return find()


@pytest.mark.rotates(3)
@pytest.mark.parametrize("moment", ["as it starts", "as all train"])
@pytest.mark.parametrize("name", ["ps:0", "ps:1", "worker:0", "worker:1"])
def test_the_job_ends_and_names_the_killed_task_and_the_signal(launch, tmp_path, name, moment):
    launcher, run = launch(FOR_EVER)
    pid = pid_of(run, name)
    if moment == "as all train":
        wait_for_trainers(tmp_path, 2)
    os.kill(pid, signal.SIGKILL)
    _, errors = launcher.communicate(timeout=ENDS_SECS)
    assert launcher.returncode == 70
    assert f"tfdist: {name} was killed by signal 9 (SIGKILL)" in errors
    assert {record.name: record.terminated for record in run.records()}.pop(name) is False
    assert all(record.exit_code is not None for record in run.records())


def test_a_killed_worker_is_restarted_in_a_new_process(launch, tmp_path):
    launcher, run = launch(1000, "--restart", 1)
    wait_for_trainers(tmp_path, 2)
    os.kill(pid_of(run, "worker:1"), signal.SIGKILL)
    wait_for_trainers(tmp_path, 3)
    _, errors = launcher.communicate(timeout=60)
    assert (launcher.returncode, "killed by SIGKILL" in errors) == (0, True), errors
    ends = [
        (record.name, record.exit_code) for record in run.records() if record.name == "worker:1"
    ]
    assert ends == [("worker:1", -signal.SIGKILL), ("worker:1", 0)]


def wait_for_trainers(folder, records):
    poll_until(lambda: len(list(folder.glob("worker:*"))) == records, "all train", timeout=60)
