"""A task that `tfdist run` terminates gets SIGTERM, time to save, and then SIGKILL."""

import os
import signal
import time

import psutil
import pytest

from tests.launches import GONE_SECS, family_of, run, start, wait_for_trainers

# Trains until SIGTERM, then saves the variable of the ps. The second argument names a task that
# fails once all trainers train.
SAVES = """
import os, signal, sys, time
import tensorflow as tf
import tfdist

task = tfdist.Task.from_env()
folder, fails = sys.argv[1], sys.argv[2:] == [task.name]
with tfdist.worker_server(task) as target, tf.Graph().as_default():
    with tf.device("/job:ps/task:0"):
        zero = tf.zeros_initializer()
        steps = tf.compat.v1.get_variable("steps", [], tf.int64, zero, use_resource=True)
    step = steps.assign_add(1)
    config = tf.compat.v1.ConfigProto(device_filters=task.device_filters)
    session = tf.compat.v1.Session(target, config=config)
    session.run(steps.initializer)

    def save(number, frame):
        with open(os.path.join(folder, "saved-" + task.name), "w") as file:
            file.write(str(session.run(steps)))
        sys.exit(0)

    signal.signal(signal.SIGTERM, save)
    session.run(step)
    open(os.path.join(folder, task.name), "w").close()
    paths = [os.path.join(folder, name) for name in task.trainers]
    while not fails or not all(map(os.path.exists, paths)):
        session.run(step)
        time.sleep(0.01)
    raise ValueError("bad record")
"""

STAYS = """
import os, signal, sys, threading, tfdist
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(os.path.join(sys.argv[1], tfdist.Task.from_env().name), "w").close()
threading.Event().wait()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "timeout"])
def test_trainers_save_after_a_signal_to_the_group(script, tmp_path, number):
    launcher = start(script(SAVES), tmp_path)
    wait_for_trainers(tmp_path)
    os.killpg(launcher.pid, number)
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + number, errors
    assert saved(tmp_path) == {"worker:0", "worker:1"}
    assert "SIGKILL" not in errors


def test_trainers_save_after_the_timeout(script, tmp_path):
    ended = run("-v", "--timeout", 8, script(SAVES), tmp_path)
    assert ended.returncode == 70
    assert (
        "tfdist: --timeout 8 expired; terminated the tasks that were still running: "
        in ended.stderr
    )
    assert "tfdist: sending SIGTERM to worker:1\n" in ended.stderr
    assert saved(tmp_path) == {"worker:0", "worker:1"}


def test_the_other_trainers_save_after_a_failure(script, tmp_path):
    ended = run("--workers", 3, script(SAVES), tmp_path, "worker:1")
    assert ended.returncode == 70
    assert "ValueError: bad record" in ended.stderr
    assert saved(tmp_path) == {"worker:0", "worker:2"}


def test_a_task_that_ignores_sigterm_is_killed_after_the_grace(script, tmp_path):
    launcher = start(script(STAYS), tmp_path, "--grace", 2)
    wait_for_trainers(tmp_path)
    family, before = family_of(launcher), time.monotonic()
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=2 + GONE_SECS)
    assert time.monotonic() - before >= 2
    assert_gone(family)
    assert launcher.returncode == 130
    assert "tfdist: killing worker:0, worker:1, 2 s after SIGTERM\n" in errors


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_second_signal_ends_the_grace(script, tmp_path, second):
    launcher = start(script(STAYS), tmp_path, "--grace", 600)
    wait_for_trainers(tmp_path)
    family = family_of(launcher)
    launcher.send_signal(signal.SIGINT)
    for line in launcher.stderr:
        if "SIGKILL follows" in line:
            break
    launcher.send_signal(second)
    launcher.communicate(timeout=GONE_SECS)
    assert_gone(family)
    assert launcher.returncode == 128 + second


def test_ctrl_c_during_the_grace_after_the_timeout_ends_the_grace_and_keeps_the_reason(
    script, tmp_path
):
    launcher = start(script(STAYS), tmp_path, "--grace", 600, "--timeout", 6)
    family = None
    for line in launcher.stderr:
        if "SIGKILL follows" in line:
            assert "or on the next Ctrl-C" in line
            family = family_of(launcher)
            break
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=GONE_SECS)
    assert_gone(family)
    assert (launcher.returncode, "--timeout 6 expired" in errors) == (70, True)


def saved(folder):
    """The tasks that saved the number of steps that they read from the ps."""
    files = list(folder.glob("saved-*"))
    assert all(int(file.read_text()) > 0 for file in files)
    return {file.name.removeprefix("saved-") for file in files}


def assert_gone(family):
    _, alive = psutil.wait_procs(family, timeout=GONE_SECS)
    assert alive == []
