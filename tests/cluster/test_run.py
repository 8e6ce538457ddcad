"""`tfdist run`: what it prints, and how it ends."""

import json
import os
import re
import subprocess
import sys

import psutil
import pytest

from tfdist.testing import poll_until

READER_LEFT = 141  # 128 + SIGPIPE

MEET = """
import sys, tfdist
task = tfdist.Task.from_env()
with tfdist.trainer_server(task):
    tfdist.Barrier(task, "meet", timeout=30).wait()
    if task.is_chief:
        print("all met", *sys.argv[1:])
"""

# Prints more than a pipe holds, and never ends.
CHATTY = """
import threading, tfdist
with tfdist.trainer_server(tfdist.Task.from_env()):
    for number in range(5_000):
        print("line", number, flush=True)
    threading.Event().wait()
"""

# The chief never comes to the barrier, at which the others wait. Each has a process of its own.
STUCK = """
import os, subprocess, sys, threading, tfdist
subprocess.Popen(["sleep", "600"])
task = tfdist.Task.from_env()
with tfdist.trainer_server(task):
    barrier = tfdist.Barrier(task, "end", timeout=60)
    open(os.path.join(sys.argv[1], task.name), "w").close()
    if task.is_chief:
        threading.Event().wait()
    barrier.wait()
"""


def command(*arguments):
    return [sys.executable, "-m", "tfdist", "run", *map(str, arguments)]


def run(*arguments, env=None):
    ended = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )
    # It says so only where this machine did not let pytest isolate itself.
    ended.stderr = re.sub(r"^tfdist: TensorFlow's ports are open .*\n", "", ended.stderr)
    return ended


def test_each_line_has_the_name_of_its_task_and_json_has_the_other_stream(script):
    ended = run("--ps", 1, "--workers", 2, "--json", script(MEET), "--", "on", "time")
    result = json.loads(ended.stdout)
    assert (ended.returncode, result["exit_code"], result["failure"]) == (0, 0, None)
    # On a busy machine the launcher tells how far they are, every 10 s.
    told = [line for line in ended.stderr.splitlines() if not line.startswith("tfdist: 10 s: ")]
    assert told == ["[worker:0] all met on time"]


def test_a_traceback_is_shown_once_and_ends_with_70(script):
    ended = run(script(MEET + "    raise ValueError('odd')\n"))
    assert ended.returncode == 70
    assert ended.stderr.count("ValueError: odd") == 1
    assert "worker:" in ended.stderr


def test_the_exit_code_of_the_script_is_passed_on(script):
    ended = run(script(MEET + "sys.exit(7)\n"))
    assert ended.returncode == 7


def test_the_last_table_says_how_each_ended(script):
    ended = run("--no-prefix", script(MEET))
    rows = [line.split() for line in ended.stderr.splitlines()]
    assert [row[:4] for row in rows if row[1:3] == ["exit", "code"]] == [
        [name, "exit", "code", "0"] for name in ("ps:0", "worker:0", "worker:1")
    ]


def test_a_script_that_never_speaks_to_the_ps_ends_well(script):
    ended = run("--ps", 2, "--no-prefix", script("print('hello')\n"))
    assert (ended.returncode, ended.stdout) == (0, "hello\nhello\n")


def test_bad_input_found_by_the_script_is_one_line_and_2(script):
    ended = run(script("import tfdist\nraise tfdist.ConfigError('--rate', -1, 'at least 0')"))
    assert (ended.returncode, ended.stderr) == (2, "tfdist: --rate: got -1; at least 0\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--workers", "0", __file__], "tfdist: --workers: got 0; at least 1\n"),
        (["--ps", "-1", __file__], "tfdist: --ps: got -1; at least 0\n"),
        (["nowhere.py"], "tfdist: script: got 'nowhere.py'; no such file\n"),
        (
            ["--log-dir", "/dev/null", __file__],
            "tfdist: --log-dir: got '/dev/null'; a folder; [Errno 17] File exists: '/dev/null'\n",
        ),
        (["--restart", "-1", __file__], "tfdist: --restart: got -1; at least 0\n"),
        (["--timeout", "0", __file__], "tfdist: --timeout: got 0.0; more than 0 seconds\n"),
        *(
            (
                ["--stall-timeout", value, __file__],
                f"tfdist: --stall-timeout: got {value}; more than 0 seconds\n",
            )
            for value in ("0.0", "-1.0", "nan")
        ),
        (
            ["--stall-timeout", "9", "--backend", "threads", __file__],
            "tfdist: --stall-timeout: got 9.0; needs --backend processes\n",
        ),
        (
            ["--classic-flags", "--chief", __file__],
            "tfdist: --chief: got True; --classic-flags know only ps and workers\n",
        ),
    ],
)
def test_bad_input_of_the_launcher_is_one_line_and_2(arguments, line):
    ended = run(*arguments)
    assert (ended.returncode, ended.stderr, ended.stdout) == (2, line, "")


def test_a_malformed_tf_config_is_one_line_and_2(script):
    ended = run(script(MEET), env={"TF_CONFIG": "{oops"})
    assert ended.returncode == 2
    assert ended.stderr.startswith("tfdist: TF_CONFIG: got '{oops'; not JSON")
    assert ended.stderr.count("\n") == 1


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
    assert told.endswith("tfdist: nobody reads the output; every task has been ended\n")


def test_a_reader_of_both_streams_that_leaves_ends_the_job(script):
    read_a_line_and_leave(script(CHATTY), stderr=subprocess.STDOUT)
