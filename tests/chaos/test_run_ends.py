"""`tfdist run` ended by a signal at any moment leaves no process behind."""

import os
import signal
import time

import psutil
import pytest

from tests.launches import GONE_SECS, STUCK, family_of, start, wait_for_trainers
from tfdist.cluster.fork_server import OF_GROUP
from tfdist.testing import poll_until


@pytest.mark.rotates(2)
@pytest.mark.parametrize("moment", ["immediately", "during the import", "at the barrier"])
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGQUIT, 131),
        (signal.SIGUSR1, 138),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1"],
)
def test_a_signal_ends_all_processes_at_any_moment(script, tmp_path, moment, number, code):
    launcher = start(script(STUCK), tmp_path)
    if moment == "at the barrier":
        wait_for_trainers(tmp_path)
    elif moment == "during the import":
        poll_until(lambda: family_of(launcher), "the fork server has started")
    else:
        poll_until(lambda: catches(launcher.pid, signal.SIGTERM), "tfdist has started")
    family = family_of(launcher)
    signalled_at = time.monotonic()
    if number in OF_GROUP:
        os.killpg(launcher.pid, number)
    else:
        launcher.send_signal(number)
    output, errors = launcher.communicate(timeout=GONE_SECS)
    _, alive = psutil.wait_procs(family, timeout=GONE_SECS - (time.monotonic() - signalled_at))
    assert alive == []
    assert launcher.returncode == code
    assert "Traceback" not in errors
    assert output == ""


def test_nothing_outlives_a_killed_launcher(script, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the launcher leaves its folder
    launcher = start(script(STUCK), tmp_path)
    wait_for_trainers(tmp_path)
    family = family_of(launcher)
    os.kill(task_of(family).pid, signal.SIGSTOP)  # it cannot end by itself
    launcher.kill()
    launcher.communicate(timeout=GONE_SECS)
    _, alive = psutil.wait_procs(family, timeout=GONE_SECS)
    assert alive == []


def task_of(family):
    forks = (process for process in family if "multiprocessing" in str(process.cmdline()))
    return next(process for process in forks if os.getsid(process.pid) == process.pid)


def catches(pid, number):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        mask = next(line for line in file if line.startswith("SigCgt:")).split()[1]
    return int(mask, 16) >> (number - 1) & 1
