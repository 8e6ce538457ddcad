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
from tfdist.runs.progress import ProgressNote
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
# The inner one is often in a function of a library.
NESTED = """
def load():
    with tfdist.Watchdog({inner}):
        threading.Event().wait(60)

with tfdist.Watchdog({outer}) as watchdog:
    watchdog.progress.update("epoch 1", 3, 10)
    load()
"""
LEFT = """
with tfdist.Watchdog(1.0):
    threading.Event().wait(1.7)  # the report is made in this time
print("done")
"""
CHILD = """
import multiprocessing

def stuck():
    with tfdist.Watchdog(1.0):
        threading.Event().wait(60)

if __name__ == "__main__":
    with tfdist.Watchdog(60) as watchdog:
        child = multiprocessing.get_context("{method}").Process(target=stuck)
        child.start()
        child.join()
        watchdog.progress.update("epoch 1", child.exitcode, None)
    print(child.exitcode)
"""
POOL = """
import multiprocessing, os, signal

def die():
    threading.Event().wait(0.1)
    os.kill(os.getpid(), signal.SIGKILL)

with tfdist.Watchdog(1.0):
    multiprocessing.get_context("fork").Pool(2, die).map(print, [1])
"""
LOCKS = """
first, second, both = threading.Lock(), threading.Lock(), threading.Barrier(2)

def other():
    with second:
        both.wait()
        first.acquire()

def one():
    with first:
        both.wait()
        with second:
            pass

threads = [threading.Thread(target=function, daemon=True) for function in (one, other)]
with tfdist.Watchdog(1.0):
    threads[1].start()
    {main}
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


@pytest.mark.parametrize(("outer", "inner"), [(60, 1.0), (1.0, 60)])
def test_nested_watchdogs_take_each_other_for_no_work(run, outer, inner):
    ended = run(NESTED.format(outer=outer, inner=inner))
    assert ended.returncode == 75, ended.stderr
    assert "seems slow" not in ended.stderr
    assert "has no other thread of the script, and no child process" in ended.stderr


def test_a_block_that_is_left_while_the_report_is_made_is_not_ended(run):
    ended = run(LEFT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_process_has_a_watchdog_of_its_own(run, method):
    ended = run(CHILD.format(method=method))
    assert (ended.returncode, ended.stdout) == (0, "75\n"), ended.stderr
    assert ended.stderr.count("has made no progress for") == 1
    assert "called by stuck (job.py:" in ended.stderr


def test_the_processes_of_a_pool_that_die_again_and_again_are_named(run):
    ended = run(POOL)
    assert ended.returncode == 75, ended.stderr
    assert "waits for the processes of a pool: map (pool.py:" in ended.stderr
    died = "the pool's child processes died, and new ones took their place: "
    unknown = "the pool's child processes ended, and new ones took their place: "
    # Before Linux 6.15 the kernel does not say how they ended.
    assert (died in ended.stderr and "killed by SIGKILL within" in ended.stderr) or (
        unknown in ended.stderr and os.uname().release < "6.15"
    ), ended.stderr


@pytest.mark.parametrize(
    ("main", "who"),
    [
        ("one()", "it"),
        ("threads[0].start(); threads[1].join()", "another thread of it"),
    ],
)
def test_locks_that_two_threads_take_in_different_orders_are_named(run, main, who):
    ended = run(LOCKS.format(main=main))
    assert ended.returncode == 75, ended.stderr
    assert "seems slow" not in ended.stderr
    assert f"; {who} waits for the lock second (job.py:14) inside of with first (job.py:12)" in (
        ended.stderr
    )
    assert "another thread of it waits for the lock first (job.py:9) inside of with second" in (
        ended.stderr
    )


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


def test_progress_is_noted_only_within_the_block(monkeypatch, caplog):
    monkeypatch.delenv(PROGRESS_VARIABLE, raising=False)
    earlier = tfdist.Progress.from_env()
    watchdog = tfdist.Watchdog(60)
    for _ in range(2):
        with pytest.raises(tfdist.ClusterError, match="only in its block: with tfdist"):
            _ = watchdog.progress
        with pytest.raises(tfdist.ClusterError, match="watches nothing; enter its block first"):
            watchdog.__exit__()
        with watchdog:
            path = Path(os.environ[PROGRESS_VARIABLE])
            all_of_them = [earlier, watchdog.progress, tfdist.Progress.from_env()]
            for step, progress in enumerate(all_of_them):
                progress.update("epoch 1", step, 3)
                assert ProgressNote.read(path) == ProgressNote("epoch 1", step, 3)
        for progress in all_of_them:
            progress.update("epoch 2", 1, 3)
    assert not path.parent.exists()
    assert caplog.messages == []


def test_blocks_that_overlap_share_their_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(PROGRESS_VARIABLE, raising=False)
    first, second = tfdist.Watchdog(60), tfdist.Watchdog(60)
    first.__enter__()
    [folder] = tmp_path.iterdir()
    second.__enter__()
    first.__exit__()
    assert list(tmp_path.iterdir()) == [folder]
    second.progress.update("epoch 1", 1, 3)
    assert ProgressNote.read(folder / "progress.json") == ProgressNote("epoch 1", 1, 3)
    second.__exit__()
    assert list(tmp_path.iterdir()) == []
    assert PROGRESS_VARIABLE not in os.environ


def test_a_launcher_s_file_is_used_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "progress.json"))
    with tfdist.Watchdog(60) as watchdog:
        watchdog.progress.update("epoch 1", 1, 3)
    assert ProgressNote.read(tmp_path / "progress.json") == ProgressNote("epoch 1", 1, 3)
    assert os.environ[PROGRESS_VARIABLE] == str(tmp_path / "progress.json")


def test_a_watchdog_that_cannot_start_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(PROGRESS_VARIABLE, raising=False)
    monkeypatch.setattr("sys.executable", "/nonexistent")
    with pytest.raises(FileNotFoundError):
        tfdist.Watchdog(60).__enter__()
    assert list(tmp_path.iterdir()) == []
    assert PROGRESS_VARIABLE not in os.environ
