"""Clusters on this machine: they come up, they say what failed, and nothing of them stays."""

import functools
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

import tfdist
from tests.cluster import jobs
from tfdist.testing import poll_until


@pytest.fixture(params=["threads", "processes"])
def backend(request):
    return request.param


def test_results_come_by_rank_and_a_cluster_runs_again(make_cluster, backend):
    cluster = make_cluster(2, 3, backend=backend)
    assert [task.name for task in cluster.trainers] == ["worker:0", "worker:1", "worker:2"]
    for _ in range(2):
        assert cluster.run(jobs.meet, timeout=60) == [0, 1, 2]


def test_each_process_has_its_own_tf_config(make_cluster):
    cluster = make_cluster(0, 2, backend="processes")
    for task, (name, config) in zip(
        cluster.trainers, cluster.run(jobs.who, timeout=60), strict=True
    ):
        assert (name, config) == (task.name, task.to_env())


def test_a_failure_is_named_with_its_traceback_and_stops_the_others(make_cluster):
    cluster = make_cluster(1, 3, backend="processes")
    job = functools.partial(jobs.fail_at, name="worker:1", how=jobs.raise_value_error)
    with pytest.raises(tfdist.TaskFailed, match="worker:1") as caught:
        cluster.run(job, timeout=60)  # the leak check sees that the others do not wait on
    assert "ValueError: the number is odd" in caught.value.details
    assert isinstance(caught.value.__cause__, ValueError)


def test_threads_that_still_wait_after_a_failure_are_named(make_cluster):
    cluster = make_cluster(1, 2, backend="threads")
    job = functools.partial(jobs.fail_at, name="worker:1", how=jobs.raise_value_error, timeout=3)
    with (
        pytest.warns(RuntimeWarning, match="worker:0 still runs"),
        pytest.raises(tfdist.TaskFailed, match="ValueError: the number is odd"),
    ):
        cluster.run(job, timeout=60)


def test_bad_input_stays_a_config_error(make_cluster, backend):
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


def test_a_killed_trainer_is_named_with_its_signal(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    error = _in_background(cluster, tmp_path)
    cluster.kill("worker:1")
    error.join()
    assert isinstance(error.caught, tfdist.TaskFailed)
    assert (error.caught.task_name, error.caught.exit_code) == ("worker:1", -signal.SIGKILL)


def test_a_killed_ps_is_named_too(make_cluster, tmp_path):
    cluster = make_cluster(2, 2, backend="processes")
    error = _in_background(cluster, tmp_path)
    cluster.kill("ps:1")
    error.join()
    assert isinstance(error.caught, tfdist.TaskFailed)
    assert error.caught.task_name == "ps:1"


def test_a_paused_trainer_goes_on_when_it_is_resumed(make_cluster, tmp_path):
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


def test_a_run_that_takes_too_long_is_ended_and_names_who_ran(make_cluster, tmp_path):
    cluster = make_cluster(1, 2, backend="processes")
    with pytest.raises(tfdist.StartTimeout) as caught:
        cluster.run(functools.partial(jobs.note_and_wait, folder=str(tmp_path)), timeout=3)
    assert set(caught.value.missing) == {"ps:0", "worker:0", "worker:1"}


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path):
    program = (
        "import functools, tfdist; from tests.cluster import jobs\n"
        "if __name__ == '__main__':\n"
        "    with tfdist.local_cluster(1, 2, backend='processes') as cluster:\n"
        f"        cluster.run(functools.partial(jobs.note_and_wait, folder={str(tmp_path)!r}))\n"
    )
    script = tmp_path / "launcher.py"
    script.write_text(program)
    launcher = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": "."})
    names = [tmp_path / "worker:0", tmp_path / "worker:1"]
    poll_until(lambda: all(path.exists() for path in names), "the trainers run", timeout=60)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert len(family) >= 4  # the fork server, a ps, two trainers
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"num_ps": -1}, "num_ps"),
        ({"num_workers": 0}, "num_workers"),
        ({"backend": "fibres"}, "backend"),
    ],
)
def test_wrong_parameters_are_named(arguments, field):
    with pytest.raises(tfdist.ConfigError) as caught:
        tfdist.local_cluster(**arguments)
    assert caught.value.field == field


class _in_background(threading.Thread):
    """Runs `note_and_wait` on the cluster; back once all trainers have left their pids."""

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
