"""Watchdog: a stalled process is reported and ended; a process that makes progress is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import tfdist
from tfdist import ConfigError
from tfdist.task import PROGRESS_VARIABLE
from tfdist.testing import poll_until

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

LAST_WORDS = """
print("last words")
"""
FORKED = """
import os, sys
with tfdist.Watchdog(1.0) as watchdog:
    if os.fork() == 0:
        sys.exit()
    os.wait()
    watchdog.progress.update("epoch 1", 3, 10)
    threading.Event().wait(60)
"""
SURVIVED = """
import os, subprocess
with tfdist.Watchdog(1.0):
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        time.sleep(100)
    print(child, flush=True)
    os._exit(0)
"""


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    """Runs a script, which must leave nothing behind."""
    path = tmp_path_factory.mktemp("script") / "job.py"

    def run_script(script, redirect="", folder=None):
        path.write_text(BEGIN + script)
        return subprocess.run(
            ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, path],
            env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": ""},
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield run_script
    # The second process removes the folder after the first one has ended.
    poll_until(lambda: not list(tmp_path.iterdir()), "nothing is left behind")


def test_a_process_that_hangs_is_reported_and_ended(run):
    ended = run(STUCK)
    assert ended.returncode == 75, ended.stderr
    assert "has made no progress for" in ended.stderr
    assert "STUCK_IN_CALL" in ended.stderr
    assert "waits for a threading.Event to be set: wait (threading.py:" in ended.stderr
    assert "called by <module> (job.py:" in ended.stderr


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


def test_the_output_before_the_end_is_not_lost(run):
    ended = run(LAST_WORDS + STUCK)
    assert (ended.returncode, ended.stdout) == (75, "last words\n"), ended.stderr


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_a_report_that_cannot_be_printed_does_not_save_the_process(run, redirect):
    assert run(STUCK, redirect).returncode == 75


def test_a_forked_child_that_leaves_the_block_ends_no_watch(run):
    ended = run(FORKED)
    assert ended.returncode == 75, ended.stderr
    assert ended.stderr.count("has made no progress for") == 1
    assert "threading.py" in ended.stderr  # the stacks are still there


def test_the_watch_ends_with_the_process_though_a_child_holds_its_pipe(run):
    ended = run(SURVIVED)
    os.kill(int(ended.stdout), signal.SIGKILL)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_modules_in_the_current_folder_do_not_shadow_those_of_the_watchdog(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("current")
    (folder / "json.py").write_text("raise SystemExit('shadowed')")
    assert run(STUCK, folder=folder).returncode == 75


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


def test_a_watchdog_watches_once_at_a_time(monkeypatch):
    monkeypatch.delenv(PROGRESS_VARIABLE, raising=False)
    watchdog = tfdist.Watchdog(60)
    for _ in range(2):
        with watchdog, pytest.raises(tfdist.ClusterError, match="watches already"):
            watchdog.__enter__()
