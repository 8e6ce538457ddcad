"""The output of `tfdist run`, also when its reader leaves."""

import shlex
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


def test_the_last_table_shows_how_each_task_ended(script):
    ended = run("--no-prefix", script(MEET))
    rows = [line.split() for line in ended.stderr.splitlines()]
    assert [row[:4] for row in rows if row[1:3] == ["exit", "code"]] == [
        [name, "exit", "code", "0"] for name in ("ps:0", "worker:0", "worker:1")
    ]


def test_a_script_that_never_uses_the_ps_succeeds(script):
    ended = run("--ps", 2, "--no-prefix", script("print('hello')\n"))
    assert (ended.returncode, ended.stdout) == (0, "hello\nhello\n")


def read_a_line_and_leave(*arguments, stderr=subprocess.PIPE):
    """Returns the launcher's standard error, unless that is the pipe that is closed."""
    launcher = subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    poll_until(lambda: "] line 0" in launcher.stdout.readline(), "a task has printed", timeout=60)
    family = psutil.Process(launcher.pid).children(recursive=True)
    launcher.stdout.close()
    assert launcher.wait(30) == READER_LEFT
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    if launcher.stderr is None:
        return ""
    with launcher.stderr as pipe:
        return pipe.read()


def test_the_job_ends_when_its_output_has_no_reader(script):
    errors = read_a_line_and_leave(script(CHATTY))
    assert "Traceback" not in errors
    assert errors.endswith("the output any more; all tasks have been terminated\n")


def test_the_job_ends_when_both_streams_have_no_reader(script):
    read_a_line_and_leave(script(CHATTY), stderr=subprocess.STDOUT)


@pytest.mark.parametrize("redirect", ["> /dev/full", ">&-", "2>&-"])
def test_a_stream_that_cannot_be_written_does_not_end_the_job(script, tmp_path, redirect):
    text = "import sys\nfor number in range(99): print(number)\nopen(sys.argv[1], 'w').close()"
    line = shlex.join(map(str, command("--ps", 0, "--workers", 1, script(text), tmp_path / "end")))
    ended = subprocess.run(
        f"{line} {redirect}", shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "end").exists()
    full = "tfdist: cannot write the output of the tasks: No space left on device"
    assert ended.stderr.count(full) == (redirect == "> /dev/full")


def test_a_console_that_takes_only_ascii_shows_other_characters_as_escapes(script, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    text = "import os\nos.write(1, 'Größe\\n'.encode())"
    ended = run("--ps", 0, "--workers", 1, script(text))
    assert (ended.returncode, ended.stdout) == (0, "[worker:0] Gr\\xf6\\xdfe\n"), ended.stderr


def test_a_long_line_is_passed_on_in_pieces(script):
    text = "import sys\nfor _ in range(20): sys.stdout.write('x' * 1_000_000)"
    ended = run("--ps", 0, "--workers", 1, "--no-prefix", script(text))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("x") == 20_000_000
