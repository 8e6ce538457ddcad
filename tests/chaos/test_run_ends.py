"""`tfdist run` that is ended itself, by a signal, at any moment: nothing stays."""

import os
import signal
import time

import psutil
import pytest

from tests.launches import GONE_SECS, STUCK, family_of, start, wait_for_trainers
from tfdist.testing import poll_until


@pytest.mark.rotates(2)
@pytest.mark.parametrize("moment", ["at once", "while TensorFlow is loaded", "at the barrier"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_ends_everything_at_any_moment(script, tmp_path, moment, number, code):
    launcher = start(script(STUCK), tmp_path)
    if moment == "at the barrier":
        wait_for_trainers(tmp_path)
    elif moment == "while TensorFlow is loaded":
        poll_until(lambda: family_of(launcher), "the fork server has started")
    else:
        poll_until(lambda: catches(launcher.pid, signal.SIGTERM), "tfdist has begun")
    family = family_of(launcher)
    start_of_end = time.monotonic()
    # Ctrl-C on a terminal goes to the whole foreground group.
    os.killpg(launcher.pid, number) if number == signal.SIGINT else launcher.send_signal(number)
    output, errors = launcher.communicate(timeout=GONE_SECS)
    _, alive = psutil.wait_procs(family, timeout=GONE_SECS - (time.monotonic() - start_of_end))
    assert alive == []
    assert launcher.returncode == code
    assert "Traceback" not in errors
    assert output == ""


def test_nothing_outlives_a_killed_launcher(script, tmp_path):
    launcher = start(script(STUCK), tmp_path)
    wait_for_trainers(tmp_path)
    family = family_of(launcher)
    os.kill(task_of(family).pid, signal.SIGSTOP)  # one that cannot end by itself
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
