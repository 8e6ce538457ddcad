"""A cluster whose tasks run on the hosts of a network works like any other."""

import functools
import os
import threading

import pytest

import tfdist
from tests.multinode.jobs import meet_or_report_the_missing, meet_twice, report_place
from tfdist.testing import Network, cluster_on, faults, host_names, poll_until

HOSTS = ["ps-0", "chief-0", "worker-0"]


@pytest.fixture
def network():
    with Network(host_names(num_ps=1, num_workers=1, chief=True)) as network:
        yield network


@pytest.fixture
def cluster(no_leaks, network):
    with cluster_on(network, num_ps=1, num_workers=1, chief=True) as cluster:
        yield cluster


@pytest.fixture
def acting():
    """Runs a function in a thread while the job runs; an error in it fails the test."""
    threads, failures = [], []

    def run(function):
        try:
            function()
        except BaseException as error:
            failures.append(error)

    def act(function):
        threads.append(threading.Thread(target=run, args=[function]))
        threads[-1].start()

    yield act
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_each_task_is_on_its_host(network, cluster):
    assert list(network.hosts) == HOSTS
    assert [task.address for task in cluster.tasks] == [f"{host}:2222" for host in HOSTS]
    results = cluster.run(functools.partial(report_place, folder=network.shared), timeout=60)
    assert results == [
        {
            "host": host,
            "address": network.address(host),
            "cards": ["lo", "eth0"],
            "process": True,
            "files": ["chief:0", "worker:0"],
            "folder": os.getcwd(),
        }
        for host in ("chief-0", "worker-0")
    ]


@pytest.mark.parametrize("kind", [faults.Restart, faults.Pause])
def test_a_restarted_or_resumed_task_is_on_its_host_again(network, cluster, acting, kind):
    def act():
        met = network.shared_here / "worker:0 has met"
        poll_until(met.exists, "worker:0 has met the others", timeout=60)
        with kind("worker:0").on(cluster):
            (network.shared_here / "go").touch()

    acting(act)
    generations = cluster.run(functools.partial(meet_twice, folder=network.shared), timeout=60)
    assert generations == [1, 2 if kind is faults.Restart else 1]


def test_an_unplugged_host_is_missing_at_the_barrier(network, cluster, acting):
    def act():
        poll_until((network.shared_here / "met").exists, "all have met", timeout=60)
        with faults.Unplug("worker-0").on(network):
            (network.shared_here / "unplugged").touch()
            poll_until((network.shared_here / "reported").exists, "the chief has it", timeout=60)

    acting(act)
    job = functools.partial(meet_or_report_the_missing, folder=network.shared)
    assert cluster.run(job, timeout=60) == [("worker:0",), None]


def test_a_task_of_a_host_that_is_gone_fails(network, cluster):
    os.kill(network.holder("worker-0"), 9)
    with pytest.raises(tfdist.TaskFailed, match=r"worker:0 .*\n(.*\n)*.*No such file"):
        cluster.run(functools.partial(report_place, folder=network.shared), timeout=60)


def test_a_network_without_the_hosts_is_rejected():
    with Network(["ps-0"]) as small, pytest.raises(tfdist.ConfigError, match="worker-0, worker-1"):
        cluster_on(small, num_ps=1, num_workers=2)
