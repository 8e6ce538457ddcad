"""Clusters on this machine: they start, report failures, and leave nothing behind."""

import functools
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

import tfdist
from tests.cluster import jobs
from tfdist.cluster import local, processes
from tfdist.cluster.guardian import Guardian
from tfdist.cluster.processes import Surroundings
from tfdist.runs.folder import RunFolder
from tfdist.testing import poll_until


@pytest.fixture(params=["threads", "processes"])
def backend(request):
    return request.param


def test_results_come_by_rank_and_a_cluster_runs_again(make_cluster, backend):
    cluster = make_cluster(2, 3, backend=backend)
    assert [task.name for task in cluster.trainers] == ["worker:0", "worker:1", "worker:2"]
    for _ in range(2):  # the second run has a new ps
        assert cluster.run(jobs.meet, timeout=60) == [(0, 2), (1, 2), (2, 2)]


def test_a_ps_exits_by_itself_once_the_trainers_have_reported(make_cluster, monkeypatch, caplog):
    monkeypatch.setattr(local, "_OWN_SECS", 0.0)  # for trainers that do not report
    with caplog.at_level(logging.INFO, "tfdist"):
        make_cluster(1, 2, backend="processes").run(jobs.meet, timeout=60)
    assert "ps:0 has ended with exit code 0" in caplog.messages


def test_each_process_has_its_own_tf_config(make_cluster):
    cluster = make_cluster(0, 2, backend="processes")
    for task, (name, config) in zip(
        cluster.trainers, cluster.run(jobs.name_and_config, timeout=60), strict=True
    ):
        assert (name, config) == (task.name, task.to_env())


def test_a_failure_is_raised_with_its_traceback_and_ends_the_other_tasks(make_cluster):
    cluster = make_cluster(1, 3, backend="processes")
    job = functools.partial(jobs.fail_at, name="worker:1", how=jobs.raise_value_error)
    with pytest.raises(tfdist.TaskFailed, match="worker:1") as caught:
        cluster.run(job, timeout=60)  # the leak check finds tasks that still wait
    assert "ValueError: bad record" in caught.value.details
    assert isinstance(caught.value.__cause__, ValueError)


def test_threads_that_still_run_after_a_failure_are_named(make_cluster):
    cluster = make_cluster(1, 2, backend="threads")
    job = functools.partial(jobs.fail_at, name="worker:1", how=jobs.raise_value_error, timeout=3)
    with (
        pytest.warns(RuntimeWarning, match="worker:0 is still running"),
        pytest.raises(tfdist.TaskFailed, match="ValueError: bad record"),
    ):
        cluster.run(job, timeout=60)


def test_a_config_error_of_a_task_is_raised_as_it_is(make_cluster, backend):
    cluster = make_cluster(1, 1, backend=backend)
    job = functools.partial(jobs.fail_at, name="worker:0", how=jobs.raise_config_error)
    with pytest.raises(tfdist.ConfigError) as caught:
        cluster.run(job, timeout=60)
    assert caught.value.field == "--rate"


def test_an_exit_code_is_kept(make_cluster):
    cluster = make_cluster(1, 2, backend="processes")
    job = functools.partial(jobs.fail_at, name="worker:1", how=jobs.exit_with_7)
    with pytest.raises(tfdist.TaskFailed) as caught:
        cluster.run(job, timeout=60)
    assert (caught.value.task_name, caught.value.exit_code) == ("worker:1", 7)


def test_an_exit_code_is_kept_while_multiprocessing_polls_it_too(make_cluster):
    """`multiprocessing` polls all children when it starts another."""
    cluster, over = make_cluster(0, 4, backend="processes"), threading.Event()

    def ask():
        while not over.is_set():
            multiprocessing.active_children()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(3):
            assert len(cluster.run(jobs.name_and_config, timeout=60)) == 4
    finally:
        over.set()
        asking.join()


def test_a_killed_trainer_is_named_with_the_signal(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    run = _in_background(cluster, tmp_path)
    os.kill(int((tmp_path / "worker:1").read_text()), signal.SIGKILL)
    run.join()
    assert isinstance(run.caught, tfdist.TaskFailed)
    assert (run.caught.task_name, run.caught.exit_code) == ("worker:1", -signal.SIGKILL)


@pytest.mark.parametrize("rise", [1, 0])
def test_a_kill_for_lack_of_memory_is_named(make_cluster, tmp_path, monkeypatch, rise):
    kills = [3]
    monkeypatch.setattr(processes, "oom_kills", lambda pid: kills[0])
    run = _in_background(make_cluster(1, 1, backend="processes"), tmp_path)
    kills[0] += rise
    os.kill(int((tmp_path / "worker:0").read_text()), signal.SIGKILL)
    run.join()
    assert run.caught.exit_code == -signal.SIGKILL
    assert run.caught.details.startswith("out of memory: the kernel killed 1 process") == bool(rise)


def test_a_run_continues_when_a_killed_trainer_is_restarted(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    run = _in_background(cluster, tmp_path)
    note = tmp_path / "worker:1"
    note.unlink()
    cluster.kill("worker:1")
    cluster.restart("worker:1")
    poll_until(note.exists, "worker:1 runs again")
    (tmp_path / "go").touch()
    run.join()
    assert (run.caught, run.results) == (None, [0, 1])


def test_a_run_fails_if_only_killed_trainers_are_left(make_cluster, tmp_path):
    cluster = make_cluster(1, 1, backend="processes")
    run = _in_background(cluster, tmp_path)
    cluster.kill("worker:0")
    run.join()
    assert isinstance(run.caught, tfdist.TaskFailed)
    assert "restart() was not called" in str(run.caught)


def test_a_chief_has_rank_0_and_an_evaluator_is_outside_the_cluster(
    make_cluster, backend, tmp_path
):
    cluster = make_cluster(1, 2, backend=backend, chief=True, evaluator=True)
    job = functools.partial(jobs.evaluate_or_train, folder=str(tmp_path))
    assert cluster.run(job, timeout=60) == ["chief:0", "worker:0", "worker:1"]
    assert (tmp_path / "evaluated").exists()
    assert set(cluster.trainers[0].cluster_spec) == {"ps", "chief", "worker"}


def test_an_evaluator_that_does_not_end_is_terminated(make_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "EVALUATOR_SECS", 0.1)
    cluster = make_cluster(0, 1, backend="processes", evaluator=True)
    assert cluster.run(jobs.evaluator_hangs, timeout=60) == ["worker:0"]


def test_a_failed_task_is_restarted(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    job = functools.partial(jobs.fail_in_the_first_attempt, folder=str(tmp_path))
    assert cluster.run(job, timeout=60, restarts=1) == [(0, 2), (1, 2)]


def test_a_run_ends_with_the_error_that_watch_raises(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    looks = []

    def watch():
        looks.append(time.monotonic())
        if len(looks) > 3:
            raise tfdist.ClusterError("enough")

    with pytest.raises(tfdist.ClusterError, match="enough"):
        # The leak check finds tasks that still wait.
        cluster.run(functools.partial(jobs.note_and_wait, folder=tmp_path), watch=watch)
    assert len(looks) == 4
    assert max(after - before for before, after in itertools.pairwise(looks)) <= 1.0


def test_a_failure_of_a_task_precedes_an_error_of_watch(make_cluster, tmp_path):
    cluster = make_cluster(0, 1, backend="processes")

    def watch():
        poll_until(lambda: not cluster._ended.empty(), "the task has failed", timeout=60)
        raise tfdist.ClusterError("enough")

    job = functools.partial(jobs.count_attempts_and_fail, folder=str(tmp_path))
    with pytest.raises(tfdist.TaskFailed, match="attempt 1"):
        cluster.run(job, watch=watch)


def test_watch_is_not_called_once_all_tasks_have_ended(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    looks = []

    def watch():
        if not looks:
            (tmp_path / "go").touch()
            # Also the ps, which may end before the last trainer's process.
            poll_until(lambda: cluster._ended.qsize() == 3, "all have ended", timeout=60)
        looks.append("a long look")
        raise tfdist.ClusterError("enough")

    cluster.run(functools.partial(jobs.note_and_wait, folder=tmp_path), watch=watch)
    assert len(looks) == 1


def test_an_error_of_watch_ends_the_run_although_a_task_succeeded_meanwhile(make_cluster):
    cluster = make_cluster(0, 2, backend="processes")

    def watch():
        raise tfdist.ClusterError("enough")

    with pytest.raises(tfdist.ClusterError, match="enough"):
        cluster.run(jobs.only_the_chief_ends, watch=watch)


def test_a_task_without_restarts_left_fails_the_run(make_cluster, tmp_path):
    cluster = make_cluster(0, 1, backend="processes")
    job = functools.partial(jobs.count_attempts_and_fail, folder=str(tmp_path))
    with pytest.raises(tfdist.TaskFailed, match="attempt 3"):
        cluster.run(job, timeout=60, restarts=2)


def test_a_task_starts_only_after_the_guardian_has_noted_it(make_cluster, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the guardian noted nothing")

    monkeypatch.setattr(Guardian, "note_group", fail)
    cluster = make_cluster(0, 1, backend="processes")
    with pytest.raises(tfdist.TaskFailed, match="noted nothing"):
        cluster.run(functools.partial(jobs.leave_pid, folder=str(tmp_path)), timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_cannot_be_unpickled_is_a_failure(make_cluster):
    with pytest.raises(tfdist.TaskFailed, match="not for the launcher"):
        make_cluster(0, 1, backend="processes").run(jobs.return_unreadable, timeout=10)


ENDS = [
    (sys.exit, 3, "SystemExit: 3"),
    (jobs.throw_in, KeyboardInterrupt, "KeyboardInterrupt: mine"),
    (jobs.throw_in, EOFError, "EOFError: mine"),
    (jobs.throw_in, ConnectionResetError, "ConnectionResetError: mine"),
]


def _failure(cluster, function, make):
    with pytest.raises(tfdist.TaskFailed) as caught:
        cluster.run(functools.partial(function, make=make), timeout=60)
    return caught.value


def test_whatever_a_result_or_an_error_raises_when_it_is_unpickled_is_a_failure(make_cluster):
    cluster = make_cluster(0, 1, backend="processes")
    for make, argument, why in ENDS:
        remade = functools.partial(jobs.Remade, make, argument)
        failed = _failure(cluster, jobs.give_back, remade)
        assert str(failed) == f"worker:0: its result cannot be unpickled: {why}"
        failed = _failure(cluster, jobs.throw, remade)
        assert "Remade: bad record" in failed.details
        assert failed.details.endswith(f"\nits error cannot be unpickled: {why}\n")
        assert str(failed.__cause__) == "tests.cluster.jobs.Remade: bad record"
    failed = _failure(cluster, jobs.throw, functools.partial(jobs.Remade, str, "x"))
    assert "its error cannot be unpickled: TypeError: it becomes a str" in failed.details


def test_a_function_that_cannot_be_unpickled_is_a_failure(make_cluster):
    cluster = make_cluster(0, 1, backend="processes")
    for make, argument, why in ENDS:
        with pytest.raises(tfdist.TaskFailed) as caught:
            cluster.run(jobs.RemadeFunction(make, argument), timeout=60)
        what = f"the function cannot be unpickled in the task's process: {why}"
        assert what in caught.value.details


@pytest.mark.parametrize("variables", [{"RATE": 5}, {"RATE=": "5"}, {"RATE": "\0"}])
def test_a_wrong_environment_variable_is_in_the_details(make_cluster, variables):
    cluster = make_cluster(0, 1, backend="processes", surroundings=Surroundings(variables))
    with pytest.raises(tfdist.TaskFailed, match=r"TypeError: str expected|ValueError: "):
        cluster.run(jobs.name_and_config, timeout=60)


def test_a_result_that_cannot_be_pickled_is_a_failure(make_cluster):
    cluster = make_cluster(0, 1, backend="processes")
    for make, why in [(threading.Lock, "TypeError: cannot"), (jobs.Unsendable, "SystemExit: 3")]:
        failed = str(_failure(cluster, jobs.give_back, make))
        assert failed.startswith(f"worker:0: its result cannot be sent to the launcher: {why}")


def test_a_function_that_ends_its_process_has_not_returned(make_cluster):
    cluster = make_cluster(0, 1, backend="processes")
    failed = _failure(cluster, jobs.give_back, functools.partial(os._exit, 0))
    assert str(failed).startswith("worker:0: its function never returned")
    failed = _failure(cluster, jobs.give_back, functools.partial(os.execv, "/bin/true", ["true"]))
    assert str(failed).startswith("worker:0: its function never returned")
    with pytest.raises(tfdist.TaskFailed, match="exit code 7"):
        cluster.run(functools.partial(jobs.give_back, make=functools.partial(os._exit, 7)))
    assert cluster.run(functools.partial(jobs.give_back, make=sys.exit), timeout=60) == [None]


def test_an_error_or_exit_code_that_cannot_be_printed_is_a_failure(make_cluster, backend):
    cluster = make_cluster(0, 1, backend=backend)
    no_text = functools.partial(SystemExit, jobs.NoText())
    assert _failure(cluster, jobs.throw, no_text).details == "NoText"
    assert "OddSyntax in " in _failure(cluster, jobs.throw, jobs.OddSyntax).details


@pytest.mark.parametrize("what", ["started", "output", "ended"])
def test_an_error_of_the_observer_is_a_failure(make_cluster, tmp_path, what):
    class Full(RunFolder):
        def fail(self, *_):
            raise OSError("the disk is full")

    setattr(Full, what, Full.fail)
    cluster = make_cluster(0, 1, backend="processes", surroundings=Surroundings({}, Full(tmp_path)))
    with pytest.raises(tfdist.TaskFailed, match="the disk is full"):
        cluster.run(jobs.speak, timeout=10)


def test_only_a_killed_task_can_be_restarted(make_cluster):
    with pytest.raises(tfdist.ClusterError, match="was not ended by kill"):
        make_cluster(1, 1, backend="processes").restart("ps:0")


def test_a_paused_trainer_continues_after_resume(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    run = _in_background(cluster, tmp_path)
    process = psutil.Process(int((tmp_path / "worker:1").read_text()))
    cluster.pause("worker:1")
    poll_until(lambda: process.status() == psutil.STATUS_STOPPED, "worker:1 is stopped")
    cluster.resume("worker:1")
    (tmp_path / "go").touch()
    run.join()
    assert run.caught is None
    assert run.results == [0, 1]


@pytest.mark.parametrize("ends", ["timeout", "watch", "failure"])
def test_a_terminated_trainer_can_save_in_its_sigterm_handler(make_cluster, tmp_path, ends):
    cluster = make_cluster(1, 2, backend="processes")
    job = functools.partial(jobs.save_on_sigterm, folder=tmp_path, fails=ends == "failure")
    ready = [tmp_path / task.name for task in cluster.trainers]

    def watch():
        if ends == "watch" and all(file.exists() for file in ready):
            raise tfdist.ClusterError("enough")

    with pytest.raises(tfdist.ClusterError):
        cluster.run(job, timeout=5 if ends == "timeout" else 60, watch=watch)
    saved = {file.name.removeprefix("saved-") for file in tmp_path.glob("saved-*")}
    assert saved == {"worker:0"} | ({"worker:1"} if ends != "failure" else set())


def test_an_error_of_a_sigterm_handler_is_shown(make_cluster, tmp_path, capsys):
    cluster = make_cluster(0, 1, backend="processes")

    def watch():
        if (tmp_path / "worker:0").exists():
            raise tfdist.ClusterError("enough")

    with pytest.raises(tfdist.ClusterError, match="enough"):
        cluster.run(functools.partial(jobs.fail_on_sigterm, folder=tmp_path), watch=watch)
    assert "ValueError: bad record" in capsys.readouterr().err


def test_a_paused_task_ends_before_the_grace_is_over(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes", grace=60)
    times = []

    def watch():
        if all((tmp_path / task.name).exists() for task in cluster.trainers):
            cluster.pause("ps:0")
            cluster.pause("worker:1")
            times.append(time.monotonic())
            raise tfdist.ClusterError("enough")

    with pytest.raises(tfdist.ClusterError, match="enough"):
        cluster.run(functools.partial(jobs.note_and_wait, folder=tmp_path), watch=watch)
    assert time.monotonic() - times[0] < 5


def test_a_task_that_ignores_sigterm_is_killed_with_its_children(make_cluster, tmp_path):
    cluster = make_cluster(0, 1, backend="processes", grace=0.5)
    file = tmp_path / "child"

    def watch():
        if file.exists():
            raise tfdist.ClusterError("enough")

    job = functools.partial(jobs.ignore_sigterm, folder=tmp_path)
    with pytest.raises(tfdist.ClusterError, match="enough"):
        cluster.run(job, timeout=60, watch=watch)
    child = int(file.read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_run_timeout_names_the_running_tasks(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    with pytest.raises(tfdist.RunTimeout) as caught:
        cluster.run(functools.partial(jobs.note_and_wait, folder=str(tmp_path)), timeout=3)
    assert set(caught.value.running) == {"ps:0", "worker:0", "worker:1"}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"num_ps": -1}, "num_ps"),
        ({"num_workers": 0}, "num_workers"),
        ({"backend": "fibres"}, "backend"),
        ({"grace": -1.0}, "grace"),
        ({"grace": float("nan")}, "grace"),
    ],
)
def test_wrong_parameters_are_named(arguments, field):
    with pytest.raises(tfdist.ConfigError) as caught:
        tfdist.local_cluster(**arguments)
    assert caught.value.field == field


class _in_background(threading.Thread):
    """Runs `note_and_wait` on the cluster; returns once all trainers have written their pids."""

    def __init__(self, cluster, folder):
        super().__init__()
        self.caught = self.results = None
        self._cluster = cluster
        self._job = functools.partial(jobs.note_and_wait, folder=str(folder))
        self.start()
        names = [task.name for task in cluster.trainers]
        poll_until(
            lambda: all((folder / name).exists() for name in names),
            "the trainers have started",
            timeout=60,
        )

    def run(self):
        try:
            self.results = self._cluster.run(self._job, timeout=60)
        except tfdist.TfdistError as error:
            self.caught = error


def test_a_run_ends_when_another_thread_closes_the_cluster(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    run = _in_background(cluster, tmp_path)
    with pytest.raises(tfdist.ClusterError, match="runs a function already"):
        cluster.run(jobs.name_and_config, timeout=60)
    cluster.close()
    run.join(10)
    assert isinstance(run.caught, tfdist.ClusterError)
    assert "closed" in str(run.caught)


def test_a_run_of_threads_ends_when_another_thread_closes_the_cluster(make_cluster):
    cluster, go = make_cluster(0, 1, backend="threads"), threading.Event()
    closing = threading.Thread(target=cluster.close)

    def train(task):
        closing.start()
        go.wait(30)

    try:
        with (
            pytest.warns(RuntimeWarning, match="worker:0 is still running"),
            pytest.raises(tfdist.ClusterError, match="closed"),
        ):
            cluster.run(train, timeout=30)
    finally:
        go.set()
        closing.join()


def test_a_closed_cluster_runs_nothing(backend):
    cluster = tfdist.local_cluster(0, 1, backend=backend)
    cluster.close()
    with pytest.raises(tfdist.ClusterError, match="closed"):
        cluster.run(jobs.name_and_config, timeout=60)


def test_watch_may_neither_run_another_function_nor_close_the_cluster_unnoticed(make_cluster):
    cluster = make_cluster(0, 2, backend="processes")
    with pytest.raises(tfdist.ClusterError, match="runs a function already"):
        cluster.run(jobs.only_the_chief_ends, watch=lambda: cluster.run(jobs.name_and_config))
    with pytest.raises(tfdist.ClusterError, match="closed"):
        cluster.run(jobs.only_the_chief_ends, watch=cluster.close)


def test_a_deleted_working_directory_is_named(make_cluster, tmp_path, monkeypatch):
    cluster, gone = make_cluster(0, 1, backend="processes"), tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(tfdist.ClusterError) as caught:
        cluster.run(jobs.name_and_config, timeout=60)
    assert str(caught.value) == (
        f"cannot start a process: the working directory {gone} was deleted; change to another"
    )


def test_with_a_coordinator_only_the_chief_trains():
    cluster = tfdist.local_cluster(1, 2, coordinator=True)
    try:
        assert [task.name for task in cluster.trainers] == ["chief:0"]
        assert len(cluster.tasks) == 4
    finally:
        cluster.close()


def test_a_lambda_runs_in_a_process(make_cluster):
    names = make_cluster(1, 2, backend="processes").run(lambda task: task.name, timeout=60)
    assert names == ["worker:0", "worker:1"]


def test_a_function_that_cannot_be_sent_is_a_config_error(make_cluster):
    lock = threading.Lock()
    with pytest.raises(tfdist.ConfigError, match=r"function: got .* cannot be sent to another"):
        make_cluster(0, 1, backend="processes").run(lambda task: lock, timeout=60)


FROM_A_PIPE = """
import dataclasses, tfdist

@dataclasses.dataclass
class Found:
    name: str

def train(task):
    if task.name == "worker:1" and fails:
        raise Missing("a.csv")
    return Found(task.name)

class Missing(Exception):
    pass

for fails in (False, True):
    with tfdist.local_cluster(0, 2, backend="processes") as cluster:
        try:
            print(cluster.run(train, timeout=60))
        except tfdist.TaskFailed as error:
            print(error.task_name, type(error.__cause__).__name__, error.__cause__)
"""


def test_the_functions_and_classes_of_a_program_from_a_pipe_work_in_processes():
    ended = subprocess.run(
        [sys.executable, "-"],
        input=FROM_A_PIPE,
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "[Found(name='worker:0'), Found(name='worker:1')]",
        "worker:1 Missing a.csv",
    ]
