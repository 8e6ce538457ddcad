"""`tfdist run --backend threads`: the same script, in one process."""

import json

import pytest

from tests.chaos.test_run_output import CHATTY, read_a_line_and_leave
from tests.launches import MEET, run

TELLS = """
import os, sys, tfdist
task = tfdist.Task.from_env()
folder = os.path.dirname(os.environ["TFDIST_PROGRESS_FILE"])
print(task.name, sys.argv[1:], folder.endswith(task.name.replace(":", "-")))
"""


def test_each_thread_has_its_own_task_and_prefix(script):
    ended = run("--backend", "threads", "--workers", 3, script(TELLS), "--", "a")
    assert ended.returncode == 0, ended.stderr
    names = ["worker:0", "worker:1", "worker:2"]
    assert sorted(ended.stdout.splitlines()) == [f"[{name}] {name} ['a'] True" for name in names]


def test_a_coordinator_has_its_workers_in_its_process(script):
    ended = run("--backend", "threads", "--coordinator", "--json", script(TELLS))
    result = json.loads(ended.stdout)
    assert [(task["task"], task["exit_code"]) for task in result["tasks"]] == [
        *[("ps:0", 0), ("chief:0", 0), ("worker:0", 0), ("worker:1", 0)]
    ]


def test_a_failure_is_named_and_the_exit_code_of_the_script_is_passed_on(script):
    failed = run("--backend", "threads", script(MEET + "    raise ValueError('odd')\n"))
    assert (failed.returncode, "ValueError: odd" in failed.stderr) == (70, True)
    assert run("--backend", "threads", script(MEET + "sys.exit(7)\n")).returncode == 7


@pytest.mark.parametrize("option", [["--restart", "1"], ["--classic-flags"]])
def test_what_threads_cannot_do_is_refused(script, option):
    ended = run("--backend", "threads", *option, script(MEET))
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"tfdist: {option[0]}: got ")
    assert ended.stderr.endswith("; needs --backend processes\n")


def test_a_reader_that_leaves_ends_the_process(script):
    told = read_a_line_and_leave("--backend", "threads", script(CHATTY))
    assert "Traceback" not in told
    assert told.count("nobody reads the output") == 1


# Python's own end has crashed with TensorFlow in the frames of threads that still ran.
def test_python_is_not_torn_down_under_threads_that_still_run(script):
    at_exit = "import atexit\natexit.register(print, 'torn down')\n"
    sound = run("--backend", "threads", "--no-prefix", script(at_exit + MEET))
    assert (sound.returncode, sound.stdout.splitlines()[-1]) == (0, "torn down")
    fails = "    sys.exit(7) if task.is_chief else threading.Event().wait()\n"
    failed = run("--backend", "threads", script(f"import threading\n{at_exit}{MEET}{fails}"))
    assert (failed.returncode, "torn down" in failed.stdout) == (7, False), failed.stderr
