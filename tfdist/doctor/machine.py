"""What this machine says about itself and about names; tests pass their own."""

from __future__ import annotations

import glob
import importlib.metadata
import ipaddress
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tfdist.cluster.ports import is_taken
from tfdist.doctor.identities import ReadIdentities, read_identities

_NVIDIA_SMI_SECS = 2.0


def resolve(host: str) -> list[str]:
    """The IP addresses of `host`, in the system's order.

    Blocks as long as the system's resolver does.

    Raises:
        OSError: it has none.
        UnicodeError: it is no possible name.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def own_addresses() -> list[str]:
    """The IP addresses of this machine's interfaces that are up, without the scope of IPv6."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return [
        address.address.partition("%")[0]
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    ]


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, means "this machine" on every machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def gpus() -> list[str]:
    """The GPUs that this process may open; asks nvidia-smi for 2 s at most where there is one."""
    if devices := sorted(glob.glob("/dev/nvidia[0-9]*")):
        return devices
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        told = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_SECS,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return []  # it fails where it finds no driver; TensorFlow then finds no GPU either
    return [line.split(" (")[0] for line in told.stdout.splitlines() if line.startswith("GPU ")]


def installed(package: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Machine:
    """How the doctor asks.

    Attributes:
        resolve: the IP addresses of a host; raises OSError where it has none.
        own_addresses: the IP addresses of this machine.
        is_taken: whether another program has a port of this machine.
        gpus: names of its GPUs.
        installed: the version of a package, or None.
        read_identities: what ps show of themselves.
    """

    resolve: Callable[[str], list[str]] = resolve
    own_addresses: Callable[[], list[str]] = own_addresses
    is_taken: Callable[[int], bool] = is_taken
    gpus: Callable[[], list[str]] = gpus
    installed: Callable[[str], str | None] = installed
    read_identities: ReadIdentities = read_identities
