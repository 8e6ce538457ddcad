"""Every command into a pipe whose reader leaves early, such as `head`."""

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
    # Without a buffer argparse itself meets the broken pipe when it prints its help, and ignores it.
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
def test_a_reader_that_leaves_ends_the_command_without_a_word(arguments, folder, unread):
    run = folder("tfdist-a")
    arguments = [run.path if argument == "RUN" else argument for argument in arguments]
    ended = tfdist(*arguments, stdout=unread, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (READER_LEFT, b"")


def test_so_does_one_that_leaves_standard_error(unread):
    ended = tfdist("doctor", "nowhere.py", stdout=subprocess.PIPE, stderr=unread)
    assert (ended.returncode, ended.stdout) == (READER_LEFT, b"")


def test_a_pipe_to_somebody_else_that_breaks_is_not_taken_for_the_output():
    with pytest.raises(BrokenPipeError), reader_may_leave():
        raise BrokenPipeError


def test_who_has_closed_standard_output_wants_none():
    closed = 'exec "$@" >&-'
    ended = subprocess.run(
        ["sh", "-c", closed, "sh", sys.executable, "-m", "tfdist", "doctor", "nowhere.py"],
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1)
