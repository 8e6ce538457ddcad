"""Starts `tfdist` as a command in a process, and scripts for it to run."""

import os
import re
import signal
import subprocess
import sys

import psutil

from tfdist.testing import poll_until

GONE_SECS = 5.0  # docs promise this after Ctrl-C

MEET = """
import sys, tfdist
task = tfdist.Task.from_env()
with tfdist.worker_server(task):
    tfdist.Barrier(task, "meet", timeout=30).wait()
    if task.is_chief:
        print("all met", *sys.argv[1:])
"""

# Prints more than a pipe holds, and never ends.
STUCK = """
import os, subprocess, sys, threading, tfdist
subprocess.Popen(["sleep", "600"])
task = tfdist.Task.from_env()
with tfdist.worker_server(task):
    barrier = tfdist.Barrier(task, "end", timeout=60)
    open(os.path.join(sys.argv[1], task.name), "w").close()
    if task.is_chief:
        threading.Event().wait()
    barrier.wait()
"""

# The chief never arrives at the second meeting.
NEVER_COMES = """
import threading, tfdist


def never_come():
    threading.Event().wait()


task = tfdist.Task.from_env()
with tfdist.worker_server(task):
    meeting = tfdist.Barrier(task, "meeting")
    meeting.wait()
    tfdist.Progress.from_env().update("epoch 1", 3, 10)
    if task.is_chief:
        never_come()
    meeting.wait()
"""


def tfdist(*arguments):
    """Runs `tfdist ARGUMENTS` in a process, with pipes for its output."""
    return subprocess.run(
        [sys.executable, "-m", "tfdist", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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
    # This line is printed only if this machine did not let pytest isolate itself.
    ended.stderr = re.sub(r"^tfdist: warning: other machines can reach .*\n", "", ended.stderr)
    return ended


def start(job, folder, *options):
    """Starts `tfdist run` with one ps and two workers; the script gets `folder` as its argument."""
    # What is ignored here would be ignored there: SIGHUP under nohup, SIGQUIT in the background.
    signals = (signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals}
    try:
        return subprocess.Popen(
            command("--ps", 1, "--workers", 2, *options, job, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_trainers(folder):
    names = [folder / "worker:0", folder / "worker:1"]
    poll_until(lambda: all(name.exists() for name in names), "the trainers run", timeout=60)


def family_of(launcher):
    return psutil.Process(launcher.pid).children(recursive=True)
