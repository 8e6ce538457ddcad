"""What `tfdist run` prints, and who reads it."""

import subprocess

import psutil
import pytest

from tests.launches import MEET, command, run
from tfdist.testing import poll_until

pytestmark = pytest.mark.usefixtures("no_leaks")

READER_LEFT = 141  # 128 + SIGPIPE

CHATTY = """
import threading, tfdist
with tfdist.worker_server(tfdist.Task.from_env()):
    for number in range(5_000):
        print("line", number, flush=True)
    threading.Event().wait()
"""


# The chief never comes to the barrier, at which the others wait. Each has a process of its own.
def test_the_last_table_says_how_each_ended(script):
    ended = run("--no-prefix", script(MEET))
    rows = [line.split() for line in ended.stderr.splitlines()]
    assert [row[:4] for row in rows if row[1:3] == ["exit", "code"]] == [
        [name, "exit", "code", "0"] for name in ("ps:0", "worker:0", "worker:1")
    ]


def test_a_script_that_never_speaks_to_the_ps_ends_well(script):
    ended = run("--ps", 2, "--no-prefix", script("print('hello')\n"))
    assert (ended.returncode, ended.stdout) == (0, "hello\nhello\n")


def read_a_line_and_leave(*arguments, stderr=subprocess.PIPE):
    """What the launcher says on standard error of its own, if that is another pipe."""
    launcher = subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    poll_until(lambda: "] line 0" in launcher.stdout.readline(), "a task has spoken", timeout=60)
    family = psutil.Process(launcher.pid).children(recursive=True)
    launcher.stdout.close()
    assert launcher.wait(30) == READER_LEFT
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    if launcher.stderr is None:
        return ""
    with launcher.stderr as pipe:
        return pipe.read()


def test_a_reader_that_leaves_ends_the_job(script):
    told = read_a_line_and_leave(script(CHATTY))
    assert "Traceback" not in told
    assert told.endswith("tfdist: the reader of the output has left; every task has been ended\n")


def test_a_reader_of_both_streams_that_leaves_ends_the_job(script):
    read_a_line_and_leave(script(CHATTY), stderr=subprocess.STDOUT)
