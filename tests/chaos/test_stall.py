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
    verdict = json.loads((folder / "stall.json").read_text())["verdict"]
    assert (verdict["name"], verdict["culprits"]) == ("STUCK_IN_CALL", ["worker:0"])
    assert "called by never_come (job.py:" in verdict["because"][0]
    assert verdict["because"][1].startswith("worker:1 waits at a tfdist.Barrier: ")


# Each worker waits in a call that only the worker itself could end.
ENDLESS = """
import concurrent.futures, multiprocessing, os, queue, threading, tfdist

def die(number):
    os._exit(number)

def in_event():
    threading.Event().wait()

def for_room():
    full = queue.Queue(1)
    full.put(1)
    full.put(2)

def for_future():
    concurrent.futures.Future().result()

def for_pool():
    multiprocessing.get_context("fork").Pool(2).map(die, [3])

def for_thread():
    threading.Thread(target=in_event).start()  # joined at the end

def die_later(number):
    threading.Event().wait(0.1)
    os._exit(number)

def for_dying_pool():
    multiprocessing.get_context("fork").Pool(2, die_later, (3,)).map(die, [3])

def for_lock():
    lock = threading.Lock()
    with lock:
        lock.acquire()

def in_watchdog():
    with tfdist.Watchdog(600):
        threading.Event().wait()

calls = [in_event, for_room, for_future, for_pool, for_thread, for_dying_pool, for_lock]
[*calls, in_watchdog][tfdist.Task.from_env().rank]()
"""
# Each worker waits for an item of a queue; the thread or process that fed it has died.
UNFED = """
import multiprocessing, os, queue, threading, tfdist

def feed(items):
    items.put(1)
    raise ValueError("bad line in part-3")

def feed_and_die(items):
    items.put(1)
    os.kill(os.getpid(), 9)

def take(items):
    while True:
        items.get()

task = tfdist.Task.from_env()
if task.rank == 0:
    items = queue.Queue()
    threading.Thread(target=feed, args=(items,), daemon=True).start()
else:
    fork = multiprocessing.get_context("fork")
    items = fork.SimpleQueue() if task.rank == 1 else fork.Queue()
    fork.Process(target=feed_and_die, args=(items,)).start()
take(items)
"""
# Each worker waits in a call that something outside could end.
OUTSIDE = """
import fcntl, os, socket, subprocess, sys, time, urllib.request, tfdist

def for_child():
    subprocess.run(["sleep", "600"])

def for_data():
    socket.create_connection(server.getsockname()).recv(1)

def for_answer():
    urllib.request.urlopen("http://127.0.0.1:%d" % server.getsockname()[1])

def for_partner():
    os.mkfifo(name)
    open(name)

def for_lock():
    with open(name, "w") as first, open(name, "w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)

def in_sleep():
    time.sleep(600)

server = socket.create_server(("127.0.0.1", 0))
rank = tfdist.Task.from_env().rank
name = f"{sys.argv[1]}/file-{rank}"
[for_child, for_data, for_answer, for_partner, for_lock, in_sleep][rank]()
"""


def verdict_of(ended):
    """The lines of the verdict, without their beginning."""
    assert ended.returncode == 75, ended.stderr
    lines = ended.stderr.splitlines()
    first = next(number for number, line in enumerate(lines) if "tfdist: verdict: " in line)
    return [line.removeprefix("tfdist:").strip() for line in lines[first:]]


def assert_named(lines, rank, *words):
    [line] = [line for line in lines if line.startswith(f"worker:{rank} ")]
    assert all(word in line for word in words), line


def test_a_wait_that_no_thread_of_the_task_can_end_is_named(script):
    ended = run("--ps", 0, "--workers", 8, "--stall-timeout", 1.5, script(ENDLESS))
    heading, *lines = verdict_of(ended)
    workers = ", ".join(f"worker:{rank}" for rank in range(8))
    assert heading == f"verdict: STUCK_IN_CALL, cause: {workers} (likely)"
    assert "seems slow" not in ended.stderr
    because = lines[:8]
    assert_named(because, 0, "a threading.Event to be set: wait (threading.py:", "in_event (job.py")
    assert_named(because, 1, "room in a queue: put (queue.py:", "called by for_room (job.py:")
    assert_named(because, 2, "the result of a future: result (_base.py:", "for_future (job.py:")
    assert_named(because, 3, "for the processes of a pool: map (pool.py:", "for_pool (job.py:")
    assert_named(because, 3, "2 child processes of it, and none works")
    assert_named(because, 4, "a thread to end", "another thread of it is in in_event (job.py:")
    assert_named(because, 5, "called by for_dying_pool (job.py:", "and new ones took their place: ")
    assert_named(because, 6, "for the lock lock (job.py:34) inside of with lock (job.py:33)")
    assert_named(because, 7, "called by in_watchdog (job.py:", "and no child process")


def test_a_queue_that_a_dead_thread_or_process_fed_is_named(script):
    ended = run("--ps", 0, "--workers", 3, "--stall-timeout", 1.5, script(UNFED))
    heading, *lines = verdict_of(ended)
    assert heading.startswith("verdict: INPUT_STALLED, cause: ")
    assert_named(lines[:3], 0, "get (queue.py:", "called by take (job.py:")
    assert_named(
        lines[:3], 0, "its thread Thread-1 (feed) has died: ValueError: bad line in part-3"
    )
    for rank in (1, 2):
        assert_named(lines[:3], rank, "get (queues.py:", "called by take (job.py:")
        assert_named(lines[:3], rank, "its child process ", " was killed by SIGKILL")


def test_a_call_that_does_not_return_is_named_and_the_job_not_called_slow(script, tmp_path):
    ended = run("--ps", 0, "--workers", 6, "--stall-timeout", 1, script(OUTSIDE), tmp_path)
    heading, *lines = verdict_of(ended)
    assert heading.startswith("verdict: STUCK_IN_CALL, cause: worker:0, worker:1, ")
    assert_named(
        lines[:6], 0, "run (subprocess.py:", "for_child (job.py:", "a child process to end"
    )
    assert_named(lines[:6], 1, "for_data (job.py:", "waits for the other end of a connection")
    assert_named(lines[:6], 2, "urlopen (request.py:", "for_answer (job.py:", "of a web server")
    assert_named(lines[:6], 3, "for_partner (job.py:", "the other end of a FIFO")
    assert_named(lines[:6], 4, "for_lock (job.py:", "waits for the lock of a file")
    assert_named(lines[:6], 5, "in_sleep (job.py:", "waits for the end of a sleep")
    assert re.match(
        r"such a call may still return, so tfdist waited \d+ s instead of 1 s", lines[6]
    )
    assert not any("SLOW" in line for line in lines)
    assert re.search(r" s; a job that seems slow gets 8 s: SLOW, tasks: worker:0, ", ended.stderr)
