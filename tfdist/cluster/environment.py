"""What TensorFlow's servers need in their environment, whoever starts them."""

from __future__ import annotations

from collections.abc import Mapping

from tfdist.task import Task, parse_address

_FAIL_FAST = {"GRPC_FAIL_FAST": "use_caller"}  # a peer that is gone is an error, not a wait

# Of those of a cluster on this machine alone.
SERVER_ENVIRONMENT = {
    **_FAIL_FAST,
    "TF_GRPC_REUSE_PORT": "1",  # the launcher holds the ports
    "no_grpc_proxy": "127.0.0.1,localhost",  # a proxy would break calls to this machine
}


def node_environment(task: Task, environ: Mapping[str, str]) -> dict[str, str]:
    """Of a task whose cluster is on several machines; what `environ` says already stays so.

    A proxy, which docker puts into every container where it has one, would break calls between
    tasks. gRPC reads `no_grpc_proxy` in place of `no_proxy`, and not beside it.
    """
    addresses = [address for part in task.cluster_spec.values() for address in part]
    hosts = [parse_address(address).host for address in addresses]
    others = [host for host in environ.get("no_proxy", "").split(",") if host]
    wanted = {**_FAIL_FAST, "no_grpc_proxy": ",".join(dict.fromkeys([*hosts, *others]))}
    return {name: value for name, value in wanted.items() if name not in environ}
