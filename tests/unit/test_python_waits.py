"""The waits of Python's library: what a call waits for, what ends it, and what has died."""

import ast
import asyncio
import concurrent.futures
import fcntl
import importlib
import multiprocessing
import os
import pathlib
import queue
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import psutil
import pytest

from tests.jobs_seen import MAIN, PS, SITE, WAITS, at, job
from tfdist.cluster.guardian import Guardian
from tfdist.diagnosis.evidence import (
    BarrierEvidence,
    Child,
    Evidence,
    Frame,
    Place,
    Stack,
    State,
    TaskEvidence,
)
from tfdist.diagnosis.kernel import ChildState, Ends, children_of, cpu_times, is_busy
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.sample import _children, _readiness, _replaced
from tfdist.diagnosis.stacks import with_lock
from tfdist.diagnosis.verdict import Confidence, Name
from tfdist.diagnosis.waits import CALLS, losses_in, python_wait, shortages_in
from tfdist.diagnosis.watchdog import Watchdog
from tfdist.task import PROGRESS_VARIABLE
from tfdist.testing import poll_until


def module_of(file):
    return importlib.import_module(file.removesuffix(".py").replace("/", "."))


@pytest.mark.parametrize(
    ("file", "function"),
    [(file, name) for file, functions, _, _ in CALLS for name in functions or ("",)],
)
def test_a_known_call_exists_in_this_python(file, function):
    tree = ast.parse(pathlib.Path(module_of(file).__file__).read_text("utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not function or function in names


class Waits:
    """The calls that wait, and what ends each of them."""

    def __init__(self, folder):
        self.folder = folder
        os.mkfifo(folder / "fifo")
        self.event, self.lock, self.condition = (
            threading.Event(),
            threading.Lock(),
            threading.Condition(),
        )
        self.taken = threading.Condition()
        self.taken.acquire()
        self.semaphore, self.barrier = threading.Semaphore(0), threading.Barrier(2)
        self.empty, self.full, self.undone = queue.Queue(), queue.Queue(1), queue.Queue()
        self.full.put(1)
        self.undone.put(1)
        self.lock.acquire()
        self.future = concurrent.futures.Future()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.near, self.far = socket.socketpair()
        self.ends = multiprocessing.Pipe()
        self.child = subprocess.Popen(["sleep", "600"], stdout=subprocess.PIPE)
        self.file = open(folder / "lock", "w")  # noqa: SIM115
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.thread = threading.Thread(target=self.event.wait, daemon=True)
        self.thread.start()
        self.address = self.server.getsockname()
        self.web = socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler)

    def notify(self):
        with self.condition:
            self.condition.notify_all()

    def take(self):
        with self.taken:
            pass

    def wait_for(self):
        with self.condition:
            self.condition.wait()

    def lock_file(self):
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    def unlock_file(self):
        fcntl.flock(self.file, fcntl.LOCK_UN)

    def accept(self):
        self.server.accept()[0].close()

    def connect(self):
        socket.create_connection(self.address).close()

    def get_url(self):
        urllib.request.urlopen("http://{}:{}".format(*self.address), timeout=60)

    def answer(self):
        with self.server.accept()[0] as connection:
            connection.recv(1)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

    async def sleep(self):
        await asyncio.to_thread(self.event.wait)


CASES = {
    "an item of a queue": (lambda w: w.empty.get(), lambda w: w.empty.put(1)),
    "room in a queue": (lambda w: w.full.put(2), lambda w: w.full.get()),
    "task_done() for each item of a queue": (
        lambda w: w.undone.join(),
        lambda w: w.undone.task_done(),
    ),
    "a threading.Event to be set": (lambda w: w.event.wait(), lambda w: w.event.set()),
    "a threading.Condition to be notified": (lambda w: w.wait_for(), lambda w: w.notify()),
    "the lock of a threading.Condition": (lambda w: w.take(), lambda w: w.taken.release()),
    "a threading.Semaphore": (lambda w: w.semaphore.acquire(), lambda w: w.semaphore.release()),
    "other threads, at a threading.Barrier": (
        lambda w: w.barrier.wait(),
        lambda w: w.barrier.wait(),
    ),
    "a thread to end": (lambda w: w.thread.join(), lambda w: w.event.set()),
    "a lock": (lambda w: w.lock.acquire(), lambda w: w.lock.release()),
    "the result of a future": (lambda w: w.future.result(), lambda w: w.future.set_result(1)),
    "a child process to end": (lambda w: w.child.wait(), lambda w: w.child.kill()),
    "data from a pipe": (lambda w: w.child.stdout.read(), lambda w: w.child.kill()),
    "data from another process": (lambda w: w.ends[0].recv(), lambda w: w.ends[1].send(1)),
    "another process to connect": (lambda w: w.accept(), lambda w: w.connect()),
    "data from a connection": (lambda w: w.near.recv(1), lambda w: w.far.send(b"x")),
    "the answer of a web server": (lambda w: w.get_url(), lambda w: w.answer()),
    "a file or connection to be ready": (
        lambda w: select.select([w.near], [], []),
        lambda w: w.far.send(b"x"),
    ),
    "another process to open the other end of a FIFO": (
        lambda w: (w.folder / "fifo").read_text(),
        lambda w: (w.folder / "fifo").write_text(""),
    ),
    "the lock of a file": (lambda w: w.lock_file(), lambda w: w.unlock_file()),
    "an asyncio task": (lambda w: asyncio.run(w.sleep()), lambda w: w.event.set()),
    "a request": (lambda w: w.web.serve_forever(), lambda w: w.web.shutdown()),
    "the end of a sleep": (lambda w: time.sleep(1), lambda w: None),
}


def task_of(thread):
    """A task whose main thread is at what this thread is at now."""
    frames, frame = [], sys._current_frames().get(thread.ident)
    while frame is not None:
        code = frame.f_code
        frames.append(Frame(code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    wchan = pathlib.Path(f"/proc/self/task/{thread.native_id}/wchan").read_text()
    return TaskEvidence("worker:0", stacks=(Stack(tuple(frames), main=True),), main_wait=wchan)


@pytest.mark.parametrize("what", CASES)
def test_a_wait_names_the_user_s_call_and_what_it_waits_for(what, tmp_path):
    call, release = CASES[what]
    waits = Waits(tmp_path)
    thread = threading.Thread(target=lambda: call(waits), daemon=True)
    thread.start()
    found = []
    try:

        def seen():
            wait = python_wait(task_of(thread))
            found[:] = [wait] if wait is not None and wait.what == what else []
            return bool(found)

        poll_until(seen, f"it waits for {what}")
    finally:
        release(waits)
        thread.join(30)
        waits.event.set()
        waits.child.kill()
        waits.child.communicate()
        waits.web.server_close()
        for one in (waits.server, waits.near, waits.far, *waits.ends, waits.file):
            one.close()
    assert not thread.is_alive()
    [wait] = found
    assert "(test_python_waits.py:" in wait.call
    # Only what this process itself has to do ends such a wait.
    is_internal = any(kind in what for kind in ("queue", "threading", "thread to", "future"))
    assert wait.may_return != is_internal


# --- rules


def lib(file, function):
    return Frame(f"{SITE}python3.11/{file}", 1, function)


def main(*frames):
    return Stack((*frames, MAIN), main=True)


EVENT = main(lib("threading.py", "wait"), lib("threading.py", "wait"))
GET = main(
    lib("threading.py", "wait"),
    lib("queue.py", "get"),
)
PUT = main(lib("threading.py", "wait"), lib("queue.py", "put"))
POOL = main(
    lib("threading.py", "wait"),
    lib("threading.py", "wait"),
    lib("multiprocessing/pool.py", "wait"),
    lib("multiprocessing/pool.py", "map"),
)
MP_GET = main(
    lib("multiprocessing/connection.py", "_recv"), lib("multiprocessing/queues.py", "get")
)
RECV = main(lib("multiprocessing/connection.py", "_recv"))
FEEDS = Stack((Frame("/jobs/feed.py", 7, "feed"), lib("threading.py", "run")))
LOCKED = Stack((lib("threading.py", "wait"), lib("threading.py", "wait"), FEEDS.frames[0]))
TAKES_B = replace(main(), acquires="b (train.py:10)", inside=("a (train.py:9)",))
TAKES_A = replace(FEEDS, acquires="a (feed.py:7)", inside=("b (feed.py:6)",))
IN_SESSION = Stack((*WAITS.stacks[0].frames[:1], Frame("/jobs/feed.py", 9, "train")))
PACKAGE = Stack((Frame(f"{SITE}keras/images.py", 3, "load"), lib("threading.py", "run")))
# Threads of the standard library: one of a pool at work and one without, and a thread of the user.
WORKER = (lib("concurrent/futures/thread.py", "_worker"), lib("threading.py", "run"))
ITEM = Stack((lib("concurrent/futures/thread.py", "run"), *WORKER))
IDLE_THREAD = Stack(WORKER)
COPIES = Stack((lib("shutil.py", "copyfile"), lib("threading.py", "run")))
LIBRARY = Stack((lib("multiprocessing/connection.py", "_recv"), lib("threading.py", "run")))
DEAD, IDLE, BUSY = Child(7, -9), Child(8), Child(9, works=True)


def task(*stacks, **more):
    return TaskEvidence("worker:0", stacks=stacks, **more)


@pytest.mark.parametrize(
    ("seen", "name", "reason"),
    [
        (task(EVENT), Name.STUCK_IN_CALL, "it has no other thread of the script"),
        (task(EVENT, LIBRARY), Name.STUCK_IN_CALL, "it has no other thread of the script"),
        (task(EVENT, LOCKED), Name.STUCK_IN_CALL, "another thread of it is in feed (feed.py:7)"),
        (task(EVENT, IN_SESSION), Name.STUCK_IN_CALL,
         "another thread of it is in train (feed.py:9)"),
        (task(EVENT, FEEDS), Name.SLOW, "another thread of it is in feed (feed.py:7)"),
        (task(EVENT, ITEM), Name.SLOW, "another thread of it is in run (thread.py:1)"),
        (task(EVENT, COPIES), Name.SLOW, "another thread of it is in copyfile (shutil.py:1)"),
        (task(EVENT, IDLE_THREAD), Name.STUCK_IN_CALL, "no other thread of the script"),
        (task(EVENT, PACKAGE), Name.SLOW, "another thread of it is in load (images.py:3)"),
        (task(EVENT, children=(BUSY,)), Name.SLOW, "a threading.Event"),
        (task(PUT, losses=("thread a has died: ValueError: x",)), Name.STUCK_IN_CALL,
         "its thread a has died: ValueError: x"),
        (task(GET), Name.INPUT_STALLED, "it has no other thread of the script"),
        (task(GET, FEEDS), Name.SLOW, "an item of a queue"),
        (task(GET, FEEDS, losses=("thread a has died: ValueError: x",)), Name.INPUT_STALLED,
         "its thread a has died: ValueError: x"),
        (task(POOL, LIBRARY, children=(BUSY, IDLE)), Name.SLOW, "the processes of a pool"),
        (task(POOL, LIBRARY, children=(IDLE, IDLE)), Name.STUCK_IN_CALL,
         "2 child processes of it, and none works"),
        (task(MP_GET, children=(DEAD,)), Name.INPUT_STALLED, "child process 7 was killed by SIG"),
        (task(MP_GET, children=(Child(7, 3), IDLE)), Name.INPUT_STALLED,
         "child process 7 ended with exit code 3"),
        (task(MP_GET, children=(BUSY,)), Name.SLOW, "an item of a queue between processes"),
        (task(RECV), Name.SLOW, "data from another process"),
        (task(RECV, children=(BUSY,)), Name.SLOW, "data from another process"),
        (task(RECV, children=(DEAD,)), Name.STUCK_IN_CALL, "child process 7 was killed by SIGKILL"),
        (task(POOL, LIBRARY, children=(IDLE, IDLE), replaced=(DEAD, DEAD)), Name.STUCK_IN_CALL,
         "the pool's child processes died, and new ones took their place: 2 killed by SIGKILL "
         "within a second"),
        (task(POOL, children=(IDLE,), replaced=(DEAD, Child(7, 3)), works=True),
         Name.STUCK_IN_CALL, "1 killed by SIGKILL, 1 ended with exit code 3 within a second"),
        (task(POOL, children=(BUSY,), replaced=(DEAD,), works=True), Name.SLOW,
         "its child processes died, and new ones took their place: 1 killed by SIGKILL"),
        (task(POOL, children=(BUSY,), replaced=(Child(7), Child(6, 0))), Name.SLOW,
         "the pool's child processes ended, and new ones took their place: 1 ended with an exit "
         "code that is not known within a second"),
        (task(MP_GET, children=(IDLE,), replaced=(DEAD,)), Name.INPUT_STALLED,
         "its child processes died, and new ones took their place: 1 killed by SIGKILL"),
        (task(main(), main_wait="hrtimer_nanosleep", replaced=(DEAD,)), Name.SLOW,
         "its child processes died, and new ones took their place"),
        (task(POOL, children=(Child(7, stopped=True),)), Name.STUCK_IN_CALL,
         "the pool's child process 7 is stopped: kill -CONT 7"),
        (task(POOL, children=(replace(BUSY, secs=3.0), replace(IDLE, secs=8.0)), quiet_secs=300),
         Name.SLOW, "the pool's oldest process has been started only 292 s after the last"),
        (task(main(), main_wait="futex_do_wait"), Name.SLOW, "a lock"),
        (task(TAKES_B, main_wait="futex_do_wait"), Name.STUCK_IN_CALL,
         "it waits for the lock b (train.py:10) inside of with a (train.py:9); it has no other "
         "thread of the script, and no child process"),
        (task(TAKES_B, TAKES_A, main_wait="futex_do_wait"), Name.STUCK_IN_CALL,
         "it waits for the lock b (train.py:10) inside of with a (train.py:9); another thread of "
         "it waits for the lock a (feed.py:7) inside of with b (feed.py:6)"),
        (task(TAKES_B, FEEDS, main_wait="futex_do_wait"), Name.SLOW,
         "it waits for the lock b (train.py:10) inside of with a (train.py:9); another thread of "
         "it is in feed (feed.py:7)"),
        (task(TAKES_B, IN_SESSION, main_wait="futex_do_wait"), Name.SLOW,
         "another thread of it is in train (feed.py:9)"),
        (task(EVENT, TAKES_A), Name.STUCK_IN_CALL,
         "another thread of it waits for the lock a (feed.py:7) inside of with b (feed.py:6)"),
        (task(TAKES_B, main_wait="hrtimer_nanosleep"), Name.SLOW, "the end of a sleep"),
        (task(main(), main_wait="futex_do_wait", losses=("thread a has died: ValueError: x",)),
         Name.STUCK_IN_CALL, "its thread a has died: ValueError: x"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whole", [True, False])
def test_the_verdict_on_a_wait_in_python(seen, name, reason, whole):
    verdict = diagnose(Evidence((seen,), whole=whole))
    assert (verdict.name, verdict.culprits) == (name, ("worker:0",))
    assert reason in verdict.because[0]
    assert "called by <module> (train.py:10)" in verdict.because[0] or seen.main_wait
    assert "train.py:10" in verdict.because[0]
    assert Evidence.parse(Evidence((seen,)).to_json()) == Evidence((seen,))


def test_a_chief_in_an_event_is_what_a_peer_at_a_barrier_waits_for():
    barrier = BarrierEvidence("end", ("worker:1",), ("worker:0",))
    peer = at(Place.BARRIER, "worker:1")
    verdict = diagnose(job(task(EVENT), peer, barriers=(barrier,)))
    assert verdict.heading == "STUCK_IN_CALL, cause: worker:0 (likely)"
    chief, other, missing = verdict.because
    call = "wait (threading.py:1), called by <module> (train.py:10)"
    assert chief.startswith(f"worker:0 waits for a threading.Event to be set: {call}; ")
    assert other.startswith("worker:1 waits at a tfdist.Barrier: ")
    assert missing == "barrier 'end' waits for worker:0"


@pytest.mark.parametrize(
    ("file", "is_users"),
    [
        ("/home/me/tfdist/train.py", True),
        ("/home/me/python3/train.py", True),
        ("train.py", True),
        ("<string>", True),
        ("<stdin>", True),
        ("/tfdist/repro/scenarios/sync.py", True),
        ("/usr/lib/python3/dist-packages/psutil/__init__.py", False),
        ("/venv/lib/python3.11/site-packages/tfdist/train/epoch.py", False),
        ("/home/me/checkout/tfdist/task.py", False),
        ("/opt/lib/python3.13t/threading.py", False),
        ("<frozen runpy>", False),
    ],
)
def test_the_user_s_calls_are_those_of_no_package(file, is_users):
    frame = Frame(file, 3, "train")
    assert (Stack((*EVENT.frames[:2], frame)).user == frame) is is_users


def test_a_function_that_a_library_has_generated_is_not_the_user_s():
    generated = Frame("<string>", 2, "get")
    assert Stack((lib("multiprocessing/managers.py", "_callmethod"), generated, MAIN)).user == MAIN


def test_a_generator_that_waits_for_an_item_of_a_dead_thread_is_named():
    library = Frame(f"{SITE}tensorflow/python/ops/script_ops.py", 1, "__call__")
    batches = Frame("/jobs/train.py", 4, "batches")
    generator = Stack((*GET.frames[:2], batches, library))
    seen = replace(at(Place.INPUT), losses=("thread a has died: ValueError: x",))
    verdict = diagnose(job(replace(seen, stacks=(*seen.stacks, generator))))
    assert verdict.because == (
        "worker:0 waits for its input: its function batches (train.py:4), now in get (queue.py:1), "
        "does not return; its thread a has died: ValueError: x",
    )


def test_threads_that_are_joined_at_the_end_of_the_program_are_named():
    started_by = (
        Frame("/x/tfdist/cluster/script.py", 1, "end_process"),
        lib("multiprocessing/process.py", "run"),
        lib("multiprocessing/forkserver.py", "main"),
        Frame("<string>", 1, "<module>"),
    )
    end = Stack((lib("threading.py", "_shutdown"), *started_by), main=True)
    wait = python_wait(task(end, LOCKED))
    assert wait.what == "a thread to end, at the end of the program"
    assert wait.call == "_shutdown (threading.py:1)"
    assert "another thread of it is in feed (feed.py:7)" in wait.why


# --- what died, and what the machine lacked

THREAD_DIED = """\
start
Exception in thread Thread-1 (feed):
Traceback (most recent call last):
  File "joinq.py", line 5, in feed
    raise ValueError("bad line in part-3")
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "joinq.py", line 6, in feed
ValueError: bad line in part-3
ValueError: a line of the program
Process Process-1:
Traceback (most recent call last):
  File "x.py", line 1, in f
OSError: [Errno 24] Too many open files
"""


def test_threads_and_processes_that_died_are_found_in_the_output():
    assert losses_in(THREAD_DIED) == (
        "thread Thread-1 (feed) has died: ValueError: bad line in part-3",
        "child process Process-1 has died: OSError: [Errno 24] Too many open files",
    )
    assert losses_in("Traceback (most recent call last):\nValueError: x\n") == ()
    assert losses_in("Exception in thread a:\nTraceback (most recent") == ()


def test_losses_of_the_same_error_are_counted():
    died = "Process ForkPoolWorker-{}:\nTraceback (most recent call last):\nOSError: no GPU\n"
    text = "".join(died.format(number) for number in range(1, 3))
    assert losses_in(text) == (
        "child processes ForkPoolWorker-1, ForkPoolWorker-2 have died: OSError: no GPU",
    )
    text = "".join(died.format(number) for number in range(1, 201))
    [loss] = losses_in(text)
    assert loss.startswith("child processes ForkPoolWorker-1, ForkPoolWorker-2, ForkPoolWorker-3 ")
    assert loss.endswith("ForkPoolWorker-3 and 197 more have died: OSError: no GPU")


def test_what_a_machine_lacked_is_said_with_any_verdict_but_fine():
    [shortage] = shortages_in(THREAD_DIED)
    assert shortage == (
        "printed 'Too many open files': raise the limit of open files with ulimit -n"
    )
    lacks = replace(PS, shortages=(shortage,))
    assert diagnose(Evidence((lacks, WAITS))).because[-1] == f"ps:0 {shortage}"
    failed = TaskEvidence("worker:0", state=State.FAILED, shortages=(shortage,))
    assert diagnose(Evidence((failed,), over=True)).because[-1] == f"worker:0 {shortage}"
    ended = replace(failed, state=State.ENDED)
    assert diagnose(Evidence((ended,), over=True)).name is Name.FINE
    assert len(diagnose(Evidence((ended,), over=True)).because) == 1


def test_kills_for_lack_of_memory_are_said():
    killed = TaskEvidence("worker:1", state=State.DEAD, exit_code=-9)
    verdict = diagnose(job(WAITS, killed, oom_kills=2))
    assert verdict.name is Name.PEER_DEAD
    assert verdict.because[-1].startswith("out of memory: the kernel killed 2 processes")


# --- a call that does not return


def test_a_slow_job_that_is_ended_is_not_called_slow():
    seen = task(main(), main_wait="hrtimer_nanosleep")
    slow = diagnose(job(seen))
    verdict = slow.overdue(41.2, 5.0)
    assert (slow.name, verdict.name) == (Name.SLOW, Name.STUCK_IN_CALL)
    assert verdict.heading == "STUCK_IN_CALL, cause: worker:0 (likely)"
    assert verdict.because[:-1] == slow.because
    assert "tfdist waited 41 s instead of 5 s" in verdict.because[-1]
    assert "SLOW" not in str(verdict)
    assert verdict.confidence is Confidence.LIKELY


# --- the sample


def test_the_children_of_a_process_and_their_ends_are_seen():
    with (
        subprocess.Popen(["sleep", "600"]) as alive,
        subprocess.Popen(["sleep", "600"]) as killed,
        subprocess.Popen(["sh", "-c", "exit 3"]) as failed,
    ):
        killed.kill()

        def seen():
            found = children_of(os.getpid())
            ends = {one.pid: found[one.pid].exit_code for one in (alive, killed, failed)}
            wanted = {alive.pid: None, killed.pid: -signal.SIGKILL, failed.pid: 3}
            return (
                "nanosleep" in found[alive.pid].wchan
                and ends == wanted
                and 0 < found[alive.pid].secs < 600
            )

        poll_until(seen, "all are in the state that they should have")
        alive.kill()
    assert not {alive.pid, killed.pid, failed.pid} & children_of(os.getpid()).keys()


def test_the_helper_processes_of_tfdist_are_no_children(monkeypatch):
    monkeypatch.delenv(PROGRESS_VARIABLE, raising=False)
    guardian = Guardian()
    before = children_of(os.getpid()).keys()
    try:
        with Watchdog(60), Watchdog(60):
            guardian.note_group(2**22 + 1)  # above every pid
            started = {child.pid for child in psutil.Process().children()}
            assert guardian.pid in started

            # Between fork and exec a helper process has the command of this process.
            poll_until(lambda: children_of(os.getpid()).keys() == before, "none is seen")
            assert len(started) >= 3
    finally:
        guardian.stop()


# In a process of its own: the fork server of this one imports TensorFlow for later tests.
FORK = """
import multiprocessing, sys, time
process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,))
process.start()
print(process.pid, flush=True)
sys.stdin.read()
process.kill()
process.join()
"""


def test_a_process_that_a_fork_server_forks_is_a_child():
    command, pipes = [sys.executable, "-c", FORK], {"stdin": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **pipes) as parent:
        child = int(parent.stdout.readline())
        assert child in children_of(parent.pid)
        parent.stdin.close()


def test_the_end_of_a_child_is_known_after_its_parent_has_asked_for_it():
    with (
        Ends() as ends,
        subprocess.Popen(["sleep", "600"]) as killed,
        subprocess.Popen(["sh", "-c", "read line; exit 3"], stdin=subprocess.PIPE) as failed,
        subprocess.Popen(["sleep", "600"]) as alive,
    ):
        assert ends.of([killed.pid, failed.pid, alive.pid]) == {}
        killed.kill()
        failed.stdin.close()
        assert (killed.wait(), failed.wait()) == (-signal.SIGKILL, 3)
        found = ends.of([alive.pid])
        # Before Linux 6.15 the kernel does not say.
        assert found in (
            {killed.pid: -signal.SIGKILL, failed.pid: 3},
            {killed.pid: None, failed.pid: None},
        )
        assert ends.of([alive.pid]) == {}
        alive.kill()


def test_children_that_end_while_others_start_are_replaced():
    assert _replaced([[1, 2], [2, 3], [3]], [{}, {1: -9}, {2: 0}]) == (Child(1, -9), Child(2, 0))
    assert _replaced([[1, 2], [2], [2]], [{}, {1: -9}, {}]) == ()


def test_a_child_that_is_stopped_or_takes_the_place_of_the_dead_does_not_work():
    runs = ChildState(None, "", 5, 1)
    stopped = replace(runs, wchan="do_signal_stop", is_stopped=True)
    now = {1: stopped, 2: runs}
    assert _children({1: runs}, now) == (Child(1, stopped=True), Child(2, works=True))
    assert _children({1: runs}, now, die=True) == (Child(1, stopped=True), Child(2))


LOCKS = """\
def take(self):
    with self.a, b[1]:
        with open(name) as file, a2:
            with c:
                c2.acquire()
    with d: pass
    done = e.acquire(timeout=3)
    with (
        f
    ):
        def later():
            with g:
                pass
"""


@pytest.mark.parametrize(
    ("line", "acquires", "inside"),
    [
        (2, "self.a, b[1] (x.py:2)", ()),
        (3, "", ()),
        (4, "c (x.py:4)", ("self.a (x.py:2)", "b[1] (x.py:2)", "a2 (x.py:3)")),
        (5, "c2 (x.py:5)", ("self.a (x.py:2)", "b[1] (x.py:2)", "a2 (x.py:3)", "c (x.py:4)")),
        (6, "", ()),  # which of the two it is in is not known
        (7, "", ()),
        (8, "f (x.py:8)", ()),
        (9, "f (x.py:9)", ()),
        (12, "g (x.py:12)", ()),
        (99, "", ()),
    ],
)
def test_the_source_shows_the_lock_that_a_line_acquires(line, acquires, inside):
    seen = with_lock(Stack((Frame("/jobs/x.py", line, "take"),)), {"/jobs/x.py": LOCKS})
    assert (seen.acquires, seen.inside) == (acquires, inside)


def test_the_locks_of_all_calls_are_shown():
    calls = (Frame("/jobs/x.py", 12, "later"), Frame("/jobs/x.py", 4, "take"))
    seen = with_lock(Stack(calls), {"/jobs/x.py": LOCKS})
    assert seen.inside == ("self.a (x.py:2)", "b[1] (x.py:2)", "a2 (x.py:3)")
    for source in ({}, {"/jobs/x.py": "no Python"}, {"/jobs/x.py": "\0"}):
        assert with_lock(Stack(calls), source) == Stack(calls)


def test_a_child_that_waits_for_another_process_does_not_work():
    idle, sleeps = (
        ChildState(None, "anon_pipe_read", 5, 1),
        ChildState(None, "hrtimer_nanosleep", 5, 1),
    )
    ended = ChildState(-9, "", 0, 0)
    several = replace(idle, threads=2)
    before = {1: idle, 2: sleeps, 3: idle, 4: ended, 6: several}
    after = {1: idle, 2: sleeps, 3: replace(idle, cpu_ticks=6), 4: ended, 5: idle, 6: several}
    assert _children(before, after) == (
        Child(1),
        Child(2, works=True),
        Child(3, works=True),
        Child(4, -9),
        Child(5, works=True),  # it has just been started
        Child(6, works=True),  # its other thread may work
    )


@pytest.mark.parametrize(
    ("ran", "waited", "is_ready"),
    [
        (0.9, 0.0, True),
        (0.09, 0.9, True),  # one of eleven busy threads on a CPU
        (0.02, 0.5, False),  # wakes up now and then, and finds other threads at work
        (0.1, 0.1, False),
        (0.0, 0.0, False),
    ],
)
def test_a_task_works_if_it_is_ready_most_of_the_time(ran, waited, is_ready):
    before, after = {1: (5.0, 5.0), 2: (0.0, 0.0)}, {1: (5.0 + ran, 5.0 + waited), 3: (9.0, 9.0)}
    found, cpu_wait = _readiness(before, after, 1.0)
    assert found is is_ready
    assert cpu_wait == pytest.approx(waited / (ran + waited or 1.0), abs=1e-3)


def test_the_work_of_all_threads_counts():
    before = dict.fromkeys(range(4), (0.0, 0.0))
    assert _readiness(before, dict.fromkeys(range(4), (0.02, 0.2)), 1.0) == (True, 0.909)
    assert _readiness(before, dict.fromkeys(range(4), (0.02, 0.2)), 2.0) == (False, 0.909)
    assert _readiness({}, {}, 1.0) == (False, 0.0)


def test_the_cpu_times_of_this_thread_grow():
    me = threading.get_native_id()
    before = cpu_times(os.getpid())[me]
    poll_until(lambda: cpu_times(os.getpid())[me][0] > before[0] + 0.01, "it has used the CPU")
    assert cpu_times(2**22 + 1) == {}


@pytest.mark.parametrize(("percent", "busy"), [("99.10", True), ("35.34", False)])
def test_a_machine_is_busy_by_its_pressure(tmp_path, percent, busy):
    file = tmp_path / "cpu"
    file.write_text(f"some avg10={percent} avg60=57.07 avg300=70.68 total=1\nfull avg10=0.00\n")
    assert is_busy(file) is busy


@pytest.mark.parametrize(("load", "busy"), [(2.0, True), (0.5, False)])
def test_a_machine_without_that_file_is_busy_by_its_load(tmp_path, monkeypatch, load, busy):
    cpus = os.cpu_count() or 1
    monkeypatch.setattr(os, "getloadavg", lambda: (load * cpus, 0.0, 0.0))
    assert is_busy(tmp_path / "none") is busy


def test_a_busy_machine_is_part_of_the_reason_of_a_slow_job():
    verdict = diagnose(job(at(Place.RUN, works=True, cpu_wait=0.8)))
    assert verdict.because[0].endswith("; when ready to run, it has no CPU 80% of the time")
    assert "no CPU" not in diagnose(job(at(Place.RUN, works=True, cpu_wait=0.1))).because[0]


def test_an_old_pool_has_lost_no_process():
    seen = task(POOL, children=(replace(BUSY, secs=200.0), IDLE), quiet_secs=300.0)
    assert "oldest process" not in diagnose(Evidence((seen,))).because[0]
