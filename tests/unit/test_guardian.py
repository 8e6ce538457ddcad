"""The guardian kills the noted process groups once its launcher is gone, and nothing else."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tfdist.cluster.guardian import Guardian
from tfdist.testing import poll_until

# Notes two groups, forgets one, prints the guardian's pid, and waits.
LAUNCHER = """
import sys
from tfdist.cluster.guardian import Guardian
guardian = Guardian()
noted, forgotten = map(int, sys.argv[1:])
guardian.note_group(noted)
guardian.note_group(forgotten)
guardian.forget_group(forgotten)
print(guardian.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def started():
    """Starts commands, each in its own session."""
    processes = []

    def start(*command, **options):
        options = {"start_new_session": True, "stdout": subprocess.PIPE, "text": True, **options}
        process = subprocess.Popen(command, **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def guardian():
    guardian = Guardian()
    yield guardian
    guardian.stop()


@pytest.fixture
def group(started):
    """A process group whose leader has ended: its id, and the one process left in it."""
    leader = started("sh", "-c", "sleep 600 & echo $!")
    left = psutil.Process(int(leader.stdout.readline()))
    leader.wait()
    yield leader.pid, left
    if left.is_running():
        left.kill()


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def ended(process):
    poll_until(lambda: gone(process), f"{process} has ended")


def test_when_the_launcher_is_killed_the_noted_groups_are_killed_and_no_other(started, group):
    number, left = group
    other = started("sleep", "600")
    arguments = [sys.executable, "-c", LAUNCHER, str(number), str(other.pid)]
    launcher = started(*arguments, stdin=subprocess.PIPE)
    guardian = psutil.Process(int(launcher.stdout.readline()))
    launcher.kill()
    ended(guardian)
    ended(left)
    assert other.poll() is None


def test_when_the_launcher_ends_without_stopping_it_the_noted_groups_are_killed(started, group):
    number, left = group
    arguments = [sys.executable, "-c", LAUNCHER, str(number), str(started("sleep", "600").pid)]
    assert started(*arguments, stdin=subprocess.DEVNULL).wait(10) == 0
    ended(left)


def test_the_guardian_ignores_signals_and_is_in_its_own_session(guardian, group):
    number, left = group
    guardian.note_group(number)
    process = psutil.Process(guardian.pid)
    assert os.getsid(guardian.pid) == guardian.pid
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # All three: under nohup it inherits an ignored SIGHUP.
    poll_until(
        lambda: all(ignores(guardian.pid, number) for number in numbers), "it ignores the signals"
    )
    for signal_number in numbers:
        process.send_signal(signal_number)
    guardian.stop()
    ended(left)  # so the guardian had survived the signals


def test_a_killed_guardian_is_replaced_by_one_that_knows_all_groups(guardian, group, started):
    number, left = group
    guardian.note_group(number)
    first = psutil.Process(guardian.pid)
    first.kill()
    ended(first)
    guardian.note_group(started("sleep", "600").pid)
    assert guardian.pid != first.pid
    guardian.stop()
    ended(left)


def test_the_guardian_inherits_no_descriptor_of_the_launcher(guardian):
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    guardian.note_fork_server(os.getpid())
    os.close(write_end)
    assert os.read(read_end, 1) == b""  # end of file, although the guardian runs
    os.close(read_end)
    standard = {os.readlink(f"/proc/{guardian.pid}/fd/{number}") for number in (1, 2)}
    assert standard == {os.devnull}
    assert os.readlink(f"/proc/{guardian.pid}/cwd") == "/"


def test_a_fork_of_the_launcher_does_not_keep_the_guardian_waiting(guardian, group):
    number, left = group
    guardian.note_group(number)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read_end, 1)
        os._exit(0)
    try:
        guardian.stop()
        ended(left)
    finally:
        os.write(write_end, b"!")
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)


def test_a_later_fork_of_the_launcher_keeps_its_own_descriptors(guardian):
    guardian.note_fork_server(os.getpid())
    guardian.stop()
    ends = os.pipe()  # these get the numbers of the guardian's former pipe
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if [os.fstat(end) for end in ends] else 1)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    for end in ends:
        os.close(end)


def test_a_fork_server_is_killed_but_not_another_process_with_its_pid(guardian, started):
    sleep = "import time; time.sleep(600)  # "
    fork_server = started(sys.executable, "-c", f"{sleep} from multiprocessing.forkserver")
    other = started(sys.executable, "-c", sleep)
    for process in (fork_server, other):
        guardian.note_fork_server(process.pid)
        guardian.stop()
    assert fork_server.wait(5) == -signal.SIGKILL
    assert other.poll() is None


def ignores(pid, number):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        mask = next(line for line in file if line.startswith("SigIgn:")).split()[1]
    return int(mask, 16) >> (number - 1) & 1
