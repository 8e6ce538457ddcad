"""Commands whose output goes into a pipe that the reader closes early, as `head` does."""

import os
import subprocess
import sys

import pytest

from tfdist.cli.output import reader_may_leave

READER_LEFT = 141  # 128 + SIGPIPE


@pytest.fixture
def unread():
    """The write end of a pipe without a reader."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    yield write_end
    os.close(write_end)


def tfdist(*arguments, **streams):
    # With it argparse itself meets the broken pipe when it prints its help, and ignores it.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-m", "tfdist", *map(str, arguments)],
        timeout=60,
        check=False,
        env={**buffered, "TF_CONFIG": "{oops"},
        **streams,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["doctor"],
        ["doctor", "--json"],
        ["stacks", "RUN"],
        ["status", "RUN"],
    ],
    ids=" ".join,
)
def test_a_command_ends_silently_when_its_output_has_no_reader(arguments, folder, unread):
    run = folder("tfdist-a")
    arguments = [run.path if argument == "RUN" else argument for argument in arguments]
    ended = tfdist(*arguments, stdout=unread, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (READER_LEFT, b"")


def test_a_command_ends_silently_when_standard_error_has_no_reader(unread):
    ended = tfdist("doctor", "nowhere.py", stdout=subprocess.PIPE, stderr=unread)
    assert (ended.returncode, ended.stdout) == (READER_LEFT, b"")


def test_a_broken_pipe_other_than_the_output_is_raised():
    with pytest.raises(BrokenPipeError), reader_may_leave():
        raise BrokenPipeError


def test_a_command_runs_with_closed_standard_output():
    closed = 'exec "$@" >&-'
    ended = subprocess.run(
        ["sh", "-c", closed, "sh", sys.executable, "-m", "tfdist", "doctor", "nowhere.py"],
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1)
