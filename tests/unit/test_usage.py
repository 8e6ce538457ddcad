"""What a process has used, by its own word and by the kernel's."""

import os
import resource
import subprocess
import sys
import time

import psutil
import pytest

from tfdist.runs.outcome import Usage
from tfdist.testing import poll_until

MB = 10**6


def test_this_process_counts_its_time_and_that_of_its_ended_children():
    before = Usage.of_this_process()
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True, timeout=30)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    after = Usage.of_this_process()
    own = time.process_time()
    assert after.cpu_secs > before.cpu_secs
    assert own < after.cpu_secs <= own + children.ru_utime + children.ru_stime + 0.01


def test_the_peak_is_what_it_once_had():
    before = Usage.of_this_process().peak_bytes
    more = before - psutil.Process().memory_info().rss + 100 * MB
    assert len(b"x" * more) == more  # and it is given back at once
    grown = Usage.of_this_process().peak_bytes - before
    assert grown == pytest.approx(100 * MB, abs=20 * MB)


@pytest.fixture
def other():
    """A process that has used some time, and waits for its end of input."""
    code = f"len(b'x' * {100 * MB}); print('here', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"here\n"
        yield process
        process.kill()


def test_another_process_is_known_by_its_pid(other):
    usage = Usage.of(other.pid)
    assert usage.cpu_secs > 0
    assert usage.peak_bytes > 100 * MB > psutil.Process(other.pid).memory_info().rss


def test_of_a_process_that_is_gone_nothing_is_known(other):
    other.kill()
    zombie = psutil.STATUS_ZOMBIE
    poll_until(lambda: psutil.Process(other.pid).status() == zombie, "it has ended")
    assert Usage.of(other.pid) is None  # nobody has asked for its exit code yet
    other.wait(30)
    assert Usage.of(other.pid) is None


def test_both_ways_tell_the_same_time():
    asked, told = Usage.of(os.getpid()), Usage.of_this_process()
    assert asked.cpu_secs == pytest.approx(told.cpu_secs, abs=0.2)  # the kernel tells ticks
