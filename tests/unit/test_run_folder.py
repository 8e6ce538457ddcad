"""A process in the folder of a run is told from a later one that has its number."""

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from tfdist.runs.folder import TaskRecord, start_ticks


@pytest.fixture
def child():
    """A process with a name that looks like the fields that follow it."""
    rename = "import pathlib; pathlib.Path('/proc/self/comm').write_text('a) S 1 2 3')"
    command = [sys.executable, "-c", f"{rename}; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        yield child
        child.kill()


def test_the_ticks_are_those_of_the_start(child):
    assert psutil.Process(child.pid).name() == "a) S 1 2 3"
    seconds = start_ticks(child.pid) / os.sysconf("SC_CLK_TCK")
    assert psutil.boot_time() + seconds == pytest.approx(
        psutil.Process(child.pid).create_time(), abs=0.02
    )


def test_one_that_is_gone_has_none(child):
    child.kill()
    child.wait()
    assert start_ticks(child.pid) is None


def test_a_life_finds_its_process_and_no_other(child):
    record = TaskRecord("worker:0", 1, child.pid, start_ticks(child.pid), began=0.0)
    assert record.process.pid == child.pid
    assert replace(record, ticks=record.ticks + 1).process is None
    assert replace(record, ended=1.0).process is None
