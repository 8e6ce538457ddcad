"""Watchdog: a stalled process is reported and ended; a process that makes progress is not."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import tfdist
from tfdist import ConfigError
from tfdist.task import PROGRESS_VARIABLE

BEGIN = """
import threading, time, tfdist
"""
STUCK = """
with tfdist.Watchdog(1.0) as watchdog:
    watchdog.progress.update("epoch 1", 3, 10)
    threading.Event().wait(60)
"""
REPORTED = """
with tfdist.Watchdog(1.0, on_stall="report"):
    threading.Event().wait(5)
print("goes on")
"""
PROGRESS = """
with tfdist.Watchdog(2.0) as watchdog:
    for step in range(12):
        threading.Event().wait(0.5)
        watchdog.progress.update(f"step {step}", step, 12)
print("done")
"""
STOPPED = """
import os, signal
with tfdist.Watchdog(1.0):
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def run(tmp_path):
    """Runs a script, which must leave nothing behind."""

    def run_script(script):
        return subprocess.run(
            [sys.executable, "-c", BEGIN + script],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield run_script
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_hangs_is_reported_and_ended(run):
    ended = run(STUCK)
    assert ended.returncode == 75, ended.stderr
    assert "has made no progress for" in ended.stderr
    assert "STUCK_IN_CALL" in ended.stderr
    assert "waits for a threading.Event to be set: wait (threading.py:" in ended.stderr
    assert "called by <module> (<string>:" in ended.stderr


def test_with_on_stall_report_the_process_goes_on(run):
    ended = run(REPORTED)
    assert (ended.returncode, ended.stdout) == (0, "goes on\n"), ended.stderr
    assert "has made no progress for" in ended.stderr


def test_a_process_that_makes_progress_is_left_alone(run):
    ended = run(PROGRESS)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_a_process_that_cannot_end_by_itself_is_killed(run):
    ended = run(STOPPED)
    assert ended.returncode == -9, ended.stderr
    assert "PEER_STOPPED" in ended.stderr


def test_a_passed_barrier_is_progress(monkeypatch):
    monkeypatch.delenv(PROGRESS_VARIABLE, raising=False)
    with tfdist.Watchdog(60):
        folder = Path(os.environ[PROGRESS_VARIABLE]).parent
        with tfdist.local_cluster(1, 1) as cluster:
            cluster.run(lambda task: tfdist.Barrier(task, "end", timeout=20).wait())
        assert (folder / "barrier-passed").exists()


def test_nothing_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(PROGRESS_VARIABLE, raising=False)
    children = set(psutil.Process().children())
    with tfdist.Watchdog(60):
        assert set(psutil.Process().children()) > children
    assert set(psutil.Process().children()) == children
    assert PROGRESS_VARIABLE not in os.environ
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "field"),
    [({"timeout": 0}, "timeout"), ({"timeout": 1, "on_stall": "x"}, "on_stall")],
)
def test_bad_input_is_named(values, field):
    with pytest.raises(ConfigError) as caught:
        tfdist.Watchdog(**values)
    assert caught.value.field == field
