"""`tfdist stacks` and `tfdist status`, for a job whose workers hang in four ways."""

import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from tests.launches import tfdist
from tfdist.runs.folder import RunFolder
from tfdist.testing import poll_until

# Worker 0 waits in TensorFlow for a queue on the ps that stays empty, worker 1 at a barrier for
# worker 0, the others in Python.
STUCK = """
import os, sys, threading
import tfdist
import tensorflow as tf


def say(word):
    open(os.path.join(sys.argv[1], f"{task.name} {word}"), "w").close()


def take_from_empty_queue():
    with tf.Graph().as_default(), tf.device("/job:ps/task:0/device:CPU:0"):
        take = tf.queue.FIFOQueue(1, [tf.int32], shapes=[[]], shared_name="empty").dequeue()
        with tf.compat.v1.Session(target) as session:
            say("waits")
            session.run(take)


def wait_at_barrier():
    say("waits")
    meeting.wait()


def wait_in_python():
    say("waits")
    threading.Event().wait()


task = tfdist.Task.from_env()
with tfdist.worker_server(task) as target:
    tfdist.Progress.from_env().update("epoch 1 of 3", task.rank, 100)
    if task.rank < 2:
        meeting = tfdist.Barrier(task, "meeting", parties=2)
        meeting.wait()
    [take_from_empty_queue, wait_at_barrier, wait_in_python, wait_in_python][task.rank]()
"""

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def launch(script, tmp_path, monkeypatch):
    """Starts a job of a ps and 4 workers; returns the launcher once all workers wait."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    launchers = []

    def start(*options):
        command = [sys.executable, "-m", "tfdist", "run", "--ps", "1", "--workers", "4"]
        marks = tmp_path / "marks"
        marks.mkdir()
        launcher = subprocess.Popen([*command, *options, script(STUCK), marks])
        launchers.append(launcher)
        poll_until(lambda: len(list(marks.iterdir())) == 4, "all workers wait", timeout=60)
        return launcher

    yield start
    for launcher in launchers:
        launcher.terminate()
        launcher.wait(30)


def report(*arguments):
    """Runs it with --json: its exit code, its tasks by name, and all of the object."""
    ended = tfdist(*arguments, "--json")
    assert ended.stdout.count("\n") == 1, ended.stderr
    about = json.loads(ended.stdout)
    assert about["exit_code"] == ended.returncode
    return ended.returncode, {task["task"]: task for task in about["tasks"]}, about


def functions(stack):
    return [frame["function"] for frame in stack["frames"]]


def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    poll_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it is stopped")


def main_stack(tasks, name):
    stack = tasks[name]["stacks"][0]
    return functions(stack) if stack["main"] else []


def all_wait(tasks):
    in_tensorflow = [main_stack(tasks, name)[:1] for name in ("worker:0", "worker:1")]
    return in_tensorflow == [["_call_tf_sessionrun"]] * 2


def test_a_job_that_hangs_and_then_ends(launch, tmp_path):
    launcher = launch("--log-dir", str(tmp_path / "logs"))
    logs = tmp_path / "logs"
    run = RunFolder.find(str(logs))
    pids = {record.name: record.pid for record in run.latest()}

    # No note can say that they are in TensorFlow; only the stacks show it.
    poll_until(lambda: all_wait(report("stacks", logs)[1]), "workers 0 and 1 are in TensorFlow")
    stopped(pids["worker:3"])

    code, tasks, _ = report("stacks", logs)
    assert code == 1
    assert {name: task["answer"] for name, task in tasks.items()} == {
        "ps:0": "answered",
        "worker:0": "answered",
        "worker:1": "answered",
        "worker:2": "answered",
        "worker:3": "stopped",
    }
    assert "take_from_empty_queue" in main_stack(tasks, "worker:0")
    assert "wait_at_barrier" in main_stack(tasks, "worker:1")
    waits = tasks["worker:2"]["stacks"][0]
    assert functions(waits)[:3] == ["wait", "wait", "wait_in_python"]
    assert waits["main"]
    assert waits["frames"][2]["file"].endswith("job.py")
    assert (
        waits["frames"][2]["line"] == STUCK.splitlines().index("    threading.Event().wait()") + 1
    )
    kernel = tasks["worker:3"]["kernel"]
    assert (kernel["main"]["state"], kernel["main"]["denied"]) == ("stopped", False)
    others = tasks["worker:0"]["kernel"]["others"]
    assert sum(other["count"] for other in others) > 1
    assert any(other["name"] == "event_engine" for other in others)  # gRPC's

    code, _, about = report("stacks", logs, "--verdict")
    assert (about["verdict"]["name"], about["verdict"]["culprits"]) == (
        "PEER_STOPPED",
        ["worker:3"],
    )
    verdict, reason, *more = tfdist("stacks", logs, "--verdict").stdout.splitlines()
    assert verdict == "verdict: PEER_STOPPED, cause: worker:3 (certain)"
    assert reason == "  worker:3 is stopped, by SIGSTOP or a debugger"
    assert "  barrier 'meeting' waits for worker:0" in more
    assert any(line.startswith("what to do: ") for line in more)

    text = tfdist("stacks", logs, "--task", "worker:2").stdout
    assert f"worker:2  attempt 1  pid {pids['worker:2']}  answers" in text
    assert "wait_in_python" in text
    assert "worker:0" not in text
    assert max(len(line) for line in text.splitlines()[1:]) <= 80

    code, tasks, about = report("status", logs)
    assert code == 1
    assert {name: task["state"] for name, task in tasks.items()} == {
        "ps:0": "runs",
        "worker:0": "runs",
        "worker:1": "runs",
        "worker:2": "runs",
        "worker:3": "stopped",
    }
    assert all(task["listens"] and task["memory_bytes"] for task in tasks.values())
    assert tasks["ps:0"]["progress"] is None
    noted = {"state": "epoch 1 of 3", "done": 3, "total": 100}
    assert tasks["worker:3"]["progress"] == noted
    assert tasks["worker:3"]["progress_age_secs"] >= 0
    [barrier] = about["barriers"]
    assert about["barriers_failure"] is None
    assert (barrier["name"], barrier["generation"], barrier["broken"]) == ("meeting", 2, None)
    places = {place["trainer"]: place["state"] for place in barrier["places"]}
    assert places == {"worker:0": "missing", "worker:1": "arrived"}

    rows = [line.split() for line in tfdist("status", logs).stdout.splitlines()]
    assert ["worker:3", str(pids["worker:3"]), "stopped"] in [row[:3] for row in rows]
    [row] = [" ".join(row) for row in rows if row[:1] == ["meeting"]]
    expected = r"meeting 2 worker:1 \d+ s ago worker:0 \d+ s ago longest wait: \d+ s"
    assert re.fullmatch(expected, row)

    # No task was harmed by the signals.
    assert {record.name: record.pid for record in run.latest() if record.process} == pids

    # The only running job needs no name.
    assert report("stacks")[2]["run"] == str(run.path)

    # A stopped ps does not report its barriers.
    stopped(pids["ps:0"])
    code, _, about = report("status", logs)
    assert (code, about["barriers"]) == (1, [])
    assert about["barriers_failure"] == "ps:0, which keeps the barriers, is stopped"
    assert about["barriers_failure"] in tfdist("status", logs).stdout

    os.kill(pids["worker:2"], signal.SIGKILL)
    launcher.wait(30)
    assert list(tmp_path.glob("tfdist-*")) == []
    code, tasks, _ = report("stacks", logs)
    ends = {name: task["state"] for name, task in tasks.items()}
    assert ends.pop("worker:2") == "killed by SIGKILL"
    assert set(ends.values()) == {"terminated by tfdist"}
    assert (code, tasks["worker:2"]["stacks"]) == (1, [])
    assert "this job has ended" in tfdist("stacks", logs).stdout
    code, tasks, about = report("status", logs)
    states = {name: task["state"] for name, task in tasks.items()}
    assert (code, states) == (1, ends | {"worker:2": "killed by SIGKILL"})
    assert (about["barriers"], about["barriers_failure"]) == ([], None)
    assert "this job has ended" in tfdist("status", logs).stdout
