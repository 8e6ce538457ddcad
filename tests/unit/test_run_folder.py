"""Records of tasks: their processes are distinguished from reused pids; how they ended."""

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from tfdist.runs.folder import RunFolder, TaskRecord, describe_end, start_ticks


@pytest.fixture
def child():
    """A process whose name looks like the fields that follow the name in /proc/PID/stat."""
    rename = "import pathlib; pathlib.Path('/proc/self/comm').write_text('a) S 1 2 3')"
    command = [sys.executable, "-c", f"{rename}; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        yield child
        child.kill()


def test_start_ticks_are_the_start_time_of_the_process(child):
    assert psutil.Process(child.pid).name() == "a) S 1 2 3"
    seconds = start_ticks(child.pid) / os.sysconf("SC_CLK_TCK")
    assert psutil.boot_time() + seconds == pytest.approx(
        psutil.Process(child.pid).create_time(), abs=0.02
    )


def test_an_ended_process_has_no_start_ticks(child):
    child.kill()
    child.wait()
    assert start_ticks(child.pid) is None


def test_a_record_finds_its_own_process_only(child):
    record = TaskRecord("worker:0", 1, child.pid, start_ticks(child.pid), began=0.0)
    assert record.process.pid == child.pid
    assert replace(record, ticks=record.ticks + 1).process is None
    assert replace(record, ended=1.0).process is None


@pytest.mark.parametrize(
    ("exit_code", "terminated", "text"),
    [
        (None, False, "still running"),
        (0, False, "exit code 0"),
        (-11, False, "killed by SIGSEGV"),
        (-9, False, "killed by SIGKILL"),
        (-15, True, "terminated by tfdist"),
        (0, True, "terminated by tfdist, exit code 0"),
        (1, True, "terminated by tfdist, exit code 1"),
        (-9, True, "killed by tfdist"),
    ],
)
def test_the_end_of_a_task_is_described(exit_code, terminated, text):
    record = TaskRecord("worker:0", 1, 7, 0, 0.0, exit_code=exit_code, terminated=terminated)
    assert describe_end(record) == text


def test_a_run_that_is_ended_before_it_is_noted_has_no_records(tmp_path):
    assert RunFolder(tmp_path).records() == []
