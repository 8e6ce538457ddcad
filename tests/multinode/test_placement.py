"""The tasks of a cluster live on the hosts of a network, and are a cluster as ever."""

import functools
import os
import threading

import pytest

import tfdist
from tests.multinode.jobs import meet_or_tell_who_is_missing, meet_twice, tell_where
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
    """Runs a function in a thread while the job runs, and raises what it raised."""
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
    results = cluster.run(functools.partial(tell_where, folder=network.shared), timeout=60)
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
def test_a_task_comes_back_to_its_host(network, cluster, acting, kind):
    def act():
        met = network.shared_here / "worker:0 has met"
        poll_until(met.exists, "it has met the others", timeout=60)
        with kind("worker:0").on(cluster):
            (network.shared_here / "go").touch()

    acting(act)
    generations = cluster.run(functools.partial(meet_twice, folder=network.shared), timeout=60)
    assert generations == [1, 2 if kind is faults.Restart else 1]


def test_a_host_that_is_unplugged_is_missed(network, cluster, acting):
    def act():
        poll_until((network.shared_here / "met").exists, "they have met", timeout=60)
        with faults.Unplug("worker-0").on(network):
            (network.shared_here / "unplugged").touch()
            poll_until((network.shared_here / "told").exists, "it is missed", timeout=60)

    acting(act)
    job = functools.partial(meet_or_tell_who_is_missing, folder=network.shared)
    assert cluster.run(job, timeout=60) == [("worker:0",), None]


def test_a_host_that_is_gone_is_told(network, cluster):
    os.kill(network.holder("worker-0"), 9)
    with pytest.raises(tfdist.TaskFailed, match=r"worker:0 .*\n(.*\n)*.*No such file"):
        cluster.run(functools.partial(tell_where, folder=network.shared), timeout=60)


def test_a_network_without_the_hosts_is_refused():
    with Network(["ps-0"]) as small, pytest.raises(tfdist.ConfigError, match="worker-0, worker-1"):
        cluster_on(small, num_ps=1, num_workers=2)
