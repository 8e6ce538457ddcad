"""`tfdist run`: what it prints, and how it ends."""

import json
import os
import re
import subprocess
import sys

import pytest

MEET = """
import sys, tfdist
task = tfdist.Task.from_env()
with tfdist.trainer_server(task):
    tfdist.Barrier(task, "meet", timeout=30).wait()
    if task.is_chief:
        print("all met", *sys.argv[1:])
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

FAILS_ONCE = """
import pathlib, sys, tfdist
mark = pathlib.Path(sys.argv.pop(), "failed")
if tfdist.Task.from_env().rank == 1 and not mark.exists():
    mark.touch()
    print("to be the first", file=sys.stderr)
    raise ValueError("the first")
""" + MEET.replace("if task.is_chief", "if not task.is_chief")

CLASSIC = """
import argparse, tfdist
parser = argparse.ArgumentParser()
for name in ("rate", "ps_hosts", "worker_hosts", "job_name"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--task_index", type=int)
task = tfdist.Task.from_flags(parser.parse_args())
with tfdist.trainer_server(task):
    print("as in TF_CONFIG" if task == tfdist.Task.from_env() else task)
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


def lines(ended):
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.splitlines())


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


def test_who_runs_the_script(script):
    job = script("import tfdist; print(tfdist.Task.from_env().name)")
    two = {"[worker:0] worker:0", "[worker:1] worker:1"}
    chief, evaluator = "[chief:0] chief:0", "[evaluator:0] evaluator:0"
    assert lines(run("--chief", "--evaluator", job)) == two | {chief, evaluator}
    assert lines(run("--no-builtin-ps", job)) == two | {"[ps:0] ps:0"}
    assert lines(run("--coordinator", job)) == {chief}


def test_classic_flags_come_after_the_arguments_and_say_what_tf_config_does(script):
    ended = run("--classic-flags", "--workers", 1, script(CLASSIC), "--", "--rate=0.1")
    assert (ended.returncode, ended.stdout) == (0, "[worker:0] as in TF_CONFIG\n"), ended.stderr


def test_a_task_that_fails_is_started_again_and_all_is_kept(script, tmp_path):
    logs, job = tmp_path / "logs", script(FAILS_ONCE)
    ended = run("--restart", 1, "--log-dir", logs, "--json", job, tmp_path)
    assert ended.returncode == 0
    assert "worker:1 was started again (attempt 2); the last one: exit code 1" in ended.stderr
    tasks = json.loads(ended.stdout)["tasks"]
    assert [(task["task"], task["attempt"], task["exit_code"]) for task in tasks] == [
        *[("ps:0", 1, 0), ("worker:0", 1, 0), ("worker:1", 1, 1), ("worker:1", 2, 0)]
    ]
    assert all(task["cpu_secs"] > 0 and task["peak_bytes"] > 5e7 for task in tasks)
    [folder] = logs.iterdir()
    error = json.loads((folder / "attempt-1/worker-1/error.json").read_text())
    assert (error["task"], error["exit_code"], error["message"]) == ("worker:1", 1, "the first")
    assert "in <module>" in error["traceback"]
    assert (folder / "attempt-1/worker-1/stderr").read_text() == "to be the first\n"
    assert (folder / "attempt-2/worker-1/stdout").read_text() == "all met\n"
    assert not (folder / "attempt-2/worker-1/error.json").exists()


def test_the_last_table_says_how_each_ended(script):
    ended = run("--no-prefix", script(MEET))
    rows = [line.split() for line in ended.stderr.splitlines()]
    assert [row[:4] for row in rows if row[1:3] == ["exit", "code"]] == [
        [name, "exit", "code", "0"] for name in ("ps:0", "worker:0", "worker:1")
    ]


def test_a_job_that_takes_too_long_is_ended(script, tmp_path):
    ended = run("--timeout", 2, script(STUCK), tmp_path)
    assert ended.returncode == 70
    assert "tfdist: still running after 2." in ended.stderr
    assert "ended by tfdist" in ended.stderr


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
        (["--restart", "-1", __file__], "tfdist: --restart: got -1; at least 0\n"),
        (["--timeout", "0", __file__], "tfdist: --timeout: got 0.0; more than 0 seconds\n"),
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
