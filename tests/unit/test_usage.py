"""CPU time and memory of this process and of others."""

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


def test_the_cpu_time_includes_ended_children():
    before = Usage.of_this_process()
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True, timeout=30)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    after = Usage.of_this_process()
    own = time.process_time()
    assert after.cpu_secs > before.cpu_secs
    assert own < after.cpu_secs <= own + children.ru_utime + children.ru_stime + 0.01


def test_the_peak_includes_memory_that_is_free_again():
    before = Usage.of_this_process().peak_bytes
    more = before - psutil.Process().memory_info().rss + 100 * MB
    assert len(b"x" * more) == more  # and freed
    grown = Usage.of_this_process().peak_bytes - before
    assert grown == pytest.approx(100 * MB, abs=20 * MB)


@pytest.fixture
def other():
    """A process that has used some CPU time and memory, and waits."""
    code = f"len(b'x' * {100 * MB}); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_the_usage_of_another_process_is_read_by_its_pid(other):
    usage = Usage.of(other.pid)
    assert usage.cpu_secs > 0
    assert usage.peak_bytes > 100 * MB > psutil.Process(other.pid).memory_info().rss


def test_an_ended_process_has_no_usage(other):
    other.kill()
    zombie = psutil.STATUS_ZOMBIE
    poll_until(lambda: psutil.Process(other.pid).status() == zombie, "it has ended")
    assert Usage.of(other.pid) is None  # a zombie: its parent has not waited for it
    other.wait(30)
    assert Usage.of(other.pid) is None


def test_both_readings_of_the_cpu_time_agree():
    read, own = Usage.of(os.getpid()), Usage.of_this_process()
    assert read.cpu_secs == pytest.approx(own.cpu_secs, abs=0.2)  # /proc counts ticks


def test_a_process_may_have_any_name():
    """As with setproctitle; the kernel keeps 15 bytes, also half of a character."""
    rename = "open('/proc/self/comm', 'wb').write(b'caf\\xe9\\n: x')"
    command = [sys.executable, "-c", f"{rename}; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        usage = Usage.of(child.pid)
        child.kill()
    assert usage is not None
    assert usage.peak_bytes > MB
