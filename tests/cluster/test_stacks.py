"""`tfdist stacks` and `tfdist status`: what they read, and how they refuse."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.launches import tfdist
from tfdist.cli import main
from tfdist.cluster.processes import STACKS_SIGNAL
from tfdist.diagnosis.barriers import Barriers
from tfdist.diagnosis.evidence import Frame, Stack
from tfdist.diagnosis.stacks import Masks, ask, is_over, parse
from tfdist.errors import ConfigError
from tfdist.runs.barrier_notes import BarrierNote, note_barrier
from tfdist.runs.live import while_it_lasts
from tfdist.task import PROGRESS_VARIABLE, Task
from tfdist.testing import poll_until

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("command", ["stacks", "status"])
def test_without_a_job_there_is_one_line_and_exit_code_2(command, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ended = tfdist(command, "--json")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"no running job of yours found in {tmp_path};" in ended.stderr
    ended = tfdist(command, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("text", ["{oops", "[]", "{}"])
def test_a_foreign_run_json_is_one_line_and_exit_code_2(text, tmp_path, capsys):
    (tmp_path / "run.json").write_text(text)
    assert main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_ps_that_does_not_report_its_barriers_is_exit_code_1(folder, capsys, monkeypatch):
    run = folder("tfdist-a", Task("ps", 0, {"ps": ["localhost:1"], "worker": ["localhost:2"]}))
    task_folder = Path(run.folder("ps:0", 1))
    run.started("ps:0", 1, os.getpid())
    assert main(["status", str(run.path)]) == 0  # the run has no barriers
    note_barrier(BarrierNote("end", 1), {PROGRESS_VARIABLE: str(task_folder / "progress.json")})
    monkeypatch.setattr("tfdist.cli.status.ask", lambda *_: Barriers(failure="no answer"))
    capsys.readouterr()
    assert main(["status", str(run.path)]) == 1
    assert capsys.readouterr().out.endswith("\nbarriers: no answer\n")
    assert main(["status", str(run.path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["barriers_failure"] == "no answer"


def test_several_jobs_are_listed(folder, capsys):
    runs = [folder("tfdist-a"), folder("tfdist-b")]
    assert main(["stacks"]) == 2
    errors = capsys.readouterr().err
    assert all(str(run.path) in errors for run in runs)
    assert "several of your jobs are running" in errors


def test_a_job_whose_launcher_is_gone_is_not_found(folder, capsys):
    over = folder("tfdist-a")
    about = json.loads((over.path / "run.json").read_text())
    about["launcher"]["ticks"] -= 1
    (over.path / "run.json").write_text(json.dumps(about))
    live = folder("tfdist-b")
    main(["status", "--json"])
    assert json.loads(capsys.readouterr().out)["run"] == str(live.path)


def test_a_job_that_ends_while_it_is_read_is_reported(folder):
    run = folder("tfdist-a")
    shutil.rmtree(run.path)
    with pytest.raises(ConfigError, match="has ended meanwhile"), while_it_lasts(run):
        _ = run.about


def test_an_unknown_task_is_one_line_and_exit_code_2(folder, capsys):
    run = folder("tfdist-a")
    assert main(["stacks", str(run.path), "--task", "worker:7"]) == 2
    assert capsys.readouterr().err == "tfdist: --task: got 'worker:7'; must be one of worker:0\n"


# A generator of an input never returns its second element.
INPUT = """
import threading
import tensorflow as tf

def numbers():
    yield 1
    print("here", flush=True)
    threading.Event().wait()

for _ in tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec((), tf.int32)):
    pass
"""


def test_a_verdict_needs_all_tasks(folder, capsys):
    run = folder("tfdist-a")
    assert main(["stacks", str(run.path), "--verdict", "--task", "worker:0"]) == 2
    assert capsys.readouterr().err == (
        "tfdist: --verdict: got 'worker:0'; needs all tasks; leave out --task\n"
    )


@pytest.fixture
def foreign():
    """A Python process without tfdist that waits for a line and prints it."""
    code = "print('here', flush=True); print(input(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "here\n"
        asleep = psutil.STATUS_SLEEPING
        poll_until(lambda: psutil.Process(process.pid).status() == asleep, "it waits")
        yield process
        process.kill()


def is_alive(foreign):
    foreign.stdin.write("alive\n")
    foreign.stdin.flush()
    return foreign.stdout.readline() == "alive\n"


@pytest.mark.parametrize("native", [[], ["--native"]])
def test_any_process_survives_to_be_read(foreign, native):
    ended = tfdist("stacks", "--pid", foreign.pid, os.getpid(), "--json", *native)
    assert ended.returncode == 0, ended.stderr
    process, own = json.loads(ended.stdout)["processes"]
    assert (process["pid"], own["pid"]) == (foreign.pid, os.getpid())
    assert process["kernel"]["main"]["state"] == "sleeping"
    assert process["kernel"]["main"]["syscall"] is not None
    [main] = process["stacks"]
    assert main["main"]
    calls = [frame["function"] for frame in main["frames"]]
    assert "<module>" in calls
    assert (len(calls) > 1) == bool(native)  # `input` is written in C
    assert process["complaint"] is None
    assert is_alive(foreign)


# Programs that make no progress, and the verdict on each.
HANGS = {
    "import threading; print('here', flush=True); threading.Event().wait()": "STUCK_IN_CALL",
    "print('here', flush=True); list(iter(int, 1))": "SLOW",
    "import os, signal; print('here', flush=True); os.kill(0, signal.SIGSTOP)": "PEER_STOPPED",
    INPUT: "INPUT_STALLED",
}


@pytest.mark.parametrize("code", HANGS)
def test_a_foreign_process_gets_a_verdict(code):
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout.readline() == "here\n"
            ended = tfdist("stacks", "--pid", process.pid, "--verdict")
        finally:
            process.kill()
    verdict, *more = ended.stdout.splitlines()
    assert verdict.startswith(f"verdict: {HANGS[code]}, ")
    assert f": pid {process.pid} (" in verdict
    assert any(line.startswith("what to do: ") for line in more)


def test_the_output_says_that_no_signal_is_sent(foreign, capsys):
    main(["stacks", "--pid", str(foreign.pid)])
    assert capsys.readouterr().out.startswith("processes given by --pid get no signal;")


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("echo 'Error: no way' >&2; echo 'Reason: none' >&2; exit 1", "Error: no way Reason: none"),
        ("printf 'Error: odd\\nStack backtrace:\\n 0: main' >&2; exit 1", "Error: odd"),
    ],
)
def test_a_failure_of_py_spy_is_printed(program, complaint, foreign, tmp_path, monkeypatch, capsys):
    fake = tmp_path / "py-spy"
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main(["stacks", "--pid", str(foreign.pid)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"  py-spy failed: {complaint}"


def test_a_verdict_by_pid_needs_py_spy(foreign, monkeypatch, capsys):
    monkeypatch.setattr("tfdist.diagnosis.stacks.find_py_spy", lambda: None)
    assert main(["stacks", "--verdict", "--pid", str(foreign.pid)]) == 2
    assert capsys.readouterr().err == (
        f"tfdist: --verdict: got {foreign.pid}; py-spy cannot read it: py-spy is not installed: "
        "pip install py-spy\n"
    )


def test_a_missing_py_spy_is_reported_once_for_all_processes(foreign, monkeypatch, capsys):
    monkeypatch.setattr("tfdist.diagnosis.stacks.find_py_spy", lambda: None)
    line = "py-spy is not installed: pip install py-spy"
    assert main(["stacks", "--native", "--pid", str(foreign.pid), str(os.getpid())]) == 1
    text = capsys.readouterr().out
    assert (text.splitlines()[-1], text.count("not installed")) == (line, 1)


def test_permission_denied_by_the_kernel_is_printed(monkeypatch, capsys):
    """As for another user's process, whose `wchan` is 0, as for a thread that does not wait."""
    read_text = Path.read_text

    def refuse(path, *arguments):
        if path.name == "syscall":
            raise PermissionError(1, "Operation not permitted", str(path))
        return "0" if path.name == "wchan" else read_text(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refuse)
    main(["stacks", "--pid", str(os.getppid())])
    text = capsys.readouterr().out
    assert re.search(r"  kernel: main thread: \w+ \(where: permission denied\)\n", text)


def test_a_process_without_a_handler_gets_no_signal(foreign, tmp_path):
    stacks = tmp_path / "stacks"
    stacks.touch()
    assert ask(psutil.Process(foreign.pid), stacks).state == "deaf"
    assert is_alive(foreign)


def test_a_pid_that_does_not_exist_is_one_line_and_exit_code_2(capsys):
    assert main(["stacks", "--pid", "0"]) == 2
    assert capsys.readouterr().err == "tfdist: --pid: got 0; no such process\n"


# Has more threads; the main thread, or all Python threads, may block the signal, so that another
# thread takes it.
ANSWERS = """
import ctypes, faulthandler, signal, sys, threading
path, number, threads, blocked = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
faulthandler.register(number, open(path, "wb", buffering=0), all_threads=True)
def wait_in_a_thread():
    threading.Event().wait()
def wait_in_main():
    print("here", flush=True)
    threading.Event().wait()
if blocked == "by all of Python":
    libc, semaphore = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    number_of_thread = ctypes.byref(ctypes.c_ulong())
    assert libc.pthread_create(number_of_thread, None, libc.sem_wait, semaphore) == 0
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
for _ in range(threads):
    threading.Thread(target=wait_in_a_thread, daemon=True).start()
if blocked == "by main":
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
wait_in_main()
"""


@pytest.fixture
def answering(tmp_path):
    """Starts ANSWERS; returns its process and its file."""
    started = []

    def start(threads, blocked="by none"):
        path = tmp_path / "stacks"
        options = [str(path), str(int(STACKS_SIGNAL)), str(threads), blocked]
        command = [sys.executable, "-c", ANSWERS, *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "here\n"
        return psutil.Process(process.pid), path

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("blocked", ["by none", "by main", "by all of Python"])
def test_the_answer_is_whole_whichever_thread_takes_the_signal(answering, blocked):
    process, path = answering(2, blocked)
    for _ in range(3):
        answer = ask(process, path, timeout=30)
        assert answer.state == "answered"
        names = [{frame.function for frame in stack.frames} for stack in answer.stacks]
        assert [("wait_in_main" in name, "wait_in_a_thread" in name) for name in names] == [
            (True, False),
            (False, True),
        ]
        assert [(stack.main, stack.count) for stack in answer.stacks] == [(True, 1), (False, 2)]


def test_of_many_threads_a_hundred_are_shown_and_none_is_called_the_main_thread(answering):
    answer = ask(*answering(150), timeout=30)
    assert (answer.state, answer.more_threads) == ("answered", True)
    assert [(stack.main, stack.count) for stack in answer.stacks] == [(False, 100)]


def test_a_process_is_asked_by_one_program_at_a_time(answering):
    process, path = answering(2)
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another program that asks
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, process, path, timeout=60)
            descriptors = Path("/proc/self/fd")
            poll_until(lambda: opened(descriptors, path) == 2, "it waits for the lock")
            assert path.stat().st_size == 0
            fcntl.flock(file, fcntl.LOCK_UN)
            answer = asked.result(60)
    assert [(stack.main, stack.count) for stack in answer.stacks] == [(True, 1), (False, 2)]


def opened(descriptors, path):
    """How often this process has the file open."""
    links = [number.resolve() for number in descriptors.iterdir()]
    return links.count(path.resolve())


def test_a_process_that_never_answers_is_silent(tmp_path):
    """Its handler takes the signal and writes nothing."""
    before = signal.signal(STACKS_SIGNAL, lambda number, frame: None)
    try:
        (tmp_path / "stacks").touch()
        answer = ask(psutil.Process(), tmp_path / "stacks", timeout=0.1)
    finally:
        signal.signal(STACKS_SIGNAL, before)
    assert (answer.state, answer.stacks) == ("silent", ())


@pytest.mark.parametrize("listens", [True, False])
def test_status_local_checks_whether_the_server_listens(listens, monkeypatch, capsys):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        config = {"cluster": {"ps": [address]}, "task": {"type": "ps", "index": 0}}
        config["cluster"]["worker"] = ["127.0.0.1:1"]
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        assert main(["status", "--local"]) == (0 if listens else 1)
    assert address in capsys.readouterr().out


def test_status_local_without_tf_config_is_exit_code_2(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert main(["status", "--local"]) == 2


WAITS = '  File "/lib/threading.py", line 629 in wait\n'
DUMP = (
    f"Thread 0x0a (most recent call first):\n{WAITS}\n"
    f"Thread 0x0b (most recent call first):\n{WAITS}\n"
    "Current thread 0x0c (most recent call first):\n"
    '  File "/a, line 3/job.py", line 6 in <module>\n'
)


FREE = Masks(pending=False, blocked=False, caught=True)
BLOCKED = replace(FREE, blocked=True)


@pytest.mark.parametrize(
    ("now", "over"),
    [
        ({1: FREE, 2: BLOCKED}, True),
        ({1: replace(FREE, pending=True), 2: BLOCKED}, False),  # no thread has taken it
        ({1: BLOCKED, 2: BLOCKED}, False),  # thread 1 is in the handler
        ({1: FREE, 2: BLOCKED, 3: BLOCKED}, True),  # a new thread, which blocks it by itself
    ],
)
def test_an_answer_is_over_when_no_thread_is_in_the_handler(now, over):
    assert is_over({1: FREE, 2: BLOCKED}, now) == over


def test_equal_stacks_are_one_and_the_main_thread_is_first():
    assert parse(DUMP, whole=True) == (
        Stack((Frame("/a, line 3/job.py", 6, "<module>"),), main=True),
        Stack((Frame("/lib/threading.py", 629, "wait"),), count=2),
    )


def test_half_an_answer_has_no_main_thread():
    half = DUMP[: DUMP.index("Current")]
    assert parse(half, whole=False) == (Stack((Frame("/lib/threading.py", 629, "wait"),), count=2),)


def test_two_answers_count_each_thread_once():
    assert parse(DUMP + DUMP, whole=True) == parse(DUMP, whole=True)


def test_an_answer_with_threads_left_out_has_no_main_thread():
    dump = f"Thread 0x0a (most recent call first):\n{WAITS}\n...\n"
    assert not parse(dump, whole=True)[0].main
