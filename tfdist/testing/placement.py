"""The tasks of a cluster on the hosts of a test network, at the price of a fork."""

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

PORT = 2222  # the usual one of TensorFlow's examples; each host has its own


def host_name(task: Task) -> str:
    """The host on which a task lives: "worker-1" for worker:1."""
    return f"{task.task_type}-{task.task_index}"


def host_names(
    num_ps: int = 1,
    num_workers: int = 2,
    *,
    chief: bool = False,
    evaluator: bool = False,
    coordinator: bool = False,
) -> list[str]:
    """The hosts that `cluster_on` needs for such a cluster, for `Network`."""
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
    """A cluster of processes each of which lives on a host of its own, such as `worker-1`.

    It is used like that of `tfdist.local_cluster`, and to be left before the network is. A task has
    the network, the name and the shared folder of its host, but the process numbers of this
    machine, so `/proc` is this machine's as well.

    Raises:
        ConfigError: a parameter is wrong, or the network lacks one of the hosts.
        ClusterError: the network is not up.
    """
    shape = Shape(num_ps, num_workers, chief, evaluator, coordinator)
    names = host_names(
        num_ps, num_workers, chief=chief, evaluator=evaluator, coordinator=coordinator
    )
    if absent := [name for name in names if name not in network.hosts]:
        raise ConfigError("network.hosts", network.hosts, f"{', '.join(absent)} too")
    given = surroundings or Surroundings()
    return LocalCluster(
        shape,
        "processes",
        replace(
            given,
            # A proxy of this machine's environment cannot be reached from there.
            environment={"no_grpc_proxy": ",".join(network.hosts), **given.environment},
            enter=_EnterHost({name: network.holder(name) for name in names}),
        ),
        addresses=[f"{name}:{PORT}" for name in names[: shape.num_servers]],
    )


@dataclass(frozen=True)
class _EnterHost:
    """Puts the process of a task onto its host; travels to that process by pickling.

    Attributes:
        holders: the process that holds a host's namespaces, by the host's name.
    """

    holders: Mapping[str, int]

    def __call__(self, task: Task) -> None:
        enter(self.holders[host_name(task)], ["net", "uts", "mnt"])
        # The host's /proc shows the processes that were started there, and this one is none of
        # them: not even /proc/self would lead anywhere. Beneath lies that of this machine.
        unshare(CLONE_NEWNS)
        unmount("/proc")
