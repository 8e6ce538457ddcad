"""Environment variables that TensorFlow's servers and their gRPC read."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping

from tfdist.doctor.finding import Finding
from tfdist.task import parse_address

# In the order in which gRPC looks: the first one that is set counts, even if it is empty
# (src/core/handshaker/http_connect/http_proxy_mapper.cc). Capitals it does not read.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_LOOPBACK = {"127.0.0.1", "localhost"}


def proxies(environ: Mapping[str, str], addresses: Mapping[str, str]) -> list[Finding]:
    """A proxy between the tasks."""
    found = {parse_address(address).host for address in addresses.values()}
    if found & _LOOPBACK:
        found |= _LOOPBACK  # tfdist calls this machine by its other name, see session_target
    hosts = sorted(found)
    variable = _first(environ, _PROXIES)
    if variable is None or not environ[variable]:
        capitals = [name.upper() for name in _PROXIES if environ.get(name.upper())]
        return [_capitals(capitals)] if capitals and hosts else []
    exceptions = _first(environ, _EXCEPTIONS)
    listed = environ[exceptions] if exceptions else ""
    through = [host for host in hosts if not _is_listed(host, listed)]
    if not through:
        return []
    how = f"{exceptions} is {listed!r}" if exceptions else "no_grpc_proxy and no_proxy are not set"
    return [
        Finding(
            "variables.proxy",
            "error",
            f"{variable} is set, and {how}; calls to {', '.join(through)} go to the proxy",
            "gRPC sends calls between tasks to it too, which fail there or hang.",
            f"export no_grpc_proxy={','.join(hosts)} for every task. gRPC compares ends of names, "
            "and subnets such as 10.0.0.0/8 with addresses; it knows no * and reads no NO_PROXY.",
        )
    ]


def _capitals(names: list[str]) -> Finding:
    return Finding(
        "variables.proxy_capitals",
        "note",
        f"{', '.join(names)} set, in capitals",
        "gRPC reads only small letters, so calls between tasks do not go to this proxy; other "
        "programs may.",
        "Nothing to do. Do not copy it to small letters without no_grpc_proxy.",
    )


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in environ), None)


def _is_listed(host: str, listed: str) -> bool:
    """Whether gRPC goes past the proxy for `host`."""
    entries = [entry.strip().lower() for entry in listed.split(",")]
    if any(entry and host.lower().endswith(entry) for entry in entries):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name lies in no subnet
    return any(_in_subnet(address, entry) for entry in entries if "/" in entry)


def _in_subnet(address: ipaddress.IPv4Address | ipaddress.IPv6Address, entry: str) -> bool:
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False  # gRPC leaves it out as well


def fail_fast(environ: Mapping[str, str]) -> list[Finding]:
    """A `GRPC_FAIL_FAST` other than what TensorFlow 2.21 takes where it is not set."""
    value = environ.get("GRPC_FAIL_FAST", "use_caller")
    harm = {
        "use_caller": None,
        "false": "A call to a task that is gone waits without end, where it should be an error.",
        "true": "A call to a task that has not started yet fails, where it should wait.",
    }.get(value.lower(), "TensorFlow knows no such value, and fails each call between tasks.")
    if harm is None:
        return []
    return [
        Finding(
            "variables.fail_fast",
            "warning" if value.lower() in ("true", "false") else "error",
            f"GRPC_FAIL_FAST is {value!r}",
            harm,
            "export GRPC_FAIL_FAST=use_caller, or unset it.",
        )
    ]


def reuse_port(environ: Mapping[str, str], own_address: str | None) -> list[Finding]:
    """A `TF_GRPC_REUSE_PORT` that lets two servers share one port."""
    if own_address is None or environ.get("TF_GRPC_REUSE_PORT", "").lower() not in ("1", "true"):
        return []
    return [
        Finding(
            "variables.reuse_port",
            "note",
            "TF_GRPC_REUSE_PORT is set",
            f"A second server at {own_address}, of a job started twice, is not refused: the two "
            "share the connections, and tasks talk to the wrong one.",
            "Unset it, unless a launcher holds the port, as `tfdist run` does. "
            "tfdist.parameter_server and "
            "tfdist.worker_server look whether the port is taken first.",
        )
    ]


def gpus(
    environ: Mapping[str, str], task: str | None, find: Callable[[], list[str]]
) -> list[Finding]:
    """GPUs that a ps would take."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    # CUDA stops at the first entry that names no device, so "-1" hides all, and so does "".
    hidden = visible is not None and not re.match(r"\s*([0-9]|GPU-|MIG-)", visible)
    if task is None or not task.startswith("ps:") or hidden or not (found := find()):
        return []
    return [
        Finding(
            "gpu.ps",
            "warning",
            f"{task} sees {', '.join(found)}",
            "TensorFlow takes nearly all memory of each GPU it sees. A ps has no use for it, and a "
            "worker on this machine would find none left.",
            "export CUDA_VISIBLE_DEVICES=-1 for the ps.",
        )
    ]
