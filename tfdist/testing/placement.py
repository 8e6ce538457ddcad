"""Runs the tasks of a cluster on the hosts of a test network, at the cost of a fork for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tfdist.cluster.kernel_calls import CLONE_NEWNS, unmount, unshare
from tfdist.cluster.local import LocalCluster
from tfdist.cluster.processes import Surroundings
from tfdist.cluster.shape import Shape
from tfdist.errors import ConfigError
from tfdist.task import Task
from tfdist.testing.enter import enter
from tfdist.testing.network import Network

PORT = 2222  # as in TensorFlow's examples; the same on every host


def host_name(task: Task) -> str:
    """The name of the task's host: "worker-1" for worker:1."""
    return f"{task.task_type}-{task.task_index}"


def host_names(
    num_ps: int = 1,
    num_workers: int = 2,
    *,
    chief: bool = False,
    evaluator: bool = False,
    coordinator: bool = False,
) -> list[str]:
    """The names of the hosts that a `Network` needs for such a `cluster_on`."""
    shape = Shape(num_ps, num_workers, chief, evaluator, coordinator)
    any_addresses = [f"host-{number}:{PORT}" for number in range(shape.num_servers)]
    return [host_name(task) for task in shape.tasks(any_addresses)]


def cluster_on(
    network: Network,
    num_ps: int = 1,
    num_workers: int = 2,
    *,
    chief: bool = False,
    evaluator: bool = False,
    coordinator: bool = False,
    surroundings: Surroundings | None = None,
) -> LocalCluster:
    """A cluster of processes, each on a host of its own, such as `worker-1`.

    Use it like `tfdist.local_cluster`, and leave it before the network. A task has the network, the
    name and the shared folder of its host, but process numbers and `/proc` of this machine.

    Raises:
        ConfigError: a parameter is wrong, or the network lacks one of the hosts.
        ClusterError: the network is not up.
    """
    shape = Shape(num_ps, num_workers, chief, evaluator, coordinator)
    names = host_names(
        num_ps, num_workers, chief=chief, evaluator=evaluator, coordinator=coordinator
    )
    if not isinstance(network, Network):
        raise ConfigError("network", network, "must be a Network")
    if absent := [name for name in names if name not in network.hosts]:
        raise ConfigError("network.hosts", network.hosts, f"must contain {', '.join(absent)}")
    given = surroundings or Surroundings()
    return LocalCluster(
        shape,
        "processes",
        replace(
            given,
            # A host cannot reach the proxy that this machine's environment names.
            environment={"no_grpc_proxy": ",".join(network.hosts), **given.environment},
            enter=_EnterHost({name: network.holder(name) for name in names}),
        ),
        addresses=[f"{name}:{PORT}" for name in names[: shape.num_servers]],
    )


@dataclass(frozen=True)
class _EnterHost:
    """Moves the process of a task to its host; pickling takes this object to that process.

    Attributes:
        holders: the process that holds the namespaces of each host.
    """

    holders: Mapping[str, int]

    def __call__(self, task: Task) -> None:
        enter(self.holders[host_name(task)], ["net", "uts", "mnt"])
        # The host's /proc does not show this process, not even as /proc/self. This machine's /proc
        # lies below it.
        unshare(CLONE_NEWNS)
        unmount("/proc")
