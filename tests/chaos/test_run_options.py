"""Options of `tfdist run`: the cluster, restarts, logs, the timeout and the folder."""

import json

from tests.launches import MEET, STUCK, run

FAILS_ONCE = """
import pathlib, sys, tfdist
mark = pathlib.Path(sys.argv.pop(), "failed")
if tfdist.Task.from_env().rank == 1 and not mark.exists():
    mark.touch()
    print("warning", file=sys.stderr)
    raise ValueError("cannot read")
""" + MEET.replace("if task.is_chief", "if not task.is_chief")

CLASSIC = """
import argparse, tfdist
parser = argparse.ArgumentParser()
for name in ("rate", "ps_hosts", "worker_hosts", "job_name"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--task_index", type=int)
task = tfdist.Task.from_flags(parser.parse_args())
with tfdist.worker_server(task):
    print("same as TF_CONFIG" if task == tfdist.Task.from_env() else task)
"""


def test_each_kind_of_cluster_runs_the_script_as_its_trainers(script):
    job = script("import tfdist; print(tfdist.Task.from_env().name)")
    two = {"[worker:0] worker:0", "[worker:1] worker:1"}
    chief, evaluator = "[chief:0] chief:0", "[evaluator:0] evaluator:0"
    assert lines(run("--chief", "--evaluator", job)) == two | {chief, evaluator}
    assert lines(run("--no-builtin-ps", job)) == two | {"[ps:0] ps:0"}
    assert lines(run("--coordinator", job)) == {chief}


def test_classic_flags_follow_the_arguments_and_agree_with_tf_config(script):
    ended = run("--classic-flags", "--workers", 1, script(CLASSIC), "--", "--rate=0.1")
    assert (ended.returncode, ended.stdout) == (0, "[worker:0] same as TF_CONFIG\n"), ended.stderr


def test_a_failed_task_is_restarted_and_each_attempt_is_kept(script, tmp_path):
    logs, job = tmp_path / "logs", script(FAILS_ONCE)
    ended = run("-v", "--restart", 1, "--log-dir", logs, "--json", job, tmp_path)
    assert ended.returncode == 0
    assert "tfdist: restarted worker:1 (attempt 2); attempt 1: exit code 1\n" in ended.stderr
    assert "tfdist: starting worker:1\n" in ended.stderr
    tasks = json.loads(ended.stdout)["tasks"]
    assert [(task["task"], task["attempt"], task["exit_code"]) for task in tasks] == [
        *[("ps:0", 1, 0), ("worker:0", 1, 0), ("worker:1", 1, 1), ("worker:1", 2, 0)]
    ]
    assert all(task["cpu_secs"] > 0 and task["peak_bytes"] > 5e7 for task in tasks)
    [folder] = logs.iterdir()
    error = json.loads((folder / "attempt-1/worker-1/error.json").read_text())
    assert (error["task"], error["exit_code"], error["message"]) == ("worker:1", 1, "cannot read")
    assert "in <module>" in error["traceback"]
    assert (folder / "attempt-1/worker-1/stderr").read_text() == "warning\n"
    assert (folder / "attempt-2/worker-1/stdout").read_text() == "all met\n"
    assert not (folder / "attempt-2/worker-1/error.json").exists()


def test_a_job_ends_after_its_timeout(script, tmp_path):
    ended = run("--timeout", 2, script(STUCK), tmp_path)
    assert ended.returncode == 70
    assert (
        "tfdist: --timeout 2 expired; terminated the tasks that were still running: "
        in ended.stderr
    )
    assert "terminated by tfdist" in ended.stderr


def lines(ended):
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.splitlines())
